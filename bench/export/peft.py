"""A PEFT LoRA adapter, which is exact for edits of low rank, such as projections and edits of rows."""

import math
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from bench.export.effect import Steered, verified
from methods.errors import SetupError

USE = """from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "{output}")"""


class LowRank(NamedTuple):
    """W' - W = up @ down; up (outputs, R), down (R, inputs)."""

    up: Tensor
    down: Tensor


def write(folder: Path, steered: Steered) -> float:
    """Save the adapter; returns the largest logit difference after PEFT has loaded it onto the base model.

    All matrices get the largest rank found, with zeros for lower ranks, so that programs that support only one rank can
    load the adapter.

    Raises SetupError for a change that LoRA cannot hold: of a parameter that is no matrix, or of full rank.
    """
    from peft import LoraConfig, PeftModel

    model = steered.lm.model
    targets = {name.removesuffix(".weight"): new for name, new in steered.effect.weights.items()}
    modules = {
        name: model.get_submodule(name)
        for name, full in zip(targets, steered.effect.weights, strict=True)
        if full.endswith(".weight")
    }
    strange = [name for name in targets if not isinstance(modules.get(name), nn.Linear | Conv1D)]
    if strange:
        raise SetupError(
            f"a LoRA adapter holds only changes of linear layers, and {steered.method.name} also changes "
            f"{len(strange)} other parameters (the first is {strange[0]}); use format=checkpoint"
        )
    found = {name: _change(name, modules[name], new, steered.method.name) for name, new in targets.items()}
    rank = max(one.down.shape[0] for one in found.values())
    tensors = {}
    for name, one in found.items():
        missing = rank - one.down.shape[0]
        prefix = f"base_model.model.{name}"
        tensors[f"{prefix}.lora_A.weight"] = nn.functional.pad(one.down, (0, 0, 0, missing)).contiguous()
        tensors[f"{prefix}.lora_B.weight"] = nn.functional.pad(one.up, (0, missing)).contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=steered.base,
        revision=steered.revision,
        inference_mode=True,
        r=rank,
        lora_alpha=rank,  # scale 1
        lora_dropout=0.0,
        target_modules=sorted(found),
        fan_in_fan_out=any(isinstance(modules[name], Conv1D) for name in found),
    ).save_pretrained(str(folder))
    base = AutoModelForCausalLM.from_pretrained(
        steered.location, revision=steered.revision, dtype=model.dtype, trust_remote_code=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses a name that transformers will rename
        loaded = PeftModel.from_pretrained(base, folder)
    return verified(steered, loaded)  # type: ignore[arg-type]


def _change(name: str, module: nn.Module, new: Tensor, method: str) -> LowRank:
    old = module.weight
    assert isinstance(old, Tensor)
    before, after = (tensor.T if isinstance(module, Conv1D) else tensor for tensor in (old.detach(), new))
    found = low_rank(before, after)
    rank, (outputs, inputs) = found.down.shape[0], before.shape
    if rank * (outputs + inputs) >= outputs * inputs:
        raise SetupError(
            f"{method} changes {name} ({outputs} x {inputs}) by a matrix of rank {rank}: an adapter of that rank is as "
            "large as the matrix itself; use format=checkpoint"
        )
    return found


def low_rank(before: Tensor, after: Tensor) -> LowRank:
    """Factor the change into two matrices by SVD in double precision; singular values below rounding are dropped.

    `after` was rounded to the weights' dtype, with an error of at most eps |W| / 2 in each entry. Taken as independent
    noise, these errors form a matrix whose largest singular value is about eps max|W| (sqrt m + sqrt n) / (2 sqrt 3);
    singular values below eps max|W| (sqrt m + sqrt n) carry no information.
    """
    change = after.double().cpu() - before.double().cpu()  # (outputs, inputs)
    up, values, down = torch.linalg.svd(change, full_matrices=False)
    noise = torch.finfo(before.dtype).eps * float(after.abs().max()) * sum(math.sqrt(size) for size in change.shape)
    rank = max(int((values > noise).sum()), 1)
    root = values[:rank].sqrt()
    return LowRank((up[:, :rank] * root).float(), (root[:, None] * down[:rank]).float())
