"""The effect of a method against its cost: time to fit, speed of sampling, size on disk."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from bench.leaderboard.columns import lines
from bench.plots import style
from bench.plots.style import CONTROL, DASHES, GREY, NothingToDraw, Point, Width
from bench.records.names import RANDOM

Y = "toxicity_reduction"


class Cost(NamedTuple):
    """A kind of cost. linthresh: the value below which a symlog axis is linear; None for a linear axis."""

    title: str
    unsteered: float
    linthresh: float | None


COSTS = {
    "fit_seconds": Cost("time to fit", 0.0, 0.1),
    "relative_speed": Cost("speed (unsteered = 1)", 1.0, None),
    "artefact_bytes": Cost("artefact size", 0.0, 1000.0),
}


@style.styled
def cost(frame: pd.DataFrame, width: Width = "double", page: int = 1) -> Figure:
    """Draw toxicity reduction against seconds to fit, sampling speed relative to unsteered, and bytes of the artefact.

    Each method is a marker with the 95% bars of its reduction and its speed, hollow if no strength was feasible or a
    bound is violated. A row whose text has collapsed is not drawn; the legend names it. Random directions are grey, at
    the mean over their draws; the star is the unsteered model. Times are wall-clock times of the machine that ran the
    method. The axes of time and size are logarithmic; left of the two strokes on them they are linear, down to 0. A
    page names at most `style.MOST` methods; the other methods are crosses on it.

    Args:
        frame: `Table.frame`.
        width: the width of one or of two columns of a paper.
        page: the number of the page, from 1.

    Raises:
        NothingToDraw: no method has both a toxicity reduction and a cost.
        NoSuchPage: there are fewer pages.
        ValueError: `frame` holds more than one table.
    """
    style.one_table(frame)
    random = [
        Point("random directions" if row["fits"] > 1 else "a random direction", row, CONTROL)
        for row in lines(frame[frame["method"] == RANDOM])
    ]
    every = [point for point in [*style.points(frame), *random] if pd.notna(point.row[Y])]
    costs = [name for name in COSTS if any(pd.notna(point.row[name]) for point in every)]
    if not costs:
        raise NothingToDraw(
            "no method has both a toxicity reduction and a cost; run `python -m bench -m method=unsteered,caa "
            "suite=[rtp,fluency]`"
        )
    across = width == "double"
    every = [point for point in every if any(pd.notna(point.row[name]) for name in costs)]
    every, gone = style.standing(every)
    named, others = style.on_page([point for point in every if point.look != CONTROL], page)
    named += [point for point in every if point.look == CONTROL]
    figure = style.blank(width, 2.3 if across else 0.3 + 1.6 * len(costs))
    shape = (1, len(costs)) if across else (len(costs), 1)
    axes = figure.subplots(*shape, sharey=True, squeeze=False).ravel()
    for ax, name in zip(axes, costs, strict=True):
        panel(ax, name, named, others)
    for ax in axes[:1] if across else axes:
        ax.set_ylabel(style.reduction(style.judge(frame)))
    found = [style.star_key(), *keys(named), *style.hollow_key(named), *style.cross_key(len(others))]
    style.legend(figure, [*found, style.bars_key("bars: 95% intervals, where measured"), *gone])
    return figure


def panel(ax: Axes, name: str, shown: list[Point], others: list[Point]) -> None:
    """Draw the panel of one cost; `others`: the methods that another page names."""
    about = COSTS[name]
    known, rest = ([point for point in some if pd.notna(point.row[name])] for some in (shown, others))
    x = np.array([about.unsteered, *(float(point.row[name]) for point in [*known, *rest])])
    ax.axhline(0, color=GREY, linewidth=0.7, linestyle=DASHES, zorder=1)
    ax.grid()
    style.star(ax, about.unsteered, 0)
    style.crosses(ax, [(point.row[name], point.row[Y]) for point in rest])
    for point in known:
        y, up = point.at(Y)
        at, across = point.at(name)
        style.bars(ax, at, y, point.look, across=across, up=up)
        style.marker(ax, at, y, point.look, hollow=point.hollow)
    ax.set_xlabel(about.title)
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if about.linthresh is None:
        reached = [(at - below, at + above) for at, ((below,), (above,)) in (point.at(name) for point in known)]
        x = np.concatenate([x, np.ravel(reached)])
        margin = 0.1 * max(float(np.ptp(x)), 0.1)
        ax.set_xlim(x.min() - margin, x.max() + margin)
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        return
    span = max(1, int(np.ceil(np.log10(max(float(x.max()) / about.linthresh, 1.0)))))  # decades
    ax.set_xscale("symlog", linthresh=about.linthresh, linscale=max(0.5, 0.2 * span))
    ax.set_xlim(-0.4 * about.linthresh, max(2 * float(x.max()), 3 * about.linthresh))
    step = -(-span // 4)
    ax.xaxis.set_major_locator(FixedLocator([0.0, *about.linthresh * 10.0 ** np.arange(0, span + 1, step)]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(seconds if name == "fit_seconds" else size))
    strokes(ax, 0.5 * about.linthresh)


def strokes(ax: Axes, x: float) -> None:
    """Draw two strokes over the x axis at x: left of them the axis is not logarithmic."""
    place: Any = {"transform": ax.get_xaxis_transform(), "clip_on": False, "zorder": 10}
    pixels = ax.transData.transform((x, 0))[0]
    low, high = (ax.transData.inverted().transform((pixels + by, 0))[0] for by in (-1.5, 1.5))
    ax.plot([low, high], [0, 0], color="white", linewidth=1.4, solid_capstyle="butt", **place)
    ax.plot([low, high], [0, 0], marker=[(-0.5, -1), (0.5, 1)], color="black", markersize=5.0, linestyle="none",
            markeredgewidth=0.6, **place)  # fmt: skip


def seconds(value: float, place: int | None = None) -> str:
    """Return the label of a tick, in seconds."""
    del place
    return f"{value:g} s" if value else "0"


def size(value: float, place: int | None = None) -> str:
    """Return the label of a tick, in bytes with powers of 1000."""
    del place
    for unit, of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= of:
            return f"{value / of:g} {unit}"
    return f"{value:g} B" if value else "0"


def keys(shown: list[Point]) -> list[Artist]:
    """Return the legend's entries for methods, each label once."""
    return [
        style.key(point.look, point.label, hollow=point.hollow)
        for point in {point.label: point for point in shown}.values()
    ]
