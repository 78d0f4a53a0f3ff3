"""The columns of a leaderboard on the page, each with its cells."""

from typing import NamedTuple

from bench.leaderboard.columns import NONE, PARTS, Cell
from bench.leaderboard.frame import Table


class Shown(NamedTuple):
    """A column with a cell per row of `Table.frame`. part: where the chooser of columns lists it."""

    title: str
    about: str
    part: str
    shown: bool
    numeric: bool
    cells: list[Cell]


def columns(table: Table) -> list[Shown]:
    """Return the printed leaderboard's columns, which are shown, then all further ones, which a reader can choose.

    Columns without any value are left out, except the first three, which every leaderboard has.
    """
    found = [
        Shown(one.page, one.about, one.part, one.shown, one.numeric, [one.as_cell(row) for row in table.lines])
        for one in sorted(table.columns, key=lambda one: PARTS.index(one.part))
        if one.page
    ]
    return [one for i, one in enumerate(found) if i < 3 or any(cell.text not in ("", NONE) for cell in one.cells)]
