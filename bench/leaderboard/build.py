"""The files of a leaderboard, from records alone: CSV, tidy CSV, Markdown, LaTeX and BibTeX."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from bench.console import command, escape
from bench.files.atomic import write_whole
from bench.leaderboard import bibliography, formatting, latex, suite_tables
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
    bib: Path
    tables: list[Table]
    skipped: list[str]


def leaderboard(found: Sequence[Table]) -> pd.DataFrame:
    """A row per model, method, strength and fit seed; rows of one `table` may be compared.

    For each metric `<suite>.<metric>`: value, `.low` and `.high` of its 95 % interval, `.se`, `.n`, and `.delta`,
    `.delta_low`, `.delta_high` to the unsteered model on the same items with the paired 95 % interval. Missing is
    empty. Units are in the names; strengths are in `strength_unit`. `bench.console.escape.read_csv` reads the file
    back: a name that a spreadsheet would compute, or that holds control characters, has an apostrophe before it there.
    """
    frame = pd.concat([table.frame for table in found], ignore_index=True)
    metrics = [name for name in frame.columns if "." in name]
    rest = [name for name in frame.columns if name not in metrics and name != "records"]
    return frame[[*rest, *metrics, "records"]]


def tidy(found: Sequence[Table]) -> pd.DataFrame:
    """A row per method and metric: value, interval, standard_error, n, and its change from unsteered, interval and p.

    The columns that name the row are those of `leaderboard`; `p_holm` is corrected over the rows of the table.
    """
    named = ["table", "model", "method", "family", "parameters", "strengths", "strength_unit", "fits", "error_over"]
    parts = {"": "value", ".low": "low", ".high": "high", ".se": "standard_error", ".n": "n",
             ".delta": "delta", ".delta_low": "delta_low",
             ".delta_high": "delta_high", ".p": "p", ".p_holm": "p_holm", ".detectable": "detectable",
             ".detectable_holm": "detectable_holm"}  # fmt: skip
    rows = []
    for table in found:
        for _, row in table.frame.iterrows():
            for metric, entry in table.metrics.items():
                if pd.notna(row.get(metric)):
                    suite, _, name = metric.partition(".")
                    numbers = {title: row.get(f"{metric}{end}") for end, title in parts.items()}
                    about = {"suite": suite, "metric": name, "higher_is_better": entry.higher_is_better}
                    rows.append({**{key: row[key] for key in named}, **about, **numbers})
    return pd.DataFrame(rows).astype({"n": "Int64", "fits": "Int64"})


def selected(results: Sequence[Result], **wanted: Sequence[str] | None) -> list[Result]:
    """The results of these models, suites, families and methods; the unsteered model stays, as what they differ from.

    Raises:
        SetupError: a name that no record has.
    """
    keys: dict[str, Callable[[Result], str]] = {
        "model": lambda one: one.record.model.name,
        "suite": lambda one: one.record.suite,
        "family": lambda one: one.record.method.family,
        "method": lambda one: one.record.method.name,
    }
    kept = list(results)
    for name, values in wanted.items():
        key = keys[name]
        allowed = sorted({key(one) for one in results})
        unknown = [value for value in values or () if value not in allowed]
        if unknown:
            raise SetupError(f"--{name} {','.join(unknown)}: no record has it; there are {', '.join(allowed)}")
        if values:
            spared = name in ("family", "method")
            kept = [
                one for one in kept if key(one) in values or (spared and one.record.method.family == BASELINE_FAMILY)
            ]
    return kept


def rebuild(results: Path, name: str = "leaderboard", each_fit: bool = False, **wanted: Sequence[str] | None) -> Built:
    """Write `name`.csv, .md, .tex, `name`_tidy.csv and methods.bib from `results`/runs/records.

    Equal records give equal bytes. methods.bib has the papers of all records, whatever is wanted.
    `each_fit`: a row for each fit seed. `wanted`: as of `selected`.

    Raises:
        SetupError: there is no record of a test split, or the folder cannot be written.
    """
    records, skipped = read_records(results / "runs")
    found = tables(selected(records, **wanted), each_fit)
    if not found:
        chosen = " ".join(f"--{key} {','.join(values)}" for key, values in wanted.items() if values)
        raise SetupError(
            f"{len(records)} records in {results / 'runs'} but none of the test split, only of tuning; "
            "run the cell to its end with `python -m bench`" + (f", or ask for more than {chosen}" if chosen else "")
        )
    paths = {kind: results / f"{name}{kind}" for kind in (".csv", "_tidy.csv", ".md", ".tex")}
    paths[".bib"] = results / bibliography.FILE
    contents = {
        ".csv": escape.csv(leaderboard(found)),
        "_tidy.csv": escape.csv(tidy(found)),
        ".md": formatting.markdown(found, suite_tables.markdown),
        ".tex": latex.document(found),
        ".bib": bibliography.document(one.record.method for one in records),
    }
    try:
        for kind, content in contents.items():
            write_whole(paths[kind], content)
    except OSError as error:
        raise SetupError(f"cannot write the leaderboard to {results}: {command.refused(error)}") from error
    return Built(paths[".csv"], paths["_tidy.csv"], paths[".md"], paths[".tex"], paths[".bib"], found, skipped)
