"""The whole model with its edited weights, as plain transformers loads it."""

from pathlib import Path

from transformers import AutoModelForCausalLM

from bench.export.effect import Steered, verified

USE = """from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("{output}")
tokenizer = AutoTokenizer.from_pretrained("{output}")"""


def write(folder: Path, steered: Steered) -> float:
    """Save the weights as they are inside `apply`, with config and tokenizer (the benchmark's, its BOS rule included).

    Returns the largest logit difference after loading it again.
    """
    with steered.on() as lm:
        lm.model.save_pretrained(folder)
    steered.lm.tokenizer.save_pretrained(folder)
    return verified(steered, AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False))
