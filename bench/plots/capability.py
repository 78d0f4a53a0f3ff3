"""What steering does to each task: the change in accuracy, method by method."""

import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import markers
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from bench.console import escape
from bench.plots import style
from bench.plots.style import SMALL, NothingToDraw, Width
from bench.records.names import BASELINE_FAMILY
from bench.stats.significance import ALPHA

COLOURS = mpl.colormaps["PuOr"]  # of ColorBrewer, told apart by colour-blind readers; pale where nothing changed
FULL = 0.1  # change in accuracy that has full colour, or the largest there is: noise is not drawn large
CELL, ROW = 0.33, 0.21  # inches that a number takes across and up
NAMES = 0.42  # of the width that the methods' names may take


@style.styled
def capability(frame: pd.DataFrame, width: Width = "double") -> Figure:
    """Change in accuracy against the unsteered model as a heat map, methods by tasks.

    A cell holds the change and, where the paired test tells it from none after Holm's correction over the methods, a
    star. The first line is the unsteered model's own accuracy. Tasks that have no room side by side are in further
    blocks.

    Args:
        frame: `Table.frame`.
        width: of one or two columns.

    Raises:
        NothingToDraw: no accuracy was measured for a method and for the unsteered model.
        ValueError: `frame` holds more than one table.
    """
    style.one_table(frame)
    is_base = (frame["family"] == BASELINE_FAMILY).to_numpy()
    found = [re.fullmatch(r"(.+)\.accuracy\.delta", str(name)) for name in frame.columns]
    tasks = [match[1] for match in found if match and frame.loc[~is_base, match[0]].notna().any()]
    if not tasks or not is_base.any():
        raise NothingToDraw(
            "no accuracy was measured for a method and the unsteered model on the same documents; run "
            "`python -m bench -m method=unsteered,caa suite=[rtp,fluency,capability]`"
        )
    accuracy = frame.loc[is_base, [f"{task}.accuracy" for task in tasks]].to_numpy(float)[:1]  # (1, tasks)
    change = frame.loc[~is_base, [f"{task}.accuracy.delta" for task in tasks]].to_numpy(float)  # (methods, tasks)
    p = frame.reindex(columns=[f"{task}.accuracy.p_holm" for task in tasks])[~is_base].to_numpy(float)
    wide = style.inches(width)
    names = ["unsteered"] + [
        style.wrapped(name, NAMES * wide * 72, lines=2)
        for name, base in zip(style.names(frame), is_base, strict=True)
        if not base
    ]
    beside = max(style.measure(line) for name in names for line in name.split("\n")) / 72 + 0.25
    blocks = np.array_split(np.arange(len(tasks)), -(-len(tasks) // max(1, int((wide - beside) / CELL))))
    cell = (wide - beside) / len(blocks[0])
    tilted = max(map(style.measure, short(tasks))) / 72 + 0.05 > cell
    row = ROW * (1.4 if any("\n" in name for name in names) else 1)
    high = row * len(names) + (0.65 if tilted else 0.25)
    figure = style.blank(width, 0.05 + high * len(blocks))
    axes = figure.subplots(len(blocks), 1, squeeze=False)[:, 0]
    full = max(FULL, float(np.nanmax(np.abs(change))))
    for ax, block in zip(axes, blocks, strict=True):
        cells(ax, accuracy[:, block], change[:, block], p[:, block], full)
        tilt: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if tilted else {}
        ax.set_xticks(np.arange(len(block)) + 0.5, [short(tasks)[i] for i in block], **tilt)
        ax.set_yticks(np.arange(len(names)) + 0.5, names)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    style.legend(figure, keys(p))
    return figure


def cells(ax: Axes, accuracy: np.ndarray, change: np.ndarray, p: np.ndarray, full: float) -> None:
    """A block: the unsteered accuracies (1, tasks) over the changes (methods, tasks); no number where none is known."""
    faces = COLOURS(0.5 + 0.5 * np.nan_to_num(change) / full)  # (methods, tasks, 4): orange lost, violet gained
    faces[np.isnan(change)] = to_rgba("white")
    faces = np.concatenate([np.ones((1, *faces.shape[1:])), faces])
    ax.pcolormesh(faces, edgecolors="white", linewidth=1.0)
    ax.invert_yaxis()
    texts = [[plain(one) for one in accuracy[0]]]
    texts += [
        [signed(c) + ("*" if q < ALPHA else "") for c, q in zip(*both, strict=True)]
        for both in zip(change, p, strict=True)
    ]
    for i, line in enumerate(texts):
        for j, text in enumerate(line):
            dark = np.dot(faces[i, j, :3], (0.299, 0.587, 0.114)) < 0.5
            ax.text(j + 0.5, i + 0.5, text, ha="center", va="center_baseline", fontsize=SMALL,
                    color="white" if dark else "black")  # fmt: skip


def plain(value: float) -> str:
    """An accuracy with two digits and no 0 before them; a dash where there is none."""
    return "–" if np.isnan(value) else f"{value:.2f}".removeprefix("0")


def signed(value: float) -> str:
    """A change with its sign; what rounds to zero has none."""
    if np.isnan(value):
        return "–"
    text = f"{abs(value):.2f}".removeprefix("0")
    return text if float(text) == 0 else ("+" if value > 0 else "\N{MINUS SIGN}") + text


def short(tasks: Sequence[str]) -> list[str]:
    """Tasks without their suite, but where two suites ask the same one."""
    names = [task.partition(".")[2] for task in tasks]
    shown = [name if names.count(name) == 1 else task for name, task in zip(names, tasks, strict=True)]
    return [style.shortened(escape.visible(name)) for name in shown]


def keys(p: np.ndarray) -> list[Artist]:
    """What the legend lists: of colours and signs those that are there."""
    found: list[Artist] = [
        Patch(facecolor=COLOURS(0.2), label="accuracy lost"),
        Patch(facecolor=COLOURS(0.8), label="accuracy gained"),
    ]
    if (p < ALPHA).any():
        with mpl.rc_context({"text.parse_math": True}):
            asterisk = markers.MarkerStyle("$*$")
        holm = " (Holm)" if (np.isfinite(p).sum(axis=0) > 1).any() else ""
        found.append(Line2D([], [], marker=asterisk, color="black", markersize=4, linestyle="none",
                            label=f"p < {ALPHA:g}{holm}"))  # fmt: skip
    return found
