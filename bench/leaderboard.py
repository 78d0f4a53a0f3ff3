"""The leaderboard, rebuilt from records alone in seconds, without torch.

python -m bench.leaderboard [--results results]
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from bench import readable
from bench.collect import collect, read_records
from bench.record import write_whole
from bench.tables import Table, tables
from methods.errors import SetupError

__all__ = ["Built", "collect", "leaderboard", "main", "rebuild", "show"]

PIPE_WIDTH = 140  # columns where there is no terminal
LEAST = (
    "fit s",
    "pairs",
    "dev-test",
    "speed",
    "vs\nrandom",
    "strength",
)  # left out of a narrow terminal, this first; see the files
ENDLESS = Console(width=1000)  # to measure what a table needs


class Built(NamedTuple):
    """What was written, and what it was made of."""

    csv: Path
    markdown: Path
    tables: list[Table]
    skipped: list[str]


def leaderboard(found: Sequence[Table]) -> pd.DataFrame:
    """A row per model, method, strength and fit seed; rows of one `table` may be compared.

    For each metric `<suite>.<metric>`: value, `.se`, `.n`, and `.delta`, `.delta_low`, `.delta_high` to the unsteered
    model on the same items with the paired 95 % interval. Missing is empty. Units are in the names; strengths are in
    `strength_unit`.
    """
    frame = pd.concat([table.frame for table in found], ignore_index=True)
    metrics = [name for name in frame.columns if "." in name]
    rest = [name for name in frame.columns if name not in metrics and name != "records"]
    return frame[[*rest, *metrics, "records"]]


def rebuild(results: Path) -> Built:
    """Write leaderboard.csv and leaderboard.md from `results`/runs/records; the same records give the same bytes.

    Raises:
        SetupError: there is no record of a test split, or the folder cannot be written.
    """
    records, skipped = read_records(results / "runs")
    found = tables(records)
    if not found:
        raise SetupError(
            f"{len(records)} records in {results / 'runs'} but none of the test split, only of tuning; "
            "run the cell to its end with `python -m bench`"
        )
    text = io.StringIO()
    leaderboard(found).to_csv(text, index=False, float_format="%.6g", lineterminator="\n")
    built = Built(results / "leaderboard.csv", results / "leaderboard.md", found, skipped)
    try:
        write_whole(built.csv, text.getvalue())
        write_whole(built.markdown, readable.markdown(found))
    except OSError as error:
        raise SetupError(
            f"cannot write the leaderboard to {results}: {error.strerror}; make it writable, or give another --results"
        ) from error
    return built


def show(built: Built, console: Console | None = None) -> None:
    """Print the tables and where the files are."""
    if console is None:
        console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    for line in built.skipped:
        console.print(Text(line, style="yellow"))
    console.print(Text(readable.CONTENT, style="dim"))
    if len(built.tables) > 1:
        console.print(Text(readable.SEPARATE, style="yellow"))
    for table in built.tables:
        console.print()
        for line in readable.heading(table):
            console.print(Text(line, style="yellow" if line.startswith("Warning") else ""))
        console.print(printed(table, console))
        for line in readable.notes(table):
            console.print(Text(line, style="dim"))
    console.print()
    for title, path in (("table", built.csv), ("readable", built.markdown)):
        console.print(Text(f"{title:12} {path}"), soft_wrap=True)


def printed(table: Table, console: Console) -> RichTable:
    """The readable table, with fewer columns where the console has no room for all."""
    text = readable.readable(table)
    if not text["notes"].any():
        text = text.drop(columns="notes")
    for title in [*LEAST, *(title for title in text.columns if title.startswith("by\n"))]:
        if ENDLESS.measure(drawn(text)).minimum <= console.width:
            break
        text = text.drop(columns=title)
    return drawn(text)


def drawn(text: pd.DataFrame) -> RichTable:
    """Texts as a table of rich; only names and notes may wrap."""
    out = RichTable(box=box.SIMPLE, padding=0, pad_edge=False)
    for title in text.columns:
        wraps = title in ("method", "notes")
        longest = max(len(one) for cell in [title, *text[title]] for one in cell.split("\n"))
        width = min(longest, {"method": 16, "notes": 11}[title]) if wraps else longest
        out.add_column(title, justify="left" if wraps else "right", no_wrap=not wraps, min_width=width)
    for row in text.to_numpy().tolist():
        out.add_row(*(Text(cell) for cell in row))
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuild and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.leaderboard", description="Rebuild leaderboard.csv and .md.")
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder that holds runs/ (default: %(default)s)"
    )
    results = parser.parse_args(arguments).results
    try:
        show(rebuild(results))
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
