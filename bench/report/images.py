"""The figures of bench.plots, as images inside the page."""

import base64
import itertools
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from bench.console.children import Children, Later
from bench.leaderboard.frame import Table
from bench.plots import style
from bench.plots.draw import KINDS, Kind, Source, advised, count, pages

PAGES = 4  # of one figure at most


class Drawn(NamedTuple):
    """A figure as a data URI of its SVG. As an image it runs no script, and its ids do not clash with the page's."""

    name: str
    about: str
    uri: str


class Figures(NamedTuple):
    """The figures by the number of their table, those of tuning, and why kinds of figures were not drawn."""

    of_tables: dict[int, list[Drawn]]
    of_tuning: list[Drawn]
    missing: dict[str, str]


def figures(results: Path, found: Sequence[Table], children: Children) -> Figures:
    """Draw every figure that the records under `results`/runs allow.

    found: the tables of these records. children: processes that write figures as SVG while this one draws others.
    """
    source, made = Source(results, found), list[tuple[list[Drawn], str, str, Later[str]]]()
    drawn = Figures({table.number: [] for table in found}, [], {})
    for name, kind in KINDS.items():
        some, why = False, []
        for end, frames in kind.drawings(source):
            try:
                about, uris = embedded_pages(kind, frames, children)
            except style.NothingToDraw as nothing:
                why.append(advised(nothing, source.results))
                continue
            some = True
            if end.startswith("_dev"):
                of_dev = f"{about}: the trials of tuning, on the dev split"
                made += [(drawn.of_tuning, name, of_dev, uri) for uri in uris]
            else:
                number = re.fullmatch(r"-(\d+)", end)
                of_table = drawn.of_tables[int(number.group(1)) if number else 1]
                made += [(of_table, name, about, uri) for uri in uris]
        if not some:
            drawn.missing[name] = why[0] if why else "there is no record of it"
    for place, name, about, uri in made:
        place.append(Drawn(name, about, uri.result()))
    return drawn


def embedded_pages(kind: Kind, frames: Sequence[pd.DataFrame], children: Children) -> tuple[str, list[Later[str]]]:
    """Return what the figure shows, and only its first pages, so that a thousand rows do not fill the report."""
    first = list(itertools.islice(pages(kind, frames), PAGES))
    is_part = len(first) == PAGES and count(kind, frames) > PAGES
    more = f" (the first {PAGES} pages; `python -m bench.plots` draws all)" if is_part else ""
    return kind.about + more, [children.start(partial(embedded, style.laid_out(page))) for page in first]


def embedded(figure: Figure) -> str:
    """Return the figure as a data URI; equal figures give equal text."""
    return f"data:image/svg+xml;base64,{base64.b64encode(style.rendered(figure, 'svg')).decode()}"
