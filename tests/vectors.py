"""What the tests of methods that steer at block outputs share: features by hand, and the stream before and after."""

import torch
from torch import Tensor

from bench.model.lm import LM
from methods.base import Artefact, Method, Pairs
from methods.intervention import record

PAIRS = Pairs(
    ["The quick fox", "People walk", "A small bird", "The lazy dog", "We talk about"],
    [" jumps over", " along the river and talk", " sings", " walks home", " bread"],
    [" is lazy and old", " home", " is near the old tree", " jumps over the fox", " hate and the weather"],
)
PROMPT, CONTINUATION = "The old tree near", " the river sings"


def ids_of(lm: LM, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of what comes after it, tokenised apart, which the tests' tokenizer allows."""
    return lm.encode(prompt), lm.tokenizer(continuation, add_special_tokens=False).input_ids


@torch.inference_mode()
def output_by_hand(lm: LM, ids: list[int], layer: int) -> Tensor:
    """(T, D) output of a block for one text; not the last block, whose entry in hidden_states is behind a norm."""
    hidden = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    assert layer + 2 < len(hidden), "transformers gives the last block's output behind the final norm"
    return hidden[layer + 1][0].double()


def mean_length_by_hand(lm: LM, prompts: list[str], continuations: list[str], layer: int) -> float:
    """Mean over texts of the mean length of the block's output at the continuation's tokens."""
    means = []
    for head, tail in (ids_of(lm, *one) for one in zip(prompts, continuations, strict=True)):
        means.append(output_by_hand(lm, head + tail, layer)[len(head) :].norm(dim=-1).mean())
    return float(torch.stack(means).mean())


def text_logits(lm: LM, prompt: str = PROMPT, continuation: str = CONTINUATION) -> Tensor:
    """(T, V) logits of the whole text in one forward, in which the hooks know where the prompt ends."""
    head, tail = ids_of(lm, prompt, continuation)
    ids = torch.tensor([head + tail])
    return lm.read(lm.start(torch.tensor([len(head)])), ids, torch.ones_like(ids, dtype=torch.bool))[0]


def before_and_after(
    lm: LM, method: Method, artefact: Artefact, strength: float, layer: int, prompt: str = PROMPT
) -> tuple[Tensor, Tensor, int]:
    """(T, D) output of a block before and behind its hook in one steered forward, and the length of the prompt."""
    with record(lm.model, [layer]) as before, lm.steered(method, artefact, strength) as steered:
        with record(lm.model, [layer]) as after:
            text_logits(steered, prompt)
    return before[layer][0], after[layer][0], len(lm.encode(prompt))
