"""A leaderboard on the terminal, as wide as the terminal is."""

import sys

import pandas as pd
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable

from bench.console.escape import terminal, visible
from bench.leaderboard import formatting, suite_tables
from bench.leaderboard.build import Built
from bench.leaderboard.frame import Table

PIPE_WIDTH = 140  # columns where there is no terminal
LEAST = ("fit_seconds", "pairs", "shrinkage", "relative_speed", "beats_random", "strengths")
"""Columns that are left out of a narrow terminal, this first; the files have them."""
ENDLESS = Console(width=1000)  # to measure what a table needs


def show(built: Built, console: Console | None = None) -> None:
    """Print the tables and where the files are."""
    if console is None:
        console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    for line in built.skipped:
        console.print(terminal(line, "yellow"))
    console.print(terminal(formatting.CONTENT, "dim"))
    if len(built.tables) > 1:
        console.print(terminal(formatting.SEPARATE, "yellow"))
    for table in built.tables:
        console.print()
        for line in formatting.heading(table):
            console.print(terminal(line, "yellow" if line.startswith("Warning") else ""))
        console.print(printed(table, console))
        for line in formatting.notes(table):
            console.print(terminal(line, "dim"))
        for other in suite_tables.other_suites(table):
            console.print()
            console.print(terminal(other.title))
            for part in suite_tables.side_by_side(other.rows, lambda rows: fits(rows, console)):
                console.print(drawn(part))
    console.print()
    files = {"table": built.csv, "tidy": built.tidy, "readable": built.markdown, "LaTeX": built.tex}
    for title, path in files.items():
        console.print(terminal(f"{title:12} {path}"), soft_wrap=True)


def printed(table: Table, console: Console) -> RichTable:
    """The readable table, with fewer columns where the console has no room for all."""
    text = formatting.readable(table)
    if not text["notes"].any():
        text = text.drop(columns="notes")
    titles = {column.name: column.text for column in table.columns}
    for title in [*(titles[name] for name in LEAST), *(titles[name] for name in table.toxicity[1:])]:
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
