"""Every kind of figure, the data that it is drawn from, and its files. All come from records alone."""

import functools
import itertools
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from bench.console import command
from bench.console.children import Children
from bench.console.escape import file_name, visible
from bench.leaderboard.frame import Table, tables
from bench.plots import sweeps
from bench.plots.capability import capability
from bench.plots.changes import changes
from bench.plots.cost import cost
from bench.plots.foreseen import foreseen
from bench.plots.groups import groups
from bench.plots.panels import label_noise, layers, sample_size, strength
from bench.plots.style import NoSuchPage, NothingToDraw, Width, laid_out, save
from bench.plots.tampering import fine_tuned, tampering
from bench.plots.tradeoff import tradeoff
from bench.plots.training import trained, training
from bench.records.names import RANDOM
from bench.records.table import Result, read_records
from methods.errors import SetupError

Drawing = tuple[str, tuple[pd.DataFrame, ...]]
"""The end of a figure's file name, after its kind (-2 for the second table), and the frames that it is drawn from."""


@dataclass(frozen=True)
class Source:
    """The data for figures: tables that are made already, and records, which are read only if asked for."""

    results: Path
    found: Sequence[Table] | None = None
    model: str | None = None

    @functools.cached_property
    def records(self) -> list[Result]:
        """All results, or those of one model. Raises SetupError if there are none."""
        found, skipped = read_records(self.results / "runs")
        if self.found is None:  # whoever read `found` has printed them
            for line in skipped:
                print(visible(line), file=sys.stderr)
        if self.model is None:
            return found
        known = sorted({one.record.model.name for one in found})
        if self.model not in known:
            raise SetupError(f"--model {self.model}: no record of this model; there are records of {', '.join(known)}")
        return [one for one in found if one.record.model.name == self.model]

    @functools.cached_property
    def tables(self) -> Sequence[Table]:
        """The tables of the test split."""
        return tables(self.records) if self.found is None else self.found


class Kind(NamedTuple):
    """A kind of figure: one line about it, the function that draws it, and the function that makes its frames."""

    about: str
    draw: Callable[..., Figure]
    drawings: Callable[[Source], list[Drawing]]


def suffix(number: int) -> str:
    """Return the suffix of a table's figures in file names; the first table has none."""
    return "" if number == 1 else f"-{number}"


def of_tables(source: Source) -> list[Drawing]:
    """Return the frames of a figure that draws each table's rows."""
    return [(suffix(table.number), (table.frame,)) for table in source.tables]


def with_draws(source: Source) -> list[Drawing]:
    """Return the frames of a figure that draws each table's rows, and each of several random directions by itself."""
    found: list[Drawing] = []
    for table in source.tables:
        several = ((table.frame["method"] == RANDOM) & (table.frame["fits"] > 1)).any()
        found.append((suffix(table.number), (table.frame, table.by_fit) if several else (table.frame,)))
    return found


def with_headline(source: Source) -> list[Drawing]:
    """Return the leaderboard's rows of each table, with the name of their headline metric."""
    return [(suffix(table.number), (table.frame.assign(headline=table.aims.headline),)) for table in source.tables]


def over_strengths(source: Source) -> list[Drawing]:
    """Return frames of test results at several strengths, then of the trials of tuning (files named strength_dev)."""
    found: list[Drawing] = [(suffix(table.number), (sweeps.strengths(table),)) for table in source.tables]
    if any(row.tuning for table in source.tables for row in table.rows):
        found += [(f"_dev{suffix(i)}", (rows,)) for i, rows in enumerate(sweeps.trials(source.records), 1)]
    return found


def over_sizes(source: Source) -> list[Drawing]:
    """Return the frames of curves over the number of pairs that methods learnt from."""
    return [(suffix(table.number), (sweeps.sizes(table),)) for table in source.tables]


def over_noise(source: Source) -> list[Drawing]:
    """Return the frames of curves over the share of swapped labels."""
    return [(suffix(table.number), (sweeps.noise(table),)) for table in source.tables]


def over_examples(source: Source) -> list[Drawing]:
    """Return the frames of curves over the number of examples that methods were fine-tuned on."""
    return [(suffix(table.number), (fine_tuned(table),)) for table in source.tables]


def over_training(source: Source) -> list[Drawing]:
    """Return the frames of curves over the learning rates and epochs with which methods were trained."""
    return [(suffix(table.number), (trained(table),)) for table in source.tables]


def over_layers(source: Source) -> list[Drawing]:
    """Return the frames of curves over the layers that methods steered."""
    return [(suffix(table.number), (sweeps.layers(table),)) for table in source.tables]


def of_items(source: Source) -> list[Drawing]:
    """Return the rows of each table with the changes of their items."""
    return [(suffix(table.number), (table.frame, table.by_item)) for table in source.tables]


KINDS = {
    "tradeoff": Kind("toxicity reduction against capability and fluency kept", tradeoff, with_draws),
    "strength": Kind("main metric and perplexity ratio against the strength", strength, over_strengths),
    "changes": Kind("change of the metric on each prompt, and the share that got worse", changes, of_items),
    "groups": Kind("ToxiGen: share of toxic texts about each group", groups, of_tables),
    "capability": Kind("heat map of the change in accuracy, methods by tasks", capability, of_tables),
    "cost": Kind("toxicity reduction against time to fit, speed and size", cost, of_tables),
    "foreseen": Kind("change against how well the training pairs are separated", foreseen, with_headline),
    "sample_size": Kind("change against the number of training pairs", sample_size, over_sizes),
    "label_noise": Kind("change against the share of training pairs with swapped labels", label_noise, over_noise),
    "tampering": Kind("change against the number of examples fine-tuned on afterwards", tampering, over_examples),
    "training": Kind("change against the learning rate and the number of epochs", training, over_training),
    "layers": Kind("change against the layer that is steered", layers, over_layers),
}


COMMAND = re.compile(r"`(python -m bench [^`]*)`")
"""A command in a message about what is missing."""


class Drawn(NamedTuple):
    """A figure of one kind with the name of its files; or, if the kind has no figure, why, and what to run."""

    kind: str
    name: str
    figure: Figure | None
    missing: str | None


def advised(told: str, results: Path) -> str:
    """Return the message of NothingToDraw, with commands that compute into this results folder."""
    if results == command.RESULTS:
        return told
    return COMMAND.sub(lambda found: f"`{found[1]} {shlex.quote(f'{command.RESULTS_KEY}={results}')}`", told)


def pages(kind: Kind, frames: Sequence[pd.DataFrame], width: Width = "double") -> Iterator[Figure]:
    """Yield the pages of the figure. Raises NothingToDraw."""
    try:
        for page in itertools.count(1):
            yield kind.draw(*frames, width=width, page=page)
    except NoSuchPage:
        return


def count(kind: Kind, frames: Sequence[pd.DataFrame]) -> int:
    """Return the number of the figure's pages, none of which is drawn."""
    try:
        kind.draw(*frames, page=sys.maxsize)
    except NoSuchPage as error:
        return error.count
    return 1  # a figure that is never split ignores the page


def drawn(source: Source, kinds: Iterable[str] = tuple(KINDS), width: Width = "double") -> Iterator[Drawn]:
    """Yield every figure of these kinds that the records allow and, for each kind without any, the reason."""
    for name in kinds:
        kind = KINDS[name]
        why: list[str] = []
        drawings = kind.drawings(source) or [("", (pd.DataFrame(),))]
        for end, frames in drawings:
            called = name + end + ("" if width == "double" else f"_{width}")
            try:
                for page, figure in enumerate(pages(kind, frames, width), 1):
                    yield Drawn(name, called if page == 1 else f"{called}-p{page}", figure, None)
            except NothingToDraw as nothing:
                why.append(advised(str(nothing), source.results))
        if len(why) == len(drawings):
            yield Drawn(name, name, None, why[0])


def write(
    source: Source, kinds: Iterable[str] = tuple(KINDS), width: Width = "double", processes: int = 0
) -> tuple[list[Path], list[Drawn]]:
    """Write the figures of these kinds; returns the files, and the kinds of which no figure can be drawn.

    processes: the number of forked processes that write the files while this one draws (`bench.console.children`);
        allowed only in a process without threads.

    Files are figures/NAME.pdf, .svg and .png; NAME-2 is for a second table, NAME_single for one column's width, NAME-p2
    for a second page. Figures of one model alone are in a folder with its name.

    Raises:
        SetupError: there are no records, or the folder cannot be written.
    """
    folder = source.results / "figures"
    if source.model is not None:
        folder /= file_name(source.model)
    missing: list[Drawn] = []

    def ready(kinds: Iterable[str]) -> Iterator[tuple[Figure, Path, str]]:
        for one in drawn(source, kinds, width):
            if one.figure is None:
                missing.append(one)
            else:
                yield one.figure, folder, one.name

    if processes:  # trials need no table, so their files are written while the tables are made
        kinds = sorted(kinds, key=lambda kind: kind != "strength")
    children = Children(processes)
    # A figure is laid out in this process, since positions would depend on memory addresses of the child.
    written = [children.start(partial(save, laid_out(one), place, name)) for one, place, name in ready(kinds)]
    return [path for one in written for path in one.result()], missing


def rebuild(results: Path, found: Sequence[Table] | None = None) -> list[Path]:
    """Draw every figure that the records under `results`/runs allow, two columns wide; returns the files.

    `found`: the tables of these records, if they are made already (`leaderboard.Built.tables`).

    Raises:
        SetupError: there are no records, or the folder cannot be written.
    """
    return write(Source(results, found))[0]
