"""ToxiGen group by group: about whom a method turns texts kinder, and about whom it does not."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from bench.console import escape
from bench.plots import style
from bench.plots.style import PALE, SMALL, MarkerStyle, NothingToDraw, Width
from bench.records.names import BASELINE_FAMILY, is_control

METRIC = re.compile(r"toxigen\.([^.]+)\.toxic_share\.([^.]+)")  # scorer, group
BAR = {"single": 0.075, "double": 0.07}  # inches of a bar across
PAGE = 8.0  # inches that the bars may take up
BETWEEN = 1.0  # bars' widths between two groups
Bar = tuple[str, "pd.Series[Any]", MarkerStyle]
"""Name, row and style of one bar of a group."""
UNSTEERED, CONTROL = MarkerStyle("#404040", "*", ""), MarkerStyle(PALE, "d", "")


@style.styled
def groups(frame: pd.DataFrame, width: Width = "double") -> Figure:
    """Share of toxic continuations for each of ToxiGen's groups, methods side by side.

    Bars with 95 % intervals over prompts: Wilson's of a share, or for a mean over several fits that of its standard
    error. Groups go from the most to the least toxic by the unsteered model. Upright in a wide figure, in as many
    rows as the bars need; lying in a narrow one. By the first reported scorer.

    Args:
        frame: `Table.frame`.
        width: of one or two columns.

    Raises:
        NothingToDraw: the suite toxigen was not run.
        ValueError: `frame` holds more than one table.
    """
    style.one_table(frame)
    page = style.inches(width)
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
            "ToxiGen was not asked; run `python -m bench -m method=unsteered,caa strength=3 suite=[toxigen] "
            "runtime.mirror=FOLDER` with a mirror of the hub's data, or where the hub can be reached"
        )
    bars = drawn(rows)
    first = next((row for _, row, _ in bars if row["family"] == BASELINE_FAMILY), bars[0][1])
    order = sorted(shares, key=lambda group: (-float(first[shares[group]]), group))
    wide = (len(bars) + BETWEEN) * BAR[width]  # inches of a group
    if width == "single":
        figure = style.blank(width, min(max(1.6, 0.5 + wide * len(order)), PAGE))
        axes = [figure.subplots()]
    else:
        named = (max(style.measure(part) for group in order for part in label(group, False).split("\n")) + 5) / 72
        blocks = min(len(order), max(1, int(np.ceil(max(wide, named) * len(order) / (page - 0.7)))))
        figure = style.blank(width, 0.1 + 1.7 * blocks)
        axes = list(figure.subplots(blocks, 1, sharey=True, squeeze=False)[:, 0])
    for ax, block in zip(axes, np.array_split(np.array(order, dtype=object), len(axes)), strict=True):
        panel(ax, bars, {group: shares[group] for group in block}, lying=width == "single")
        what, by = "share of toxic continuations" if width == "single" else "toxic share", escape.visible(asked[0])
        (ax.set_xlabel if width == "single" else ax.set_ylabel)(f"{what}\n(by {by})")
    style.legend(figure, [Patch(label=name, **face(look)) for name, _, look in bars])
    return figure


def drawn(rows: pd.DataFrame) -> list[Bar]:
    """Each bar of a group: unsteered, the methods by name, random directions."""
    look = {point.label: point.look for point in style.points(rows)}
    found = []
    for name, (_, row) in zip(style.names(rows), rows.iterrows(), strict=True):
        control = UNSTEERED if row["family"] == BASELINE_FAMILY else CONTROL
        place = 0 if row["family"] == BASELINE_FAMILY else 2 if is_control(row["method"], row["family"]) else 1
        found.append((place, name, row, look.get(name, control)))
    return [one[1:] for one in sorted(found, key=lambda one: one[:2])]


def label(group: str, lying: bool) -> str:
    """A group's name, each word in a line of its own where the bars stand."""
    return style.shortened(escape.visible(group)).replace("_", " " if lying else "\n")


def face(look: MarkerStyle) -> dict[str, Any]:
    """How a bar is filled: hatched, so that grey print tells bars apart."""
    return {"facecolor": look.colour, "edgecolor": "white" if look.hatch else look.colour, "hatch": look.hatch,
            "linewidth": 0.4}  # fmt: skip


def panel(ax: Axes, bars: Sequence[Bar], shares: dict[str, str], *, lying: bool) -> None:
    """Some of the groups, each with a bar for every method; bar i of group g is at g (bars + BETWEEN) + i."""
    starts = np.arange(len(shares)) * (len(bars) + BETWEEN)
    for i, (_, row, look) in enumerate(bars):
        known = [(start + i, *interval(row, name)) for start, name in zip(starts, shares.values(), strict=True)
                 if pd.notna(row[name])]  # fmt: skip
        if not known:
            continue
        at, value, low, high = np.array(known).T
        ends = [value - low, high - value]
        line: Any = {"ecolor": "black", "elinewidth": 0.6, "fmt": "none"}
        if lying:
            ax.barh(at, value, height=0.9, **face(look))
            ax.errorbar(value, at, xerr=ends, **line)
        else:
            ax.bar(at, value, width=0.9, **face(look))
            ax.errorbar(at, value, yerr=ends, **line)
    middle = starts + (len(bars) - 1) / 2
    names = [label(group, lying) for group in shares]
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
    """A share with the ends of its 95 % interval, both at the share where it has none."""
    share, low, high = float(row[name]), row[f"{name}.low"], row[f"{name}.high"]
    return share, share if pd.isna(low) else float(low), share if pd.isna(high) else float(high)
