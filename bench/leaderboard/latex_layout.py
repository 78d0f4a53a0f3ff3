"""The layout of a table in LaTeX: cells with estimated sizes, and parts that fit a page."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeVar

T = TypeVar("T")

ONE_COLUMN, BOTH_COLUMNS = 219.0, 452.0
"""Points: a column and a page of the narrowest two-column styles (7.7 cm in ACL's, 15.9 cm in article's on A4)."""
PAGE = 420.0
"""Points for the rows of one table; a caption and notes below have room on the shortest page, that of article."""
GAP = 5.0  # between two columns: \tabcolsep of 2.5 pt on both sides
LINE, WITH_INTERVAL = 9.6, 17.6  # points: a line of a row, and a value above its interval


class Cell(NamedTuple):
    """The text of a cell in LaTeX, and its estimated width and height in points."""

    latex: str
    width: float
    height: float = LINE


class Block(NamedTuple):
    """A column with its head. kind: LaTeX's l or r; "" for a paragraph as wide as the widest cell."""

    head: Cell
    cells: list[Cell]
    kind: str = "r"

    @property
    def width(self) -> float:
        """The width of the column's widest cell, head included, in points."""
        return max(one.width for one in (self.head, *self.cells))

    @property
    def declared(self) -> str:
        """The declaration of the column in the argument of tabular."""
        return self.kind or f"p{{{self.width:.1f}pt}}"


class Part(NamedTuple):
    """Some columns and rows of a table, shown as a table of their own."""

    columns: list[Block]
    rows: range

    @property
    def width(self) -> float:
        """The estimated width of all columns with the gaps between them, in points."""
        return total(self.columns)


def total(columns: Sequence[Block]) -> float:
    """Return the width of these columns side by side, in points."""
    return sum(one.width for one in columns) + GAP * (len(columns) - 1)


def parts(names: Sequence[Block], numbers: Sequence[Block]) -> list[Part]:
    """Split the table into parts of at most a page, each of which begins with the columns that name the rows."""
    heights = [max(one.cells[i].height for one in (*names, *numbers)) for i in range(len(names[0].cells))]
    pages = evenly(list(range(len(heights))), lambda page: sum(heights[i] for i in page) <= PAGE)
    blocks = evenly(list(numbers), lambda some: total([*names, *some]) <= BOTH_COLUMNS)
    return [Part([*names, *block], range(page[0], page[-1] + 1)) for page in pages for block in blocks]


def evenly(things: list[T], fits: Callable[[list[T]], bool]) -> list[list[T]]:
    """Cut the list into the fewest runs that fit, of about equal length; an element too long to fit is its own run."""
    least = len(list(greedily(things, fits)))
    size = math.ceil(len(things) / max(least, 1))
    equal = [things[i : i + size] for i in range(0, len(things), size)]
    return equal if all(map(fits, equal)) else list(greedily(things, fits))


def greedily(things: Iterable[T], fits: Callable[[list[T]], bool]) -> Iterable[list[T]]:
    """Cut the list into runs, each as long as possible."""
    taken: list[T] = []
    for one in things:
        if taken and not fits([*taken, one]):
            yield taken
            taken = []
        taken.append(one)
    if taken:
        yield taken
