"""The files of a leaderboard, from records alone: CSV, tidy CSV, Markdown, LaTeX and BibTeX."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from bench.console import command, escape
from bench.console.children import Children
from bench.files.atomic import write_whole
from bench.leaderboard import bibliography, csv_files, formatting, latex, latex_suites, suite_tables
from bench.leaderboard.frame import Table, tables
from bench.records.names import BASELINE_FAMILY
from bench.records.table import Result, read_records
from methods.errors import SetupError


class Built(NamedTuple):
    """The files of a leaderboard that were written, its tables, and a line for each record that was skipped."""

    csv: Path
    tidy: Path
    markdown: Path
    tex: Path
    suites_tex: Path
    bib: Path
    tables: list[Table]
    skipped: list[str]


def leaderboard(found: Sequence[Table]) -> pd.DataFrame:
    """Return the rows of all tables, with every number; only rows of one `table` may be compared.

    For each metric `<suite>.<metric>`: value, `.low` and `.high` of its 95% interval, `.se`, `.n`, and the change from
    the unsteered model on the same items, `.delta`, with its paired 95% interval, `.delta_low` and `.delta_high`. A
    missing value is empty. Units are in the names; strengths are in `strength_unit`.
    """
    frame = pd.concat([table.frame for table in found], ignore_index=True)
    metrics = [name for name in frame.columns if "." in name]
    rest = [name for name in frame.columns if name not in metrics and name != "records"]
    return frame[[*rest, *metrics, "records"]]


def selected(results: Sequence[Result], **wanted: Sequence[str] | None) -> list[Result]:
    """Select the results of these models, suites, families and methods; the unsteered model stays, as their reference.

    Raises:
        SetupError: a name is in no record.
    """
    keys: dict[str, Callable[[Result], str]] = {
        "model": lambda one: one.record.model.name,
        "suite": lambda one: one.record.suite,
        "family": lambda one: one.record.method.family,
        "method": lambda one: one.record.method.name,
    }
    kept, asked = list(results), False
    for name, values in wanted.items():
        key = keys[name]
        allowed = sorted({key(one) for one in results})
        unknown = [value for value in values or () if value not in allowed]
        if unknown:
            raise SetupError(f"--{name} {','.join(unknown)}: no record has it; there are {', '.join(allowed)}")
        if values:
            spared = name in ("family", "method")
            kept = [one for one in kept if key(one) in values or (spared and is_unsteered(one))]
            asked = asked or (spared and not any(key(one) in values for one in results if is_unsteered(one)))
    if asked and all(is_unsteered(one) for one in kept):
        chosen = " ".join(f"--{name} {','.join(values)}" for name, values in wanted.items() if values)
        raise SetupError(f"{chosen}: no record of a steered model has all of these; leave one out")
    return kept


def is_unsteered(one: Result) -> bool:
    """Return whether the unsteered model gave this result; it is the reference of all others, so filters keep it."""
    return one.record.method.family == BASELINE_FAMILY


def rebuild(
    results: Path,
    name: str = "leaderboard",
    each_fit: bool = False,
    *,
    processes: int = 0,
    **wanted: Sequence[str] | None,
) -> Built:
    """Write `name`.csv, .md, .tex, `name`_tidy.csv, `name`_suites.tex and methods.bib from `results`/runs/records.

    Equal records give equal bytes. methods.bib has the papers of all records, also of those that are not selected.
    Read the CSV files back with `bench.console.escape.read_csv`: in them an apostrophe precedes each name that a
    spreadsheet would take for a formula or that holds control characters.

    `each_fit`: a row for each fit seed. `processes`: the number of forked processes that write files beside this
    one (`bench.console.children`). `wanted`: the arguments of `selected`.

    Raises:
        SetupError: there is no record of a test split, or the folder cannot be written.
    """
    records, skipped = read_records(results / "runs")
    found = tables(selected(records, **wanted), each_fit)
    if not found:
        chosen = " ".join(f"--{key} {','.join(values)}" for key, values in wanted.items() if values)
        raise SetupError(
            f"{len(records)} records in {results / 'runs'}, but none of the test split, only of tuning; "
            "run the cell to its end with `python -m bench`" + (f", or ask for more than {chosen}" if chosen else "")
        )
    short = csv_files.short(found)
    paths = {kind: results / f"{name}{kind}" for kind in (".csv", "_tidy.csv", ".md", ".tex", "_suites.tex")}
    paths[".bib"] = results / bibliography.FILE
    contents: dict[str, Callable[[], str]] = {
        ".tex": lambda: latex.document(found),
        "_suites.tex": lambda: latex_suites.document(found),
        "_tidy.csv": lambda: escape.csv(csv_files.tidy(found)),
        ".md": lambda: formatting.markdown(found, suite_tables.markdown, without(name, short)),
        ".csv": lambda: escape.csv(short.rows),
        ".bib": lambda: bibliography.document(one.record.method for one in records),
    }
    children = Children(processes)
    begun = {kind: children.start(content) for kind, content in contents.items()}
    try:
        for kind, path in paths.items():
            write_whole(path, begun[kind].result())
    except OSError as error:
        raise SetupError(f"cannot write the leaderboard to {results}: {command.refused(error)}") from error
    return Built(
        paths[".csv"],
        paths["_tidy.csv"],
        paths[".md"],
        paths[".tex"],
        paths["_suites.tex"],
        paths[".bib"],
        found,
        skipped,
    )


def without(name: str, short: csv_files.Short) -> str:
    """Return a line that names the columns for which `name`.csv had no room; empty if it has them all."""
    if not short.left_out:
        return ""
    left_out = ", ".join(short.left_out)
    return f"{name}.csv has at most {csv_files.MOST} columns. It leaves out {left_out}, which {name}_tidy.csv has."
