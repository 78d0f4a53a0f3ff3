"""The gradient of DPO's first step, and how much of it lies in a subspace (arXiv 2405.13967 compares the two).

At the start of DPO the model is its own reference, and the gradient is -beta / 2 times the mean over pairs of
grad log p(desired) - grad log p(undesired). Its size depends on beta, its directions do not.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from methods import layout
from methods.progress import advance
from methods.tokens import Text
from methods.training import log_likelihoods


def value_gradients(
    model: PreTrainedModel,
    desired: Sequence[Text],
    undesired: Sequence[Text],
    layers: Sequence[int],
    batch_size: int = 8,
) -> dict[int, Tensor]:
    """Return the gradient with respect to each layer's value matrices, with a row (D,) for each neuron.

    It is the gradient of the mean over pairs of log p(desired) - log p(undesired), (M, D) for each layer, in fp32 on
    the CPU. The model is bit-equal before and after.

    Args:
        model: the model; its parameters need not require gradients.
        desired: texts of the same prompts as `undesired`, as `methods.training.encoded_pairs` returns both.
        undesired: see `desired`.
        layers: numbers of the blocks.
        batch_size: the number of pairs that are read at once.
    """
    matrices = {layer: layout.stream_rows(model, layer, "down") for layer in layers}
    parameters = list(dict.fromkeys(part.parameter for one in matrices.values() for part in one.parts))
    sums = {parameter: torch.zeros_like(parameter, dtype=torch.float32) for parameter in parameters}
    wanted = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for start in range(0, len(desired), batch_size):
            both = [*desired[start : start + batch_size], *undesired[start : start + batch_size]]
            each = log_likelihoods(model, both).view(2, -1)  # (2, B)
            found = torch.autograd.grad((each[0] - each[1]).sum() / len(desired), parameters)
            for parameter, gradient in zip(parameters, found, strict=True):
                sums[parameter] += gradient.float()
            advance(3 * sum(len(text.tokens) for text in both))
    finally:
        for parameter, before in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(before)
    return {layer: _rows(one, sums).cpu() for layer, one in matrices.items()}


def _rows(matrices: layout.Matrices, sums: dict[nn.Parameter, Tensor]) -> Tensor:
    parts = [part._replace(parameter=nn.Parameter(sums[part.parameter])) for part in matrices.parts]
    return layout.Matrices(tuple(parts)).read()


def energy_share(gradient: Tensor, directions: Tensor) -> float:
    """Return the share of the squared norm of a gradient (M, D) in the span of orthonormal directions (R, D)."""
    whole = float(gradient.double().square().sum())
    return float((gradient.double() @ directions.double().T).square().sum()) / whole if whole else float("nan")


def random_directions(rank: int, width: int, seed: int) -> Tensor:
    """Return orthonormal directions (R, D) of a random subspace; about R / D of a gradient's squared norm is in it."""
    drawn = torch.randn(width, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    frame: Tensor = torch.linalg.qr(drawn).Q.T
    return frame
