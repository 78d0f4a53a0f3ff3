"""Affine maps of single units at places of the model, y -> scale * y + shift, as activation transport fits them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from methods import directions, layout, sites
from methods.base import Artefact
from methods.folding import folded, has_bias
from methods.intervention import Hook, edited, hooked
from methods.sites import PARTS, Part, Place

Where = Literal["attention", "mlp", "both", "block"]
EDGE = 0.01  # share of the support, at either end, over which a map fades in


class Map(NamedTuple):
    """The map y -> scale * y + shift for low < y < high, all (width,); if low and high are None, it maps every value.

    Near either end of the support (within EDGE), the map fades in linearly. If it jumped there, rounding errors, which
    differ from batch to batch, would decide whether a value is moved.
    """

    scale: Tensor
    shift: Tensor
    low: Tensor | None = None
    high: Tensor | None = None

    def share(self, values: Tensor) -> Tensor | None:
        """Return how much of the map acts on each value, (..., width): 0 outside the support, 1 well inside.

        None means 1 for every value.
        """
        if self.low is None or self.high is None:
            return None
        from_end = torch.minimum(values - self.low, self.high - values)  # (..., width)
        ramp = EDGE * (self.high - self.low)
        return (from_end / ramp.where(ramp > 0, torch.ones_like(ramp))).clamp(0, 1)

    def moved(self) -> Tensor:
        """Return which units (width,) the map changes: it is not the identity, and its support is not one value."""
        found = (self.scale != 1) | (self.shift != 0)
        if self.low is None or self.high is None:
            return found
        size = torch.maximum(self.low.abs(), self.high.abs())
        return found & (self.high - self.low > directions.SAME * size)

    def to(self, device: torch.device) -> "Map":
        """Return the same map on another device."""
        return Map(*(None if one is None else one.to(device) for one in self))  # type: ignore[arg-type]

    def partial(self, strength: float) -> tuple[Tensor, Tensor]:
        """Return slope and offset (width,) of the map at this strength, which is y <- y + (slope * y + offset)."""
        return strength * (self.scale - 1), strength * self.shift


class Spot(NamedTuple):
    """A place of the model that is mapped: its name in the artefact, and its block."""

    key: str
    layer: int
    part: Part | None  # None: the output of the block, or of a norm in it
    place: Place


def spots(model: PreTrainedModel, where: Where) -> list[Spot]:
    """Return the places of every block, in the order in which they run."""
    layers = range(len(layout.blocks(model)))
    if where == "block":
        width = layout.width(model)
        return [Spot(f"layers.{i}", i, None, Place(layout.blocks(model)[i], "output", width)) for i in layers]
    parts = PARTS if where == "both" else [where]
    return [Spot(f"layers.{i}.{part}", i, part, sites.written(model, i, part)) for i in layers for part in parts]


def post_norms(model: PreTrainedModel) -> list[Spot]:
    """Return the norms between attention or MLP and the stream in every block; [] if the model has none."""
    parts = [part for part in PARTS if sites.is_normed(model, 0, part)]
    return [spot for spot in spots(model, "both") if spot.part in parts] if parts else []


def saved(spots: Sequence[Spot], maps: Sequence[Map]) -> Artefact:
    """Return the maps of these places by name, "<place>.scale" and so on, (width,) each."""
    return {
        f"{spot.key}.{field}": value.contiguous()
        for spot, one in zip(spots, maps, strict=True)
        for field, value in one._asdict().items()
        if value is not None
    }


def changes(artefact: Artefact) -> Artefact:
    """Return what the maps change: scale - 1 and shift of each place, (width,) each, without the supports."""
    scales = {name: one - 1 for name, one in artefact.items() if name.endswith(".scale")}
    return scales | {name: one for name, one in artefact.items() if name.endswith(".shift")}


def loaded(model: PreTrainedModel, artefact: Artefact, spot: Spot, method: str, *, supported: bool) -> Map:
    """Return the map of a place. Raises SetupError for another model's artefact.

    supported: whether the map has a support; a map without one acts on every value.
    """
    fields = Map._fields if supported else Map._fields[:2]
    return Map(*(directions.fitted(model, artefact, f"{spot.key}.{field}", method, axes=1) for field in fields))


@contextmanager
def applied(spots: Sequence[Spot], maps: Sequence[Map], strength: float) -> Iterator[None]:
    """Apply the maps inside the `with`: a map is folded into weights if its module can hold it, else it is a hook."""
    new: dict[nn.Parameter, Tensor] = {}
    hooks = []
    for spot, one in zip(spots, maps, strict=True):
        if one.low is None and has_bias(spot.place.module):
            slope, offset = one.partial(strength)
            new |= folded(spot.place.module, 1 + slope, offset)
        else:
            hooks.append(mapping(spot.place, one, strength))
    with edited(new), hooked(hooks):
        yield


def mapping(place: Place, one: Map, strength: float) -> Hook:
    """Return a hook that maps the values at a place, each by itself, in fp32; it takes any shape (..., width)."""
    slope, offset = one.partial(strength)

    def function(hidden: Tensor) -> Tensor:
        nonlocal one, slope, offset
        one, slope, offset = one.to(hidden.device), slope.to(hidden.device), offset.to(hidden.device)
        values = hidden.float()
        added, share = slope * values + offset, one.share(values)
        if share is None:
            return (values + added).to(hidden.dtype)
        return torch.where(share > 0, (values + share * added).to(hidden.dtype), hidden)

    return Hook(place.module, place.side, function)
