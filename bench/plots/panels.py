"""Measures against a setting, in a grid of small panels: the figures of strength, pairs, label noise and layer."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from bench.leaderboard.ranking import has_collapsed
from bench.plots import style
from bench.plots.style import CONTROL, DASHES, GREY, SMALL, MarkerStyle, NothingToDraw, Width
from bench.plots.sweeps import HEADLINE, MEASURES
from bench.records.names import RANDOM

UNSTEERED = {HEADLINE: 0.0, "toxicity_reduction": 0.0, "perplexity_ratio": 1.0, "gold_choice_change": 0.0}
ROOM = {"single": 3, "double": 7}  # panels side by side whose numbers can still be read
SEEN = {
    HEADLINE: (-np.inf, np.inf),
    "perplexity_ratio": (0.0, np.inf),
    "toxicity_reduction": (-1.0, 1.0),
    "gold_choice_change": (-1.0, 1.0),
}  # bands widen the axis of a panel of strengths at most to these limits, since those of strong steering are very wide
WIDE_RATIO = 4.0  # from this ratio on, perplexity has a logarithmic axis
CUT = 10.0  # perplexity ratio at which an axis ends if points are beyond twice this
HIGH = 1.05  # inches of a row of panels
HEAD = 0.15  # inches of a second line above a row of panels
CHOSEN, TRIED, TRIED_HOLLOW = 4.6, 2.4, 3.4  # sizes of the markers of strengths that tuning chose, and of others
BANDS = 3  # the most curves in a panel that are drawn with bands; more have bars, SHIFT points apart
SHIFT = 2.0
CURVES = 8  # the most curves in a panel whose bands can still be distinguished
Facet = Literal["curve", "unit"]


@style.styled
def strength(frame: pd.DataFrame, width: Width = "double", page: int = 1) -> Figure:
    """Draw toxicity reduction (or the headline metric), perplexity ratio and right answers against strength.

    A strength is in its method's own unit. Lines start at the unsteered model (star, strength 0); bands are 95%
    intervals; a large marker is the strength that tuning chose (hollow if no strength kept the bounds of tuning), small
    markers are the other strengths that tuning tried. The legend names the scorer that tuning used if the figure uses
    another one. A method that prepends one of several prompts is drawn as points with bars: its strength is the number
    of a prompt, and these numbers have no order.

    Args:
        frame: the frame of `sweeps.strengths`, or one of the frames of `sweeps.trials`.
        width: the width of one or of two columns of a paper.
        page: the number of the page, from 1.

    Raises:
        NoSuchPage: there are fewer pages.
        NothingToDraw: no method was run at several strengths.
        ValueError: `frame` holds more than one table.
    """
    if frame.empty:
        raise NothingToDraw(
            "no method was run at several strengths, nor tuned; run `python -m bench method=caa` (strength=auto tries "
            "five), or `python -m bench -m method=caa strength=1,2,4`"
        )
    style.one_table(frame)
    return panels(frame, "curve", width, page, from_zero=True)


@style.styled
def sample_size(frame: pd.DataFrame, width: Width = "double", page: int = 1) -> Figure:
    """Draw toxicity reduction, perplexity ratio and right answers against the number of pairs learnt from.

    Each method is a line with its 95% band; the axis of pairs is logarithmic.

    Args:
        frame: the frame of `sweeps.sizes`.
        width: the width of one or of two columns of a paper.
        page: the number of the page, from 1.

    Raises:
        NoSuchPage: there are fewer pages.
        NothingToDraw: no method learnt from several numbers of pairs.
        ValueError: `frame` holds more than one table.
    """
    if frame.empty:
        raise NothingToDraw(
            "no method learnt from several numbers of pairs with all else equal; run "
            "`python -m bench experiment=curves`, or `python -m bench -m method=caa strength=3 pairs.limit=5,10,20,40`"
        )
    style.one_table(frame)
    return panels(frame, "unit", width, page, from_zero=False, doubling=True)


@style.styled
def label_noise(frame: pd.DataFrame, width: Width = "double", page: int = 1) -> Figure:
    """Draw toxicity reduction, perplexity ratio and right answers against the share of pairs with swapped labels.

    Each method is a line with its 95% band.

    Args:
        frame: the frame of `sweeps.noise`.
        width: the width of one or of two columns of a paper.
        page: the number of the page, from 1.

    Raises:
        NoSuchPage: there are fewer pages.
        NothingToDraw: no method learnt from pairs with several shares of swapped labels.
        ValueError: `frame` holds more than one table.
    """
    if frame.empty:
        raise NothingToDraw(
            "no method learnt from several shares of swapped labels with all else equal; run "
            "`python -m bench experiment=label_noise`, or `python -m bench -m method=caa strength=3 pairs.flip=0,0.25`"
        )
    style.one_table(frame)
    return panels(frame, "unit", width, page, from_zero=False)


@style.styled
def layers(frame: pd.DataFrame, width: Width = "double", page: int = 1) -> Figure:
    """Draw toxicity reduction, perplexity ratio and right answers against the layer that a method steers.

    Each method is a line with its 95% band. Layers given as a share of the depth and layers given as block numbers have
    separate panels.

    Args:
        frame: the frame of `sweeps.layers`.
        width: the width of one or of two columns of a paper.
        page: the number of the page, from 1.

    Raises:
        NoSuchPage: there are fewer pages.
        NothingToDraw: no method was run at several layers.
        ValueError: `frame` holds more than one table.
    """
    if frame.empty:
        raise NothingToDraw(
            "no method was run at several layers with all else equal; run `python -m bench experiment=curves`, or "
            "`python -m bench -m method=caa strength=3 method.layer=0.2,0.4,0.6,0.8`"
        )
    style.one_table(frame)
    return panels(frame, "unit", width, page, from_zero=False)


def panels(
    frame: pd.DataFrame,
    facet: Facet,
    width: Width,
    page: int,
    *,
    from_zero: bool,
    doubling: bool = False,
    everywhere: Sequence[str] = (),
) -> Figure:
    """Draw a panel for each measure and each value of `facet`; each of these values has its own axis of the setting.

    Each measure is a row of panels; it is a column if `facet` has a single value in a wide figure, or has more values
    than fit into a row. A page has as many rows as fit, and as many curves as a reader can distinguish in one panel; a
    measure has the same axis on all pages.

    Args:
        frame: a frame of `bench.plots.sweeps`.
        facet: the column in which the panels differ, besides the measure.
        width: the width of one or of two columns of a paper.
        page: the number of the page, from 1.
        from_zero: whether each curve starts at the unsteered model, at 0.
        doubling: whether the setting is drawn on a logarithmic axis.
        everywhere: curves that are on each page.
    """
    measures = [name for name in MEASURES if frame[name].notna().any()]
    if not measures:
        raise NothingToDraw("no change from the unsteered model is known; run its cells too (method=unsteered)")
    look, every = marker_styles(frame), frame
    values = list(dict.fromkeys(frame[facet]))
    across = width == "double" if len(values) == 1 else len(values) > ROOM[width]
    rows = int((style.PAGE - 1.0) / (HIGH + HEAD)) if across else len(values)
    frame = on_page(frame, facet, page, rows, everywhere)
    values = list(dict.fromkeys(frame[facet]))
    shape = (len(values), len(measures)) if across else (len(measures), len(values))
    high = (HIGH if facet == "curve" else 1.9) if across else 1.4
    units = [style.printable(frame.loc[frame[facet] == value, "unit"].iloc[0]) for value in values]
    heads = [(str(value) if facet == "curve" else "", unit) for value, unit in zip(values, units, strict=True)]
    if across and any("\n" in above(head, width) for head in heads):
        high += HEAD
    figure = style.blank(width, 0.45 + high * shape[0])
    grid = figure.subplots(*shape, squeeze=False, sharey="col" if across else "row", sharex="row" if across else "col")
    grid = grid if across else grid.T  # (values, measures)
    for row, value in zip(grid, values, strict=True):
        own = frame[frame[facet] == value]
        for ax, measure in zip(row, measures, strict=True):
            ax.axhline(UNSTEERED[measure], color=GREY, linewidth=0.7, linestyle=DASHES, zorder=1)
            ax.grid()
            curves = list(own.groupby("curve", sort=True))
            aside = SHIFT * (np.arange(len(curves)) - (len(curves) - 1) / 2) if len(curves) > BANDS else None
            for i, (name, curve) in enumerate(curves):
                line(ax, measure, curve, look[str(name)], from_zero, None if aside is None else float(aside[i]))
            for bound in sorted(own["bound"].dropna().unique()) if measure == "perplexity_ratio" else ():
                ax.axhline(float(bound), color="black", linewidth=0.8, linestyle=":", zorder=2)
        setting_axis(row[0], own, from_zero, doubling, of=len(values) if not across else len(measures))
    cut = False
    for i, measure in enumerate(measures):
        measure_axis(grid[0, i], every, measure, *(SEEN[measure] if facet == "curve" else (-np.inf, np.inf)))
        for ax, value in zip(grid[:, i], values, strict=True):
            cut |= arrows(ax, measure, frame[frame[facet] == value], look)
    (tops if across else sides)(grid, measures, heads, frame, width)
    beyond = [style.text_key("↑: beyond the axis; number: the largest value")] if cut else []
    style.legend(figure, [*keys(frame, look, facet), *beyond])
    return figure


def on_page(frame: pd.DataFrame, facet: Facet, page: int, rows: int, everywhere: Sequence[str] = ()) -> pd.DataFrame:
    """Return the curves of a page, in their order; if curves share panels, random directions are on each page.

    rows: for the facet "curve", the number of curves for which a page has room. everywhere: other curves that are on
    each page. Raises NoSuchPage.
    """
    if facet == "curve":
        return frame[frame["curve"].isin(style.paged(list(dict.fromkeys(frame["curve"])), rows, page))]
    fixed = (frame["method"] == RANDOM) | frame["curve"].isin(everywhere)
    others = sorted(set(frame.loc[~fixed, "curve"]), key=style.in_order)
    return frame[fixed | frame["curve"].isin(style.paged(others, CURVES - len(everywhere), page))]


def marker_styles(frame: pd.DataFrame) -> dict[str, MarkerStyle]:
    """Return a style for each curve; random directions are grey."""
    random = set(frame.loc[frame["method"] == RANDOM, "curve"])
    return style.marker_styles([name for name in frame["curve"] if name not in random]) | dict.fromkeys(random, CONTROL)


def line(
    ax: Axes, measure: str, curve: pd.DataFrame, look: MarkerStyle, from_zero: bool, aside: float | None = None
) -> None:
    """Draw one curve with its band; for a method of prompts, points with bars, since prompts' numbers have no order.

    aside: by how many typographic points the curve is moved to the right; it then has bars in place of its band. None:
    it stays in its place, and has its band.
    """
    moved = ax.transData
    if aside is not None and ax.figure is not None:
        moved = moved + ScaledTranslation(aside / 72, 0, ax.figure.dpi_scale_trans)
    known = curve.dropna(subset=[measure])
    x, y = known["x"].to_numpy(float), known[measure].to_numpy(float)
    low, high = (known[f"{measure}_{end}"].fillna(known[measure]).to_numpy(float) for end in ("low", "high"))
    if (known["family"] == "prompt").all() or aside is not None:
        ax.errorbar(x, y, yerr=[y - low, high - y], fmt="none", ecolor=look.colour, elinewidth=0.8, alpha=0.6, zorder=3,
                    transform=moved)  # fmt: skip
    if aside is not None:
        ax.plot(x, y, color=look.colour, linewidth=0.8, alpha=0.8, zorder=3, transform=moved)
    elif (known["family"] != "prompt").any():
        edge, middle, least, most = x, y, low, high
        if from_zero:
            zero = int(np.searchsorted(x, 0.0))  # a strength below 0 steers the other way
            edge = np.insert(x, zero, 0.0)
            middle, least, most = (np.insert(one, zero, UNSTEERED[measure]) for one in (y, low, high))
        ax.fill_between(edge, least, most, color=look.colour, alpha=0.18, linewidth=0, zorder=2)
        ax.plot(edge, middle, color=look.colour, linewidth=1.1, zorder=3)
    if from_zero and len(known):
        style.star(ax, 0, UNSTEERED[measure], size=8.0)
    for at, value, chosen, failed in zip(x, y, known["chosen"], hollow(known), strict=True):
        size = CHOSEN if pd.isna(chosen) or chosen else TRIED_HOLLOW if failed else TRIED
        style.marker(ax, at, value, look, hollow=failed, size=size, transform=moved)


def hollow(points: pd.DataFrame) -> "pd.Series[bool]":
    """Return which points are hollow: texts that have collapsed, and strengths chosen though none kept the bounds."""
    return has_collapsed(points) | (points["feasible"] == False).fillna(False).astype(bool)  # noqa: E712


def arrows(ax: Axes, measure: str, own: pd.DataFrame, look: dict[str, MarkerStyle]) -> bool:
    """Draw an arrow for each point above the axis, and the largest value if all are of one curve; returns if any is."""
    top = ax.get_ylim()[1]
    beyond = own[own[measure] > top]
    for name, x in zip(beyond["curve"], beyond["x"], strict=True):
        tip: Any = {"arrowstyle": "->", "color": look[str(name)].colour, "linewidth": 1.0}
        ax.annotate("", (x, top), (0, -10), textcoords="offset points", arrowprops=tip, annotation_clip=False)
    if beyond["curve"].nunique() == 1:
        most = beyond.sort_values(measure).iloc[-1]
        ax.annotate(f"{most[measure]:,.0f}", (most["x"], top), (0, -11), textcoords="offset points",
                    ha="center", va="top", fontsize=SMALL, color=look[most["curve"]].colour)  # fmt: skip
    return len(beyond) > 0


def setting_axis(ax: Axes, own: pd.DataFrame, from_zero: bool, doubling: bool, of: int) -> None:
    """Set the ticks of the setting: at values whose labels do not touch or, if `from_zero`, at round numbers."""
    x = np.unique(own["x"].to_numpy(float))
    if doubling and x[0] >= 0:
        ax.set_xscale("log") if x[0] else ax.set_xscale("symlog", linthresh=x[1], linscale=0.5)
        ax.set_xlim(x[0] / 1.15 if x[0] else -0.15 * x[1], x[-1] * 1.15)
        place = ax.xaxis.get_transform().transform(x)
    else:
        least, most = (min(0.0, x[0]), max(0.0, x[-1])) if from_zero else (x[0], x[-1])
        ax.set_xlim(least - 0.07 * (most - least), most + 0.07 * (most - least))
        place = x
    ax.xaxis.set_minor_locator(NullLocator())
    if from_zero:
        ax.xaxis.set_major_locator(MaxNLocator(4 if of > 3 else 5, steps=[1, 2, 5, 10]))
    else:
        ax.xaxis.set_major_locator(FixedLocator(spread(x, place, most=5 if of > 1 else 7)))
    ax.xaxis.set_major_formatter(FuncFormatter(plain))


def spread(values: np.ndarray, place: np.ndarray, most: int) -> list[float]:
    """Return the ascending values whose labels do not touch: neighbours are at least 1 / `most` of the axis apart."""
    least = (place[-1] - place[0]) / most
    kept = [0]
    for i in range(1, len(values)):
        if place[i] - place[kept[-1]] >= least:
            kept.append(i)
    if len(values) > 1:  # the last value has a label, and may take the place of the one before
        kept = [i for i in kept if i == 0 or place[-1] - place[i] >= least] + [len(values) - 1]
    return [float(values[i]) for i in kept]


def measure_axis(ax: Axes, frame: pd.DataFrame, measure: str, low: float, high: float) -> None:
    """Set limits and ticks of the axis of a measure, which are equal in all its panels.

    The limits leave room for all points, and for the parts of bands that lie between `low` and `high`. An axis of
    perplexity is cut if points are far beyond the larger of CUT and twice the bound of tuning; it then ends there.
    """
    y = frame[measure].dropna().to_numpy(float)
    ends = [frame[f"{measure}_{end}"].dropna().to_numpy(float) for end in ("low", "high")]
    values = np.concatenate([y, *(np.clip(one, low, high) for one in ends), [UNSTEERED[measure]]])
    least, most = float(values.min()), float(values.max())
    cut = max(CUT, 2 * frame["bound"].max() if frame["bound"].notna().any() else 0.0)
    if measure == "perplexity_ratio" and y.max() > 2 * cut > 2 * least:
        most = cut
    if measure == "perplexity_ratio" and most / max(least, 1e-9) > WIDE_RATIO:
        ax.set_yscale("log")
        ax.set_ylim(least / 1.15, most * 1.15)
        ax.yaxis.set_major_locator(FixedLocator(round_ratios(least, most)))
        ax.yaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.08 * max(most - least, 0.1)
        ax.set_ylim(least - margin, most + margin)
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(plain))


def round_ratios(least: float, most: float) -> list[float]:
    """Return at most four ticks between two positive numbers: 1, 2, 5, 10, ..., or 1, 3, 10, ..., or powers of ten."""
    decades = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    every = [[step * 10.0**one for one in decades for step in steps] for steps in ((1, 2, 5), (1, 3), (1,))]
    every += [[10.0**one for one in decades if one % stride == 0] for stride in range(2, len(decades) + 2)]
    shown = ([one for one in ticks if least <= one <= most] for ticks in every)
    return next(ticks for ticks in shown if len(ticks) <= 4)


def plain(value: float, place: int | None = None) -> str:
    """Return the label of a tick: as few digits as possible, with a real minus sign, not a hyphen."""
    del place
    text = np.format_float_scientific(value, trim="-", exp_digits=1) if 0 < abs(value) < 0.001 else f"{value:g}"
    return text.replace("-", "\N{MINUS SIGN}")


def titles(frame: pd.DataFrame) -> dict[str, str]:
    """Return the title of each measure."""
    headline = style.wrapped(f"change of {style.measured(frame['headline'].iloc[0])}", 80, lines=3)
    return {
        HEADLINE: headline,
        "toxicity_reduction": style.reduction(frame["scorer"].iloc[0]),
        "perplexity_ratio": "perplexity ratio",
        "gold_choice_change": "log-probability of\nthe right answer,\nchange (nats)",
    }


def above(head: tuple[str, str], width: Width) -> str:
    """Return the heading of a row of panels: the curve's name and the setting's unit, on one line or two."""
    name, unit = head
    told = name if unit == "strength" else f"{name}, strength: {unit}"
    return style.wrapped(told, 72 * style.inches(width) - 40, lines=2) if name else ""


def sides(
    grid: Any, measures: Sequence[str], heads: Sequence[tuple[str, str]], frame: pd.DataFrame, width: Width
) -> None:
    """Label a grid with a row for each measure: measures at the left, curves above, the setting's unit below."""
    room = (72 * style.inches(width) - 50) / len(heads) - (8 if len(heads) > 1 else 0)
    for ax, measure in zip(grid[0], measures, strict=True):
        ax.set_ylabel(titles(frame)[measure], fontsize=SMALL)
    for row, (name, unit) in zip(grid, heads, strict=True):
        row[0].set_title(style.wrapped(name, room), fontsize=SMALL)
        row[-1].set_xlabel(style.wrapped(unit, room), fontsize=SMALL)


def tops(
    grid: Any, measures: Sequence[str], heads: Sequence[tuple[str, str]], frame: pd.DataFrame, width: Width
) -> None:
    """Label a grid with a row for each curve: its name above it; measures above, or beside the panels of one row."""
    single, room = len(heads) == 1, (72 * style.inches(width) - 40) / len(measures)
    for i, (row, (name, unit)) in enumerate(zip(grid, heads, strict=True)):
        told = above((name, unit), width) if not single else style.wrapped(name, 72 * style.inches(width) - 40, lines=2)
        for ax, measure in zip(row, measures, strict=True):
            if single:
                ax.set_ylabel(titles(frame)[measure], fontsize=SMALL)
                ax.set_xlabel(unit, fontsize=SMALL)
            title = titles(frame)[measure] if i == 0 and not single else " " if name else ""
            title = "\n".join(style.wrapped(part, room) for part in title.split("\n")) if title.strip() else title
            second = 9.0 if "\n" in told else 0.0
            ax.set_title(title, fontsize=SMALL, pad=second + (15.0 if title.strip() else 3.0))
        if name:  # it may be wider than its panel, so the titles of the row reserve its height
            head = row[0].annotate(told, (0, 1), (0, 5), xycoords="axes fraction",
                                   textcoords="offset points", fontsize=SMALL, annotation_clip=False)  # fmt: skip
            head.set_in_layout(False)


def keys(frame: pd.DataFrame, look: dict[str, MarkerStyle], facet: Facet) -> list[Artist]:
    """Return the entries of the legend: the curves, if a panel holds several, and the meaning of markers and lines."""
    found: list[Artist] = []
    if facet == "unit":
        found += [style.key(look[name], name) for name in sorted(set(frame["curve"]), key=style.in_order)]
    if frame["chosen"].notna().any():
        plain = MarkerStyle("black", "o", "")
        by = sorted(set(frame["tuned_by"].dropna()) - set(frame["scorer"].dropna()))
        told = f" by {' or '.join(map(style.printable, by))}" if by else ""
        found += [style.key(plain, f"strength that tuning chose{told}"), style.key(plain, "tried", size=TRIED)]
    hollow = MarkerStyle("black", "o", "")
    if has_collapsed(frame).any():
        found.append(style.key(hollow, f"hollow: {style.COLLAPSED}", size=TRIED, hollow=True))
    if (frame["feasible"] == False).any():  # noqa: E712
        found.append(style.key(hollow, f"hollow and large: {style.NO_FEASIBLE}", hollow=True))
    if facet == "curve":
        found.append(style.star_key())
    else:
        found.append(Line2D([], [], color=GREY, linewidth=0.7, linestyle=DASHES, label="unsteered"))
    if frame["bound"].notna().any():
        bound = f"bound of tuning, {' or '.join(f'{one:g}' for one in sorted(frame['bound'].dropna().unique()))}"
        found.append(Line2D([], [], color="black", linewidth=0.8, linestyle=":", label=bound))
    if frame[[f"{measure}_low" for measure in MEASURES]].notna().any(axis=None):
        barred = facet == "unit" and frame.groupby("unit")["curve"].nunique().max() > BANDS
        band = Patch(facecolor=GREY, alpha=0.25, linewidth=0, label="95% interval")
        found.append(style.bars_key("95% interval; curves are set apart") if barred else band)
    return found
