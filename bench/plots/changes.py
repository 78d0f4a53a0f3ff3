"""The distribution of the change over prompts, since a mean hides prompts that got worse."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from bench.leaderboard.columns import TOXICITY
from bench.leaderboard.frame import ROUNDING
from bench.plots import style
from bench.plots.style import DASHES, FONT, GREY, SMALL, WIDTHS, NothingToDraw, Point, Width

ROW = 0.3  # inches of a method
NAMES = 0.3  # share of the width that the methods' names may take
TEXTS = "mean: as in the table, against all unsteered texts; all else: against as many as the method has"


@style.styled
def changes(frame: pd.DataFrame, items: pd.DataFrame | None = None, width: Width = "double", page: int = 1) -> Figure:
    """Draw the change of the headline metric from the unsteered model on each prompt, a line per method.

    A box covers the middle half of the prompts and shows the median; whiskers cover the middle 90%, a marker is at the
    mean, and at the right stands the share of prompts that got worse. The mean of a toxicity is the change that the
    table shows, which uses all texts of the unsteered model; box, whiskers and share use only as many of its texts as
    the method has. A method that changes texts only at random makes about half of the prompts worse; a method that
    changes no text makes none worse.

    Args:
        frame: `Table.frame`.
        items: `Table.by_item`; None: no method has items.
        width: the width of one or of two columns of a paper.
        page: the number of the page, from 1.

    Raises:
        NothingToDraw: no method was measured on the prompts of the unsteered model.
        NoSuchPage: there are fewer pages.
        ValueError: `frame` holds more than one table.
    """
    style.one_table(frame)
    items = pd.DataFrame(columns=["records", "metric", "change"]) if items is None else items
    own = {str(records): rows["change"].to_numpy(float) for records, rows in items.groupby("records")}
    every = [point for point in style.points(frame) if str(point.row["records"]) in own]
    if not every:
        raise NothingToDraw(
            "no method was measured on the prompts of the unsteered model; run `python -m bench -m "
            "method=unsteered,caa suite=[rtp,fluency]`"
        )
    shown = style.paged(every, int((style.PAGE - 1.0) / ROW), page)
    metric = str(items["metric"].iloc[0])
    means = {point.label: mean(point, metric, own[str(point.row["records"])]) for point in every}
    told = f"change of {style.measured(metric)},"
    told = style.wrapped(told, 0.8 * 72 * style.inches(width), FONT)  # centred below an axis that is not centred
    figure = style.blank(width, 0.45 + 0.15 * len(told.split("\n")) + ROW * len(shown))
    ax = figure.subplots()
    ax.axvline(0, color=GREY, linewidth=0.7, linestyle=DASHES, zorder=1)
    for place, point in enumerate(shown):
        line(ax, place, point, own[str(point.row["records"])], means[point.label])
    points = NAMES * 72 * style.inches(width)
    ax.set_yticks(range(len(shown)), [style.wrapped(point.label, points, lines=2) for point in shown])
    ax.set_ylim(len(shown) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    ends = [np.quantile(own[str(point.row["records"])], [0.05, 0.95]) for point in every]
    least, most = min(0.0, *(low for low, _ in ends)), max(0.0, *(high for _, high in ends))
    ax.set_xlim(least - 0.05 * (most - least or 1), most + 0.05 * (most - least or 1))  # alike on all pages
    counts = sorted({len(own[str(point.row["records"])]) for point in every})
    n = f"per prompt (n = {'–'.join(f'{one:,}' for one in sorted({counts[0], counts[-1]}))})"
    ax.set_xlabel(f"{told}\n{n}")
    differ = any(abs(means[point.label] - own[str(point.row["records"])].mean()) > ROUNDING for point in every)
    style.legend(figure, [*keys(), *style.hollow_key(shown), *([style.text_key(TEXTS)] if differ else [])])
    return figure


def mean(point: Point, metric: str, values: np.ndarray) -> float:
    """Return the mean change that is drawn: for a toxicity the table's change, for any other metric the prompts' mean.

    These two differ if the table compares with more texts of the unsteered model than the figure shows.
    """
    change = point.row.get(f"{metric}.delta") if TOXICITY.fullmatch(metric) else None
    return float(values.mean()) if change is None or pd.isna(change) else float(change)


def line(ax: Axes, place: int, point: Point, values: np.ndarray, mean: float) -> None:
    """Draw one method: whiskers, box, median, mean, and the share of prompts that got worse."""
    least, low, middle, high, most = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
    colour = point.look.colour
    ax.plot([least, most], [place, place], color=colour, linewidth=0.9, zorder=2)
    ax.barh(place, high - low, left=low, height=0.5, facecolor="white", edgecolor=colour, linewidth=0.9, zorder=3)
    ax.plot([middle, middle], [place - 0.25, place + 0.25], color=colour, linewidth=1.6, zorder=4)
    style.marker(ax, mean, place, point.look, hollow=point.hollow, size=5.0)
    worse = point.row.get("made_worse")
    if pd.notna(worse):
        narrow = ax.figure is not None and ax.figure.bbox.width / ax.figure.dpi < WIDTHS["double"]
        told = f"{worse:.0%} of prompts{chr(10) if narrow else ' '}worse"
        ax.annotate(told, (1.01, place), xycoords=("axes fraction", "data"), va="center",
                    fontsize=SMALL)  # fmt: skip


def keys() -> list[Patch | Line2D]:
    """Return the legend's entries, which explain the box, the whiskers and the mean."""
    return [
        Patch(facecolor="white", edgecolor="black", linewidth=0.9, label="middle half of the prompts, median"),
        Line2D([], [], color="black", linewidth=0.9, label="middle 90%"),
        Line2D([], [], color="black", marker="o", markersize=5, linestyle="none", label="mean"),
    ]
