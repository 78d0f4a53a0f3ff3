"""The cells of a LaTeX table: values above their intervals, names, strengths, letters, marks."""

import math
from collections.abc import Sequence, Set
from typing import Any

import pandas as pd

from bench.leaderboard import latex_names
from bench.leaderboard.bounds import OPEN, VIOLATED
from bench.leaderboard.columns import Column, Line, starred
from bench.leaderboard.effects import DERIVED
from bench.leaderboard.frame import Table
from bench.leaderboard.latex_layout import LINE, WITH_INTERVAL, Block, Cell
from bench.leaderboard.latex_text import breakable, pieces, width
from bench.records.names import BASELINE_FAMILY, CONTROL_FAMILY

NONE = Cell("--", width("--"))
SYMBOLS = (r"\dagger", r"\ddagger", r"\S", r"\P", r"\|", r"\dagger\dagger", r"\ddagger\ddagger")
LETTERS = 44.0  # points: the width of the column of letters; longer ones take a second line
LARGE = 1e5  # numbers from here on are written as a power of ten


def block(column: Column, table: Table, bold: Set[int], marks: dict[str, str]) -> Block:
    """Return a column with all its cells. bold: rows whose value is bold; marks: the mark of each reason (`marks`)."""
    rows = table.lines
    plain = column.latex.replace("\\", "") + ("" if column.higher_is_better is None else " m")  # as wide as an arrow
    head = Cell(column.latex_title, width(plain))
    if column.name == "method":
        said = zip(latex_names.names(table), rows, strict=True)
        cells = [latex_names.cell(name, "".join(marks[one] for one in reasons(row))) for name, row in said]
        return Block(head, [one._replace(latex=rf"\steername{{{one.latex}}}") for one in cells], "")
    if column.name == "strengths":
        return Block(head, [strength(row) for row in rows], "l")
    if column.name == "group":
        return Block(head, [letters(row["group"]) for row in rows], "")
    if column.name == f"{table.aims.headline}.delta":
        return Block(head, [with_interval(row, column.name, bold=False) for row in rows])
    if column.name in DERIVED:
        return Block(head, [with_interval(row, column.name, bold=i in bold) for i, row in enumerate(rows)])
    return Block(head, [star(number(row[column.name]), row) for row in rows])


def has_strength(frame: pd.DataFrame) -> "pd.Series[bool]":
    """Return which rows are steered at all."""
    return frame["family"] != BASELINE_FAMILY


def strength(row: Line) -> Cell:
    """Return the strength with three digits; if each fit was tuned by itself, the least and the largest strength."""
    if row["family"] == BASELINE_FAMILY:
        return NONE
    ends = [float(one) for one in row["strengths"].split("; ")]
    told = [f"{one:.3g}" for one in dict.fromkeys((ends[0], ends[-1]))]
    if not any("e" in one for one in told):
        places = max(len(one.partition(".")[2]) for one in told)
        told = [f"{float(one):.{places}f}" for one in told]
    return Cell("--".join(told), width("--".join(told)))


def letters(group: Any) -> Cell:
    """Return the cell with a row's group letters, which may take several lines."""
    text = "" if pd.isna(group) else str(group)
    points = min(width(text), LETTERS) if text else 0.0
    least = max(map(width, pieces(text)), default=0.0)
    points = max(points, min(least, LETTERS))
    lines = latex_names.lines(text, points) if text else 1
    return Cell(rf"\steername{{{breakable(text)}}}" if text else "", points, LINE * lines)


def number(value: Any, bold: bool = False) -> Cell:
    """Write a number rounded to two decimals, or to a whole number if it is large; a dash if it is missing."""
    if pd.isna(value):
        return NONE
    text = digits(float(value))
    plain = text.replace(r"\cdot10^{", "e1").replace("}", "").replace(r"\infty", "m")
    return Cell(rf"$\mathbf{{{text}}}$" if bold else f"${text}$", width(plain.replace("-", "−"), bold=bold))


def digits(value: float) -> str:
    """Write a number in math mode."""
    if math.isinf(value):
        return r"\infty" if value > 0 else r"-\infty"
    if abs(value) >= LARGE:
        mantissa, _, power = f"{value:.1e}".partition("e")
        return rf"{mantissa}\cdot10^{{{int(power)}}}"
    text = f"{value:.2f}" if abs(value) < 999.5 else f"{value:.0f}"
    return text.removeprefix("-") if float(text) == 0 else text


def star(value: Cell, row: Line) -> Cell:
    """Add a star if the headline differs significantly from the unsteered model's."""
    return Cell(value.latex + "$^{*}$", value.width + 4) if starred(row) else value


def with_interval(row: Line, column: str, bold: bool) -> Cell:
    """Write a value above its interval, if it has one."""
    value, ends = number(row[column], bold), interval(row, column)
    if not ends:
        return value
    low, high = (number(row[f"{column}_{end}"]).latex.strip("$") for end in ("low", "high"))
    small = width(f"[{low}, {high}]".replace("-", "−").replace(r"\cdot10^{", "e1"), size=7)
    return Cell(rf"\steerinterval{{{value.latex}}}{{{ends}}}", max(value.width, small), WITH_INTERVAL)


def interval(row: Line, column: str) -> str:
    """Return `[low, high]` in math mode; empty if a value has no interval."""
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    return "" if pd.isna(low) or pd.isna(high) else f"$[{digits(float(low))}, {digits(float(high))}]$"


def reasons(row: Line) -> list[str]:
    """Return short reasons not to compare a row as it is; the comments above the table say more."""
    if row["family"] in (BASELINE_FAMILY, CONTROL_FAMILY):
        return []
    if pd.notna(row["collapsed"]) and row["collapsed"]:
        return ["text collapsed"]
    told = [] if row["tuned"] else ["strength as given"]
    told += ["no feasible strength on dev"] if row["tuned"] and not row["feasible"] else []
    told += {VIOLATED: ["a bound is violated"], OPEN: ["a bound is not resolved"]}.get(row["bounds"], [])
    told += ["no value in some resamples"] if row["undefined_resamples"] else []
    return told + (["two fits: few real effects are found"] if row["fits"] == 2 else [])


def marks(rows: Sequence[Line]) -> dict[str, str]:
    """Give each reason, in the order of the rows, a raised mark for the rows to which it applies."""
    found = dict.fromkeys(reason for row in rows for reason in reasons(row))
    return {reason: f"$^{{{mark}}}$" for reason, mark in zip(found, SYMBOLS, strict=False)}
