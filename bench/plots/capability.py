"""The effect of steering on each task: the change in accuracy, method by method."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bench.plots import style
from bench.plots.style import PAGE, SMALL, NoSuchPage, NothingToDraw, Width
from bench.records.names import BASELINE_FAMILY, is_control
from bench.stats.significance import ALPHA

COLOURS = mpl.colormaps["PuOr"]  # of ColorBrewer, safe for colour-blind readers; pale where nothing changed
FULL = 0.2  # change in accuracy that has full colour, unless there is a larger one, so that noise stays pale
FEW = 20  # documents; the answers of a task with fewer are counted, since their interval says little
CELL = {"single": 0.42, "double": 0.66}  # inches of a cell across, with change and interval below or beside each other
ROW = {"single": 0.31, "double": 0.21}  # inches of a cell up
APART = {"single": "\n", "double": " "}  # between change and interval
NAMES = 0.36  # share of the width that the methods' names may take
LINE = 1.3 * SMALL / 72  # inches of a line of text
TILT = 40  # degrees by which tasks' names are tilted if they have no room
ROOM = PAGE - 0.7  # inches for the blocks of a page, above the legend


@style.styled
def capability(frame: pd.DataFrame, width: Width = "double", page: int = 1) -> Figure:
    """Draw the change in accuracy from the unsteered model as a heat map, methods by tasks.

    A cell holds the change, half the width of its 95% interval and, if the change is significant in the paired test
    after Holm's correction over the methods, a star. It is coloured if the interval excludes 0. For a task of fewer
    than FEW documents it holds the change in the number of right answers, in grey. The first line is the unsteered
    model's own accuracy; below each task is the number of its documents. Controls that were asked no task are left out.
    If the tasks or the methods do not fit into one map, it is split into blocks; if the blocks do not fit on one page,
    they are split over pages.

    Args:
        frame: `Table.frame`.
        width: the width of one or of two columns of a paper.
        page: the number of the page, from 1.

    Raises:
        NothingToDraw: no accuracy was measured for a method and for the unsteered model.
        NoSuchPage: there are fewer pages.
        ValueError: `frame` holds more than one table.
    """
    style.one_table(frame)
    style.inches(width)
    is_base = (frame["family"] == BASELINE_FAMILY).to_numpy()
    found = [re.fullmatch(r"(.+)\.accuracy\.delta", str(name)) for name in frame.columns]
    tasks = [match[1] for match in found if match and frame.loc[~is_base, match[0]].notna().any()]
    if not tasks or not is_base.any():
        raise NothingToDraw(
            "no accuracy was measured for a method and the unsteered model on the same documents; run "
            "`python -m bench -m method=unsteered,caa suite=[rtp,fluency,capability]`"
        )
    asked = frame[[f"{task}.accuracy.delta" for task in tasks]].notna().any(axis=1).to_numpy()
    control = [is_control(*one) for one in zip(frame["method"], frame["family"], strict=True)]
    kept = ~is_base & (asked | ~np.array(control))
    base, methods = frame[is_base].iloc[:1], frame[kept]
    change, p = (values(methods, tasks, f"accuracy.{end}") for end in ("delta", "p_holm"))
    texts = np.concatenate([written(base, tasks, width), changed(methods, tasks, p, width)])
    few = np.tile(values(base, tasks, "accuracy.n") < FEW, (len(texts), 1))
    names = ["unsteered", *np.array(style.names(frame))[kept]]
    plans = [plan(names, short(tasks), counts(base, tasks), width, turned) for turned in (False, True)]
    best = min(plans, key=lambda one: len(one.pages))
    if not 1 <= page <= len(best.pages):
        raise NoSuchPage(page, len(best.pages))
    low, high = (values(methods, tasks, f"accuracy.delta_{end}") for end in ("low", "high"))
    blocks, colours = best.pages[page - 1], faces(np.where((low > 0) | (high < 0) | np.isnan(change), change, 0.0))
    if best.turned:
        texts, few, colours = texts.T, few.T, colours.swapaxes(0, 1)
    figure = style.blank(width, 0.05 + sum(block.high for block in blocks))
    axes = figure.subplots(len(blocks), 1, squeeze=False, height_ratios=[one.high for one in blocks])[:, 0]
    for ax, block in zip(axes, blocks, strict=True):
        own = np.ix_(block.down, block.across)
        cells(ax, texts[own], few[own], colours[own])
        tilt: dict[str, Any] = {"rotation": TILT, "ha": "right", "rotation_mode": "anchor"} if best.tilted else {}
        ax.set_xticks(np.arange(len(block.across)) + 0.5, [best.across[i] for i in block.across], **tilt)
        ax.set_yticks(np.arange(len(block.down)) + 0.5, [best.down[i] for i in block.down])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    style.legend(figure, keys(change, p, few))
    return figure


# -- what fits -------------------------------------------------------------------------------------------------------


class Block(NamedTuple):
    """Some lines and columns of the heat map, by their places, and the height of the block in inches."""

    down: np.ndarray
    across: np.ndarray
    high: float


class Plan(NamedTuple):
    """The blocks of each page. turned: whether tasks are lines. down, across: the names of all lines and columns."""

    pages: list[list[Block]]
    turned: bool
    down: list[str]
    across: list[str]
    tilted: bool


def plan(methods: Sequence[str], tasks: Sequence[str], counts: Sequence[str], width: Width, turned: bool) -> Plan:
    """Split the map into blocks, and fill each page in turn.

    Lines of the map are methods (the unsteered model first), and columns are tasks; with `turned`, lines are tasks and
    columns are methods.
    """
    beside = [f"{name} ({n})" if n else name for name, n in zip(tasks, counts, strict=True)]
    below = [f"{name}\n{n}".rstrip() for name, n in zip(tasks, counts, strict=True)]
    down = [style.wrapped(name, NAMES * style.inches(width) * 72, lines=2) for name in (beside if turned else methods)]
    across = list(methods) if turned else below
    room = style.inches(width) - longest(down) - 0.25
    columns = chunks(len(across), max(2, int(room / CELL[width])), turned)
    tilted = longest(across) + 0.06 > room / max(map(len, columns))
    if tilted and not turned:
        across = beside
    high = 0.1 + LINE * (1 if turned else 2)
    if tilted:
        high = 0.1 + LINE + float(np.sin(np.radians(TILT))) * longest(across)
    row = max(ROW[width], 2 * LINE if any("\n" in name for name in down) else 0)
    lines = chunks(len(down), max(2, int((ROOM - high) / row)), not turned)
    pages: list[list[Block]] = [[]]
    for block in [Block(i, j, high + row * len(i)) for i in lines for j in columns]:
        if pages[-1] and sum(one.high for one in pages[-1]) + block.high > ROOM:
            pages.append([])
        pages[-1].append(block)
    return Plan(pages, turned, down, across, tilted)


def longest(names: Sequence[str]) -> float:
    """Return the width in inches of the longest line of these names."""
    return max(style.measure(line) for name in names for line in name.split("\n")) / 72


def chunks(count: int, most: int, first: bool) -> list[np.ndarray]:
    """Split places into parts of at most `most`; with `first`, each part begins with place 0, the unsteered model."""
    places = np.arange(int(first), count)
    parts = np.array_split(places, -(-len(places) // (most - int(first))))
    return [np.concatenate([[0], part]) if first else part for part in parts]


def cells(ax: Axes, texts: np.ndarray, few: np.ndarray, faces: np.ndarray) -> None:
    """Draw a block, the unsteered model first: texts (lines, tasks), some grey, on colours (lines, tasks, 4)."""
    ax.pcolormesh(faces, edgecolors="white", linewidth=1.0)
    ax.invert_yaxis()
    for (i, j), text in np.ndenumerate(texts):
        dark = np.dot(faces[i, j, :3], (0.299, 0.587, 0.114)) < 0.5
        colour = "white" if dark else style.GREY if few[i, j] else "black"
        ax.text(j + 0.5, i + 0.5, text, ha="center", va="center" if "\n" in text else "center_baseline",
                fontsize=SMALL, color=colour, linespacing=1.1)  # fmt: skip


def faces(change: np.ndarray) -> np.ndarray:
    """Return colours (1 + methods, tasks, 4): a white line for the unsteered model, then those of the changes."""
    full = max(FULL, float(np.nanmax(np.abs(change))))
    found = COLOURS(0.5 + 0.5 * np.nan_to_num(change) / full)  # orange lost, violet gained
    found[np.isnan(change)] = to_rgba("white")
    return np.concatenate([np.ones((1, *found.shape[1:])), found])


# -- numbers and texts -----------------------------------------------------------------------------------------------


def values(rows: pd.DataFrame, tasks: Sequence[str], name: str) -> np.ndarray:
    """Return, in the shape (rows, tasks), the values of the column `<task>.<name>` of each task."""
    return rows.reindex(columns=[f"{task}.{name}" for task in tasks]).to_numpy(float)


def written(base: pd.DataFrame, tasks: Sequence[str], width: Width) -> np.ndarray:
    """Return the unsteered model's accuracies with their intervals as texts, in the shape (1, tasks)."""
    low, high = (values(base, tasks, f"accuracy.{end}") for end in ("low", "high"))
    share, n = values(base, tasks, "accuracy"), values(base, tasks, "accuracy.n")
    found = each(plain, APART[width], share, np.full_like(low, "", object), low, high)
    return np.where(n < FEW, counted(share, n, width, ""), found)


def changed(rows: pd.DataFrame, tasks: Sequence[str], p: np.ndarray, width: Width) -> np.ndarray:
    """Return the methods' changes with intervals as texts, with stars, in the shape (methods, tasks)."""
    change, low, high = (values(rows, tasks, f"accuracy.delta{end}") for end in ("", "_low", "_high"))
    found = each(signed, APART[width], change, np.where(p < ALPHA, "*", ""), low, high)
    n = values(rows, tasks, "accuracy.n")
    return np.where((n < FEW) & ~np.isnan(change), counted(change, n, width, "+"), found)


def counted(share: np.ndarray, n: np.ndarray, width: Width, sign: str) -> np.ndarray:
    """Write shares of n documents as numbers of documents, as "+1 of 6"; all arrays have the same shape."""
    found = np.empty(share.shape, dtype=object)
    for at in np.ndindex(found.shape):
        many = round(float(np.nan_to_num(share[at] * n[at])), 1)
        text = f"{many:{sign}g}".replace("-", "\N{MINUS SIGN}") if many else "0"
        found[at] = f"{text}{APART[width]}of {np.nan_to_num(n[at]):.0f}"
    return found


def each(text: Callable[[float], str], apart: str, value: Any, star: Any, low: Any, high: Any) -> np.ndarray:
    """Write numbers with stars, and half the width of each interval, as texts; all arrays have the same shape."""
    found = np.empty(value.shape, dtype=object)
    for at in np.ndindex(found.shape):
        known = not np.isnan([value[at], low[at], high[at]]).any()
        found[at] = text(value[at]) + star[at] + (f"{apart}±{plain((high[at] - low[at]) / 2)}" if known else "")
    return found


def counts(base: pd.DataFrame, tasks: Sequence[str]) -> list[str]:
    """Return the number of documents that the unsteered model was asked in each task; empty if unknown."""
    return ["" if np.isnan(n) else f"n = {int(n):,}" for n in values(base, tasks, "accuracy.n")[0]]


def plain(value: float) -> str:
    """Write an accuracy with two decimals and no leading 0; a dash if it is missing."""
    return "–" if np.isnan(value) else f"{value:.2f}".removeprefix("0")


def signed(value: float) -> str:
    """Write a change with its sign, unless it rounds to zero."""
    if np.isnan(value):
        return "–"
    text = f"{abs(value):.2f}".removeprefix("0")
    return text if float(text) == 0 else ("+" if value > 0 else "\N{MINUS SIGN}") + text


def short(tasks: Sequence[str]) -> list[str]:
    """Return the names of tasks without their suite, unless two suites ask the same task."""
    names = [task.partition(".")[2] for task in tasks]
    shown = [name if names.count(name) == 1 else task for name, task in zip(names, tasks, strict=True)]
    return [style.shortened(style.printable(name)) for name in shown]


def keys(change: np.ndarray, p: np.ndarray, few: np.ndarray) -> list[Artist]:
    """Return the entries of the legend, for the colours and signs that the figure has."""
    found: list[Artist] = [
        Patch(facecolor=COLOURS(0.2), label="accuracy lost, interval below 0"),
        Patch(facecolor=COLOURS(0.8), label="gained, interval above 0"),
        style.text_key("±: half of the 95% interval"),
    ]
    if (p < ALPHA).any():
        holm = " (Holm)" if (np.isfinite(p).sum(axis=0) > 1).any() else ""
        found.append(style.text_key(f"*: p < {ALPHA:g}{holm}"))
    if few.any():
        found.append(style.text_key(f"+1 of 6: change in right answers, where n < {FEW}"))
    if np.isnan(change).any():
        found.append(style.text_key("–: not measured"))
    return found
