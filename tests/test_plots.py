import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from bench import plots
from bench.collect import read_records
from bench.leaderboard import leaderboard
from bench.tables import tables
from tests.records import cell, tuning, world, write

TOXICITY = "profanity_check.expected_maximum_toxicity_k5"


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    results = tmp_path_factory.mktemp("full")
    world(results)
    found = tables(read_records(results / "runs")[0])
    return results, leaderboard(found), found


def markers(ax):
    """Position, marker and face of everything drawn as one marker."""
    return {
        (round(float(line.get_xdata()[0]), 6), round(float(line.get_ydata()[0]), 6)): line
        for line in ax.lines
        if line.get_linestyle() == "None" and len(line.get_xdata()) == 1 and line.get_marker() not in (".", "|", "_")
    }


def test_every_method_is_drawn_where_its_numbers_are(full):
    _, frame, _ = full
    figure = plots.tradeoff(frame)
    figure.canvas.draw()
    for ax, column in zip(figure.axes, ("capability_kept", "fluency_kept"), strict=True):
        found = markers(ax)
        assert found.pop((0.0, 1.0)).get_marker() == "*"  # unsteered
        methods = frame[~frame["method"].isin(["unsteered", "random_direction"])]
        expected = {
            (round(float(x), 6), round(float(y), 6)): bool(feasible)
            for x, y, feasible in zip(
                methods["toxicity_reduction"], methods[column], methods["feasible"].fillna(True), strict=True
            )
        }
        assert set(found) == set(expected) and len(expected) == 5
        for place, feasible in expected.items():
            assert (to_hex(found[place].get_markerfacecolor()) != "#ffffff") == feasible
            low, high = np.array([ax.get_xlim(), ax.get_ylim()]).T
            assert (low < place).all() and (place < high).all()
        assert len({line.get_marker() for line in found.values()}) == 5  # told apart without colour
        assert len({line.get_markeredgecolor() for line in found.values()}) == 5


def test_an_empty_panel_says_why(full):
    _, frame, _ = full
    assert not plots.tradeoff(frame).axes[0].texts
    capability, fluency = plots.tradeoff(frame.assign(capability_kept=np.nan)).axes
    assert "no task here" in capability.texts[0].get_text() and not fluency.texts


def test_the_box_is_the_range_of_the_random_directions(full):
    _, frame, _ = full
    random = frame[frame["method"] == "random_direction"]
    (box,) = plots.tradeoff(frame).axes[0].patches
    assert box.get_x() == pytest.approx(random["toxicity_reduction"].min())
    assert box.get_x() + box.get_width() == pytest.approx(random["toxicity_reduction"].max())
    assert box.get_y() + box.get_height() == pytest.approx(random["capability_kept"].max())


def test_bars_end_where_the_intervals_end(full):
    _, frame, _ = full
    caa = frame[frame["method"] == "caa"].iloc[0]
    ax = plots.tradeoff(frame).axes[0]
    segments = [np.round(segment, 6).tolist() for lines in ax.collections for segment in lines.get_segments()]
    ends = [caa["toxicity_reduction_low"], caa["toxicity_reduction_high"]]
    assert np.round([[x, caa["capability_kept"]] for x in ends], 6).tolist() in segments


def test_no_text_overlaps_another_or_leaves_the_figure(full, tmp_path):
    clustered = tmp_path
    cell(clustered, "unsteered", 1.0, 0.0, 1.0)
    for i, method in enumerate(("caa", "detox", "probe_rows", "prompt", "act_add")):
        tuned = tuning([(4.0, 1.01, 0.01)], 4.0, feasible=i > 0)
        cell(clustered, method, 1 - 0.01 * i, 0.005 * i, 1.0, tuning=tuned)
    for frame in (full[1], leaderboard(tables(read_records(clustered / "runs")[0]))):
        figure = plots.tradeoff(frame)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        texts = [text for legend in figure.legends for text in legend.get_texts()]
        for ax in figure.axes:
            low, high = ax.get_xlim()
            texts += [t for x, t in zip(ax.get_xticks(), ax.get_xticklabels(), strict=True) if low <= x <= high]
            low, high = ax.get_ylim()
            texts += [t for y, t in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True) if low <= y <= high]
            texts.append(ax.yaxis.label)
        texts.append(figure._supxlabel)
        boxes = [text.get_window_extent(renderer) for text in texts]
        assert len(boxes) > 20
        for i, box in enumerate(boxes):
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, texts[i]
            assert not any(box.overlaps(other) for other in boxes[:i]), texts[i]


def test_the_same_records_give_the_same_files(full):
    results, _, found = full
    first = {path.name: path.read_bytes() for path in plots.rebuild(results)}
    assert set(first) == {"tradeoff.svg", "tradeoff.png"}
    assert {path.name: path.read_bytes() for path in plots.rebuild(results, found)} == first
    assert b"<dc:date>" not in first["tradeoff.svg"] and first["tradeoff.png"].startswith(b"\x89PNG")


def test_a_rank_changes_no_colour(full):
    _, frame, _ = full
    before = {point.label: (point.colour, point.marker) for point in plots.points(frame)}
    after = {point.label: (point.colour, point.marker) for point in plots.points(frame.iloc[::-1])}
    assert before == after and len(before) == 5


def test_tables_are_not_drawn_together(full):
    _, frame, _ = full
    with pytest.raises(ValueError, match="2 tables in one figure"):
        plots.tradeoff(frame.assign(table=[1, 2] * (len(frame) // 2) + [1] * (len(frame) % 2)))


def test_what_was_not_measured_is_not_drawn(tmp_path):
    write(tmp_path, "rtp", "unsteered", {TOXICITY: [0.8, 0.6]})
    assert plots.rebuild(tmp_path) == [] and not (tmp_path / "figures").exists()
    write(tmp_path, "rtp", "caa", {TOXICITY: [0.4, 0.5]})  # neither fluency nor capability
    assert [path.name for path in plots.rebuild(tmp_path)] == ["tradeoff.svg", "tradeoff.png"]
    frame = leaderboard(tables(read_records(tmp_path / "runs")[0]))
    assert [list(markers(ax)) for ax in plots.tradeoff(frame).axes] == [[(0.0, 1.0)], [(0.0, 1.0)]]


def test_errors_are_one_message(tmp_path, capsys):
    assert plots.main(["--results", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: no records: ")
    for method, values in (("unsteered", [0.8, 0.6]), ("caa", [0.4, 0.5])):
        write(tmp_path, "rtp", method, {TOXICITY: values})
    (tmp_path / "figures").write_text("in the way")
    assert plots.main(["--results", str(tmp_path)]) == 2
    assert "cannot write the figure to" in capsys.readouterr().err
