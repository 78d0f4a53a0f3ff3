"""Names of the cells of a sweep, with the settings in which cells of the same name differ."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from omegaconf import OmegaConf

from bench.config.values import shown
from bench.run.cell import Cell

MOST = 3  # settings that are named, if they tell the cells apart


def labels(cells: Sequence[Cell], beside: Sequence[Hashable] = ()) -> list[str]:
    """Return the label of each cell; cells with equal labels also have the settings in which they differ.

    beside: what else is printed about each cell; equal labels with different values of it need no settings.
    """
    keys = [repr((cell.label(), *beside[place : place + 1])) for place, cell in enumerate(cells)]
    found = [cell.label() for cell in cells]
    for _, group in groupby(sorted(range(len(cells)), key=keys.__getitem__), key=keys.__getitem__):
        places = list(group)
        if len(places) > 1:
            for place, told in zip(places, _differences([cells[one] for one in places]), strict=True):
                found[place] += told
    return found


def _differences(cells: Sequence[Cell]) -> list[str]:
    """Return for each cell the settings in which the cells differ, as text; only the first MOST if these suffice."""
    first = _settings(cells[0])
    names, differ = dict.fromkeys(first), set[str]()
    for one in map(_settings, cells):  # one after the other, since a sweep may have thousands
        names |= dict.fromkeys(one)
        differ |= {name for name in {**first, **one} if one.get(name) != first.get(name)}
    listed = [name for name in names if name in differ]
    values = [tuple(one.get(name) for name in listed) for one in map(_settings, cells)]
    shorter = len(listed) > MOST and len({own[:MOST] for own in values}) == len(set(values))
    listed, more = (listed[:MOST], " ...") if shorter else (listed, "")
    named = [[("null" if value is None else value) for value in own[: len(listed)]] for own in values]
    return ["".join(f" {name}={one}" for name, one in zip(listed, own, strict=True)) + more for own in named]


def _settings(cell: Cell) -> dict[str, str]:
    """Return every setting of a cell by its full name."""
    return dict(_flat(OmegaConf.to_container(cell.cfg, resolve=False)))


def _flat(node: Any, above: str = "") -> Iterator[tuple[str, str]]:
    """Yield the full name and the value of each setting in a config."""
    if isinstance(node, Mapping):
        for name, inner in node.items():
            yield from _flat(inner, f"{above}{name}.")
    else:
        yield above.rstrip("."), node if isinstance(node, str) else shown(node)
