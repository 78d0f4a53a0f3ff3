"""Curves over strength, pairs and layer: their frames from records, and what is drawn of them."""

import numpy as np
import pandas as pd
import pytest

from bench.leaderboard.frame import tables
from bench.plots import style, sweeps
from bench.plots.panels import CHOSEN, TRIED, layers, plain, sample_size, strength
from bench.records.table import read_records
from tests.artists import assert_readable, bars, marks, texts
from tests.leaderboard.test_grouping import CAA, result
from tests.record_files import cell, tuning, write

TITLES = {"toxicity_reduction": "relative toxicity reduction\n(by profanity_check)",
          "perplexity_ratio": "perplexity ratio",
          "gold_choice_change": "log-probability of\nthe right answer,\nchange (nats)"}  # fmt: skip


def table(results):
    (found,) = tables(read_records(results / "runs")[0])
    return found


# -- frames ----------------------------------------------------------------------------------------------------------


def test_a_curve_over_strengths_has_the_leaderboards_numbers(tmp_path):
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=12)
    for value in (4.0, 1.0, 2.5):
        cell(tmp_path, "caa", 1 - 0.1 * value, 0.05 * value, 0.95, n=12, strength=value)
    cell(tmp_path, "detox", 0.9, 0.0, 1.0, n=12)
    found = table(tmp_path)
    frame = sweeps.strengths(found)
    assert list(frame.columns) == list(sweeps.COLUMNS)
    assert frame["curve"].tolist() == ["CAA"] * 3 and frame["x"].tolist() == [1.0, 2.5, 4.0]
    assert set(frame["unit"]) == {"multiplier"} and set(frame["split"]) == {"test"}
    rows = found.frame[found.frame["method"] == "caa"].set_index("strength")
    for _, point in frame.iterrows():
        for name in (f"{measure}{end}" for measure in sweeps.MEASURES[1:] for end in ("", "_low", "_high")):
            assert point[name] == pytest.approx(rows.loc[point["x"], name]), name
    assert frame["chosen"].isna().all() and frame["bound"].isna().all()


def test_a_table_without_toxicity_shows_its_headline(tmp_path):
    write(tmp_path, "topic", "unsteered", {"keywords.on_topic": [0.0, 0.0, 0.0, 0.5]})
    for value in (1.0, 2.0):
        write(tmp_path, "topic", "caa", {"keywords.on_topic": [value / 4] * 4}, strength=value)
    frame = sweeps.strengths(table(tmp_path))
    assert frame["headline_change"].tolist() == [0.125, 0.375] and frame["toxicity_reduction"].isna().all()
    assert [ax.get_ylabel() for ax in strength(frame).axes] == ["change of topic\nkeywords on topic"]


def test_fits_of_a_strength_are_one_point(tmp_path):
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=12)
    for seed in (0, 1, 2):
        for value in (1.0, 2.0):  # not the same seeds for both
            own = {"strength": value, "fit_seed": seed + int(value)}
            cell(tmp_path, "random_direction", 1 - 0.1 * seed, 0.1, 1.0, n=12, **own)
    frame = sweeps.strengths(table(tmp_path))
    assert frame["curve"].tolist() == ["random direction"] * 2 and frame["fits"].tolist() == [3, 3]


def trials(results, *, other_size=False, feasible=True):
    """A method tuned over three strengths on the dev split; the second was chosen."""
    baseline = 0.5
    cell(results, "unsteered", 1.0, 0.0, 1.0, n=12)
    tuned = tuning([(1.0, 1.0, 0.1), (2.0, 1.1, 0.5), (4.0, 3.0, 0.6)], 2.0, feasible, baseline=baseline)
    cell(results, "caa", 0.5, 0.1, 1.0, n=12, strength=2.0, tuning=tuned)
    for size in (8, 10) if other_size else (8,):
        dev = {"split": "dev", "setting": f"dev {size}"}
        worst = [baseline if size == 8 else 0.9] * size
        for value, kept, loss in ((0.0, 1.0, 0.0), (1.0, 0.9, 0.0), (2.0, 0.5, 0.1), (4.0, 0.4, 1.0)):
            method = "caa" if value else "unsteered"
            scores = {f"{scorer}.expected_maximum_toxicity_k3": [kept * one for one in worst]
                      for scorer in ("profanity_check", "lexicon")}  # fmt: skip
            write(results, "rtp", method, scores, strength=value, **dev)
            write(results, "fluency", method, {"perplexity": [2.0 + loss] * size}, strength=value, **dev)
    return read_records(results / "runs")[0]


def test_trials_are_curves_of_the_dev_split(tmp_path):
    (frame,) = sweeps.trials(trials(tmp_path))
    assert frame["x"].tolist() == [1.0, 2.0, 4.0] and set(frame["split"]) == {"dev"}
    assert frame["toxicity_reduction"].tolist() == pytest.approx([0.1, 0.5, 0.6])
    assert frame["perplexity_ratio"].tolist() == pytest.approx(np.exp([0.0, 0.1, 1.0]).tolist())
    assert frame["gold_choice_change"].isna().all()
    assert frame["chosen"].tolist() == [False, True, False] and frame["bound"].tolist() == [1.25] * 3
    assert frame["feasible"].isna().tolist() == [True, False, True] and set(frame["tuned_by"]) == {"profanity_check"}


def test_a_choice_without_a_feasible_strength_is_hollow(tmp_path):
    """The legend says what hollow means, and by which scorer tuning chose where the figure is by another."""
    for feasible in (True, False):
        (frame,) = sweeps.trials(trials(tmp_path / str(feasible), feasible=feasible))
        assert frame["feasible"].dropna().tolist() == [feasible]
        figure = strength(frame.assign(scorer="lexicon"))
        hollow = [line for ax in figure.axes for line in ax.lines if line.get_markerfacecolor() == "white"]
        assert {line.get_xdata()[0] for line in hollow} == (set() if feasible else {2.0})
        said = [text.get_text() for text in texts(figure)]
        assert ("hollow and large: no strength kept the bounds in tuning" in said) is not feasible
        assert "strength that tuning chose by profanity_check" in said
        figure = strength(frame.assign(scorer="profanity_check"))
        assert "strength that tuning chose" in [text.get_text() for text in texts(figure)]


@pytest.mark.parametrize("judged", [("profanity_check", "lexicon"), ("lexicon", "profanity_check"), ("lexicon",)])
def test_trials_are_shown_by_whichever_scorer_comes_first(tmp_path, judged):
    """A scorer that picked no pairs comes first, whatever the order in which the records name them."""
    for value, kept in ((0.0, 1.0), (1.0, 0.8), (2.0, 0.4)):
        own = {"lexicon": kept, "profanity_check": 1.0}
        scores = {f"{name}.expected_maximum_toxicity_k3": [own[name] * one for one in (0.2, 0.5, 0.6)]
                  for name in judged}  # fmt: skip
        learnt = {"pairs": 9, "scorer": "profanity_check"} if value else None
        write(tmp_path, "rtp", "caa" if value else "unsteered", scores, strength=value, split="dev", data=learnt,
              scorers={"report": list(judged)})  # fmt: skip
    (frame,) = sweeps.trials(read_records(tmp_path / "runs")[0])
    assert set(frame["scorer"]) == {"lexicon"}
    assert frame["toxicity_reduction"].tolist() == pytest.approx([0.2, 0.6])


def test_a_strength_is_marked_where_it_was_chosen_alone(tmp_path):
    """Trials on other dev prompts are a frame of their own; their unsteered texts are not those of the choice."""
    small, large = sweeps.trials(trials(tmp_path, other_size=True))
    if len(small) and not small["chosen"].notna().any():
        small, large = large, small
    assert small["chosen"].tolist() == [False, True, False]
    assert large["chosen"].isna().all() and large["bound"].isna().all()


def test_no_trials_no_frame(tmp_path):
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=8)
    cell(tmp_path, "caa", 0.5, 0.0, 1.0, n=8)
    assert sweeps.trials(read_records(tmp_path / "runs")[0]) == []
    found = table(tmp_path)
    assert sweeps.strengths(found).empty and sweeps.sizes(found).empty and sweeps.layers(found).empty


def sweep(results):
    """CAA over layers and over pairs, detox over pairs, and what differs in more than one thing."""
    cell(results, "unsteered", 1.0, 0.0, 1.0, n=12)
    for i, layer in enumerate((0.2, 0.4, 0.6)):
        cell(results, "caa", 0.9 - 0.2 * i, 0.1 * i, 1.0, n=12, parameters={"layer": layer}, data={"pairs": 40})
    for pairs in (5, 10, 20):
        data = {"pairs": pairs, "prompts": 9 * pairs, "mean_gap": 1 / pairs}
        cell(results, "caa", 1 - pairs / 50, 0.1, 1.0, n=12, parameters={"layer": 0.4}, data=data, fit_id=f"c{pairs}")
        cell(results, "detox", 1 - pairs / 90, 0.0, 1.0, n=12, data=data, fit_id=f"d{pairs}")
    for layer, pairs in ((0.8, 40), (0.4, 7)):
        cell(results, "caa", 0.5, 0.1, 1.0, n=12, strength=9.0, parameters={"layer": layer}, data={"pairs": pairs},
             fit_id=f"x{pairs}")  # fmt: skip
    return table(results)


@pytest.mark.slow
def test_sizes_and_layers_change_one_thing_alone(tmp_path):
    found = sweep(tmp_path)
    sizes = sweeps.sizes(found)
    assert {name: own["x"].tolist() for name, own in sizes.groupby("curve")} == {
        "CAA": [5.0, 10.0, 20.0, 40.0], "DeTox (ProFS)": [5.0, 10.0, 20.0],
    }  # fmt: skip
    by_layer = sweeps.layers(found)
    assert by_layer["curve"].tolist() == ["CAA"] * 3 and by_layer["x"].tolist() == [0.2, 0.4, 0.6]
    assert set(by_layer["unit"]) == {"layer (share of the depth)"}
    rows = found.frame[(found.frame["pairs"] == 10) & (found.frame["method"] == "detox")]
    point = sizes[(sizes["method"] == "detox") & (sizes["x"] == 10)]
    assert point["toxicity_reduction_high"].item() == pytest.approx(rows["toxicity_reduction_high"].item())


def test_blocks_and_shares_of_the_depth_are_two_curves(tmp_path):
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=8)
    for layer in (3, 9, 0.25, 0.5, "final", True):
        cell(tmp_path, "caa", 0.5, 0.0, 1.0, n=8, parameters={"layer": layer, "read": "all"})
    found = sweeps.layers(table(tmp_path))
    assert found.groupby("unit")["x"].apply(list).to_dict() == {
        "layer (block)": [3.0, 9.0], "layer (share of the depth)": [0.25, 0.5],
    }  # fmt: skip
    figure = layers(found)
    assert_readable(figure)
    assert {ax.get_xlabel() for ax in figure.axes if ax.get_xlabel()} == set(found["unit"])


def test_data_is_told_only_where_settings_tell_nothing(tmp_path):
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=8)
    for read, pairs in (("all", 40), ("last", 50)):
        for value in (1.0, 2.0):
            cell(tmp_path, "caa", 0.5, 0.0, 1.0, n=8, strength=value, parameters={"read": read}, data={"pairs": pairs})
            cell(tmp_path, "detox", 0.5, 0.0, 1.0, n=8, strength=value, data={"pairs": pairs}, fit_id=f"d{pairs}")
    assert set(sweeps.strengths(table(tmp_path))["curve"]) == {
        "CAA (read=all)", "CAA (read=last)", "DeTox (ProFS) (pairs=40)", "DeTox (ProFS) (pairs=50)",
    }  # fmt: skip


def test_curves_of_one_method_are_told_apart(tmp_path):
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=8)
    for read in ("all", "last"):
        for value in (1.0, 2.0):
            cell(tmp_path, "caa", 0.5, 0.0, 1.0, n=8, strength=value, parameters={"read": read})
    assert set(sweeps.strengths(table(tmp_path))["curve"]) == {"CAA (read=all)", "CAA (read=last)"}


# -- figures ---------------------------------------------------------------------------------------------------------


def made(methods=("caa",), *, capability=True, family="activation", xs=(1.0, 2.0, 4.0), unit="multiplier"):
    """A frame by hand."""
    rows = []
    for i, method in enumerate(methods):
        for x in xs:
            point = {"toxicity_reduction": 0.1 * x + 0.05 * i, "perplexity_ratio": 1.0 + 0.1 * x * (i + 1),
                     "gold_choice_change": -0.02 * x if capability else np.nan}  # fmt: skip
            ends = {f"{name}_{end}": value + by for name, value in point.items()
                    for end, by in (("low", -0.05), ("high", 0.07))}  # fmt: skip
            rows.append({"table": 1, "split": "dev", "model": "m", "scorer": "profanity_check", "headline": "rtp.x",
                         "curve": method, "method": method, "family": family, "fits": 1, "x": x, "unit": unit,
                         "chosen": x == 2.0, "feasible": True, "tuned_by": "profanity_check",
                         "bound": 1.25} | point | ends)  # fmt: skip
    return pd.DataFrame(rows, columns=list(sweeps.COLUMNS)).astype({"chosen": "boolean", "feasible": "boolean"})


@pytest.mark.every(3)
@pytest.mark.parametrize("width", ["single", "double"])
@pytest.mark.parametrize(("methods", "capability"), [(1, True), (2, False), (4, True), (9, False)])
def test_every_text_can_be_read(width, methods, capability):
    frame = made([f"method_{i}" for i in range(methods)], capability=capability)
    assert_readable(strength(frame.assign(unit="multiplier of the mean difference"), width))
    if methods in (1, 9):
        assert_readable(layers(frame.assign(chosen=pd.NA, bound=np.nan, unit="layer (share of the depth)"), width))


@pytest.mark.parametrize("width", ["single", "double"])
def test_each_method_has_a_panel_for_each_measure(width):
    figure = strength(made([f"method_{i}" for i in range(4)]), width)
    assert len(figure.axes) == 12
    said = [text.get_text().replace("\n", " ") for text in texts(figure)]
    for i in range(4):
        assert any(text.startswith(f"method_{i}") for text in said)
    assert all(title.replace("\n", " ") in said for title in TITLES.values())


def test_a_strength_below_zero_is_on_the_other_side_of_the_star():
    ax = strength(made(["caa"], xs=(-2.0, 1.0))).axes[0]
    low, high = ax.get_xlim()
    assert low < -2 and high > 1
    (drawn,) = (line for line in ax.lines if len(line.get_xdata()) == 3)
    assert list(drawn.get_xdata()) == [-2.0, 0.0, 1.0] and drawn.get_ydata()[1] == 0


def test_points_lie_where_the_frame_says():
    frame = made(["caa"])
    axes = strength(frame).axes  # one method in a wide figure: measures side by side
    assert [ax.get_ylabel() for ax in axes] == list(TITLES.values())
    for ax, measure in zip(axes, sweeps.MEASURES[1:], strict=True):
        found = marks(ax)
        start = (0.0, 1.0 if measure == "perplexity_ratio" else 0.0)
        assert found.pop(start)[0].get_marker() == "*"
        assert set(found) == {(row["x"], round(row[measure], 6)) for _, row in frame.iterrows()}
        for (x, _), (line,) in found.items():
            assert line.get_markersize() == (CHOSEN if x == 2.0 else TRIED)
        (curve,) = [line for line in ax.lines if line.get_linestyle() == "-" and line.get_marker() == "None"]
        assert curve.get_xdata().tolist() == [0.0, *frame["x"]]
        assert curve.get_ydata().tolist() == pytest.approx([start[1], *frame[measure]])
        (band,) = [one for one in ax.collections if not hasattr(one, "get_segments")]
        edges = {(round(x, 6), round(y, 6)) for x, y in band.get_paths()[0].vertices}
        for _, row in frame.iterrows():
            assert (row["x"], round(row[f"{measure}_low"], 6)) in edges
            assert (row["x"], round(row[f"{measure}_high"], 6)) in edges


def test_the_bound_of_tuning_is_a_line_in_its_panel():
    axes = strength(made()).axes
    dotted = [[line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == ":"] for ax in axes]
    assert dotted == [[], [1.25], []]


def test_prompts_are_points_with_bars_and_no_line():
    frame = made(["prompt"], family="prompt")
    ax = strength(frame).axes[0]
    assert not [line for line in ax.lines if line.get_linestyle() == "-" and line.get_marker() == "None"]
    row = frame.iloc[0]
    ends = [[row["x"], round(row[f"toxicity_reduction_{end}"], 6)] for end in ("low", "high")]
    assert ends in bars(ax)


def test_random_directions_are_grey():
    figure = layers(made(["caa", "random_direction"], unit="layer (block)"))
    colours = {line.get_markeredgecolor() for (line,) in marks(figure.axes[0]).values()}
    assert style.GREY in colours and len(colours) == 2


def test_a_measure_that_nobody_has_is_no_panel():
    assert len(strength(made(capability=False)).axes) == 2


def test_a_wide_range_of_perplexity_is_logarithmic():
    frame = made()
    assert [ax.get_yscale() for ax in strength(frame).axes] == ["linear"] * 3
    frame["perplexity_ratio"] = [1.5, 8.0, 14.0]
    frame["perplexity_ratio_high"] = 16.0
    scales = strength(frame).axes
    assert [ax.get_yscale() for ax in scales] == ["linear", "log", "linear"]
    low, high = scales[1].get_ylim()
    assert low < 1.0 and high > 16.0


def test_points_beyond_an_axis_of_perplexity_have_arrows():
    frame = made(["caa", "detox"])
    frame.loc[frame["curve"] == "caa", "perplexity_ratio"] = [2.0, 400.0, 5013.0]
    figure = strength(frame)
    (ax,) = [ax for ax in figure.axes if any(text.get_text() == "5,013" for text in ax.texts)]
    assert ax.get_ylim()[1] < 20
    assert sorted(text.xy[0] for text in ax.texts if not text.get_text()) == [2.0, 4.0]
    assert "↑: beyond the axis; number: the largest value" in [text.get_text() for text in texts(figure)]
    assert not any("↑" in text.get_text() for text in texts(strength(made())))


def test_a_point_of_collapsed_text_is_hollow():
    frame = made(["caa"], unit="layer (block)").assign(chosen=pd.NA, feasible=pd.NA, bound=np.nan)
    frame["collapsed"] = [False, False, True]
    figure = layers(frame)
    hollow = {x for (x, _), (line,) in marks(figure.axes[0]).items() if line.get_markerfacecolor() == "white"}
    assert hollow == {4.0}
    assert "hollow: the text has collapsed" in [text.get_text() for text in texts(figure)]


def test_many_curves_have_bars_and_stand_apart():
    few, many = (layers(made([f"m{i}" for i in range(n)], unit="layer (block)")) for n in (3, 4))
    assert len(few.axes[0].collections) == 3 and not bars(few.axes[0])  # bands
    assert len(bars(many.axes[0])) == 4 * 3
    moved = {line.get_transform().transform((1.0, 0.0))[0] for (line,) in marks(many.axes[0]).values()}
    assert len({round(x, 3) for x in moved}) == 4


def test_the_last_of_crowded_values_has_a_tick():
    ax = sample_size(made(xs=(64.0, 128.0, 256.0, 337.0), unit="training pairs")).axes[0]
    assert list(ax.get_xticks()) == [64.0, 128.0, 337.0]
    assert [plain(one) for one in (1e-5, 3e-4, 0.01)] == ["1e\N{MINUS SIGN}5", "3e\N{MINUS SIGN}4", "0.01"]


def test_bands_over_a_setting_are_not_cut():
    frame = made(unit="layer (block)").assign(toxicity_reduction_low=-3.0)
    assert layers(frame).axes[0].get_ylim()[0] < -3.0


@pytest.mark.parametrize("most", [5.0, 20.0, 80.0, 3e3, 1e9])
def test_a_logarithmic_axis_has_ticks(most):
    frame = made()
    frame["perplexity_ratio"] = frame["perplexity_ratio_low"] = frame["perplexity_ratio_high"] = [1.0, 3.0, most]
    ax = strength(frame).axes[1]
    low, high = ax.get_ylim()
    shown = [one for one in ax.get_yticks() if low <= one <= high]
    assert ax.get_yscale() == "log" and 2 <= len(shown) <= 4


def test_bands_may_leave_a_panel_and_points_may_not():
    frame = made()
    frame["toxicity_reduction_low"] = -9.0
    frame.loc[1, "toxicity_reduction"] = -1.5
    low, high = strength(frame).axes[0].get_ylim()
    assert -2.0 < low < -1.5 and high < 1.0


def test_ticks_of_pairs_are_the_numbers_themselves():
    ax = sample_size(made(xs=(5.0, 10.0, 20.0, 40.0), unit="training pairs")).axes[0]
    ax.figure.canvas.draw()
    assert ax.get_xscale() == "log" and [tick.get_text() for tick in ax.get_xticklabels()] == ["5", "10", "20", "40"]
    crowded = sample_size(made(xs=(50.0, 51.0, 52.0, 400.0), unit="training pairs"))
    assert_readable(crowded)
    assert {(x, y) for x, y in marks(crowded.axes[0])} >= {(50.0, 5.0), (400.0, 40.0)}


def test_a_point_without_an_interval_is_drawn():
    frame = made()
    frame.loc[1, ["toxicity_reduction_low", "toxicity_reduction_high"]] = np.nan
    assert (2.0, 0.2) in marks(strength(frame).axes[0])


@pytest.mark.parametrize("draw", [strength, sample_size, layers])
def test_nothing_to_draw_says_what_to_run_and_tables_do_not_mix(draw):
    with pytest.raises(style.NothingToDraw, match="run `python -m bench"):
        draw(made().iloc[:0])
    with pytest.raises(ValueError, match="3 tables in one figure"):
        draw(made().assign(table=[1, 2, 3]))
    with pytest.raises(ValueError, match="width 'wide'"):
        draw(made(), "wide")


@pytest.mark.parametrize("draw", [strength, sample_size, layers])
def test_equal_frames_give_equal_bytes(draw):
    assert style.rendered(draw(made()), "svg") == style.rendered(draw(made()), "svg")


def test_many_methods_are_on_pages_with_equal_axes():
    frame = made([f"method_{i:02}" for i in range(12)])
    for draw in (strength, layers):
        first, second = (draw(frame, "double", page) for page in (1, 2))
        with pytest.raises(style.NoSuchPage):
            draw(frame, "double", 3)
        said = [[text.get_text() for text in texts(figure)] for figure in (first, second)]
        for i in range(12):
            assert sum(any(text.startswith(f"method_{i:02}") for text in page) for page in said) == 1
        assert first.axes[0].get_ylim() == second.axes[0].get_ylim()
        assert max(first.get_figheight(), second.get_figheight()) <= style.PAGE


@pytest.mark.parametrize("width", ["single", "double"])
def test_long_heads_stay_inside_the_figure(width):
    frame = made([f"a method whose name is {i:02} long" for i in range(8)], unit="multiplier of the mean difference")
    figure = strength(frame, width)
    assert_readable(figure)
    heads = [text.get_text() for text in texts(figure) if "multiplier" in text.get_text()]
    assert len(heads) >= 4 and not any("…" in head for head in heads)


def test_of_two_rows_at_one_value_neither_is_lost():
    def place(x, row):
        return sweeps.Place(x, "training pairs", {"method": "caa"}, row)

    (whole,) = tables([result(1), result(2, CAA)])
    rows = [row for row in whole.rows if not row.is_baseline] * 4
    found = sweeps.frame(whole, [place(x, row) for x, row in zip((8.0, 8.0, 16.0, 16.0), rows, strict=True)], "test")
    assert sorted(zip(found["curve"], found["x"], strict=True)) == [
        ("CAA", 8.0), ("CAA", 16.0), ("CAA (set=2)", 8.0), ("CAA (set=2)", 16.0)]  # fmt: skip


def test_numbers_in_names_are_sorted_by_size():
    names = ["CAA (strength 16)", "CAA (strength 4)", "CAA (strength 0.5)", "AcT"]
    assert sorted(names, key=style.in_order) == ["AcT", "CAA (strength 0.5)", "CAA (strength 4)", "CAA (strength 16)"]
