"""The speed of each kind of work in a results folder, by model; later commands estimate their time from it.

`runs/speeds.json` holds tokens and seconds of each kind (a suite, a fit, the making of pairs), summed over commands.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from bench.files import atomic
from bench.run.cell import Cell

FILE = "speeds.json"
Spent = dict[str, tuple[float, float]]
"""Tokens and seconds, by the kind of work."""


class Estimate(NamedTuple):
    """An estimate of time. seconds: for all work of known speed. untimed: the kinds of work of unknown speed."""

    seconds: float
    untimed: list[str]


@contextmanager
def noting(cell: Cell) -> Iterator[None]:
    """Add the tokens and seconds of the block to the speeds of the cell's model; if writing fails, the run goes on."""
    before = _spent(cell)
    try:
        yield
    finally:
        new = {
            kind: (tokens - before.get(kind, (0.0, 0.0))[0], seconds - before.get(kind, (0.0, 0.0))[1])
            for kind, (tokens, seconds) in _spent(cell).items()
        }
        if any(tokens > 0 and seconds > 0 for tokens, seconds in new.values()):
            with suppress(OSError):
                _add(cell.runs, cell.model.key, new)


def _spent(cell: Cell) -> Spent:
    return {name: (kind.all_done, kind.all_seconds) for name, kind in cell.session.bar.kinds.items()}


def _add(runs: Path, model: str, new: Spent) -> None:
    known = read(runs)
    own = known.get(model, {})
    for kind, (tokens, seconds) in new.items():
        if tokens > 0 and seconds > 0:
            before = own.get(kind, (0.0, 0.0))
            own[kind] = (before[0] + tokens, before[1] + seconds)
    atomic.write_whole(runs / FILE, json.dumps(known | {model: own}, indent=1) + "\n")


def read(runs: Path) -> dict[str, Spent]:
    """Return the tokens and seconds spent in this results folder, by the id of the loaded model (`CellModel.key`)."""
    try:
        found = json.loads((runs / FILE).read_text(encoding="utf-8"))
        return {
            str(model): {str(kind): (float(tokens), float(seconds)) for kind, (tokens, seconds) in own.items()}
            for model, own in found.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def estimate(todo: Mapping[str, float], own: Spent) -> Estimate:
    """Estimate how long these stages take one after the other. todo: tokens by stage, whose first word is its kind."""
    seconds, untimed = 0.0, dict[str, None]()
    for key, tokens in todo.items():
        kind = key.partition(" ")[0]
        done, took = own.get(kind, (0.0, 0.0))
        if done > 0:
            seconds += tokens * took / done
        elif tokens > 0:
            untimed[kind] = None
    return Estimate(seconds, list(untimed))
