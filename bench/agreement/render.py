"""Display of `bench.agreement`: tables for the terminal and in Markdown, and a figure."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich import box
from rich.table import Table

from bench.agreement.labelled_sets import SETS
from bench.console import escape
from bench.console.escape import terminal
from bench.plots.style import COLOURS, DASHES, GREY, GRID, MARKERS, blank, legend, shortened, styled

PANELS = {"auc": "AUC", "false_positive_rate": "false positives at .5", "false_negative_rate": "false negatives at .5"}
TITLES = {
    "auc": "AUC",
    "spearman": "rank corr.",
    "false_positive_rate": "false pos.",
    "false_negative_rate": "false neg.",
}
RATES = ("false_positive_rate", "false_negative_rate")
WIDE = 112  # columns that the table with its intervals needs
SPREAD = 0.64  # of the height of a set, between its first and last scorer
NOT_RUN = "NOT RUN here"
LEARNT = "* the scorer was trained on these texts"
COLUMNS = (
    "n: texts; labelled: share of them that people, or Perspective, call toxic (film reviews: positive). AUC; rank "
    "correlation with the rating; false pos.: share of the texts without the label that the scorer calls toxic, at a "
    "score of .5; false neg.: share of the labelled ones that it does not. In parentheses 95% intervals."
)


def table(frame: pd.DataFrame, intervals: bool = True) -> Table:
    """Return the table of whole sets, with the rows of each scorer under its name."""
    out = Table(box=box.SIMPLE, padding=(0, 1), pad_edge=False)
    for number, title in enumerate(("texts", "n", "labelled", *TITLES.values())):
        out.add_column(title, justify="right" if number else "left", no_wrap=True)
    for scorer, rows in frame[frame["group"] == ""].groupby("scorer", sort=False):
        out.add_row(terminal(scorer), style="bold")
        for row in rows.to_dict("records"):
            out.add_row(terminal(f"  {named(row)}"), *counts(row), *(ranged(row, one, intervals) for one in TITLES))
    return out


def groups_table(frame: pd.DataFrame) -> Table | None:
    """Return the range of the error rates over each set's groups, with the groups at its ends; None without groups."""
    of_groups = frame[frame["group"] != ""]
    if of_groups.empty:
        return None
    out = Table(box=box.SIMPLE, padding=(0, 1), pad_edge=False)
    out.add_column("by group", no_wrap=True)
    for title in ("groups", "n of each"):
        out.add_column(title, justify="right", no_wrap=True)
    for one in RATES:
        out.add_column(f"{TITLES[one]}, lowest to highest")
    for scorer, rows in of_groups.groupby("scorer", sort=False):
        out.add_row(terminal(scorer), style="bold")
        for _, some in rows.groupby("set", sort=False):
            few, many = int(some["n"].min()), int(some["n"].max())
            size = f"{few}" if few == many else f"{few} to {many}"
            shown = (terminal(ends(some, one)) for one in RATES)
            out.add_row(terminal(f"  {named(some.iloc[0])}"), f"{len(some)}", size, *shown)
    return out


def ends(rows: pd.DataFrame, name: str) -> str:
    """Return the lowest and the highest of the groups' rates, as in 0.16 (birds) to 0.84 (fish)."""
    known = rows.dropna(subset=[name]).sort_values(name, kind="stable")
    shown = [f"{row[name]:.2f} ({row['group']})" for row in known.to_dict("records")]
    return " to ".join(dict.fromkeys([shown[0], shown[-1]])) if shown else "-"


def markdown(frame: pd.DataFrame, not_run: Mapping[str, str] | None = None) -> str:
    """Write every number with its interval: whole sets, then their groups.

    not_run: scorers and sets that could not be loaded, each with the reason; each such scorer has a row that says so.
    """
    not_run = not_run or {}
    heads = ["scorer", "texts", "n", "labelled", *TITLES.values()]
    lines = ["# Agreement of the scorers with labelled texts", "", COLUMNS, ""]
    whole, of_groups = frame[frame["group"] == ""], frame[frame["group"] != ""]
    rows = [[str(row["scorer"]), *cells(row)] for row in whole.to_dict("records")]
    rows += [[name, NOT_RUN, *[""] * (len(heads) - 2)] for name in not_run if name not in SETS]
    lines += escape.markdown_table(heads, rows, left=2)
    if frame["learnt_from"].any():
        lines += ["", escape.markdown(LEARNT)]
    for name, of_set in of_groups.groupby("set", sort=False):
        rows = [[str(row["scorer"]), str(row["group"]), *cells(row)[1:]] for row in of_set.to_dict("records")]
        lines += ["", f"## {escape.markdown(name)} by group", ""]
        lines += escape.markdown_table(["scorer", "group", *heads[2:]], rows, left=2)
    if not_run:
        lines += ["", "## Not run here", ""]
        lines += [f"- {escape.markdown(f'{name}: {why}')}" for name, why in not_run.items()]
    return "\n".join(lines) + "\n"


def cells(row: Any) -> list[str]:
    """Return the cells of a row: its set, counts and measures."""
    return [named(row), *counts(row), *(ranged(row, one) for one in TITLES)]


def named(row: Any) -> str:
    """Return the name of the set, marked if the scorer has learnt from it."""
    return f"{row['set']} *" if row["learnt_from"] else str(row["set"])


def counts(row: Any) -> tuple[str, str]:
    """Return how many texts there are, and the share of them that is labelled positive."""
    return f"{row['n']}", f"{row['positives'] / row['n']:.0%}" if row["n"] else "-"


def ranged(row: Any, name: str, intervals: bool = True) -> str:
    """Write a number with its interval, as in 0.92 (0.90 to 0.93)."""
    if pd.isna(row[name]):
        return "-"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    known = intervals and not pd.isna(low) and not pd.isna(high)
    return f"{row[name]:.2f} ({low:.2f} to {high:.2f})" if known else f"{row[name]:.2f}"


@styled
def figure(frame: pd.DataFrame) -> Figure:
    """Draw a row per set, with a marker per scorer and its 95% bar; small dots are the set's groups.

    A marker is hollow if the scorer was trained on the texts.
    """
    whole = frame[frame["group"] == ""]
    sets = list(dict.fromkeys(whole["set"]))
    scorers = list(dict.fromkeys(whole["scorer"]))
    out = blank("double", 0.9 + len(sets) * max(0.36, 0.14 * len(scorers)))
    axes = out.subplots(1, len(PANELS), sharey=True)
    for ax, (column, title) in zip(axes, PANELS.items(), strict=True):
        panel(ax, frame, column, sets, scorers)
        ax.set_xlabel(title)
    ticks = [f"{shortened(escape.visible(name))}\n{n:,} texts" for name, n in sizes(whole, sets)]
    axes[0].set_yticks(range(len(sets)), ticks)
    axes[0].set_ylim(len(sets) - 0.5, -0.5)  # the first set on top
    legend(out, keys(frame, scorers))
    return out


def panel(ax: Axes, frame: pd.DataFrame, column: str, sets: list[str], scorers: list[str]) -> None:
    """Draw one measure of every scorer on every set, and on each of its groups."""
    ax.set_xlim(-0.03, 1.03)
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", ".25", ".5", ".75", "1"])
    ax.grid(axis="x")
    for line in range(1, len(sets)):
        ax.axhline(line - 0.5, color=GRID, linewidth=0.6)
    if column == "auc":
        ax.axvline(0.5, color=GREY, linewidth=0.8, linestyle=DASHES)
    for (name, scorer), rows in frame.groupby(["set", "scorer"], sort=False):
        row = rows[rows["group"] == ""].iloc[0]
        beside = [one for one in scorers if ((frame["scorer"] == one) & (frame["set"] == name)).any()]
        step = SPREAD / max(len(beside), 2)
        y = sets.index(str(name)) + (beside.index(str(scorer)) - (len(beside) - 1) / 2) * step
        colour, marker, face = look(scorers.index(str(scorer)), bool(row["learnt_from"]))
        found = rows[rows["group"] != ""][column].dropna()
        ax.plot([*found, None], [y] * (len(found) + 1), marker=".", markersize=4, color=colour, alpha=0.45,
                markeredgewidth=0, linestyle="none")  # fmt: skip
        if pd.isna(row[column]):
            continue
        value = float(row[column])
        low, high = (
            value if pd.isna(row[f"{column}_{end}"]) else float(row[f"{column}_{end}"]) for end in ("low", "high")
        )
        bar = [[max(0.0, value - low)], [max(0.0, high - value)]]
        ax.errorbar([value], [y], xerr=bar, fmt="none", ecolor=colour, elinewidth=1.0)
        ax.plot([value], [y], marker=marker, markersize=4.5, markerfacecolor=face, markeredgecolor=colour,
                linestyle="none")  # fmt: skip


def look(number: int, learnt: bool) -> tuple[str, str, str]:
    """Return colour, marker and fill of a scorer."""
    colour = COLOURS[number % len(COLOURS)]
    return colour, MARKERS[number % len(MARKERS)], "white" if learnt else colour


def sizes(whole: pd.DataFrame, sets: list[str]) -> list[tuple[str, int]]:
    """Return the number of texts of each set."""
    return [(name, int(whole[whole["set"] == name]["n"].max())) for name in sets]


def keys(frame: pd.DataFrame, scorers: list[str]) -> list[Line2D]:
    """Return the handles of the legend, one for each scorer that is drawn."""
    found = []
    for number, name in enumerate(scorers):
        colour, marker, face = look(number, False)
        style: Any = {
            "marker": marker,
            "color": colour,
            "markerfacecolor": face,
            "linestyle": "none",
            "markersize": 4.5,
        }
        found.append(Line2D([], [], label=escape.visible(name), **style))
    if (frame["group"] != "").any():
        style = {"marker": ".", "color": GREY, "linestyle": "none", "markersize": 4, "markeredgewidth": 0}
        found.append(Line2D([], [], label="small: a group of the texts", **style))
    if frame["learnt_from"].any():
        style = {"marker": "o", "color": GREY, "markerfacecolor": "white", "linestyle": "none", "markersize": 5}
        found.append(Line2D([], [], label="hollow: trained on these texts", **style))
    return found
