"""What a matplotlib figure shows, read back from its artists."""

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox


def marks(ax: Axes) -> dict[tuple[float, float], list]:
    """Everything that is drawn as one marker, by its place."""
    found: dict[tuple[float, float], list] = {}
    for line in ax.lines:
        if line.get_linestyle() == "None" and len(line.get_xdata()) == 1 and line.get_marker() not in (".", "None"):
            place = (round(float(line.get_xdata()[0]), 6), round(float(line.get_ydata()[0]), 6))
            found.setdefault(place, []).append(line)
    return found


def bars(ax: Axes) -> list[list[list[float]]]:
    """Both ends of every error bar."""
    return [
        [[round(float(x), 6), round(float(y), 6)] for x, y in segment]
        for lines in ax.collections
        if hasattr(lines, "get_segments")
        for segment in lines.get_segments()
    ]


def ticks(ax: Axes) -> list[Text]:
    """Tick labels that are seen."""
    found = []
    for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        low, high = sorted(limits)
        for tick in axis.get_major_ticks():
            if low <= tick.get_loc() <= high and tick.label1.get_visible() and tick.label1.get_text():
                found.append(tick.label1)
    return found


def texts(figure: Figure) -> list[Text]:
    """Every text that is seen."""
    found = [text for legend in figure.legends for text in legend.get_texts()]
    for ax in figure.axes:
        found += [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts, *ticks(ax)]
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def assert_readable(figure: Figure) -> None:
    """No text leaves the figure, none lies on another (tilted ones aside), and none is too small for print."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = []
    for text in texts(figure):
        assert text.get_fontsize() >= 7, (text.get_text(), text.get_fontsize())
        box = text.get_window_extent(renderer)
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 + 0.5 and box.y1 <= figure.bbox.y1 + 0.5
        assert inside, f"{text.get_text()!r} leaves the figure: {box}"
        if text.get_rotation() in (0, 90):
            boxes.append((text, Bbox.from_extents(box.x0 - 1, box.y0, box.x1 + 1, box.y1)))  # words keep a distance
    assert len(boxes) > 5
    for i, (text, box) in enumerate(boxes):
        for other, before in boxes[:i]:
            assert not box.overlaps(before), f"{text.get_text()!r} lies on {other.get_text()!r}"
    for legend in figure.legends:
        box = legend.get_window_extent(renderer)
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 + 0.5, f"the legend is {box.width:.0f} wide"
