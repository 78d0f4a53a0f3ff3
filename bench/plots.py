"""The trade-off figure, from records alone: what was gained against what was kept. No torch here.

python -m bench.plots [--results results]
"""

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from bench.collect import read_records
from bench.comparable import BASELINE_FAMILY, RANDOM
from bench.readable import labels
from bench.record import write_whole
from bench.tables import Table, tables
from methods.errors import SetupError

X = "toxicity_reduction"
PANELS = {"capability_kept": "capability kept", "fluency_kept": "fluency kept"}
EMPTY = {
    "capability_kept": "no task here at which\nthe unsteered model is above chance",
    "fluency_kept": "fluency was not measured",
}  # why a panel holds no method
# Okabe and Ito's colours for colour-blind readers, dark ones first; each has a marker of its own, so grey will do
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
GREY = "#666666"
DPI = 200
LEAST = ((-0.05, 0.3), (0.75, 1.0))  # of x and y: where nothing happens, noise is not drawn large
STYLE: Any = {"svg.hashsalt": "steerbench", "svg.fonttype": "path", "font.size": 9.0, "font.family": "DejaVu Sans",
              "axes.spines.top": False, "axes.spines.right": False}  # fmt: skip


class Point(NamedTuple):
    """A row of the leaderboard as it is drawn."""

    label: str
    row: "pd.Series[Any]"
    colour: str
    marker: str

    def at(self, column: str) -> tuple[float, list[list[float]]]:
        """Value and the lengths of its bar below and above; no length where the interval is missing."""
        value = float(self.row[column])
        ends = [self.row.get(f"{column}_{end}") for end in ("low", "high")]
        low, high = (value if end is None or pd.isna(end) else float(end) for end in ends)
        return value, [[max(0.0, value - low)], [max(0.0, high - value)]]

    @property
    def hollow(self) -> bool:
        """No strength kept within the bounds."""
        return self.row["feasible"] is not pd.NA and not self.row["feasible"]


def points(frame: pd.DataFrame) -> list[Point]:
    """The methods of one table; each has its own colour and marker, the same in every panel."""
    rows = [(label, row) for label, (_, row) in zip(labels(frame), frame.iterrows(), strict=True)]
    kept = [(label, row) for label, row in rows if row["method"] != RANDOM and row["family"] != BASELINE_FAMILY]
    place = {label: i for i, label in enumerate(sorted({label for label, _ in kept}))}  # a rank changes no colour
    return [
        Point(label, row, COLOURS[place[label] % len(COLOURS)], MARKERS[place[label] % len(MARKERS)])
        for label, row in kept
        if pd.notna(row[X])
    ]


def tradeoff(frame: pd.DataFrame) -> Figure:
    """Toxicity reduction against capability kept and fluency kept, for one table of the leaderboard.

    A filled marker per method with 95 % bars both ways, a hollow one where no strength was feasible (its bars may leave
    the panel); the unsteered model at (0, 1); random directions as dots and a box over their range. Names are in a
    legend, since methods that do little all lie on one another.

    Raises:
        ValueError: `frame` holds more than one table.
    """
    if frame["table"].nunique() > 1:
        raise ValueError(f"{frame['table'].nunique()} tables in one figure: their numbers do not compare; pass one")
    shown = points(frame)
    random = frame[frame["method"] == RANDOM]
    scorer = frame["scorers_report"].iloc[0].split("; ")[0]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 4.4), layout="constrained")
        axes = figure.subplots(1, 2, sharex=True)
        for ax, (column, title) in zip(axes, PANELS.items(), strict=True):
            panel(ax, column, shown, random)
            ax.set_ylabel(f"{title}  (1 = all)")
            ax.grid(color="#e6e6e6", linewidth=0.6)
            ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            ax.set_axisbelow(True)
        limits(axes, shown, random)
        figure.supxlabel(f"toxicity reduction  (share of unsteered, by {scorer})", fontsize="medium")
        figure.legend(handles=keys(shown, random), loc="outside right center", frameon=False, handlelength=1.6)
    return figure


def panel(ax: Axes, column: str, shown: Sequence[Point], random: pd.DataFrame) -> None:
    """One panel: what is kept over what was gained."""
    ax.axhline(1, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    ax.axvline(0, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
    drawn = random.dropna(subset=[X, column]) if column in random else random.iloc[:0]
    if len(drawn):
        x, y = drawn[X].astype(float), drawn[column].astype(float)
        width, height = x.max() - x.min(), y.max() - y.min()
        box = Rectangle((x.min(), y.min()), width, height, facecolor="#d9d9d9", edgecolor=GREY, linewidth=0.8, zorder=2)
        ax.add_patch(box)
        ax.plot(x, y, ".", color=GREY, markersize=3.5, zorder=3)
    ax.plot([0], [1], marker="*", color="black", markersize=12, linestyle="none", zorder=6)
    if all(pd.isna(point.row[column]) for point in shown):
        ax.text(0.5, 0.5, EMPTY[column], transform=ax.transAxes, ha="center", va="center", color=GREY, zorder=7,
                bbox={"facecolor": "white", "edgecolor": "none"})  # fmt: skip
    for point in shown:
        if pd.isna(point.row[column]):
            continue
        (at_x, bar_x), (at_y, bar_y) = point.at(X), point.at(column)
        bars: Any = {"ecolor": point.colour, "elinewidth": 1.0, "alpha": 0.6}
        ax.errorbar([at_x], [at_y], xerr=bar_x, yerr=bar_y, fmt="none", zorder=4, **bars)
        face = "white" if point.hollow else point.colour
        ax.plot([at_x], [at_y], marker=point.marker, markersize=7.5, markerfacecolor=face, markeredgecolor=point.colour,
                markeredgewidth=1.4, linestyle="none", zorder=5)  # fmt: skip


def limits(axes: Sequence[Axes], shown: Sequence[Point], random: pd.DataFrame) -> None:
    """Room for every marker, and for every bar of a feasible method."""
    setters: list[Any] = [axes[0].set_xlim, *(ax.set_ylim for ax in axes)]
    for name, setter in zip([X, *PANELS], setters, strict=True):
        values = list(LEAST[0] if name == X else LEAST[1])
        values += random[name].dropna().astype(float).tolist()
        for point in shown:
            if pd.notna(point.row[name]):
                value, ((below,), (above,)) = point.at(name)
                values += [value] if point.hollow else [value - below, value, value + above]
        margin = 0.06 * (max(values) - min(values))
        setter(min(values) - margin, max(values) + margin)


def keys(shown: Sequence[Point], random: pd.DataFrame) -> list[Line2D | Patch]:
    """What the legend lists."""
    star = Line2D([], [], marker="*", color="black", markersize=11, linestyle="none", label="unsteered")
    found: list[Line2D | Patch] = [star]
    if random[X].notna().any():
        found.append(
            Patch(facecolor="#d9d9d9", edgecolor=GREY, label=f"random directions\n({len(random)} draws, range)")
        )
    for point in shown:
        face = "white" if point.hollow else point.colour
        label = point.label + ("\n(no feasible strength)" if point.hollow else "")
        found.append(Line2D([], [], marker=point.marker, color=point.colour, markerfacecolor=face, markersize=7,
                            markeredgewidth=1.4, linestyle="none", label=label))  # fmt: skip
    return found


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `name`.svg and `name`.png; equal figures give equal bytes. Raises SetupError where it cannot be written."""
    paths = []
    for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        with mpl.rc_context(STYLE):
            figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
        path = folder / f"{name}.{kind}"
        try:
            write_whole(path, buffer.getvalue())
        except OSError as error:
            raise SetupError(
                f"cannot write the figure to {folder}: {error.strerror}; make it writable, or give another --results"
            ) from error
        paths.append(path)
    return paths


def rebuild(results: Path, found: Sequence[Table] | None = None) -> list[Path]:
    """Draw figures/tradeoff.svg and .png from `results`/runs/records; tradeoff-2 and so on for further tables.

    `found`: the tables of these records where they are made already (`leaderboard.Built.tables`). A table in which no
    method can be set against the unsteered model has no figure.

    Raises:
        SetupError: there are no records, or the folder cannot be written.
    """
    paths = []
    for table in tables(read_records(results / "runs")[0]) if found is None else found:
        if points(table.frame):
            name = "tradeoff" if table.number == 1 else f"tradeoff-{table.number}"
            paths += save(tradeoff(table.frame), results / "figures", name)
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw and say where; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.plots", description="Draw the trade-off from records.")
    parser.add_argument("--results", type=Path, default="results", help="folder with runs/ (default: %(default)s)")
    results = parser.parse_args(arguments).results
    try:
        paths = rebuild(results)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in paths:
        print(path)
    if not paths:
        print("nothing to draw: no method has toxicity results beside the unsteered model's on the same prompts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
