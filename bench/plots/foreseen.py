"""The effect of steering against what the fit foretells: the separation of the contrast pairs."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bench.plots import style
from bench.plots.cost import keys
from bench.plots.style import DASHES, GREY, NothingToDraw, Point, Width

X = "d_prime"
REDUCTION = "toxicity_reduction"
FEWEST = 2  # rows: one says nothing of whether the effect follows the separation


@style.styled
def foreseen(frame: pd.DataFrame, width: Width = "double", page: int = 1) -> Figure:
    """Draw toxicity reduction, or else the headline metric's change, against d' of the pairs that a method learnt from.

    d' says how well the pairs separate; it is measured when fitting (`methods.separation`). Each row that has a d' and
    an effect is a marker with the 95% bar of the effect, hollow if no strength was feasible or a bound is violated.
    Rows whose text has collapsed (is broken) have no marker; the legend names them as not shown. If d' foretells the
    effect, the markers rise from left to right, or fall if a lower headline metric is better. Methods that learn from
    no pairs have no d', and neither has the unsteered model. A page names at most `style.MOST` methods; the others are
    crosses on it.

    Args:
        frame: `Table.frame`. Its optional column `headline` names the headline metric; without it, only toxicity
            reduction is drawn.
        width: the width of one or of two columns of a paper.
        page: the number of the page, from 1.

    Raises:
        NothingToDraw: fewer than two rows have both a d' and an effect.
        NoSuchPage: there are fewer pages.
        ValueError: `frame` holds more than one table.
    """
    style.one_table(frame)
    points = [point for point in style.points(frame) if pd.notna(point.row.get(X))]
    measures = [REDUCTION] + ([f"{frame['headline'].iloc[0]}.delta"] if "headline" in frame else [])
    shown = {name: [point for point in points if pd.notna(point.row.get(name))] for name in measures}
    y = next((name for name, there in shown.items() if len(there) >= FEWEST), None)
    if y is None:
        raise NothingToDraw(
            f"fewer than {FEWEST} rows have both an effect and a d' of the pairs that they learnt from (fits made by "
            "older versions have none); run `python -m bench -m method=unsteered,caa,detox,probe_rows "
            "suite=[rtp,fluency]`"
        )
    whole, gone = style.standing(shown[y])
    named, others = style.on_page(whole, page)
    figure = style.blank(width, 2.3 if width == "double" else 2.5)
    drawn(figure, named, others, y)
    told = (
        style.reduction(style.judge(frame))
        if y == REDUCTION
        else f"change of\n{style.measured(y.removesuffix('.delta'))}"
    )
    figure.axes[0].set_ylabel("\n".join(style.wrapped(line, 110, style.FONT) for line in told.split("\n")))
    found = [*keys(named), *style.hollow_key(named), *style.cross_key(len(others))]
    style.legend(figure, [*found, style.bars_key(), *gone])
    return figure


def drawn(figure: Figure, shown: list[Point], others: list[Point], y: str) -> None:
    """Draw the markers with their bars, on axes that include 0; `others`: the methods that another page names."""
    ax = figure.subplots()
    ax.axhline(0, color=GREY, linewidth=0.7, linestyle=DASHES, zorder=1)
    ax.axvline(0, color=GREY, linewidth=0.7, linestyle=DASHES, zorder=1)
    ax.grid()
    style.crosses(ax, [(point.row[X], point.row[y]) for point in others])
    for point in shown:
        value, up = point.at(y)
        style.bars(ax, float(point.row[X]), value, point.look, up=up)
        style.marker(ax, float(point.row[X]), value, point.look, hollow=point.hollow)
    ax.set_xlabel("separation of held-out pairs (d′)")
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
