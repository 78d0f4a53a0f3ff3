"""`runtime.dry_run=true`: tell what a command would compute, and the time and memory that this takes; compute nothing.

Files that a result's id depends on are needed to tell whether it is cached: data sets, the model's config and
tokenizer. So these are fetched; weights of a model on the hub are not.
"""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.table import Table

from bench.console.command import overview
from bench.console.escape import terminal
from bench.run import memory_needed, speeds, told_apart
from bench.run.cell import Cell
from bench.run.runner import Failure, ready
from bench.run.session import Session

Planned = Sequence[tuple[Cell, dict[str, float]]]


def show(configs: Sequence[DictConfig]) -> list[Failure]:
    """Print the cells and the estimates; returns the cells that could not run."""
    cells, failures = ready(configs, Session(), weights=False)
    out = overview()
    table = Table(box=None, pad_edge=False)
    for name in ("cell", "", "model", "strength", "to compute"):
        table.add_column(name, overflow="fold")
    every = [cell for cell, _ in cells]
    strengths = [str(cell.cfg.strength) if cell.method.strengths else "" for cell in every]
    names = told_apart.labels(every, [(str(cell.cfg.model.name), x) for cell, x in zip(every, strengths, strict=True)])
    first, same = dict[frozenset[str], int](), 0
    for number, ((cell, stages), name, strength) in enumerate(zip(cells, names, strengths, strict=True)):
        kinds = dict.fromkeys(key.partition(" ")[0] for key in stages)
        left = ", ".join(kinds) if kinds else "nothing, already computed"
        if stages and (like := first.setdefault(frozenset(stages), number)) != number:
            left, same = f"nothing, the same as cell {like}", same + 1
        table.add_row(str(number), *map(terminal, (name, str(cell.cfg.model.name), strength, left)))
    out.print(table)
    due = [one for one in cells if one[1]]
    out.print(
        f"{len(cells)} cell{'' if len(cells) == 1 else 's'} can run, {len(cells) - len(due)} already computed"
        + (f", {same} the same as another" if same else "")
        + (f"; {len(failures)} cannot run" if failures else "")
    )
    if due:
        for line in (_time(due), *(line for own in _by_model(due) for line in memory_needed.told(own))):
            out.print(terminal(line))
    return failures


def _by_model(due: Planned) -> list[Planned]:
    keys = dict.fromkeys(cell.model.key for cell, _ in due)
    return [[one for one in due if one[0].model.key == key] for key in keys]


def _time(due: Planned) -> str:
    """Tell how long the stages take one after the other, estimated from earlier stages in this results folder."""
    known = speeds.read(Path(due[0][0].runs))
    seconds, untimed, timed = 0.0, dict[str, None](), False
    for cells in _by_model(due):
        todo = {key: tokens for _, own in cells for key, tokens in own.items()}
        found = speeds.estimate(todo, known.get(cells[0][0].model.key, {}))
        seconds += found.seconds
        timed = timed or found.seconds > 0
        untimed |= dict.fromkeys(found.untimed)
    if not timed:
        return "time: no estimate, since this results folder has no times of such work yet"
    told = (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
    less = f"; not counted: {', '.join(untimed)}, of which this folder has no times yet" if untimed else ""
    return f"time: about {told}, one cell after the other, as fast as what was computed in this results folder{less}"
