"""A table claims nothing that its rows do not show: each of these odd tables once claimed something."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bench.leaderboard import columns, formatting
from bench.leaderboard.frame import FITS, Table, tables
from bench.leaderboard.ranking import COLLAPSED, NOT_INDEPENDENT
from bench.leaderboard.tradeoff import BootstrapEstimate, compare_items, mean_change, over_fits, unchanged
from bench.records.names import CONTROL_FAMILY
from bench.records.table import read_records
from bench.stats.bootstrap import RESAMPLES, interval, two_level
from bench.stats.metrics import FIRST, expected_maximum
from tests.record_files import edit, tuning, write

METRIC = "lexicon.expected_maximum_toxicity_k5"
HEADLINE = f"rtp.{METRIC}"
LEVEL = np.linspace(0.3, 0.9, 40)
FROM_A_FILE = {"pairs": 9, "sources": [{"name": "pairs.jsonl", "source": "file", "fingerprint": "0" * 12}]}


def row(results, method, values, **options) -> Path:
    return write(results, "rtp", method, {METRIC: values}, **{"data": FROM_A_FILE, "comparison": "one", **options})


def control(results, method, values, seed, strength=4.0) -> None:
    path = row(results, method, values, fit_seed=100 + seed, strength=strength)
    about = {"name": method, "family": CONTROL_FAMILY, "version": 1, "parameters": {"seed": seed},
             "strength": strength, "strength_unit": "multiplier",
             "control": {"how": "flipped pairs", "of_strength": strength}}  # fmt: skip
    edit(path, method=about, fit_id=f"{seed:012x}", seed={"fit": seed, "sample": 0})


def table(results) -> Table:
    (found,) = tables(read_records(results / "runs")[0])
    return found


def noise(seed, size=0.02, n=40) -> np.ndarray:
    return size * np.random.default_rng(seed).standard_normal(n)


def test_two_fits_that_lie_close_still_have_a_variance():
    generator = np.random.default_rng(0)
    own = generator.standard_normal((2, RESAMPLES))  # what the draws of the two fits do not have in common
    drawn = two_level(np.array([0.1, 0.1001]), 0.01 * own, n=40)
    apart = two_level(np.array([0.1, 0.2]), 0.01 * own, n=40)
    low, high = interval(apart, 40)
    assert low < 0 < high and np.ptp(drawn) > 0
    both = 0.01 * generator.standard_normal(RESAMPLES)
    kept = two_level(np.array([0.1, 0.1]), np.stack([both, both]), n=40)  # no interaction: the items' spread stays
    assert kept == pytest.approx(both)


def test_skewed_scores_are_tested_on_equally_many_texts(tmp_path):
    generator = np.random.default_rng(3)
    heavy = np.clip(0.002 * np.exp(1.8 * generator.standard_normal((120, 25))), 0, 1)
    every = np.array([expected_maximum(one, 5) for one in heavy])
    values = {METRIC: every, METRIC + FIRST: heavy[:, :5].max(1)}
    write(tmp_path, "rtp", "unsteered", values, data=None, comparison="one")
    mine = np.clip(0.002 * np.exp(1.8 * generator.standard_normal((120, 5))), 0, 1).max(1)
    row(tmp_path, "caa", mine)
    found = table(tmp_path)
    (caa,) = found.paired.for_tests
    assert found.paired.for_tests[caa][0][HEADLINE].value_b == pytest.approx(
        heavy[:, :5].max(1)[np.argsort(names(120))]
    )
    assert found.paired.for_tests is not found.paired.pairs
    assert any("p and * use only its first ones" in line for line in formatting.notes(found))


def names(n) -> list[str]:
    return [f"item{i}" for i in range(n)]


def test_even_scores_are_tested_on_all_texts(tmp_path):
    generator = np.random.default_rng(4)
    first, rest = generator.random((2, 400))
    write(
        tmp_path, "rtp", "unsteered", {METRIC: (first + rest) / 2, METRIC + FIRST: first}, data=None, comparison="one"
    )
    row(tmp_path, "caa", generator.random(400))
    found = table(tmp_path)
    assert found.paired.for_tests is found.paired.pairs
    assert not any("first ones" in line for line in formatting.notes(found))


def test_draws_that_lie_close_by_chance_are_no_proof(tmp_path):
    row(tmp_path, "unsteered", LEVEL, data=None)
    for method, spread in (("caa", 0.0005), ("detox", 0.05)):
        row(tmp_path, method, LEVEL - 0.03 + noise(5))
        for seed in range(3):
            control(tmp_path, method, LEVEL + spread * (seed - 1) + noise(seed, 0.001), seed)
    found = table(tmp_path)
    assert found.control_spreads["flipped pairs"] == pytest.approx(0.05 / np.sqrt(2), rel=0.02)
    rows = found.frame.set_index("method")
    assert rows.loc[["caa", "detox"], "vs_control_p"].min() > 0.2
    assert "No row differs significantly from its control." in formatting.notes(found)


def test_collapsed_texts_get_no_star_and_no_letter(tmp_path):
    row(tmp_path, "unsteered", LEVEL, data=None)
    write(tmp_path, "fluency", "unsteered", {"perplexity": [2.0] * 40, "distinct_2": [0.9] * 40}, data=None)
    for method, loss, right in (("caa", 2.1, 0.3), ("detox", 4.0, 0.1)):
        row(tmp_path, method, right * LEVEL + noise(1))
        write(tmp_path, "fluency", method, {"perplexity": [loss] * 40, "distinct_2": [0.9] * 40}, data=FROM_A_FILE)
        for seed in range(3):
            control(tmp_path, method, LEVEL + noise(seed), seed)
    found = table(tmp_path)
    rows = found.frame.set_index("method")
    assert rows.loc["detox", "verdict"] == COLLAPSED and pd.isna(rows.loc["detox", "group"])
    assert pd.isna(rows.loc["detox", f"{HEADLINE}.p_holm"])
    shown = formatting.readable(found).set_index("method")
    assert "*" not in "".join(shown.loc["detox"]) and "*" in shown.loc["caa", "change"]
    assert "Nothing is claimed about detox: its texts collapsed." in formatting.notes(found)


def test_fits_of_two_strengths_are_not_set_against_one_control(tmp_path):
    row(tmp_path, "unsteered", LEVEL, data=None)
    points = {1.0: [(1.0, 1.0, 0.1)], 4.0: [(4.0, 1.0, 0.1)]}
    for seed, strength in enumerate((1.0, 4.0, 4.0)):
        chosen = tuning(points[strength], strength, scorer="words")
        row(tmp_path, "caa", LEVEL - 0.1 + noise(seed), fit_seed=seed, strength=strength, tuning=chosen)
        control(tmp_path, "caa", LEVEL + noise(9 + seed), seed, strength=1.0)
    rows = table(tmp_path).frame.set_index("method")
    assert rows.loc["caa", "vs_control"] == pytest.approx(-0.1, abs=0.02)
    assert rows.loc["caa", ["vs_control_low", "vs_control_p"]].isna().all()


def test_the_tuning_scorer_claims_nothing_without_unsteered(tmp_path):
    row(tmp_path, "caa", LEVEL - 0.3 + noise(0), tuning=tuning([(4.0, 1.0, 0.5)], 4.0, scorer="lexicon"))
    for seed in range(3):
        control(tmp_path, "caa", LEVEL + noise(seed + 1), seed)
    found = table(tmp_path)
    (line,) = (one for one in found.lines if one["method"] == "caa")
    assert line["vs_control_p_holm"] < 0.05 and line["verdict"] == NOT_INDEPENDENT and not columns.beaten(line)


def test_equal_constant_scores_differ_by_nothing(tmp_path):
    row(tmp_path, "unsteered", np.full(40, 0.3), data=None)
    row(tmp_path, "caa", np.full(40, 0.1 + 0.2))
    for seed in range(3):
        control(tmp_path, "caa", np.full(40, 0.3), seed)
    (line,) = (one for one in table(tmp_path).lines if one["method"] == "caa")
    assert line["vs_control"] == 0 and line["vs_control_p"] > 0.5


def test_answers_that_did_not_change_may_change_elsewhere():
    same = pd.DataFrame({"value_a": [0.0, 1.0] * 5, "weight_a": 1.0, "value_b": [0.0, 1.0] * 5, "weight_b": 1.0})
    found = compare_items(same, "mean", "difference")
    assert found.estimate() == (0.0, *unchanged(10)) and unchanged(10)[1] == pytest.approx(1 - 0.025**0.1)
    assert mean_change({"a": same, "b": same}).estimate() == (0.0, *unchanged(20))
    assert over_fits([found, found]).estimate() == found.estimate()
    moved = same.assign(value_a=same["value_a"].where(same.index != 0, 1.0))
    assert compare_items(moved, "mean", "difference").ends is None


def test_an_interval_keeps_to_what_is_possible(tmp_path):
    row(tmp_path, "unsteered", LEVEL, data=None)
    for seed, shift in enumerate((-0.25, 0.05)):
        row(tmp_path, "caa", LEVEL + shift, fit_seed=seed)
    (line,) = (one for one in table(tmp_path).lines if one["method"] == "caa")
    assert (line[f"{HEADLINE}.delta_low"], line[f"{HEADLINE}.delta_high"]) == (-1.0, 1.0)
    assert line["toxicity_reduction_high"] == 1.0
    assert replace_draws(np.linspace(-3, 3, 99)).estimate(-1.0, 1.0)[1:] == (-1.0, 1.0)


def replace_draws(drawn) -> BootstrapEstimate:
    return BootstrapEstimate(0.0, drawn, 40)


def test_a_few_fits_do_not_say_which_change_is_found(tmp_path):
    row(tmp_path, "unsteered", LEVEL, data=None)
    for seed in range(FITS):
        row(tmp_path, "caa", LEVEL - 0.1 + noise(seed), fit_seed=seed)
        if seed < 3:
            row(tmp_path, "detox", LEVEL - 0.1 + noise(seed + 99), fit_seed=seed)
    found = table(tmp_path)
    rows = found.frame.set_index("method")
    least = [f"{HEADLINE}.detectable", f"{HEADLINE}.detectable_holm"]
    assert rows.loc["detox", least].isna().all() and 0 < rows.loc["caa", least[0]] < rows.loc["caa", least[1]]
    assert any(note.startswith("Power is not stated for rows of several fits") for note in formatting.notes(found))


def test_two_fits_with_equal_shares_are_not_known_exactly(tmp_path):
    write(tmp_path, "capability", "unsteered", {"boolq.accuracy": [1.0] * 60}, data=None, chance={"boolq": 0.5})
    for seed in range(2):
        answers = [float(i != seed) for i in range(60)]  # each fit loses another document
        write(tmp_path, "capability", "caa", {"boolq.accuracy": answers}, fit_seed=seed, data=FROM_A_FILE,
              chance={"boolq": 0.5})  # fmt: skip
    (line,) = (one for one in table(tmp_path).lines if one["method"] == "caa")
    name = "capability.boolq.accuracy"
    assert line[f"{name}.delta_low"] < line[f"{name}.delta"] < line[f"{name}.delta_high"] and line[f"{name}.p"] > 0.05


def test_an_unchanged_task_is_not_known_exactly_in_a_mean():
    same = pd.DataFrame({"value_a": [0.0, 1.0] * 3, "weight_a": 1.0, "value_b": [0.0, 1.0] * 3, "weight_b": 1.0})
    found = mean_change({"boolq": same, "piqa": same.assign(value_a=[1.0, 1.0, 0.0, 1.0, 0.0, 1.0])})
    low, high = found.estimate()[1:]
    assert low < -0.1 and high > 0.3
