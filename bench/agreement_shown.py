"""How `bench.agreement` is shown: a table for the terminal, and a figure. No torch here."""

from typing import Any

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich import box
from rich.table import Table

from bench.figures.style import COLOURS, GREY, MARKERS, STYLE

PANELS = {"auc": "AUC", "false_positive_rate": "false positives at .5", "false_negative_rate": "false negatives at .5"}
TITLES = {
    "auc": "AUC",
    "spearman": "rank corr.",
    "false_positive_rate": "false pos.",
    "false_negative_rate": "false neg.",
}
WIDE = 112  # columns that the table with its intervals needs
SPREAD = 0.64  # of the height of a set, between its first and last scorer


def table(frame: pd.DataFrame, intervals: bool = True) -> Table:
    """The rows of whole sets, under the name of each scorer."""
    out = Table(box=box.SIMPLE, padding=(0, 1), pad_edge=False)
    for number, title in enumerate(("texts", "n", "labelled", *TITLES.values())):
        out.add_column(title, justify="right" if number else "left", no_wrap=True)
    for scorer, rows in frame[frame["group"] == ""].groupby("scorer", sort=False):
        out.add_row(str(scorer), style="bold")
        for row in rows.to_dict("records"):
            name = f"  {row['set']}" + (" *" if row["learnt_from"] else "")
            share = f"{row['positives'] / row['n']:.0%}" if row["n"] else "-"
            out.add_row(name, f"{row['n']}", share, *(ranged(row, one, intervals) for one in TITLES))
    return out


def ranged(row: Any, name: str, intervals: bool = True) -> str:
    """A number with its interval: 0.92 (0.90 to 0.93)."""
    if pd.isna(row[name]):
        return "-"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    known = intervals and not pd.isna(low) and not pd.isna(high)
    return f"{row[name]:.2f} ({low:.2f} to {high:.2f})" if known else f"{row[name]:.2f}"


def figure(frame: pd.DataFrame) -> Figure:
    """A row per set, a marker per scorer with its 95 % bar; hollow where the scorer was trained on the texts."""
    whole = frame[frame["group"] == ""]
    sets = list(dict.fromkeys(whole["set"]))
    scorers = list(dict.fromkeys(whole["scorer"]))
    height = 1.4 + len(sets) * max(0.42, 0.16 * len(scorers))
    with mpl.rc_context(STYLE):
        out = Figure(figsize=(9.0, height), layout="constrained")
        axes = out.subplots(1, len(PANELS), sharey=True)
        for ax, (column, title) in zip(axes, PANELS.items(), strict=True):
            panel(ax, whole, column, sets, scorers)
            ax.set_xlabel(title)
        axes[0].set_yticks(range(len(sets)), [f"{name}\n{int(n)} texts" for name, n in sizes(whole, sets)])
        axes[0].set_ylim(len(sets) - 0.5, -0.5)  # the first set on top
        out.legend(handles=keys(whole, scorers), loc="outside lower center", ncols=4, frameon=False)
    return out


def panel(ax: Axes, whole: pd.DataFrame, column: str, sets: list[str], scorers: list[str]) -> None:
    """One measure of every scorer on every set."""
    ax.set_xlim(-0.03, 1.03)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
    ax.grid(axis="x", color="#e6e6e6", linewidth=0.6)
    ax.set_axisbelow(True)
    for line in range(1, len(sets)):
        ax.axhline(line - 0.5, color="#e6e6e6", linewidth=0.6)
    if column == "auc":
        ax.axvline(0.5, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    for row in whole.to_dict("records"):
        if pd.isna(row[column]):
            continue
        colour, marker, face = look(scorers.index(row["scorer"]), bool(row["learnt_from"]))
        beside = [name for name in scorers if ((whole["scorer"] == name) & (whole["set"] == row["set"])).any()]
        step = SPREAD / max(len(beside), 2)
        y = sets.index(row["set"]) + (beside.index(row["scorer"]) - (len(beside) - 1) / 2) * step
        value = float(row[column])
        ends = [row[f"{column}_{end}"] for end in ("low", "high")]
        low, high = (value if end is None or pd.isna(end) else float(end) for end in ends)
        bar = [[max(0.0, value - low)], [max(0.0, high - value)]]
        ax.errorbar([value], [y], xerr=bar, fmt="none", ecolor=colour, elinewidth=1.2)
        ax.plot([value], [y], marker=marker, markersize=5.5, markerfacecolor=face, markeredgecolor=colour,
                linestyle="none")  # fmt: skip


def look(number: int, learnt: bool) -> tuple[str, str, str]:
    """Colour, marker and fill of a scorer."""
    colour = COLOURS[number % len(COLOURS)]
    return colour, MARKERS[number % len(MARKERS)], "white" if learnt else colour


def sizes(whole: pd.DataFrame, sets: list[str]) -> list[tuple[str, int]]:
    """How many texts each set has."""
    return [(name, int(whole[whole["set"] == name]["n"].max())) for name in sets]


def keys(whole: pd.DataFrame, scorers: list[str]) -> list[Line2D]:
    """What the legend lists."""
    found = []
    for number, name in enumerate(scorers):
        colour, marker, face = look(number, False)
        style: Any = {"marker": marker, "color": colour, "markerfacecolor": face, "linestyle": "none"}
        found.append(Line2D([], [], label=name, **style))
    if whole["learnt_from"].any():
        style = {"marker": "o", "color": GREY, "markerfacecolor": "white", "linestyle": "none"}
        found.append(Line2D([], [], label="hollow: trained on these texts", **style))
    return found
