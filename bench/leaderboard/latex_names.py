"""The names of rows in a LaTeX table: titles with citations, and whatever distinguishes rows with the same title."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pandas as pd

from bench.leaderboard import bibliography
from bench.leaderboard.columns import Line, strengths
from bench.leaderboard.columns import lines as lines_of
from bench.leaderboard.formatting import NAMING, parameters, telling, varying
from bench.leaderboard.frame import Table, record_names
from bench.leaderboard.latex_layout import LINE, Cell
from bench.leaderboard.latex_text import breakable, pieces, width
from bench.records import titles
from bench.records.fields import MethodFacts
from methods.papers import PAPERS

WIDEST = 92.0  # points: the width of the column of names; a longer name takes a second line
TELLING = ("pairs", "data", "fit_seeds", "version", "trials", "scorer_tune", "scorer_pairs", "sources")
"""Columns that distinguish rows of equal method, parameters and strength, in the order in which they are tried."""


class Said(NamedTuple):
    """A part of a name, and the arXiv id of the paper that is cited after it."""

    text: str
    cite: str = ""


def methods(table: Table) -> dict[str | None, MethodFacts]:
    """Return the method of each row, by the row's `records`."""
    return {record_names(row): row.records[0].method for row in table.rows}


def names(table: Table) -> list[list[Said]]:
    """Return the name of each row of the table's frame; no two rows of equal strength have the same name."""
    facts = methods(table)
    rows = table.lines
    entitled = [title(facts[row["records"]]) for row in rows]
    told = qualifiers(table.frame)
    plain = ["".join(one.text for one in said) for said in entitled]
    same: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        same[plain[i], *told[i], strengths(row)].append(i)
    for group in same.values():
        for i, one in zip(group, apart([rows[i] for i in group]), strict=True):
            told[i] += one
    return [
        [*said, Said(f" ({', '.join(mine)})")] if mine else list(said)
        for said, mine in zip(entitled, told, strict=True)
    ]


def alone(table: Table) -> list[list[Said]]:
    """Return the names for a table without a column of strengths: no two rows have the same name."""
    found = names(table)
    told = telling(["".join(one.text for one in said) for said in found], table.frame)
    return [[*said, Said(f" ({', '.join(own)})")] if own else said for said, own in zip(found, told, strict=True)]


def title(method: MethodFacts) -> list[Said]:
    """Return title and citation; a control has no citation, a method made of others has its parts' citations."""
    one = titles.of_method(method)
    if method.control:
        return [Said(f"{one.title} control")]
    parts = [titles.by_name(part.name, part.class_path) for part in method.inner]
    said = [Said(one.title, one.cite)]
    for i, part in enumerate(parts):
        said += [Said((" + " if i else ": ") + part.title, part.cite)]
    return said


def qualifiers(frame: pd.DataFrame) -> list[list[str]]:
    """Return for each row the parameters that distinguish it from others of its method, and the number of its fits."""
    rows = lines_of(frame[[name for name in NAMING if name in frame]])
    known = [parameters(row) for row in rows]
    differing, found = varying(list(frame["method"]), known), []
    for row, own in zip(rows, known, strict=True):
        told = [
            f"{key}={_value(value)}" for key, value in own.items()
            if key in differing[row["method"]] and not isinstance(value, Mapping)
        ]  # fmt: skip
        found.append(told + ([f"{row['fits']}\xa0fits"] if row["fits"] > 1 else []))
    return found


def _value(value: Any) -> str:
    return " ".join(map(_value, value)) if isinstance(value, list) else str(value)


def apart(rows: list[Line]) -> list[list[str]]:
    """Return labels that distinguish rows of the same name and strength: whatever differs, or else a number."""
    if len(rows) == 1:
        return [[]]
    told: list[list[str]] = [[] for _ in rows]
    for column in TELLING:
        values: list[str | None] = [None if pd.isna(row[column]) else str(row[column]) for row in rows]
        if len(set(values)) > 1:
            word = column.replace("_", " ")
            text = {"pairs": "{} pairs", "data": "{}"}.get(column, f"{word}={{}}")
            for mine, value in zip(told, values, strict=True):
                mine.append(text.format(value) if value is not None else f"no {word}")
        if len(set(map(tuple, told))) == len(rows):
            return told
    again = Counter(map(tuple, told))
    return [[*mine, f"no.\xa0{i + 1}"] if again[tuple(mine)] > 1 else mine for i, mine in enumerate(told)]


def cell(name: list[Said], marks: str) -> Cell:
    """Return the name as a paragraph with citations and marks, with room for citation styles that name the authors."""
    latex, plain, least = "", "", 0.0
    for i, one in enumerate(name):
        latex += breakable(one.text) + (marks if i == 0 else "")
        plain += one.text + ("+" if marks and i == 0 else "")
        least = max(least, *map(width, pieces(one.text) or [""]))
        if one.cite:
            latex += rf"~\cite{{{bibliography.key(one.cite)}}}"
            by = f" ({author(one.cite)}"
            plain += f"{by} et al., 2026)"
            least = max(least, width(one.text.split()[-1] + by))
    wanted = max(least, min(width(plain), WIDEST))
    return Cell(latex, wanted, LINE * lines(plain, wanted))


def author(cite: str) -> str:
    """Return the family name of a paper's first author."""
    return PAPERS[cite].authors[0].partition(",")[0] if cite in PAPERS else f"arXiv:{cite}"


def lines(plain: str, points: float, measured: Callable[[str], float] = width) -> int:
    """Return the largest number of lines that a paragraph of this width takes, with ragged ends."""
    return 1 if measured(plain) <= points else math.ceil(measured(plain) / (0.8 * points))
