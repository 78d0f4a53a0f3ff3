"""Names of the cells of a sweep, with the settings in which cells of the same name differ."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from omegaconf import OmegaConf

from bench.config.values import shown
from bench.run.cell import Cell

MOST = 3  # settings that are named, if they tell the cells apart


def labels(cells: Sequence[Cell], beside: Sequence[Hashable] = ()) -> list[str]:
    """Return the label of each cell; cells of one label are told apart by the settings in which they differ.

    beside: what else is printed about each cell, and may tell it apart already.
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
    """Return for each cell the first settings that not all cells have, as text."""
    settings = [dict(_flat(OmegaConf.to_container(cell.cfg, resolve=False))) for cell in cells]
    names = list(dict.fromkeys(name for one in settings for name in one))
    differ = [name for name in names if any(one.get(name) != settings[0].get(name) for one in settings)]
    few = [tuple(one.get(name) for name in differ[:MOST]) for one in settings]
    shorter = len(differ) > MOST and len(set(few)) == len({tuple(one.get(name) for name in differ) for one in settings})
    names, more = (differ[:MOST], " ...") if shorter else (differ, "")
    return ["".join(f" {name}={one.get(name, 'null')}" for name in names) + more for one in settings]


def _flat(node: Any, above: str = "") -> Iterator[tuple[str, str]]:
    """Yield the full name and the value of each setting in a config."""
    if isinstance(node, Mapping):
        for name, inner in node.items():
            yield from _flat(inner, f"{above}{name}.")
    else:
        yield above.rstrip("."), node if isinstance(node, str) else shown(node)
