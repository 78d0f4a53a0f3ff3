"""`runtime.dry_run=true`: what a command would compute, how long that takes and how much memory; nothing is computed.

What names a result has to be there to tell whether it is known: data sets, the model's config and tokenizer. So these
are fetched; weights of a model on the hub are not.
"""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.table import Table
from transformers import PreTrainedModel

from bench.console.command import overview
from bench.console.escape import terminal, visible
from bench.model import checkpoint, memory
from bench.run import speeds
from bench.run.cell import Cell, Session
from bench.run.runner import Failure, ready
from bench.suites.continued import Continued

PROMPT_TOKENS = 64
"""What the estimate of memory takes a prompt to have; most have fewer."""
Planned = Sequence[tuple[Cell, dict[str, float]]]


def show(configs: Sequence[DictConfig], alone: Sequence[str] = ()) -> list[Failure]:
    """Print the cells and the estimates; returns the cells that could not run. alone: the command of each cell."""
    cells, failures = ready(configs, Session(), alone, weights=False)
    out = overview()
    table = Table(box=None, pad_edge=False)
    for name in ("cell", "", "model", "strength", "to compute"):
        table.add_column(name, overflow="fold")
    for number, (cell, stages) in enumerate(cells):
        kinds = dict.fromkeys(key.partition(" ")[0] for key in stages)
        strength = str(cell.cfg.strength) if cell.method.strengths else ""
        left = ", ".join(kinds) if kinds else "nothing, it is known"
        table.add_row(str(number), *map(visible, (cell.label(), str(cell.cfg.model.name), strength, left)))
    out.print(table)
    due = [one for one in cells if one[1]]
    out.print(
        f"{len(cells)} cells, {len(cells) - len(due)} known" + (f", {len(failures)} cannot run" if failures else "")
    )
    if due:
        for line in (_time(due), *_memory(due)):
            out.print(terminal(line))
    return failures


def _time(due: Planned) -> str:
    """How long the stages take one after the other, by what such stages took before in this results folder."""
    known = speeds.read(Path(due[0][0].runs))
    seconds, untimed, timed = 0.0, dict[str, None](), False
    for model in dict.fromkeys(cell.model_key for cell, _ in due):
        todo = {key: tokens for cell, own in due if cell.model_key == model for key, tokens in own.items()}
        found = speeds.estimate(todo, known.get(model, {}))
        seconds += found.seconds
        timed = timed or found.seconds > 0
        untimed |= dict.fromkeys(found.untimed)
    if not timed:
        return "time: no estimate, since nothing of this was computed in this results folder yet"
    told = (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
    less = f", without {', '.join(untimed)}, of which nothing was computed here yet" if untimed else ""
    return f"time: about {told}, one cell after the other, as fast as what was computed in this results folder{less}"


def _memory(due: Planned) -> list[str]:
    """A line for each model: its weights, and the batch of sampling that takes most."""
    lines = []
    for key in dict.fromkeys(cell.model_key for cell, _ in due):
        own = [(cell, stages) for cell, stages in due if cell.model_key == key]
        first = own[0][0]
        model = checkpoint.skeleton(first.cfg.model, first.fetch_model(), first.revision, first.cfg.runtime.offline)
        weights = sum(one.numel() * one.element_size() for one in model.parameters())
        batches = [batch for cell, stages in own for batch in _batches(cell, stages, model)]
        told = f"memory: {first.cfg.model.name}: weights {_gib(weights)}"
        if batches:
            size, rows, new = max(batches)
            told += (
                f", and {_gib(size)} for a batch of {rows} texts of {PROMPT_TOKENS} + {new} tokens; batches are "
                "smaller where less is free"
            )
        fits = any(key.startswith("fit ") for _, stages in own for key in stages)
        lines.append(told + ("; what fitting takes is not in it" if fits else ""))
    return lines


def _batches(cell: Cell, stages: dict[str, float], model: PreTrainedModel) -> list[tuple[int, int, int]]:
    """Bytes, rows and new tokens of the largest batch of each suite that samples and is to be computed."""
    found = []
    for suite in cell.parts.suites.values():
        if isinstance(suite, Continued) and any(key.partition(" ")[0] == suite.name for key in stages):
            sampling = suite.decoded(cell.parts.sampling)
            texts = max(len(suite.texts(split)[0]) * suite.samples_a_prompt(split) for split in ("dev", "test"))
            rows = min(sampling.batch_size, texts)
            alone = -(-rows // suite.samples_a_prompt("test"))
            size = memory.estimate(model, rows, alone, PROMPT_TOKENS, sampling.max_new_tokens).total
            found.append((size, rows, sampling.max_new_tokens))
    return found


def _gib(size: int) -> str:
    return f"{size / memory.GIB:.1f} GiB" if size > memory.GIB else f"{size / 2**20:.0f} MiB"
