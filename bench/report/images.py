"""The figures of bench.plots, as images inside the page."""

import base64
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from bench.console.children import Children, Later
from bench.leaderboard.frame import Table
from bench.plots import style
from bench.plots.draw import KINDS, Kind, Source, count, pages

PAGES = 4  # of one figure at most


class Drawn(NamedTuple):
    """A figure as a data URI of its SVG. As an image it runs no script, and its ids do not clash with the page's."""

    name: str
    about: str
    uri: str


class Figures(NamedTuple):
    """The figures by the number of their table, those of tuning, and the reasons why some kinds were not drawn."""

    of_tables: dict[int, list[Drawn]]
    of_tuning: list[Drawn]
    missing: dict[str, str]


class Begun(NamedTuple):
    """A figure that is being drawn: its kind, and the end of its file's name, which says of which table it is."""

    name: str
    end: str
    later: "Later[Embedded]"


def begin(results: Path, found: Sequence[Table], children: Children) -> Iterator[Begun]:
    """Yield every figure that the records under `results`/runs allow, with its drawing begun.

    found: the tables of these records. children: the processes that draw; each draws a figure with all its pages.
    """
    source = Source(results, found)
    for name, kind in KINDS.items():
        for end, frames in kind.drawings(source):
            yield Begun(name, end, children.start(partial(embedded_pages, kind, frames)))


def figures(begun: Iterable[Begun], found: Sequence[Table]) -> Figures:
    """Return the figures, when all are drawn, by the tables that they show."""
    drawn = Figures({table.number: [] for table in found}, [], {})
    why: dict[str, str] = {}
    for name, end, later in begun:
        about, uris, nothing = later.result()
        if nothing is not None:
            why.setdefault(name, nothing)
            continue
        number = re.fullmatch(r"-(\d+)", end)
        place = drawn.of_tables[int(number.group(1)) if number else 1]
        if end.startswith("_dev"):
            place, about = drawn.of_tuning, f"{about}: the trials of tuning, on the dev split"
        place += [Drawn(name, about, uri) for uri in uris]
    there = {one.name for one in itertools.chain(drawn.of_tuning, *drawn.of_tables.values())}
    drawn.missing.update((name, why.get(name, "there is no record of it")) for name in KINDS if name not in there)
    return drawn


class Embedded(NamedTuple):
    """What a figure shows, and its first pages as data URIs; or why it shows nothing."""

    about: str
    uris: list[str]
    nothing: str | None = None


def embedded_pages(kind: Kind, frames: Sequence[pd.DataFrame]) -> Embedded:
    """Draw the first pages of a figure, and only these, so that a thousand rows do not fill the report."""
    try:
        uris = [embedded(style.laid_out(page)) for page in itertools.islice(pages(kind, frames), PAGES)]
        is_part = len(uris) == PAGES and count(kind, frames) > PAGES
    except style.NothingToDraw as nothing:
        return Embedded(kind.about, [], str(nothing))
    more = f" (the first {PAGES} pages; `python -m bench.plots` draws all)" if is_part else ""
    return Embedded(kind.about + more, uris)


def embedded(figure: Figure) -> str:
    """Return the figure as a data URI; equal figures give equal text."""
    return f"data:image/svg+xml;base64,{base64.b64encode(style.rendered(figure, 'svg')).decode()}"
