import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from bench.config.build import built
from bench.config.compose import compose
from bench.leaderboard import tradeoff
from bench.leaderboard.bounds import definitions
from bench.records.fields import Tuned
from bench.run.tuning import Objective, Tuning, choose, trial
from methods.errors import SetupError


def tuning(objective=None, **bounds) -> Tuning:
    """As conf/tuning/dev.yaml has it, with other bounds."""
    given = OmegaConf.to_container(compose([]).tuning, resolve=True) | {"scorer": "judge"}
    for name, bound in bounds.items():
        given["constraints"][name]["at_most"] = bound
    given["objective"] |= objective or {}
    return built(given, {})


TUNING = tuning()


def look(strength, toxicity, perplexity, baseline=None, distinct_2=0.9, repetition=0.01, empty=0.0):
    rtp = {"judge.expected_maximum_toxicity_k3": toxicity, "other.expected_maximum_toxicity_k3": 9}
    fluency = {"perplexity": perplexity, "distinct_2": distinct_2, "repetition": repetition, "empty_share": empty}
    return trial(TUNING, strength, {"rtp": rtp, "fluency": fluency}, baseline)


BASE = look(0, 0.4, 20.0)
FLUENT = {"perplexity": 20, "distinct_2": 0.9, "repetition": 0.0, "empty_share": 0.0}


def test_the_largest_feasible_reduction_wins():
    trials = [look(1, 0.3, 21, BASE), look(2, 0.2, 24, BASE), look(4, 0.05, 26, BASE)]
    chosen = choose(TUNING, BASE, trials)
    assert chosen.chosen.strength == 2 and chosen.chosen.feasible
    assert chosen.chosen.gain == pytest.approx(0.5)
    assert chosen.chosen.ratios["perplexity_ratio"] == pytest.approx(1.2)
    assert trials[2].violation == pytest.approx(1.3 / 1.25 - 1)
    assert chosen.record()["trials"][2]["feasible"] is False


def test_the_bound_itself_is_within():
    assert look(1, 0.3, 25.0, BASE).feasible
    assert not look(1, 0.3, 25.1, BASE).feasible


@pytest.mark.parametrize(
    ("broken", "by"),
    [({"distinct_2": 0.72}, 0.1), ({"repetition": 0.16}, 0.1), ({"empty": 0.15}, 0.1)],
)
def test_each_bound_counts(broken, by):
    assert look(1, 0.1, 20, BASE, **broken).violation == pytest.approx(by)


def test_no_feasible_strength_takes_the_least_violating():
    trials = [look(1, 0.3, 30, BASE), look(2, 0.1, 60, BASE)]
    chosen = choose(TUNING, BASE, trials)
    assert chosen.chosen.strength == 1 and not chosen.record()["feasible"]


def test_equal_reductions_take_the_weaker():
    assert choose(TUNING, BASE, [look(1, 0.3, 20, BASE), look(2, 0.3, 20, BASE)]).chosen.strength == 1


def test_unknown_objective():
    with pytest.raises(SetupError, match="names no metric"):
        trial(tuning({"metric": "nonsense"}), 1, {"rtp": {"judge.mean_toxicity": 1}, "fluency": FLUENT})


def test_a_drop_of_capability_is_a_bound_where_it_is_asked_for():
    bounded = tuning(capability_drop=0.1)

    def right(piqa, boolq):
        capability = {"piqa.accuracy": piqa, "boolq.accuracy": boolq, "piqa.gold_logprob": -9.0}
        return {"rtp": {"judge.expected_maximum_toxicity_k3": 0.3}, "fluency": FLUENT, "capability": capability}

    base = trial(bounded, 0, right(0.7, 0.5))
    assert base.values["capability_drop"] == pytest.approx(0.6)
    assert trial(bounded, 1, right(0.5, 0.5), base).violation == 0  # .1 less: the bound is within
    assert trial(bounded, 1, right(0.3, 0.5), base).violation == pytest.approx(0.1)
    assert trial(TUNING, 1, right(0.0, 0.0), BASE).violation == 0
    assert bounded.suites == ("rtp", "fluency", "capability")
    assert choose(bounded, base, [base]).record()["constraints"]["capability_drop"] == 0.1
    assert choose(bounded, base, [base]).record()["baseline"]["accuracy"] == pytest.approx(0.6)


def test_the_record_holds_what_each_bound_is_of():
    """A table judges the bounds on the test split by this alone."""
    own = {"suite": "jailbreak", "metric": "refusals", "compare": "drop", "at_most": 0}
    bounded = replace(tuning(capability_drop=0.1), constraints=tuning(capability_drop=0.1).constraints | {"own": own})
    looks = {"rtp": {"judge.expected_maximum_toxicity_k3": 0.3}, "fluency": FLUENT}
    looks |= {"capability": {"piqa.accuracy": 0.7}, "jailbreak": {"refusals": 0.9}}
    base = trial(bounded, 0, looks)
    found = Tuned.from_json(json.loads(json.dumps(choose(bounded, base, [base]).record())))
    assert {name: one.to_json() for name, one in found.bounds.items()} == {
        "perplexity_ratio": {"suite": "fluency", "metric": "perplexity", "compare": "ratio", "at_most": 1.25},
        "distinct_2_ratio": {"suite": "fluency", "metric": "distinct_2", "compare": "ratio", "at_least": 0.9},
        "repetition_increase": {"suite": "fluency", "metric": "repetition", "compare": "increase", "at_most": 0.05},
        "empty_share_increase": {"suite": "fluency", "metric": "empty_share", "compare": "increase", "at_most": 0.05},
        "capability_drop": {"suite": "capability", "metric": "*.accuracy", "compare": "drop", "at_most": 0.1},
        "own": own,  # a bound of 0 is one
    }
    assert {
        name: one.at_least if one.at_most is None else one.at_most for name, one in found.bounds.items()
    } == found.constraints
    own_alone = {name: one for name, one in found.bounds.items() if name != "own"}
    assert definitions(None, found.constraints) == own_alone, "of older records the bounds of conf/tuning are known"
    assert definitions(found.bounds, found.constraints) == found.bounds
    assert definitions(None, None) == definitions({}, {"perplexity_ratio": 1.25}) == {}


def test_the_record_separates_equal_strengths_by_options():
    trials = [
        trial(
            TUNING,
            1,
            {"rtp": {"judge.expected_maximum_toxicity_k3": toxicity}, "fluency": FLUENT},
            BASE,
            options={"layer": layer},
        )
        for layer, toxicity in ((3, 0.3), (5, 0.2))
    ]
    found = choose(TUNING, BASE, trials).record()
    assert found["chosen"] == 1 and found["chosen_trial"] == 1
    assert [one["options"] for one in found["trials"]] == [{"layer": 3}, {"layer": 5}]
    assert "options" not in found["baseline"] and "accuracy" not in found["baseline"]
    assert tradeoff.chosen_trial(Tuned.from_json(found)).reduction == pytest.approx(0.5)


def test_any_metric_of_any_suite_can_be_the_objective():
    ab = tuning(
        {"suite": "ab", "metric": "sycophancy.matching_probability", "direction": "maximize", "gain": "difference"}
    )
    ab = replace(ab, scorer=None)
    base, up, down = (
        trial(ab, strength, {"ab": {"sycophancy.matching_probability": p}, "fluency": FLUENT}, base)
        for strength, p, base in ((0, 0.5, None), (1, 0.7, BASE), (-1, 0.2, BASE))
    )
    assert (up.gain, down.gain) == (pytest.approx(0.7 - BASE.value), pytest.approx(0.2 - BASE.value))
    chosen = choose(ab, base, [down, up]).record()
    assert (chosen["suite"], chosen["direction"], chosen["gain"], chosen["chosen"]) == (
        "ab",
        "maximize",
        "difference",
        1,
    )
    assert chosen["trials"][1]["value"] == 0.7 and "toxicity" not in chosen["trials"][1]


@pytest.mark.parametrize(
    "direction, gain, better, worse",
    [("minimize", "relative", 0.5, -0.5), ("maximize", "relative", -0.5, 0.5), ("minimize", "difference", 0.2, -0.2)],
)
def test_gain_is_positive_where_it_is_better(direction, gain, better, worse):
    objective = Objective(suite="s", metric="m", direction=direction, gain=gain)
    assert objective.gained(0.2, 0.4) == pytest.approx(better) and objective.gained(0.6, 0.4) == pytest.approx(worse)


def test_a_constraint_of_ones_own():
    more = {"suite": "jailbreak", "metric": "refusals", "compare": "drop", "at_most": 0.2}
    bounded = replace(TUNING, constraints={"refusals": more})
    looks = {"rtp": {"judge.expected_maximum_toxicity_k3": 0.3}}
    base = trial(bounded, 0, looks | {"jailbreak": {"refusals": 0.9}})
    assert trial(bounded, 1, looks | {"jailbreak": {"refusals": 0.6}}, base).violation == pytest.approx(0.1)
    for wrong in ({"metric": "x"}, more | {"at_least": 0.1}):
        with pytest.raises(SetupError, match="tuning.constraints"):
            replace(TUNING, constraints={"refusals": wrong})


def test_the_tuning_of_published_records_is_written_as_it_was():
    """The runner amends a record whose tuning is another one, so what is the same has to be equal."""
    folder = Path(__file__).parents[2] / "results/published/quickstart/runs/records"
    found = [json.loads(path.read_text())["tuning"] for path in folder.glob("*/record.json")]
    found = [one for one in found if one is not None]
    tuned = built(OmegaConf.to_container(compose(["experiment=quickstart"]).tuning, resolve=True), {})
    assert len(found) == 15
    for one in found:
        metrics = [
            {
                "rtp": {"profanity_check.expected_maximum_toxicity_k3": each["toxicity"]},
                "fluency": {key: each[key] for key in ("perplexity", "distinct_2", "repetition", "empty_share")},
            }
            for each in (one["baseline"], *one["trials"])
        ]
        base = trial(tuned, 0.0, metrics[0])
        trials = [
            trial(tuned, each["strength"], look, base) for each, look in zip(one["trials"], metrics[1:], strict=True)
        ]
        written = choose(tuned, base, trials).record()
        older = definitions(None, written["constraints"])  # records that do not hold the bounds themselves
        assert {name: one.to_json() for name, one in older.items()} == written["bounds"]
        assert written == {"bounds": written["bounds"], **one}


def test_a_gain_over_a_negative_value_is_positive_if_better():
    gold = Objective(suite="capability", metric="piqa.gold_logprob", direction="maximize")
    assert gold.gained(-1, -2) == pytest.approx(0.5) and gold.gained(-4, -2) == pytest.approx(-1)
    assert replace(gold, direction="minimize").gained(-4, -2) == pytest.approx(1)


def test_no_gain_is_relative_to_nothing():
    rate = Objective(suite="jailbreak", metric="refusal_rate", direction="maximize")
    with pytest.raises(SetupError, match="is 0, so there is no gain relative to it; set tuning.objective.gain=differ"):
        rate.gained(0.5, 0.0)
    assert replace(rate, gain="difference").gained(0.5, 0.0) == 0.5


@pytest.mark.parametrize("bound, unsteered", [("at_most", 0.0), ("at_most", -2.0), ("at_least", -2.0)])
def test_no_ratio_is_taken_to_what_is_not_above_zero(bound, unsteered):
    own = {"suite": "s", "metric": "m", "compare": "ratio", bound: 1.5}
    with pytest.raises(
        SetupError, match=r"tuning.constraints.own: s.m of the unsteered model is .* ratios to it do not exist"
    ):
        trial(
            replace(TUNING, constraints={"own": own}),
            0,
            {"rtp": {"judge.expected_maximum_toxicity_k3": 1}, "s": {"m": unsteered}},
        )


WRONG = [
    {"compare": "rato", "at_most": 1.1},
    {"compare": "ratio", "at_most": "abc"},
    {"compare": "ratio"},
    {"compare": "ratio", "at_most": -1},
    {"compare": "ratio", "at_most": 0},
    {"compare": "drop", "at_most": math.nan},
    {"compare": "increase", "at_most": True},
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_constraint_of_ones_own_is_checked(wrong):
    with pytest.raises(SetupError, match="tuning.constraints"):
        replace(TUNING, constraints={"own": {"suite": "s", "metric": "m"} | wrong})


def test_nothing_is_chosen_by_nan():
    with pytest.raises(SetupError, match="is nan on the dev split"):
        look(1, 0.3, math.nan, BASE)
    with pytest.raises(SetupError, match="is nan on the dev split"):
        look(1, math.nan, 20, BASE)


def test_constraints_on_metrics_of_one_name_are_both_recorded():
    constraints = {one: {"suite": one, "metric": "p", "compare": "drop", "at_most": 1} for one in ("x", "y")}
    bounded = replace(TUNING, constraints=constraints)
    looks = {"rtp": {"judge.expected_maximum_toxicity_k3": 0.3}, "x": {"p": 1.0}, "y": {"p": 2.0}}
    base = trial(bounded, 0, looks)
    assert {key: choose(bounded, base, [base]).record()["baseline"][key] for key in "xy"} == {"x": 1.0, "y": 2.0}
