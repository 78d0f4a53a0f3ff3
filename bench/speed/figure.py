"""The figure of speed: each ratio with its interval and its goal."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.plots import style


@style.styled
def speed(frame: pd.DataFrame, width: style.Width = "double") -> Figure:
    """Draw each ratio on a row of a logarithmic axis, with the bar of its interval; a tick marks the goal.

    frame: the frame of `bench.speed.table.frame`.
    """
    figure = style.blank(width, 0.6 + 0.22 * len(frame))
    ax = figure.subplots()
    for y, row in enumerate(frame.iloc[::-1].to_dict("records")):
        met = pd.isna(row["goal"]) or row["ratio"] >= row["goal"]
        look = style.MarkerStyle(style.COLOURS[0] if met else style.COLOURS[1], "o" if met else "s", "")
        if pd.notna(row["ratio_low"]):
            ends = [
                [row["ratio"] - min(row["ratio_low"], row["ratio"])],
                [max(row["ratio_high"], row["ratio"]) - row["ratio"]],
            ]
            style.bars(ax, row["ratio"], y, look, across=ends)
        style.marker(ax, row["ratio"], y, look)
        ax.plot([row["goal"]] * 2, [y - 0.3, y + 0.3], color=style.GREY, linewidth=1.0)
    ax.axvline(1, color=style.GREY, linewidth=0.7, linestyle=style.DASHES, zorder=1)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_yticks(
        range(len(frame)), [f"{row['work']} / {row['against']}" for row in frame.iloc[::-1].to_dict("records")]
    )
    ax.set_ylim(-0.7, len(frame) - 0.3)
    ax.set_xlabel("times as fast (1: equal)")
    ax.grid(axis="x")
    keys = [
        style.key(style.MarkerStyle(style.COLOURS[0], "o", ""), "goal reached"),
        style.key(style.MarkerStyle(style.COLOURS[1], "s", ""), "below the goal"),
        Line2D([], [], marker="|", color=style.GREY, linestyle="none", label="goal"),
    ]
    style.legend(figure, keys)
    return figure


def write(frame: pd.DataFrame, folder: Path) -> list[Path]:
    """Write speed.pdf, .svg and .png. Raises SetupError if the folder cannot be written."""
    return style.save(speed(frame), folder, "speed")
