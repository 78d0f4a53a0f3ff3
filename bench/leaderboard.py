"""The leaderboard, rebuilt from records alone in seconds, without torch.

python -m bench.leaderboard [--results results] [--model M] [--suite S] [--family F] [--method X]
"""

from bench import stopping

if __name__ == "__main__":
    stopping.begin()

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable

from bench import command, escape, latex, other_suites, readable
from bench.atomic import write_whole
from bench.collect import Record, collect, read_records
from bench.comparable import BASELINE_FAMILY
from bench.escape import terminal, visible
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
    tidy: Path
    markdown: Path
    tex: Path
    tables: list[Table]
    skipped: list[str]


def leaderboard(found: Sequence[Table]) -> pd.DataFrame:
    """A row per model, method, strength and fit seed; rows of one `table` may be compared.

    For each metric `<suite>.<metric>`: value, `.se`, `.n`, and `.delta`, `.delta_low`, `.delta_high` to the unsteered
    model on the same items with the paired 95 % interval. Missing is empty. Units are in the names; strengths are in
    `strength_unit`. `bench.escape.read_csv` reads the file back: a name that a spreadsheet would compute, or that holds
    control characters, has an apostrophe before it there.
    """
    frame = pd.concat([table.frame for table in found], ignore_index=True)
    metrics = [name for name in frame.columns if "." in name]
    rest = [name for name in frame.columns if name not in metrics and name != "records"]
    return frame[[*rest, *metrics, "records"]]


def tidy(found: Sequence[Table]) -> pd.DataFrame:
    """A row per line and metric: value, standard_error, n, and its change from unsteered with interval and p.

    The columns that name the line are those of `leaderboard`; `p_holm` is corrected over the lines of the table.
    """
    named = ["table", "model", "method", "family", "parameters", "strengths", "strength_unit", "fits", "error_over"]
    parts = {"": "value", ".se": "standard_error", ".n": "n", ".delta": "delta", ".delta_low": "delta_low",
             ".delta_high": "delta_high", ".p": "p", ".p_holm": "p_holm", ".detectable": "detectable"}  # fmt: skip
    rows = []
    for table in found:
        for _, row in table.frame.iterrows():
            for metric, entry in table.metrics.items():
                if pd.notna(row.get(metric)):
                    suite, _, name = metric.partition(".")
                    numbers = {title: row.get(f"{metric}{end}") for end, title in parts.items()}
                    about = {"suite": suite, "metric": name, "higher_is_better": entry["higher_is_better"]}
                    rows.append({**{key: row[key] for key in named}, **about, **numbers})
    return pd.DataFrame(rows).astype({"n": "Int64", "fits": "Int64"})


def selected(records: Sequence[Record], **wanted: Sequence[str] | None) -> list[Record]:
    """The records of these models, suites, families and methods; the unsteered model stays, as what they differ from.

    Raises:
        SetupError: a name that no record has.
    """
    keys: dict[str, Callable[[Record], str]] = {
        "model": lambda one: one.facts["model"]["name"],
        "suite": lambda one: one.suite,
        "family": lambda one: one.facts["method"]["family"],
        "method": lambda one: one.facts["method"]["name"],
    }
    kept = list(records)
    for name, values in wanted.items():
        key = keys[name]
        allowed = sorted({str(key(one)) for one in records})
        unknown = [value for value in values or () if value not in allowed]
        if unknown:
            raise SetupError(f"--{name} {','.join(unknown)}: no record has it; there are {', '.join(allowed)}")
        if values:
            spared = name in ("family", "method")
            kept = [
                one
                for one in kept
                if key(one) in values or (spared and one.facts["method"]["family"] == BASELINE_FAMILY)
            ]
    return kept


def rebuild(results: Path, name: str = "leaderboard", each_fit: bool = False, **wanted: Sequence[str] | None) -> Built:
    """Write `name`.csv, .md, .tex and `name`_tidy.csv from `results`/runs/records; equal records give equal bytes.

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
    contents = {
        ".csv": escape.csv(leaderboard(found)),
        "_tidy.csv": escape.csv(tidy(found)),
        ".md": readable.markdown(found, other_suites.markdown),
        ".tex": latex.document(found),
    }
    try:
        for kind, content in contents.items():
            write_whole(paths[kind], content)
    except OSError as error:
        raise SetupError(f"cannot write the leaderboard to {results}: {command.refused(error)}") from error
    return Built(paths[".csv"], paths["_tidy.csv"], paths[".md"], paths[".tex"], found, skipped)


def show(built: Built, console: Console | None = None) -> None:
    """Print the tables and where the files are."""
    if console is None:
        console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    for line in built.skipped:
        console.print(terminal(line, "yellow"))
    console.print(terminal(readable.CONTENT, "dim"))
    if len(built.tables) > 1:
        console.print(terminal(readable.SEPARATE, "yellow"))
    for table in built.tables:
        console.print()
        for line in readable.heading(table):
            console.print(terminal(line, "yellow" if line.startswith("Warning") else ""))
        console.print(printed(table, console))
        for line in readable.notes(table):
            console.print(terminal(line, "dim"))
        for other in other_suites.other_suites(table):
            console.print()
            console.print(terminal(other.title))
            for part in other_suites.side_by_side(other.rows, lambda rows: fits(rows, console)):
                console.print(drawn(part))
    console.print()
    files = {"table": built.csv, "tidy": built.tidy, "readable": built.markdown, "LaTeX": built.tex}
    for title, path in files.items():
        console.print(terminal(f"{title:12} {path}"), soft_wrap=True)


def printed(table: Table, console: Console) -> RichTable:
    """The readable table, with fewer columns where the console has no room for all."""
    text = readable.readable(table)
    if not text["notes"].any():
        text = text.drop(columns="notes")
    for title in [*LEAST, *(title for title in text.columns if title.startswith("by\n"))]:
        if fits(text, console):
            break
        text = text.drop(columns=title)
    return drawn(text)


def fits(text: pd.DataFrame, console: Console) -> bool:
    """Whether the console has room for the table."""
    return ENDLESS.measure(drawn(text)).minimum <= console.width


def drawn(text: pd.DataFrame) -> RichTable:
    """Texts as a table of rich; only names and notes may wrap."""
    out = RichTable(box=box.SIMPLE, padding=0, pad_edge=False)
    for title in text.columns:
        wraps = title in ("method", "notes")
        longest = max(cell_len(one) for cell in [title, *text[title]] for one in visible(cell, lines=True).split("\n"))
        width = min(longest, {"method": 16, "notes": 11}[title]) if wraps else longest
        out.add_column(
            terminal(title, lines=True), justify="left" if wraps else "right", no_wrap=not wraps, min_width=width
        )
    for row in text.to_numpy().tolist():
        out.add_row(*(terminal(cell, lines=True) for cell in row))
    return out


def main(arguments: Sequence[str] | None = None) -> int:
    """Rebuild and print; returns the exit code."""
    parser = command.Parser(
        prog="python -m bench.leaderboard",
        description="Rebuild leaderboard.csv (a row per method), leaderboard_tidy.csv (a row per method and metric), "
        "leaderboard.md and leaderboard.tex from the records.",
        epilog="Example: python -m bench.leaderboard --family weights,prompt --suite rtp,fluency",
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder that holds runs/ (default: %(default)s)"
    )
    for name in ("model", "suite", "family", "method"):
        stays = "; the unsteered model stays" if name in ("family", "method") else ""
        text = f"only this {name}, or several with commas{stays}; written as selection.*, so leaderboard.* stays whole"
        parser.add_argument(f"--{name}", type=lambda given: given.split(","), metavar=name.upper(), help=text)
    parser.add_argument("--each-fit", action="store_true", help="a row for each fit seed; written as selection.* too")
    given = vars(parser.parse_args(arguments))
    results = given.pop("results")
    name = "selection" if any(given.values()) else "leaderboard"
    return command.run(lambda: show(rebuild(results, name, **given)))


if __name__ == "__main__":
    command.leave(main())
