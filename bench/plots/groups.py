"""ToxiGen by groups: the groups for which a method makes texts less toxic, and those for which it does not."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from bench.leaderboard.ranking import has_collapsed
from bench.plots import style
from bench.plots.style import PALE, SMALL, MarkerStyle, NothingToDraw, Width
from bench.records.names import BASELINE_FAMILY, is_control

METRIC = re.compile(r"toxigen\.([^.]+)\.toxic_share\.([^.]+)")  # scorer, group
BAR = {"single": 0.075, "double": 0.07}  # inches of a bar across
PAGE = 8.0  # inches that the bars may take up
BETWEEN = 1.0  # bars' widths between two groups
CAPITAL = set("american asian black chinese east jewish latino mexican middle muslim native".split())
"""The words of groups' names that begin with a capital."""
Bar = tuple[str, "pd.Series[Any]", MarkerStyle]
"""Name, row and style of one bar of a group."""
UNSTEERED, CONTROL = MarkerStyle("white", "*", ""), MarkerStyle(PALE, "d", "")


@style.styled
def groups(frame: pd.DataFrame, width: Width = "double", page: int = 1) -> Figure:
    """Draw the share of toxic continuations for each of ToxiGen's groups, methods side by side.

    Bars have 95% intervals over prompts: Wilson's interval of a share or, for a mean over several fits, the interval
    from the mean's standard error; a share of 0 is a line on the axis. Groups are sorted from the most to the least
    toxic texts of the unsteered model. Bars are vertical in a wide figure, in as many rows as needed, and horizontal in
    a narrow one. The scorer is the first of `scorers_report` that judged these texts. Rows whose text has collapsed (is
    broken) have no bars; the legend names them as not shown. If the bars do not fit, the methods are split over pages,
    each with the unsteered model.

    Args:
        frame: `Table.frame`.
        width: the width of one or of two columns of a paper.
        page: the number of the page, from 1.

    Raises:
        NothingToDraw: the suite toxigen was not run.
        NoSuchPage: there are fewer pages.
        ValueError: `frame` holds more than one table.
    """
    style.one_table(frame)
    across = style.inches(width)
    matches = [match for name in frame if (match := METRIC.fullmatch(str(name)))]
    found = [
        (match[1], match[2], match[0]) for match in matches if f"{match[0]}.n" in frame
    ]  # not toxic_share.n itself
    judges = {scorer for scorer, *_ in found}
    asked = [one for one in str(frame["scorers_report"].iloc[0]).split("; ") if one in judges]
    shares = {group: name for scorer, group, name in found if scorer == asked[0]} if asked else {}
    rows = frame[frame[list(shares.values())].notna().any(axis=1)] if shares else frame.iloc[:0]
    if rows.empty:
        raise NothingToDraw(
            "the suite toxigen was not run; run `python -m bench -m method=unsteered,caa strength=3 suite=[toxigen]` "
            "where the hub can be reached; elsewhere add runtime.mirror=FOLDER, a mirror of the hub's data"
        )
    gone = has_collapsed(rows)
    hidden = style.left_out([name for name, one in zip(style.names(rows), gone, strict=True) if one])
    every = drawn(rows, list(~gone))
    first = next((row for _, row, _ in every if row["family"] == BASELINE_FAMILY), every[0][1])
    order = sorted(shares, key=lambda group: (-float(first[shares[group]]), group))
    counts = {group: number(rows, shares[group]) for group in order}
    said = counts if len(set(counts.values())) > 1 else dict.fromkeys(order, "")
    bars = on_page(every, room(width, len(order)), page)
    wide = (len(bars) + BETWEEN) * BAR[width]  # inches of a group
    if width == "single":
        figure = style.blank(width, min(max(1.6, 0.5 + wide * len(order)), PAGE))
        axes = [figure.subplots()]
    else:
        lines = [part for group in order for part in label(group, said[group], False).split("\n")]
        named = (max(map(style.measure, lines)) + 5) / 72
        blocks = min(len(order), max(1, int(np.ceil(max(wide, named) * len(order) / (across - 0.7)))))
        figure = style.blank(width, 0.1 + 1.7 * blocks)
        axes = list(figure.subplots(blocks, 1, sharey=True, squeeze=False)[:, 0])
    for ax, block in zip(axes, np.array_split(np.array(order, dtype=object), len(axes)), strict=True):
        panel(ax, bars, {group: shares[group] for group in block}, said, lying=width == "single")
        what = "share of toxic continuations" if width == "single" else "share of toxic texts"
        (ax.set_xlabel if width == "single" else ax.set_ylabel)(f"{what}\n(by {style.printable(asked[0])})")
    keys = [Patch(label=name, **face(look)) for name, _, look in bars]
    if len(set(counts.values())) == 1 and counts[order[0]]:
        keys.append(style.text_key(f"{counts[order[0]]} prompts a group"))
    style.legend(figure, [*keys, *hidden])
    return figure


def number(rows: pd.DataFrame, name: str) -> str:
    """Return `n = ` and the number of prompts of a share, from the fewest to the most of any row; empty if unknown."""
    known = rows[f"{name}.n"].dropna().astype(int)
    least, most = (known.min(), known.max()) if len(known) else (0, 0)
    return f"n = {least}" + (f"–{most}" if most > least else "") if most else ""


def room(width: Width, count: int) -> int:
    """Return how many bars besides the unsteered model's each of `count` groups may have on a page."""
    if width == "single":
        return max(1, min(style.MOST, int(PAGE / BAR[width] / count - BETWEEN) - 1))
    blocks = int(PAGE / 1.7)
    return max(1, min(style.MOST, int((style.inches(width) - 0.7) / BAR[width] / -(-count // blocks) - BETWEEN) - 1))


def on_page(bars: Sequence[Bar], most: int, page: int) -> list[Bar]:
    """Return the unsteered model and the bars of this page. Raises NoSuchPage."""
    base = [one for one in bars if one[1]["family"] == BASELINE_FAMILY]
    return base + style.paged([one for one in bars if one[1]["family"] != BASELINE_FAMILY], most, page)


def drawn(rows: pd.DataFrame, kept: Sequence[bool]) -> list[Bar]:
    """Return the bars of each group for the kept rows, in order: unsteered, the methods by name, random directions."""
    look = {point.label: point.look for point in style.points(rows)}
    found = []
    for name, (_, row) in zip(style.names(rows), rows.iterrows(), strict=True):
        control = UNSTEERED if row["family"] == BASELINE_FAMILY else CONTROL
        place = 0 if row["family"] == BASELINE_FAMILY else 2 if is_control(row["method"], row["family"]) else 1
        found.append((place, name, row, look.get(name, control)))
    found = [one for one, keep in zip(found, kept, strict=True) if keep]
    return [one[1:] for one in sorted(found, key=lambda one: one[:2])]


def label(group: str, n: str, lying: bool) -> str:
    """Return a group's name with its count; if bars are vertical, each word is on its own line."""
    words = style.shortened(style.printable(group)).split("_")
    own = [word.upper() if word == "lgbtq" else word.title() if word in CAPITAL else word for word in words]
    name = (" " if lying else "\n").join(own)
    return f"{name}\n{n}" if n else name


def face(look: MarkerStyle) -> dict[str, Any]:
    """Return the fill of a bar: hatched, or outlined for the unsteered model, so that bars differ in grey print."""
    return {"facecolor": look.colour, "edgecolor": "white" if look.hatch else outline(look), "hatch": look.hatch,
            "linewidth": 0.6 if look == UNSTEERED else 0.4}  # fmt: skip


def outline(look: MarkerStyle) -> str:
    """Return the colour of a bar's outline, and of the line that stands for a share of 0."""
    return "black" if look == UNSTEERED else look.colour


def panel(ax: Axes, bars: Sequence[Bar], shares: dict[str, str], counts: dict[str, str], *, lying: bool) -> None:
    """Draw some of the groups, each with a bar for every method; bar i of group g is at g * (bars + BETWEEN) + i.

    counts: for each group, the text that states its number of prompts.
    """
    starts = np.arange(len(shares)) * (len(bars) + BETWEEN)
    for i, (_, row, look) in enumerate(bars):
        known = [(start + i, *interval(row, name)) for start, name in zip(starts, shares.values(), strict=True)
                 if pd.notna(row[name])]  # fmt: skip
        if not known:
            continue
        at, value, low, high = np.array(known).T
        ends = [value - low, high - value]
        line: Any = {"ecolor": "black", "elinewidth": 0.6, "fmt": "none"}
        zero: Any = {"colors": outline(look), "linewidth": 1.6, "clip_on": False, "zorder": 3}
        none = at[value == 0]
        (ax.vlines if lying else ax.hlines)(np.zeros(len(none)), none - 0.45, none + 0.45, **zero)
        if lying:
            ax.barh(at, value, height=0.9, **face(look))
            ax.errorbar(value, at, xerr=ends, **line)
        else:
            ax.bar(at, value, width=0.9, **face(look))
            ax.errorbar(at, value, yerr=ends, **line)
    middle = starts + (len(bars) - 1) / 2
    names = [label(group, counts[group], lying) for group in shares]
    edges = (-0.5 - BETWEEN, starts[-1] + len(bars) - 0.5 + BETWEEN)
    if lying:
        ax.set_yticks(middle, names)
        ax.set_ylim(*edges[::-1])
        ax.set_xlim(left=0)
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="x")
    else:
        ax.set_xticks(middle, names, fontsize=SMALL)
        ax.set_xlim(*edges)
        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        ax.tick_params(axis="x", length=0)
        ax.grid(axis="y")


def interval(row: "pd.Series[Any]", name: str) -> tuple[float, float, float]:
    """Return a share with the ends of its 95% interval; without an interval both ends equal the share."""
    share, low, high = float(row[name]), row[f"{name}.low"], row[f"{name}.high"]
    return share, share if pd.isna(low) else float(low), share if pd.isna(high) else float(high)
