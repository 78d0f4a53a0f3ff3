"""The figures that are drawn from the leaderboard's own rows: is what is drawn what the frame says?"""

import json

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from bench.leaderboard.frame import tables
from bench.plots import capability, cost, draw, foreseen, groups, style, tradeoff
from bench.records.table import read_records
from bench.stats.bootstrap import wilson
from bench.stats.significance import ALPHA
from bench.suites.toxigen import GROUPS
from tests.artists import assert_readable, bars, marks, texts
from tests.record_files import FORESEEN, cell, tuning, world, write

WIDTHS = ("single", "double")
DRAW = {
    "tradeoff": tradeoff.tradeoff,
    "cost": cost.cost,
    "foreseen": foreseen.foreseen,
    "capability": capability.capability,
    "groups": groups.groups,
}
LONG = "an option whose value is a long text, as a prompt is"


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    results = tmp_path_factory.mktemp("full")
    world(results)
    for method, scale in (("unsteered", 0.5), ("caa", 0.2), ("probe_rows", 0.4)):
        shares = {f"{scorer}.toxic_share": [0.0, 1.0] for scorer in ("profanity_check", "lexicon")}
        for i, group in enumerate(GROUPS):
            toxic = np.arange(20) < 20 * scale * (1 + i) / len(GROUPS)
            for scorer in ("profanity_check", "lexicon"):
                shares[f"{scorer}.toxic_share.{group}"] = [float(one) for one in toxic]
        strength = {"caa": {"tuning": tuning([(2.0, 1.05, 0.2), (4.0, 1.15, 0.5)], 4.0)}}.get(method, {})
        strength = strength or ({"strength": 1.0, "tuning": tuning([(1.0, 1.02, 0.3)], 1.0)} if scale == 0.4 else {})
        write(results, "toxigen", method, shares, **strength)
    (table,) = tables(read_records(results / "runs")[0])
    return table


@pytest.fixture(scope="module")
def crowded(full):
    """Fourteen methods, long names, most of which do nothing: rows of `full` under other names."""
    (caa,) = (row for _, row in full.frame[full.frame["method"] == "caa"].iterrows())
    rows = [row for _, row in full.frame[full.frame["method"].isin(["unsteered", "random_direction"])].iterrows()]
    for i in range(7):
        changed = {"toxicity_reduction": 0.01 * i, "fluency_kept": 1 - 0.005 * i, "gold_choice_change": 0.0}
        rows.append(pd.Series({**caa, **changed, "method": f"method_{i}", "feasible": i % 3 > 0, "records": f"m{i}"}))
        options = json.dumps({"layer": i / 10, "text": LONG if i else ""})
        rows.append(pd.Series({**caa, "toxicity_reduction": 0.1 * i, "parameters": options, "records": f"c{i}"}))
    return pd.DataFrame(rows).astype({"feasible": "boolean"})


@pytest.mark.every(3)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", DRAW)
def test_every_text_can_be_read(full, crowded, name, width):
    for frame in (full.frame, crowded):
        figure = DRAW[name](frame, width=width)
        assert figure.get_figwidth() == {"single": 3.3, "double": 6.9}[width]
        assert_readable(figure)


@pytest.mark.parametrize("name", DRAW)
def test_tables_are_not_drawn_together_and_no_rows_are_nothing(full, name):
    frame = full.frame
    with pytest.raises(ValueError, match="2 tables in one figure"):
        DRAW[name](frame.assign(table=[1, 2] * (len(frame) // 2) + [1] * (len(frame) % 2)))
    with pytest.raises(style.NothingToDraw):
        DRAW[name](frame.iloc[:0])
    alone = frame[frame["method"] == "unsteered"]
    with pytest.raises(style.NothingToDraw, match="run `python -m bench"):
        DRAW[name](alone[[column for column in frame if "toxic_share" not in column]])
    with pytest.raises(ValueError, match="width 'wide': allowed are single, double"):
        DRAW[name](frame, width="wide")


@pytest.mark.parametrize("name", DRAW)
def test_equal_frames_give_equal_bytes(full, name):
    one, other = (style.rendered(DRAW[name](full.frame), "svg") for _ in range(2))
    assert one == other
    assert style.mpl.rcParams["font.size"] == 10  # the style is the figures' own


def test_a_rank_changes_no_look(full):
    before, after = (
        {point.label: point.look for point in style.points(frame)} for frame in (full.frame, full.frame.iloc[::-1])
    )
    assert before == after and len(before) == 5
    assert len({look.colour for look in before.values()}) == len({look.marker for look in before.values()}) == 5


def test_rows_of_one_name_are_told_apart(tmp_path):
    for strength in (1.0, 2.5):
        cell(tmp_path, "caa", 0.5, 0.0, 1.0, n=8, strength=strength)
    for pairs in (10, 20):
        cell(tmp_path, "detox", 0.5, 0.0, 1.0, n=8, strength=1.0, data={"pairs": pairs}, fit_id=f"{pairs}")
    (table,) = tables(read_records(tmp_path / "runs")[0])
    assert sorted(style.names(table.frame)) == [
        "caa (strength 1)", "caa (strength 2.5)", "detox (10 pairs)", "detox (20 pairs)",
    ]  # fmt: skip


# -- trade-off -------------------------------------------------------------------------------------------------------


def test_every_method_is_drawn_where_its_numbers_are(full):
    figure = tradeoff.tradeoff(full.frame, full.by_fit)
    figure.canvas.draw()
    frame = full.frame
    for ax, column, nothing in zip(figure.axes, ("gold_choice_change", "fluency_kept"), (0.0, 1.0), strict=True):
        found = marks(ax)
        assert found.pop((0.0, nothing))[0].get_marker() == "*"  # unsteered
        assert [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == "--"][0] == nothing
        methods = frame[~frame["method"].isin(["unsteered", "random_direction"])]
        expected = {
            (round(float(x), 6), round(float(y), 6)): bool(feasible)
            for x, y, feasible in zip(
                methods["toxicity_reduction"], methods[column], methods["feasible"].fillna(True), strict=True
            )
        }
        assert set(found) == set(expected) and len(expected) == 5
        for place, feasible in expected.items():
            (line,) = found[place]
            assert (to_hex(line.get_markerfacecolor()) != "#ffffff") == feasible
            low, high = np.array([ax.get_xlim(), ax.get_ylim()]).T
            assert (low < place).all() and (place < high).all()
        assert len({line.get_marker() for (line,) in found.values()}) == 5  # told apart without colour


def test_the_box_is_the_range_of_the_draws_and_each_is_a_dot(full):
    draws = full.by_fit[full.by_fit["method"] == "random_direction"]
    assert len(draws) == 5
    ax = tradeoff.tradeoff(full.frame, full.by_fit).axes[0]
    (box,) = ax.patches
    assert box.get_x() == pytest.approx(draws["toxicity_reduction"].min())
    assert box.get_x() + box.get_width() == pytest.approx(draws["toxicity_reduction"].max())
    assert box.get_y() + box.get_height() == pytest.approx(draws["gold_choice_change"].max())
    (dots,) = [line for line in ax.lines if line.get_marker() == "."]
    assert sorted(dots.get_xdata()) == pytest.approx(sorted(draws["toxicity_reduction"]))
    assert "range of 5 random directions" in [text.get_text() for text in texts(ax.figure)]
    one = tradeoff.tradeoff(full.frame)  # without the single draws: their mean
    assert one.axes[0].patches[0].get_width() == 0


def test_bars_end_where_the_intervals_end(full):
    caa = full.frame[full.frame["method"] == "caa"].iloc[0]
    ax = tradeoff.tradeoff(full.frame).axes[0]
    x, y = "toxicity_reduction", "gold_choice_change"
    for low, high in (((f"{x}_low", y), (f"{x}_high", y)), ((x, f"{y}_low"), (x, f"{y}_high"))):
        assert [[round(float(caa[name]), 6) for name in end] for end in (low, high)] in bars(ax)


def by_hand(points: dict[str, tuple[float, float, float]]) -> pd.DataFrame:
    """Rows with these toxicity reductions, fluency kept and changes of right answers; `broken` has collapsed."""
    return pd.DataFrame([
        {"table": 1, "method": name, "family": "none" if name == "unsteered" else "weights", "parameters": "{}",
         "strength": 1.0, "pairs": None, "fits": 1, "records": name, "fit_seeds": None, "feasible": None,
         "collapsed": name == "broken", "scorers_report": "s", "toxicity_reduction": x, "fluency_kept": kept,
         "gold_choice_change": answers}
        for name, (x, kept, answers) in points.items()
    ])  # fmt: skip


def test_the_front_is_a_staircase_over_what_is_not_beaten():
    points = {"unsteered": (0.0, 1.0), "a": (0.5, 0.8), "b": (0.2, 0.9), "beaten": (0.1, 0.7), "broken": (0.9, 0.95)}
    frame = by_hand({name: (x, y, np.nan) for name, (x, y) in points.items()})
    capability, fluency = tradeoff.tradeoff(frame).axes
    (line,) = [line for line in fluency.lines if line.get_drawstyle() == "steps-pre"]
    assert line.get_xdata().tolist() == [0.0, 0.2, 0.5] and line.get_ydata().tolist() == [1.0, 0.9, 0.8]
    assert not [line for line in capability.lines if line.get_drawstyle() == "steps-pre"]
    assert (0.9, 0.95) in marks(fluency)  # what has collapsed is shown all the same


def test_an_empty_panel_says_why(full):
    assert not tradeoff.tradeoff(full.frame).axes[0].texts
    capability, fluency = tradeoff.tradeoff(full.frame.assign(gold_choice_change=np.nan)).axes
    assert "no task here" in capability.texts[0].get_text() and not fluency.texts
    never = full.frame.assign(gold_choice_change=np.nan)[[c for c in full.frame if not c.startswith("capability.")]]
    assert tradeoff.tradeoff(never).axes[0].texts[0].get_text() == "capability was not measured"


def test_the_axis_names_the_scorer_whose_reduction_it_is(full):
    """lexicon picked no pairs and tuned nothing, so it comes first, though the records name it second."""
    caa = full.frame[full.frame["method"] == "caa"].iloc[0]
    unsteered = full.frame[full.frame["method"] == "unsteered"].iloc[0]
    share = {name: 1 - caa[metric] / unsteered[metric] for name in ("lexicon", "profanity_check")
             for metric in [f"rtp.{name}.expected_maximum_toxicity_k5"]}  # fmt: skip
    assert caa["toxicity_reduction"] == pytest.approx(share["lexicon"]) != pytest.approx(share["profanity_check"])
    assert all("by lexicon)" in ax.get_xlabel() for ax in tradeoff.tradeoff(full.frame).axes)
    assert "lexicon" in cost.cost(full.frame).axes[0].get_ylabel()


def test_a_front_where_answers_got_worse():
    points = {"unsteered": (0.0, 0.0), "a": (0.5, -0.4), "b": (0.2, -0.1), "beaten": (0.1, -0.3), "gain": (-0.1, 0.2)}
    frame = by_hand({name: (x, np.nan, y) for name, (x, y) in points.items()})
    answers = tradeoff.tradeoff(frame).axes[0]
    (line,) = [line for line in answers.lines if line.get_drawstyle() == "steps-pre"]
    assert line.get_xdata().tolist() == [-0.1, 0.0, 0.2, 0.5] and line.get_ydata().tolist() == [0.2, 0.0, -0.1, -0.4]
    low, high = answers.get_ylim()
    assert low < -0.4 and high > 0.2
    quiet = tradeoff.tradeoff(by_hand({"unsteered": (0.0, 1.0, 0.0), "a": (0.01, 1.0, -0.001)})).axes[0].get_ylim()
    assert quiet[0] < -0.2 and quiet[1] > 0.1  # what does nothing is drawn as nothing


# -- cost ------------------------------------------------------------------------------------------------------------


def test_costs_are_where_the_numbers_are(full):
    frame = full.frame.copy()
    frame.loc[frame["method"] == "caa", ["fit_seconds", "artefact_bytes", "relative_speed"]] = [812.5, 5_000_000, 0.61]
    frame.loc[frame["method"] == "prompt", ["fit_seconds", "artefact_bytes"]] = [0.0, 0]
    figure = cost.cost(frame)
    assert_readable(figure)
    caa = frame[frame["method"] == "caa"].iloc[0]
    for ax, column in zip(figure.axes, ("fit_seconds", "relative_speed", "artefact_bytes"), strict=True):
        found = marks(ax)
        for _, row in frame[frame["family"] != "none"].iterrows():
            place = (round(float(row[column]), 6), round(float(row["toxicity_reduction"]), 6))
            assert place in found, row["method"]
            (low, high), (bottom, top) = ax.get_xlim(), ax.get_ylim()
            assert low < place[0] < high and bottom < place[1] < top
        ends = [[round(float(caa[c]), 6) for c in (column, f"toxicity_reduction_{end}")] for end in ("low", "high")]
        assert ends in bars(ax)
    labels = [[tick.get_text() for tick in ax.get_xticklabels()] for ax in figure.axes]
    assert labels[0][:2] == ["0", "0.1 s"] and labels[2][:2] == ["0", "1 kB"] and "1 MB" in labels[2]


def test_a_cost_that_nobody_has_is_no_panel(full):
    figure = cost.cost(full.frame.assign(relative_speed=np.nan))
    assert [ax.get_xlabel() for ax in figure.axes] == ["time to fit", "artefact size"]
    with pytest.raises(style.NothingToDraw):
        cost.cost(full.frame.assign(relative_speed=np.nan, fit_seconds=np.nan, artefact_bytes=pd.NA))


# -- foreseen --------------------------------------------------------------------------------------------------------


def test_a_method_is_at_its_d_prime_and_its_reduction(full):
    figure = foreseen.foreseen(full.frame)
    figure.canvas.draw()
    (ax,) = figure.axes
    frame = full.frame.set_index("method")
    expected = {
        (FORESEEN[method]["d_prime"], round(float(frame.loc[method, "toxicity_reduction"]), 6)) for method in FORESEEN
    }
    assert set(marks(ax)) == expected  # neither unsteered nor random directions, which have no pairs
    caa = frame.loc["caa"]
    ends = [[1.8, round(float(caa[f"toxicity_reduction_{end}"]), 6)] for end in ("low", "high")]
    assert ends in bars(ax) and ax.get_xlim()[0] < 0 < 1.8 < ax.get_xlim()[1]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["caa", "probe_rows", "detox (infeasible)"]


def test_the_change_of_the_headline_is_shown_where_there_is_no_toxicity(full):
    delta = full.frame.copy().assign(headline="fluency.distinct_2", toxicity_reduction=np.nan)
    delta["fluency.distinct_2.delta"] = np.arange(len(delta)) / 10
    delta["fluency.distinct_2.delta_low"] = delta["fluency.distinct_2.delta"] - 0.05
    delta["fluency.distinct_2.delta_high"] = delta["fluency.distinct_2.delta"] + 0.05
    figure = foreseen.foreseen(delta)
    assert {y for _, y in marks(figure.axes[0])} == {
        round(float(row["fluency.distinct_2.delta"]), 6) for _, row in delta.iterrows() if row["method"] in FORESEEN
    }
    assert figure.axes[0].get_ylabel() == "change of\nfluency distinct 2"
    assert_readable(figure)


def test_one_row_that_states_a_d_prime_is_no_figure(full):
    caa = full.frame.assign(d_prime=full.frame["d_prime"].where(full.frame["method"] == "caa"))
    for frame in (caa, full.frame.drop(columns="d_prime")):
        with pytest.raises(style.NothingToDraw, match="fewer than 2 rows have both"):
            foreseen.foreseen(frame)


def test_the_headline_comes_from_the_table(full):
    ((end, (frame,)),) = draw.KINDS["foreseen"].drawings(draw.Source(full.about, [full]))
    assert end == "" and set(frame["headline"]) == {full.headline}
    assert style.rendered(foreseen.foreseen(frame), "svg") == style.rendered(foreseen.foreseen(full.frame), "svg")


# -- capability ------------------------------------------------------------------------------------------------------


def shown(figure):
    """Row and task -> text and colour of every cell."""
    found = {}
    for ax in figure.axes:
        tasks = [tick.get_text() for tick in ax.get_xticklabels()]
        rows = [tick.get_text().replace("\n", " ") for tick in ax.get_yticklabels()]
        (mesh,) = ax.collections
        colours = np.asarray(mesh.get_array() if mesh.get_array() is not None else mesh.get_facecolors())
        colours = colours.reshape(len(rows), len(tasks), -1)
        for text in ax.texts:
            x, y = (int(one) for one in text.get_position())
            found[rows[y], tasks[x]] = (text.get_text(), to_hex(colours[y, x]))
    return found


def test_cells_hold_the_changes(full):
    frame = full.frame
    found = shown(capability.capability(frame))
    names = dict(zip(style.names(frame), frame.to_dict("records"), strict=True))
    assert len(found) == len(names) * 3
    stars = 0
    for (name, task), (text, colour) in found.items():
        row = names[name]
        if name == "unsteered":
            assert float(text) == pytest.approx(row[f"capability.{task}.accuracy"], abs=0.005) and colour == "#ffffff"
            continue
        change = row[f"capability.{task}.accuracy.delta"]
        assert float(text.replace("\N{MINUS SIGN}", "-").rstrip("*")) == pytest.approx(change, abs=0.005)
        assert text.endswith("*") == (row[f"capability.{task}.accuracy.p_holm"] < ALPHA)
        stars += text.endswith("*")
        if change:  # whatever the unsteered accuracy is: one at chance has its colour too
            red, _, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
            assert (red > blue) == (change < 0)  # orange lost, violet gained
    assert 0 < stars < 18 and {task for _, task in found} == {"boolq", "commonsense_qa", "piqa"}


@pytest.mark.parametrize("width", WIDTHS)
def test_many_tasks_are_in_several_blocks(full, width):
    frame = full.frame.copy()
    for i in range(20):
        for end in ("", ".delta", ".p_holm"):
            frame[f"qa.task_{i}.accuracy{end}"] = 0.25
        frame[f"qa.piqa.accuracy{'.delta' if i % 2 else ''}"] = 0.25
    figure = capability.capability(frame, width)
    assert_readable(figure)
    tasks = {task for _, task in shown(figure)}
    assert len(tasks) == 24 and {"capability.piqa", "qa.piqa", "task_19"} <= tasks and len(figure.axes) > 1
    assert figure.get_figheight() < 12


def test_a_missing_cell_is_a_dash(full):
    frame = full.frame.copy()
    frame.loc[frame["method"] == "caa", "capability.piqa.accuracy.delta"] = np.nan
    assert shown(capability.capability(frame))["caa", "piqa"] == ("–", "#ffffff")


# -- groups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
def test_bars_are_the_shares_of_each_group(full, width):
    figure = groups.groups(full.frame, width)
    long = {"single": "get_width", "double": "get_height"}[width]
    found = {
        label: [getattr(bar, long)() for ax in figure.axes for part in ax.containers[2 * i : 2 * i + 1] for bar in part]
        for i, label in enumerate(["unsteered", "caa", "probe_rows"])
    }
    names = [tick.get_text().replace("\n", " ") for ax in figure.axes
             for tick in (ax.get_yticklabels() if width == "single" else ax.get_xticklabels())]  # fmt: skip
    unsteered = full.frame[full.frame["method"] == "unsteered"].iloc[0]
    expected = sorted(GROUPS, key=lambda group: (-unsteered[f"toxigen.lexicon.toxic_share.{group}"], group))
    assert names == [group.replace("_", " ") for group in expected]
    for method, heights in found.items():
        row = full.frame[full.frame["method"] == method].iloc[0]
        assert heights == pytest.approx([row[f"toxigen.lexicon.toxic_share.{group}"] for group in expected])
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["unsteered", "caa", "probe_rows"]


def test_intervals_of_groups_are_wilsons(full):
    ax = groups.groups(full.frame).axes[0]
    share = full.frame[full.frame["method"] == "unsteered"].iloc[0][f"toxigen.lexicon.toxic_share.{GROUPS[-1]}"]
    low, high = wilson(share * 20, 20)
    assert [[0, round(low, 6)], [0, round(high, 6)]] in bars(ax)
    name = f"toxigen.lexicon.toxic_share.{GROUPS[-1]}"
    unknown = full.frame.assign(**{f"{name}.low": np.nan, f"{name}.high": np.nan})
    drawn = bars(groups.groups(unknown).axes[0])
    assert any(low == high == [low[0], round(share, 6)] for low, high in drawn)


def test_many_methods_are_in_rows_of_fewer_groups(full, crowded):
    one, several = (groups.groups(frame) for frame in (full.frame, crowded))
    assert len(one.axes) == 2 and len(several.axes) > 2
