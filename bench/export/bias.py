"""Export constant vectors as biases: h + v at a block's output is the same as bias b + v in the last matrix of its MLP.

That holds if the block only adds the MLP's output to the residual stream. This is not taken for granted: the checkpoint
is loaded again and its logits are compared.
"""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from bench.export.effect import Steered, verified
from methods import layout
from methods.errors import SetupError

USE = """from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("{output}")
tokenizer = AutoTokenizer.from_pretrained("{output}")"""
SWITCH = "mlp_bias"  # of LlamaConfig: gives every linear layer of the MLP a bias


def write(folder: Path, steered: Steered) -> float:
    """Save the model with the vectors in its biases; returns the largest logit difference after loading it again.

    GPT-2, OPT, GPT-J and GPT-NeoX have a bias there. Llama has one only if its config sets `mlp_bias`; the export
    switches this option on, and sets the other biases that come with it to zero.

    Raises SetupError if the architecture has no place for such a bias.
    """
    with steered.on() as lm:
        model = lm.model
        biases, switched = new_biases(model, steered.effect.vectors)
        model.save_pretrained(folder, state_dict={**model.state_dict(), **biases})
        if switched:
            config = copy.deepcopy(model.config)
            setattr(config, SWITCH, True)
            config.save_pretrained(folder)
    steered.lm.tokenizer.save_pretrained(folder)
    return verified(steered, AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False))


def new_biases(model: PreTrainedModel, vectors: dict[int, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Return the biases (D,) of the value matrices, by name, and whether the config must switch biases on for them."""
    blocks, names = layout.blocks(model), layout.of(model)
    name = _value(model)
    has_bias = getattr(blocks[0].get_submodule(name), "bias", None) is not None
    biases: dict[str, Tensor] = {}
    if not has_bias:
        if not hasattr(model.config, SWITCH):
            raise SetupError(
                f"{model.config.model_type} has no bias in {name} and no option that adds one, so there is no "
                "room for a vector; use format=lm_eval or format=gguf"
            )
        parent = name.rpartition(".")[0]
        for layer, block in enumerate(blocks):
            for own, module in block.get_submodule(parent).named_children():
                if isinstance(module, nn.Linear):
                    zeros = torch.zeros(module.out_features, dtype=model.dtype, device=module.weight.device)
                    biases[f"{names.blocks}.{layer}.{parent}.{own}.bias"] = zeros
    for layer, vector in vectors.items():
        key = f"{names.blocks}.{layer}.{name}.bias"
        old = model.state_dict()[key] if has_bias else biases[key]
        biases[key] = (old.float() + vector.to(old.device).float()).to(old.dtype)
    return biases, not has_bias


def _value(model: PreTrainedModel) -> str:
    """Name the linear module through which every MLP writes. Raises SetupError if its output is not just added."""
    names, kind = layout.of(model).value, model.config.model_type
    parts = [
        part for layer in range(len(layout.blocks(model))) for part in layout.stream_rows(model, layer, "down").parts
    ]
    if len(names) != 1 or len(parts) != len(layout.blocks(model)):
        raise SetupError(
            f"{kind}: its blocks write through {', '.join(names)}, a mixture of experts, where a bias "
            "in each expert would be a different steering; use format=lm_eval or format=gguf"
        )
    if layout.mlp_output_is_normed(model):
        raise SetupError(
            f"{kind}: the output of its MLPs passes through a norm before it is added, so a bias there would not add a "
            "constant vector; use "
            "format=lm_eval or format=gguf"
        )
    return names[0]
