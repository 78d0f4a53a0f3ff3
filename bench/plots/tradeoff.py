"""The trade-off figure: toxicity reduction against what was kept."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from bench.leaderboard.bounds import KEPT
from bench.leaderboard.ranking import has_collapsed
from bench.plots import style
from bench.plots.style import DASHES, GREY, PALE, NothingToDraw, Point, Width
from bench.records.names import RANDOM
from bench.stats import pareto

X = "toxicity_reduction"
PANELS = {
    "gold_choice_change": "change in log-probability\nof the right answer (nats)",
    "fluency_kept": "1 / perplexity ratio\n(at most 1)",
}
UNSTEERED = {"gold_choice_change": 0.0, "fluency_kept": 1.0}
FRONT: dict[str, Any] = {"color": "#a0a0a0", "linewidth": 2.2}  # broad and pale, so that bars on it are seen
LEAST = {X: (-0.05, 0.3), "gold_choice_change": (-0.2, 0.1), "fluency_kept": (0.75, 1.0)}
"""The least range that an axis shows, so that noise is not drawn large if nothing happens."""


@style.styled
def tradeoff(frame: pd.DataFrame, draws: pd.DataFrame | None = None, width: Width = "double", page: int = 1) -> Figure:
    """Draw toxicity reduction against the change of right answers and fluency kept, for one table of the leaderboard.

    Each method is a marker with 95% bars in both directions, hollow if no strength was feasible or a bound is violated;
    the bars of a hollow marker may extend beyond the panel unless the test split shows that its bounds are kept. A row
    whose text has collapsed is not drawn; the legend names it. The unsteered model is a star; random directions are
    dots, with a box over their range. The line is the Pareto front of the methods and the unsteered model for the two
    measures of its panel. Names are in a legend, since the markers of methods with little effect overlap; a page names
    MOST methods, and the other methods are crosses on it. A measure that no method has gets no panel.

    Args:
        frame: `Table.frame`.
        draws: `Table.by_fit`, whose single random directions are drawn as dots; None: draw those of `frame`.
        width: the width of one or of two columns of a paper.
        page: the number of the page, from 1.

    Raises:
        NothingToDraw: no method has both a toxicity reduction and a change in answers or fluency.
        NoSuchPage: there are fewer pages.
        ValueError: `frame` holds more than one table.
    """
    style.one_table(frame)
    every = [point for point in style.points(frame) if pd.notna(point.row[X])]
    panels = {name: title for name, title in PANELS.items() if any(pd.notna(point.row[name]) for point in every)}
    every = [point for point in every if any(pd.notna(point.row[name]) for name in panels)]
    if not every:
        raise NothingToDraw(
            "no method has toxicity results, and fluency or answers, beside the unsteered model's on the same prompts; "
            "run `python -m bench -m method=unsteered,caa suite=[rtp,fluency,capability]`"
        )
    every, gone = style.standing(every)
    shown, others = style.on_page(every, page)
    singles = frame if draws is None or draws.empty else draws
    random = singles[singles["method"] == RANDOM]
    if broken := int(has_collapsed(random).sum()):
        gone += style.left_out([f"{broken} of {len(random)} random directions"])
        random = random[~has_collapsed(random)]
    figure = style.blank(width, 2.65 if width == "double" else 0.6 + 1.75 * len(panels))
    axes = figure.subplots(
        *((1, len(panels)) if width == "double" else (len(panels), 1)), sharex=True, squeeze=False
    ).ravel()
    for ax, (column, title) in zip(axes, panels.items(), strict=True):
        style.crosses(ax, [(point.row[X], point.row[column]) for point in others if pd.notna(point.row[column])])
        panel(ax, column, shown, random)
        ax.set_ylabel(title)
        ax.grid()
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    for ax in axes if width == "double" else axes[-1:]:
        ax.set_xlabel(style.reduction(style.judge(frame)))
    limits(list(axes), list(panels), every, random)
    fronts = [front(ax, column, frame) for ax, column in zip(axes, panels, strict=True)]
    found = [*keys(shown, random, any(fronts)), *style.hollow_key(shown), *style.cross_key(len(others))]
    style.legend(figure, [*found, style.bars_key(), *gone])
    return figure


def panel(ax: Axes, column: str, shown: Sequence[Point], random: pd.DataFrame) -> None:
    """Draw one panel: what is kept (y) against what was gained (x)."""
    ax.axhline(UNSTEERED[column], color=GREY, linewidth=0.7, linestyle=DASHES, zorder=1)
    ax.axvline(0, color=GREY, linewidth=0.7, linestyle=DASHES, zorder=1)
    dots = (random.dropna(subset=[X, column])[[X, column]] if column in random else random.iloc[:0, :2]).to_numpy(float)
    if len(dots):
        (left, below), (right, above) = dots.min(axis=0), dots.max(axis=0)
        ax.add_patch(Rectangle((left, below), right - left, above - below, facecolor=PALE, edgecolor=GREY,
                               linewidth=0.6, zorder=2))  # fmt: skip
        ax.plot(*dots.T, ".", color=GREY, markersize=3.0, zorder=3)
    style.star(ax, 0, UNSTEERED[column])
    for point in shown:
        if pd.notna(point.row[column]):
            (x, across), (y, up) = point.at(X), point.at(column)
            style.bars(ax, x, y, point.look, across=across, up=up)
            style.marker(ax, x, y, point.look, hollow=point.hollow)


def front(ax: Axes, column: str, frame: pd.DataFrame) -> bool:
    """Draw the Pareto front of methods and unsteered model, if it has at least two points; returns whether it has."""
    seen = frame[(frame["method"] != RANDOM) & frame[X].notna() & frame[column].notna()]
    points = seen.loc[~has_collapsed(seen), [X, column]].to_numpy(dtype=float)
    best = np.unique(points[pareto.front(points)], axis=0)  # from left to right, so from top to bottom
    if len(best) > 1:
        ax.plot(*best.T, drawstyle="steps-pre", **FRONT, zorder=2.5)
    return len(best) > 1


def limits(axes: Sequence[Axes], panels: Sequence[str], shown: Sequence[Point], random: pd.DataFrame) -> None:
    """Set limits with room for every marker, and for every bar of a method within its bounds; equal on all pages."""
    setters: list[Any] = [axes[0].set_xlim, *(ax.set_ylim for ax in axes)]
    for name, setter in zip([X, *panels], setters, strict=True):
        values = list(LEAST[name])
        values += random[name].dropna().astype(float).tolist()
        for point in shown:
            if pd.notna(point.row[name]):
                value, ((below,), (above,)) = point.at(name)
                whole = not point.hollow or point.row.get("bounds") == KEPT
                values += [value - below, value, value + above] if whole else [value]
        margin = 0.06 * (max(values) - min(values))
        setter(min(values) - margin, max(values) + margin)


def keys(shown: Sequence[Point], random: pd.DataFrame, front: bool) -> list[Artist]:
    """Return the entries of the legend: unsteered model, random directions, Pareto front, then each method."""
    found: list[Artist] = [style.star_key()]
    if random[X].notna().any():
        draws = int(random[X].notna().sum())
        label = f"range of {draws} random directions" if draws > 1 else "a random direction"
        dot = Line2D([], [], marker=".", color=GREY, markersize=3.0, linestyle="none", label=label)
        found.append(Patch(facecolor=PALE, edgecolor=GREY, linewidth=0.6, label=label) if draws > 1 else dot)
    if front:
        found.append(Line2D([], [], **FRONT, label="Pareto front"))
    for point in shown:
        found.append(style.key(point.look, point.label, hollow=point.hollow))
    return found
