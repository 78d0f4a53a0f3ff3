"""The matrix products of a model alone, whose time is a lower bound for any way of running it on this machine."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from bench.model.lm import LM


def products(lm: LM, forwards: Sequence[tuple[int, int]]) -> Callable[[], None]:
    """Return a function to be timed, which multiplies with every linear map of the model, as its forward passes do.

    forwards: for each forward, the number of tokens that it reads, and of tokens whose logits it computes. Work between
    the products (attention, norms, caches, softmax) is left out. Only nn.Linear and Conv1D count; an expert counts for
    as many tokens as use it.
    """
    model: Any = lm.model
    head = model.get_output_embeddings()
    maps = [module for module in lm.model.modules() if module is not head and _is_map(module)]
    widths = {_inputs(module) for module in [*maps, *([head] if head is not None else [])]}
    counts = {count for both in forwards for count in both if count}
    given = {
        (count, width): torch.randn(count, width, dtype=lm.model.dtype, device=lm.device)
        for count in counts
        for width in widths
    }

    @torch.inference_mode()
    def work() -> None:
        for read, predicted in forwards:
            for module in maps:
                module(given[read, _inputs(module)])
            if head is not None and predicted:
                head(given[predicted, _inputs(head)])

    return work


def _is_map(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _inputs(module: nn.Module) -> int:
    """Return the number of inputs of a linear map."""
    return int(module.in_features if isinstance(module, nn.Linear) else module.nx)  # type: ignore[arg-type]
