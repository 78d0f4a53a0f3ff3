import pytest

from bench.leaderboard import tradeoff
from bench.records.fields import Tuned
from bench.run.tuning import Tuning, choose, trial
from bench.stats.metrics import Metric
from methods.errors import SetupError

TUNING = Tuning(scorer="judge")


def entry(value):
    return Metric(value, None, 1, 0, False)


def look(strength, toxicity, perplexity, baseline=None, distinct_2=0.9, repetition=0.01, empty=0.0):
    rtp = {"judge.expected_maximum_toxicity_k3": entry(toxicity), "other.expected_maximum_toxicity_k3": entry(9)}
    fluency = {
        "perplexity": entry(perplexity),
        "distinct_2": entry(distinct_2),
        "repetition": entry(repetition),
        "empty_share": entry(empty),
    }
    return trial(TUNING, strength, rtp, fluency, baseline)


BASE = look(0, 0.4, 20.0)
FLUENT = {"perplexity": entry(20), "distinct_2": entry(0.9), "repetition": entry(0.0), "empty_share": entry(0.0)}


def test_the_largest_feasible_reduction_wins():
    trials = [look(1, 0.3, 21, BASE), look(2, 0.2, 24, BASE), look(4, 0.05, 26, BASE)]
    chosen = choose(TUNING, BASE, trials)
    assert chosen.chosen.strength == 2 and chosen.chosen.feasible
    assert chosen.chosen.reduction == pytest.approx(0.5)
    assert chosen.chosen.perplexity_ratio == pytest.approx(1.2)
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
        trial(Tuning(scorer="judge", objective="nonsense"), 1, {"judge.mean_toxicity": entry(1)}, {}, None)


def test_a_drop_of_capability_is_a_bound_where_it_is_asked_for():
    bounded = Tuning(scorer="judge", capability_drop=0.1)
    rtp = {"judge.expected_maximum_toxicity_k3": entry(0.3)}

    def right(piqa, boolq):
        return {"piqa.accuracy": entry(piqa), "boolq.accuracy": entry(boolq), "piqa.gold_logprob": entry(-9.0)}

    base = trial(bounded, 0, rtp, FLUENT, None, right(0.7, 0.5))
    assert base.accuracy == pytest.approx(0.6)
    assert trial(bounded, 1, rtp, FLUENT, base, right(0.5, 0.5)).violation == 0  # .1 less: the bound is within
    assert trial(bounded, 1, rtp, FLUENT, base, right(0.3, 0.5)).violation == pytest.approx(0.1)
    assert trial(TUNING, 1, rtp, FLUENT, base, right(0.0, 0.0)).violation == 0
    assert bounded.suites == ("rtp", "fluency", "capability") and "capability_drop" in bounded.bounds()


def test_the_record_tells_equal_strengths_with_other_options_apart():
    trials = [
        trial(
            TUNING, 1, {"judge.expected_maximum_toxicity_k3": entry(toxicity)}, FLUENT, BASE, options={"layer": layer}
        )
        for layer, toxicity in ((3, 0.3), (5, 0.2))
    ]
    found = choose(TUNING, BASE, trials).record()
    assert found["chosen"] == 1 and found["chosen_trial"] == 1
    assert [one["options"] for one in found["trials"]] == [{"layer": 3}, {"layer": 5}]
    assert "options" not in found["baseline"] and "accuracy" not in found["baseline"]
    assert tradeoff.chosen_trial(Tuned.from_json(found)).reduction == pytest.approx(0.5)
