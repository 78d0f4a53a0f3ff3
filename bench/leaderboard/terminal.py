"""A leaderboard on the terminal, in the width that the terminal has."""

import sys
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable

from bench.console.escape import terminal, visible
from bench.leaderboard import formatting, suite_tables
from bench.leaderboard.build import Built
from bench.leaderboard.frame import Table

PIPE_WIDTH = 140  # columns of the output if there is no terminal
LEAST = ("fit_seconds", "pairs", "shrinkage", "relative_speed")
THEN = ("strengths", "vs_control")
"""Columns that a narrow terminal leaves out: first LEAST, then other scorers, then THEN; a line below names them."""
WRAPPED = {"method": 16, "notes": 11}
"""Columns whose texts may take several lines, each with its least width in letters."""
ENDLESS = Console(width=1000)  # measures the width that a table needs


class Page(NamedTuple):
    """One table as the terminal shows it, in texts.

    spare: titles of columns that a narrow terminal leaves out, in this order. meanings: title and meaning of each
    column that has one. before, notes: lines before and after the meanings. suites: title and small table of each suite
    that has no column in the leaderboard.
    """

    heading: list[str]
    rows: pd.DataFrame
    spare: list[str]
    before: list[str]
    meanings: list[tuple[str, str]]
    notes: list[str]
    suites: list[tuple[str, pd.DataFrame]]


class Shown(NamedTuple):
    """Everything that the terminal shows of the records. files: the path of each kind of file."""

    pages: list[Page]
    skipped: list[str]
    files: dict[str, Path]


def shown(built: Built) -> Shown:
    """Return what the terminal shows of a leaderboard that was built."""
    files = {
        "table": built.csv,
        "tidy": built.tidy,
        "readable": built.markdown,
        "LaTeX": built.tex,
        "of suites": built.suites_tex,
        "BibTeX": built.bib,
    }
    return Shown([page(table) for table in built.tables], built.skipped, files)


def page(table: Table) -> Page:
    """Return the readable table with the lines around it."""
    rows = formatting.readable(table)
    titles = {column.name: column.text for column in table.columns if column.text}
    others = [name for name in table.aims.toxicity if name != table.aims.headline]
    return Page(
        formatting.heading(table),
        rows if rows["notes"].any() else rows.drop(columns="notes"),
        [titles[name] for name in (*LEAST, *others, *THEN)],
        formatting.told_first(table),
        formatting.meanings(table),
        formatting.found_out(table),
        [(one.title, one.rows) for one in suite_tables.other_suites(table)],
    )


def show(found: Shown, console: Console | None = None) -> None:
    """Print the tables and where the files are."""
    if console is None:
        console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    for line in found.skipped:
        console.print(terminal(line, "yellow"))
    console.print(terminal(formatting.CONTENT, "dim"))
    if len(found.pages) > 1:
        console.print(terminal(formatting.SEPARATE, "yellow"))
    for one in found.pages:
        console.print()
        for line in one.heading:
            console.print(terminal(line, "yellow" if line.startswith("Warning") else ""))
        rows = fitted(one, console)
        console.print(drawn(rows))
        for line in below(one, rows):
            console.print(terminal(line, "dim"))
        for title, rows in one.suites:
            console.print()
            console.print(terminal(title))
            for part in suite_tables.side_by_side(rows, lambda part: fits(part, console)):
                console.print(drawn(part))
    console.print()
    for title, path in found.files.items():
        console.print(terminal(f"{title:12} {path}"), soft_wrap=True)


def below(one: Page, rows: pd.DataFrame) -> list[str]:
    """Return the lines below a table: columns that had no room, the meanings of the others, and results of tests."""
    hidden = [title.replace("\n", " ") for title in one.rows.columns if title not in rows.columns]
    told = (
        [f"The terminal is too narrow for {', '.join(hidden)}; the Markdown file shows all columns."] if hidden else []
    )
    shown = [(title, meaning) for title, meaning in one.meanings if title in rows.columns]
    return [*told, *one.before, *formatting.legend(shown), *one.notes]


def fitted(one: Page, console: Console) -> pd.DataFrame:
    """Return the rows of a table without the columns for which the console has no room."""
    rows = one.rows
    for title in one.spare:
        if fits(rows, console):
            break
        rows = rows.drop(columns=title)
    return rows


def fits(text: pd.DataFrame, console: Console) -> bool:
    """Return whether the table fits the width of the console without breaking a word.

    Only the rows with the longest words of wrapped columns are measured; the width of other columns is that of their
    longest text in any case.
    """
    longest = [max(range(len(text)), key=lambda i: _word(text[title].iloc[i])) for title in text if title in WRAPPED]
    return ENDLESS.measure(drawn(text, longest if len(text) else [])).minimum <= console.width


def _word(cell: str) -> int:
    """Return the width of the longest word of a cell."""
    return max(map(cell_len, visible(cell, lines=True).split()), default=0)


def drawn(text: pd.DataFrame, only: list[int] | None = None) -> RichTable:
    """Return the texts as a table of the library rich; only names and notes are wrapped, without losing a letter.

    only: the places of the rows to show; the columns stay as wide as if all rows were shown.
    """
    out = RichTable(box=box.SIMPLE, padding=0, pad_edge=False)
    for title in text.columns:
        wraps = title in WRAPPED
        longest = max(cell_len(one) for cell in [title, *text[title]] for one in visible(cell, lines=True).split("\n"))
        width = min(longest, WRAPPED[title]) if wraps else longest
        out.add_column(
            terminal(title, lines=True), justify="left" if wraps else "right", no_wrap=not wraps, min_width=width,
            overflow="fold",
        )  # fmt: skip
    for row in (text if only is None else text.iloc[only]).to_numpy().tolist():
        out.add_row(*(terminal(cell, lines=True) for cell in row))
    return out
