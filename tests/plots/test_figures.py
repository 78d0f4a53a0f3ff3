"""The figures that are drawn from the leaderboard's own rows: is what is drawn what the frame says?"""

import itertools
import json
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex, to_rgb

from bench.leaderboard.frame import tables
from bench.plots import capability, cost, draw, foreseen, groups, panels, style, tradeoff
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


def legend(figure):
    """Return the texts of a figure's legend, without their line breaks."""
    return [text.get_text().replace("\n", " ") for text in figure.legends[0].get_texts()]


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
        "CAA (strength 1)", "CAA (strength 2.5)", "DeTox (ProFS, 10 pairs)", "DeTox (ProFS, 20 pairs)",
    ]  # fmt: skip


def test_seeds_are_named_where_they_alone_differ(tmp_path):
    for pairs, seeds in ((10, (0, 1)), (20, (0,))):
        for seed in seeds:
            data = {"pairs": pairs}
            cell(tmp_path, "detox", 0.5, 0.0, 1.0, n=8, fit_seed=seed, data=data, fit_id=f"{pairs} {seed}")
    (table,) = tables(read_records(tmp_path / "runs")[0])
    assert sorted(style.names(table.frame)) == ["DeTox (ProFS, 10 pairs, 2 fits)", "DeTox (ProFS, 20 pairs)"]
    alike = table.frame.assign(pairs=10, fits=1, fit_seeds=["0; 1", "2"])
    assert sorted(style.names(alike)) == ["DeTox (ProFS, seed 2)", "DeTox (ProFS, seeds 0 and 1)"]


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
    (fluency,) = tradeoff.tradeoff(frame).axes  # what nobody was asked has no panel
    (line,) = [line for line in fluency.lines if line.get_drawstyle() == "steps-pre"]
    assert line.get_xdata().tolist() == [0.0, 0.2, 0.5] and line.get_ydata().tolist() == [1.0, 0.9, 0.8]
    assert (0.9, 0.95) not in marks(fluency)


def test_collapsed_text_is_named_and_not_drawn():
    points = {"unsteered": (0.0, 1.0, 0.0), "a": (0.5, 0.8, -0.1), "broken": (0.9, 0.1, -6.0)}
    figure = tradeoff.tradeoff(by_hand(points))
    answers, fluency = figure.axes
    assert answers.get_ylim()[0] > -0.5 and fluency.get_ylim()[0] > 0.5
    assert "not shown (collapsed): broken" in legend(figure) and "broken" not in legend(figure)
    directions = by_hand({"random_direction": (0.1, -40.0, -6.0)}).assign(collapsed=True)
    figure = tradeoff.tradeoff(by_hand(points), directions)
    assert figure.axes[1].get_ylim()[0] > 0.5
    assert "not shown (collapsed): 1 of 1 random directions" in legend(figure)
    alone = tradeoff.tradeoff(by_hand({"broken": (0.9, 0.1, -6.0)}))
    assert set(marks(alone.axes[0])) == {(0.0, 0.0)} and "not shown (collapsed): broken" in legend(alone)


@pytest.mark.parametrize("name", ["cost", "foreseen", "groups"])
def test_collapsed_text_is_named_without_a_marker(full, name):
    frame = full.frame.copy()
    frame.loc[frame["method"] == "caa", "collapsed"] = True
    figure = DRAW[name](frame)
    assert "not shown (collapsed): CAA" in legend(figure) and "CAA" not in legend(figure)
    whole = DRAW[name](full.frame)
    assert "CAA" in legend(whole) and not any("collapsed" in text for text in legend(whole))
    reduction = round(float(frame.loc[frame["method"] == "caa", "toxicity_reduction"].iloc[0]), 6)
    assert not any(y == reduction for ax in figure.axes for _, y in marks(ax))


@pytest.mark.parametrize("width", WIDTHS)
def test_what_no_method_was_measured_in_has_no_panel(full, width):
    assert len(tradeoff.tradeoff(full.frame, width=width).axes) == 2
    (fluency,) = tradeoff.tradeoff(full.frame.assign(gold_choice_change=np.nan), width=width).axes
    assert fluency.get_ylabel() == "1 / perplexity ratio\n(at most 1)"
    with pytest.raises(style.NothingToDraw, match="fluency or answers"):
        tradeoff.tradeoff(full.frame.assign(gold_choice_change=np.nan, fluency_kept=np.nan))


def test_methods_go_by_their_titles_where_these_tell_them_apart(full, monkeypatch):
    assert {"CAA", "Model Surgery", "DeTox (ProFS)", "ActAdd", "Prompt"} <= set(style.names(full.frame))
    told = {"caa": "Same", "detox": "Same", "prompt": "Other"}
    monkeypatch.setattr("bench.records.titles.title", lambda name: told.get(name, name))
    assert {"caa", "detox", "Other", "act_add"} <= set(style.names(full.frame))


def test_a_hollow_marker_is_explained(full):
    frame = full.frame.assign(bounds=None)
    assert "hollow: no strength kept the bounds in tuning" in legend(tradeoff.tradeoff(frame))
    frame.loc[frame["method"] == "caa", "bounds"] = "violated"
    said = "hollow: a bound is violated or no strength kept the bounds in tuning"
    for draw_it in (tradeoff.tradeoff, cost.cost, foreseen.foreseen):
        assert said in legend(draw_it(frame))
    fine = frame.assign(bounds="kept", feasible=True)
    assert not any("hollow" in text for text in legend(tradeoff.tradeoff(fine)))


def test_the_star_is_below_the_methods(full):
    for figure in (tradeoff.tradeoff(full.frame), cost.cost(full.frame)):
        for ax in figure.axes:
            lines = [line for line in ax.lines if line.get_zorder() == 5 and len(line.get_xdata()) == 1]
            (star,) = [line for line in ax.lines if line.get_marker() == "*"]
            assert lines and star.get_zorder() < 5 and star.get_markersize() > lines[0].get_markersize()


def many(full, count):
    """Rows of `full` under other names, of 30 letters."""
    (caa,) = (row for _, row in full.frame[full.frame["method"] == "caa"].iterrows())
    rows = [row for _, row in full.frame[full.frame["method"] == "unsteered"].iterrows()]
    for i in range(count):
        rows.append(pd.Series({**caa, "method": f"method_of_thirty_letters_{i:02}_abc", "records": f"m{i}"}))
    return pd.DataFrame(rows).astype({"feasible": "boolean"})


@pytest.mark.every(2)
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", DRAW)
def test_35_methods_are_on_pages_and_none_is_lost(full, name):
    frame, labels = many(full, 35), set()
    found = list(draw.pages(draw.KINDS[name], (frame,)))
    for figure in found:
        style.rendered(figure, "svg")
        assert figure.get_figheight() <= style.PAGE
        labels |= {text.get_text().replace("\n", "") for text in texts(figure)}
    assert len(found) > 1 or name == "capability"
    assert all(any(row["method"][:20] in text and row["method"][-6:] in text for text in labels)
               for _, row in frame.iloc[1:].iterrows())  # fmt: skip
    with pytest.raises(style.NoSuchPage):
        DRAW[name](frame, page=len(found) + 1)


def test_a_page_has_a_marker_per_method_and_crosses_for_others(full):
    first = tradeoff.tradeoff(many(full, 35)).axes[0]
    named = [line for line in first.lines if line.get_zorder() == 5]
    assert len(named) == len({str(line.get_marker()) for line in named}) == style.MOST
    (crosses,) = [line for line in first.lines if line.get_marker() == "x"]
    assert len(crosses.get_xdata()) == 35 - style.MOST
    assert f"{35 - style.MOST} more, named on other pages" in legend(first.figure)


def test_signs_that_the_font_lacks_are_written_out(full):
    frame = full.frame.assign(method=full.frame["method"].replace("caa", "\u6a21 \u00fc"))
    assert "\\u6a21 \u00fc" in style.names(frame)


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
    broken = [[line for line in ax.lines if isinstance(line.get_marker(), list)] for ax in figure.axes]
    assert [len(strokes) for strokes in broken] == [1, 0, 1]  # where an axis goes on linearly to 0
    labels = [[tick.get_text() for tick in ax.get_xticklabels()] for ax in figure.axes]
    assert labels[0][:2] == ["0", "0.1 s"] and labels[2][:2] == ["0", "1 kB"] and "1 MB" in labels[2]


def test_the_interval_of_a_speed_is_inside_its_panel(full):
    frame = full.frame.assign(relative_speed_low=np.nan, relative_speed_high=np.nan)
    frame.loc[frame["method"] == "caa", ["relative_speed_low", "relative_speed", "relative_speed_high"]] = [0.2, 1, 1.9]
    low, high = cost.cost(frame).axes[1].get_xlim()
    assert low < 0.2 and high > 1.9


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
    methods = ["CAA", "Model Surgery", "DeTox (ProFS)"]
    assert legend(figure) == [*methods, "hollow: a bound is violated", "bars: 95% intervals"]


def test_without_toxicity_the_headline_is_shown(full):
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
    assert end == "" and set(frame["headline"]) == {full.aims.headline}
    assert style.rendered(foreseen.foreseen(frame), "svg") == style.rendered(foreseen.foreseen(full.frame), "svg")


# -- capability ------------------------------------------------------------------------------------------------------


def shown(figure):
    """Method and task -> text and colour of every cell, whichever of the two are lines."""
    found = {}
    for ax in figure.axes:
        across = [tick.get_text() for tick in ax.get_xticklabels()]
        down = [tick.get_text() for tick in ax.get_yticklabels()]
        (mesh,) = ax.collections
        colours = np.asarray(mesh.get_array() if mesh.get_array() is not None else mesh.get_facecolors())
        colours = colours.reshape(len(down), len(across), -1)
        for text in ax.texts:
            x, y = (int(one) for one in text.get_position())
            names = [down[y], across[x]] if "unsteered" in down else [across[x], down[y]]
            method, task = (name.replace("\n", " ") for name in names)
            found[method, re.sub(r" \(?n = .*", "", task)] = (text.get_text(), to_hex(colours[y, x]))
    return found


def test_cells_hold_the_changes_and_their_intervals(full):
    frame = full.frame
    found = shown(capability.capability(frame))
    names = dict(zip(style.names(frame), frame.to_dict("records"), strict=True))
    assert len(found) == len(names) * 3
    stars = 0
    for (name, task), (text, colour) in found.items():
        row, metric = names[name], f"capability.{task}.accuracy"
        value, half = text.split(" ±")
        ends = [row[f"{metric}{end}"] for end in ((".low", ".high") if name == "unsteered" else
                                                  (".delta_low", ".delta_high"))]  # fmt: skip
        assert float(half) == pytest.approx((ends[1] - ends[0]) / 2, abs=0.0051)
        if name == "unsteered":
            assert float(value) == pytest.approx(row[metric], abs=0.005) and colour == "#ffffff"
            continue
        change = row[f"{metric}.delta"]
        assert float(value.replace("\N{MINUS SIGN}", "-").rstrip("*")) == pytest.approx(change, abs=0.005)
        assert value.endswith("*") == (row[f"{metric}.p_holm"] < ALPHA)
        stars += value.endswith("*")
        red, _, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        if ends[0] <= 0 <= ends[1]:
            assert abs(red - blue) < 3, "a change that may be none has no colour"
        else:  # whatever the unsteered accuracy is: one at chance has its colour too
            assert (red > blue) == (change < 0)  # orange lost, violet gained
    assert 0 < stars < 18 and {task for _, task in found} == {"boolq", "commonsense_qa", "piqa"}


@pytest.mark.parametrize("width", WIDTHS)
def test_below_each_task_is_the_number_of_its_documents(full, width):
    frame = full.frame.copy()
    frame["capability.piqa.accuracy.n"] = 1
    said = [text.get_text() for text in texts(capability.capability(frame, width))]
    assert any(text in ("piqa\nn = 1", "piqa (n = 1)") for text in said)
    assert any(text in ("boolq\nn = 100", "boolq (n = 100)") for text in said)


def test_a_few_documents_are_counted(full):
    frame = full.frame.copy()
    frame["capability.piqa.accuracy.n"] = 6
    frame.loc[frame["method"] == "unsteered", "capability.piqa.accuracy"] = 0.5
    frame.loc[frame["method"] == "caa", "capability.piqa.accuracy.delta"] = -2 / 6
    figure = capability.capability(frame)
    found = shown(figure)
    assert found["unsteered", "piqa"][0] == "3 of 6" and found["CAA", "piqa"][0] == "\N{MINUS SIGN}2 of 6"
    grey = {text.get_text() for ax in figure.axes for text in ax.texts if text.get_color() == style.GREY}
    assert grey and all("of 6" in text for text in grey)
    assert "+1 of 6: change in right answers, where n < 20" in legend(figure)


def test_a_change_of_an_interval_around_0_has_no_colour(full):
    frame = full.frame.copy()
    ends = [f"capability.piqa.accuracy.delta{end}" for end in ("", "_low", "_high")]
    frame.loc[frame["method"] == "caa", ends] = [-0.3, -0.7, 0.1]
    frame.loc[frame["method"] == "prompt", ends] = [-0.1, -0.15, -0.05]
    found = shown(capability.capability(frame))
    assert found["CAA", "piqa"][1] == "#f6f6f7" and found["Prompt", "piqa"][1] != "#f6f6f7"


def with_tasks(frame, count):
    """30 letters a task; piqa is asked by two suites."""
    own = {}
    for i in range(count):
        own |= {f"qa.task_with_a_name_of_letters_{i:02}.accuracy{end}": 0.25 for end in ("", ".delta", ".p_holm")}
    own |= {f"qa.piqa.accuracy{end}": 0.25 for end in ("", ".delta")}
    return pd.concat([frame, pd.DataFrame(own, index=frame.index)], axis=1)


@pytest.mark.every(3)
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("count", "methods"), [(26, 2), (26, 12), (2, 35)])
@pytest.mark.parametrize("width", WIDTHS)
def test_many_tasks_are_in_several_blocks(full, width, count, methods):
    found, tasks, names = {}, set(), set()
    for figure in draw.pages(draw.KINDS["capability"], (with_tasks(many(full, methods), count),), width):
        assert_readable(figure)
        boxes = [ax.get_window_extent() for ax in figure.axes]
        assert all(box.height > 10 and box.width > 10 for box in boxes)
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        assert figure.get_figheight() <= style.PAGE
        found |= shown(figure)
    names, tasks = ({pair[i] for pair in found} for i in (0, 1))
    assert len(tasks) == count + 4 and {"capability.piqa", "qa.piqa"} <= tasks
    assert len(names) == methods + 1 and len(found) == len(names) * len(tasks)


def test_a_missing_cell_is_a_dash(full):
    frame = full.frame.copy()
    frame.loc[frame["method"] == "caa", "capability.piqa.accuracy.delta"] = np.nan
    figure = capability.capability(frame)
    assert shown(figure)["CAA", "piqa"] == ("–", "#ffffff")
    assert "–: not measured" in legend(figure)


def test_a_control_that_was_asked_no_task_has_no_line(full):
    frame = full.frame.copy()
    deltas = [name for name in frame if name.endswith(".accuracy.delta")]
    frame.loc[frame["method"].isin(["caa", "random_direction"]), deltas] = np.nan
    names = {name for name, _ in shown(capability.capability(frame))}
    assert "CAA" in names and not any("random" in name for name in names)


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
    assert [name.lower() for name in names] == [group.replace("_", " ") for group in expected]
    assert {"LGBTQ", "Native American", "Middle East", "women", "mental disability"} <= set(names)
    for method, heights in found.items():
        row = full.frame[full.frame["method"] == method].iloc[0]
        assert heights == pytest.approx([row[f"toxigen.lexicon.toxic_share.{group}"] for group in expected])
    assert legend(figure) == ["unsteered", "CAA", "Model Surgery", "n = 20 prompts a group"]


def test_intervals_of_groups_are_wilsons(full):
    ax = groups.groups(full.frame).axes[0]
    share = full.frame[full.frame["method"] == "unsteered"].iloc[0][f"toxigen.lexicon.toxic_share.{GROUPS[-1]}"]
    low, high = wilson(share * 20, 20)
    assert [[0, round(low, 6)], [0, round(high, 6)]] in bars(ax)
    name = f"toxigen.lexicon.toxic_share.{GROUPS[-1]}"
    unknown = full.frame.assign(**{f"{name}.low": np.nan, f"{name}.high": np.nan})
    drawn = bars(groups.groups(unknown).axes[0])
    assert any(low == high == [low[0], round(share, 6)] for low, high in drawn)


def test_bars_differ_in_grey_print(full):
    """By the grey of their faces where they have no hatch; each hatch is there once."""
    rows = many(full, style.MOST)
    faces = [groups.face(look) for _, _, look in groups.drawn(rows, [True] * len(rows))]
    hatched = [face["hatch"] for face in faces if face["hatch"]]
    plain = [sum(np.multiply(to_rgb(face["facecolor"]), (0.299, 0.587, 0.114))) for face in faces if not face["hatch"]]
    assert len(hatched) == len(set(hatched)) == style.MOST - 1
    assert np.diff(sorted(plain)).min() > 0.2 and faces[0]["edgecolor"] == "black"


def test_many_methods_are_in_rows_of_fewer_groups(full, crowded):
    one, several = (groups.groups(frame) for frame in (full.frame, crowded))
    assert len(one.axes) == len(several.axes) == 2
    bars = [sum(len(part) for part in figure.axes[0].containers[::2]) for figure in (one, several)]
    assert bars[0] < bars[1]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_share_of_0_is_seen_and_a_group_of_1_says_so(full, width):
    zero, one = (f"toxigen.lexicon.toxic_share.{GROUPS[i]}" for i in (0, 1))
    frame = full.frame.assign(**{zero: 0.0, f"{zero}.low": 0.0, f"{one}.n": 1})
    figure = groups.groups(frame, width)
    assert_readable(figure)
    value = 0 if width == "single" else 1  # which coordinate is the share
    lines = [(low, high) for ax in figure.axes for low, high in bars(ax) if low[value] == high[value] == 0]
    assert sum(low[1 - value] != high[1 - value] for low, high in lines) >= 3  # one for each method
    said = [text.get_text() for text in texts(figure)]
    assert sum(text.endswith("\nn = 1") for text in said) == 1
    assert sum(text.endswith("\nn = 20") for text in said) == len(GROUPS) - 1


def test_curves_of_which_no_measure_is_known_are_not_drawn():
    """As if the unsteered model was not measured beside the methods."""
    points = [{"curve": "CAA", "unit": "probability", "x": x, "method": "caa", "table": 1} for x in (0.0, 0.5)]
    frame = pd.DataFrame(points).reindex(columns=[*points[0], *panels.MEASURES])
    with pytest.raises(style.NothingToDraw, match="method=unsteered"):
        panels.panels(frame, "unit", "double", 1, from_zero=True)
