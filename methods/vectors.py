"""Functions for methods that steer at the outputs of several blocks, with one vector at each.

A vector is stored at the scale of the residual stream at its block, so that a strength means the same at every block
and in every model: `layers.12.direction` is a unit vector times the mean residual norm at block 12, and strength 0.1
adds a tenth of that norm.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from methods import directions, layout
from methods.base import Artefact
from methods.errors import SetupError
from methods.intervention import Hook, Scope, scope_mask

Map = Callable[[Tensor], Tensor]
"""A function of the residual stream, (B, T, D) -> (B, T, D), that returns a new tensor."""

UNIT = "mean residual norms"


def block_range(model: PreTrainedModel, first: int | float, last: int | float) -> list[int]:
    """Return the blocks from `first` to `last`, both of them included; each is a number or a fraction of the depth.

    Raises SetupError for a block that the model does not have, and if the last one comes before the first.
    """
    start = layout.layer_index(model, first, "method.first_layer")
    end = layout.layer_index(model, last, "method.last_layer")
    if end < start:
        raise SetupError(
            f"method.first_layer={first} is block {start} and method.last_layer={last} is block {end}: the last one "
            "must not come before the first"
        )
    return list(range(start, end + 1))


def kept(layers: Sequence[int], vectors: Tensor, norms: Tensor) -> Artefact:
    """Return the artefact of vectors (L, D), each multiplied by its block's mean residual norm from `norms` (L,)."""
    scaled = vectors * norms[:, None]  # (L, D)
    return {
        **{f"layers.{layer}.direction": one.clone() for layer, one in zip(layers, scaled, strict=True)},
        "info.residual_norm": norms,
    }


def fitted(model: PreTrainedModel, artefact: Artefact, layers: Sequence[int], method: str) -> dict[int, Tensor]:
    """Return the vector (D,) of each block. Raises SetupError for an artefact of another model or other layers."""
    return {layer: directions.fitted(model, artefact, f"layers.{layer}.direction", method) for layer in layers}


def hooks(model: PreTrainedModel, maps: Mapping[int, Map]) -> list[Hook]:
    """Return the hooks that run each map at the output of its block."""
    blocks = layout.blocks(model)
    return [Hook(blocks[layer], "output", function) for layer, function in maps.items()]


def within(function: Map, scope: Scope, *, boundary: bool = False) -> Map:
    """Return `function` limited to the tokens of the scope (`intervention.scope_mask`); the others stay as they are."""

    def scoped(hidden: Tensor) -> Tensor:
        mask = scope_mask(scope, hidden.shape[1], boundary=boundary)  # (B, T)
        moved = function(hidden)
        return moved if mask is None else torch.where(mask[..., None].to(hidden.device), moved, hidden)

    return scoped


def length_kept(function: Map) -> Map:
    """Return the map, followed by a rescaling of each token's stream to the length that it had before."""

    def rescaled(hidden: Tensor) -> Tensor:
        moved = function(hidden).float()
        ratio: Tensor = hidden.float().norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        return (moved * ratio).to(hidden.dtype)

    return rescaled


def towards_own_side(vector: Tensor) -> Map:
    """Return h -> h + sign(h . v) v with v (D,): a token's component along v grows, whichever its sign."""

    def function(hidden: Tensor) -> Tensor:
        nonlocal vector
        vector = vector.to(hidden.device)
        side = (hidden.float() @ vector.float()).sign()[..., None]  # (B, T, 1)
        return hidden + (side * vector).to(hidden.dtype)

    return function


def clamping(unit: Tensor, target: float, share: float = 1.0) -> Map:
    """Return h -> h + share (target - h . u) u with a unit vector u (D,); share 1 sets the projection to `target`."""

    def function(hidden: Tensor) -> Tensor:
        nonlocal unit
        unit = unit.to(hidden.device)
        missing = share * (target - hidden.float() @ unit.float())[..., None]  # (B, T, 1)
        return hidden + (missing * unit).to(hidden.dtype)

    return function


def where_open(verdict: Callable[[Tensor], Tensor], function: Map) -> Map:
    """Return `function` limited to rows whose verdict (B,) (`verdicts.Verdict`) is above 0; the others stay as is."""

    def gated(hidden: Tensor) -> Tensor:
        is_open = verdict(hidden) > 0  # (B,)
        return torch.where(is_open[:, None, None], function(hidden), hidden)

    return gated
