"""Whether the bounds of tuning hold on the test split, where the truth is known."""

import numpy as np
import pandas as pd
import pytest

from bench.leaderboard import bounds, columns
from bench.leaderboard.bounds import KEPT, OPEN, VIOLATED, Judged
from bench.leaderboard.frame import Table, tables
from bench.records.fields import Bound
from bench.records.table import read_records
from bench.stats.bootstrap import RESAMPLES
from bench.stats.metrics import Metric
from tests.record_files import tuning, write

TOXICITY = "profanity_check.expected_maximum_toxicity_k5"
PERPLEXITY = {"suite": "fluency", "metric": "perplexity", "compare": "ratio", "at_most": 1.25}
DROP = {"suite": "capability", "metric": "*.accuracy", "compare": "drop", "at_most": 0.1}
LEAST = {"suite": "fluency", "metric": "distinct_2", "compare": "ratio", "at_least": 0.9}
RISE = {"suite": "fluency", "metric": "repetition", "compare": "increase", "at_most": 0.05}
METRICS = {
    "fluency.perplexity": Metric(1.0, None, 40, 0, False, "exp"),
    "fluency.distinct_2": Metric(1.0, None, 40, 0, True),
    "fluency.repetition": Metric(1.0, None, 40, 0, False),
    "capability.boolq.accuracy": Metric(1.0, None, 40, 0, True),
    "capability.piqa.accuracy": Metric(1.0, None, 40, 0, True),
    "capability.piqa.gold_logprob": Metric(1.0, None, 40, 0, True),
    "capability_detox.boolq.accuracy": Metric(1.0, None, 40, 0, True),
}
LOSSES = np.log(np.linspace(10, 30, 40))
NOISE = np.random.default_rng(0).normal(0, 1, 40)
NOISE -= NOISE.mean()


def judge(told, pairs, own):
    return bounds.judged({name: Bound.from_json(one) for name, one in told.items()}, pairs, own)


def pairs(own, base=0.5) -> pd.DataFrame:
    """40 items of the row and of the unsteered model, of weight 1."""
    index = [f"item{i:02d}" for i in range(40)]
    return pd.DataFrame({"value_a": own, "weight_a": 1.0, "value_b": base, "weight_b": 1.0}, index=index)


def right(n: int) -> pd.DataFrame:
    """So many of the 40 answers are right, where the unsteered model gives 20."""
    return pairs(np.arange(40) < n, np.arange(40) < 20)


def verdict(bound, **fit) -> str | None:
    found = judge({"own": bound}, [{name.replace("__", "."): rows for name, rows in fit.items()}], METRICS)
    assert found is None or found.names == (() if found.verdict == KEPT else ("own",))
    return found and found.verdict


@pytest.mark.parametrize(
    ("times", "noise", "wanted"),
    [
        (1.0, 0.0, KEPT),
        (1.2, 0.0, KEPT),
        (1.3, 0.0, VIOLATED),  # every item alike, so the interval is a point
        (1.1, 0.1, KEPT),  # 1.1 times e^(+-2 x .1 / sqrt(40))
        (1.24, 0.1, OPEN),  # the value keeps the bound, its interval does not
        (1.26, 0.1, OPEN),
        (1.4, 0.1, VIOLATED),
    ],
)
def test_an_upper_bound_of_a_ratio(times, noise, wanted):
    rows = pairs(LOSSES + np.log(times) + noise * NOISE, LOSSES)
    assert verdict(PERPLEXITY, fluency__perplexity=rows) == wanted


@pytest.mark.parametrize(("own", "wanted"), [(0.5, KEPT), (0.46, KEPT), (0.4, VIOLATED), (1.0, KEPT)])
def test_a_lower_bound_of_a_ratio(own, wanted):
    assert verdict(LEAST, fluency__distinct_2=pairs(own)) == wanted
    assert verdict(LEAST, fluency__distinct_2=pairs(0.45 + 0.1 * NOISE)) == OPEN


@pytest.mark.parametrize(("own", "wanted"), [(0.1, KEPT), (0.54, KEPT), (0.56, VIOLATED)])
def test_an_increase(own, wanted):
    assert verdict(RISE, fluency__repetition=pairs(own)) == wanted
    assert verdict(RISE, fluency__repetition=pairs(0.55 + 0.1 * NOISE)) == OPEN


def test_an_increase_of_perplexity_is_not_one_of_its_logarithm():
    rise = {"suite": "fluency", "metric": "perplexity", "compare": "increase", "at_most": 5.0}
    base = np.full(40, np.log(20.0))
    assert verdict(rise, fluency__perplexity=pairs(np.full(40, np.log(30.0)), base)) == VIOLATED
    assert verdict(rise, fluency__perplexity=pairs(np.full(40, np.log(24.0)), base)) == KEPT


def test_a_drop_counts_what_was_lost():
    one = {"suite": "capability", "metric": "boolq.accuracy", "compare": "drop", "at_most": 0.2}
    assert verdict(one, capability__boolq__accuracy=right(0)) == VIOLATED  # .5 lost
    assert verdict(one, capability__boolq__accuracy=right(40)) == KEPT  # a gain
    assert verdict(one, capability__boolq__accuracy=right(20)) == KEPT
    assert verdict(one, capability__boolq__accuracy=right(12)) == OPEN  # exactly .2


def test_of_several_tasks_the_mean_drop_counts():
    """Of boolq .5 is lost, but of piqa .45 gained. No other metric and no other suite fits the pattern."""
    fit = {"capability.boolq.accuracy": right(0), "capability.piqa.accuracy": right(38),
           "capability.piqa.gold_logprob": pairs(-99.0), "capability_detox.boolq.accuracy": right(0)}  # fmt: skip
    own = {name: one for name, one in METRICS.items() if name in fit}
    tight = {**DROP, "at_most": 0.2}
    assert judge({"drop": tight}, [fit], own) == Judged(KEPT, ())  # .025, of 80 documents
    fit["capability.piqa.accuracy"] = right(4)
    assert judge({"drop": tight}, [fit], own) == Judged(VIOLATED, ("drop",))
    del fit["capability.piqa.accuracy"]  # of one task the row has no answers
    assert judge({"drop": tight}, [fit], own) is None


def test_one_violated_bound_decides_and_then_one_that_is_open():
    whole = {"ppl": PERPLEXITY, "variety": LEAST, "rise": RISE}
    fit = {
        "fluency.perplexity": pairs(LOSSES, LOSSES),
        "fluency.distinct_2": pairs(0.5),
        "fluency.repetition": pairs(0.5),
    }
    assert judge(whole, [fit], METRICS) == Judged(KEPT, ())
    fit["fluency.repetition"] = pairs(0.55 + 0.1 * NOISE)
    assert judge(whole, [fit], METRICS) == Judged(OPEN, ("rise",))
    fit["fluency.perplexity"] = pairs(LOSSES + 1, LOSSES)
    fit["fluency.distinct_2"] = pairs(0.1)
    assert judge(whole, [fit], METRICS) == Judged(VIOLATED, ("ppl", "variety"))


def test_what_was_not_measured_is_not_resolved():
    fit = {"fluency.perplexity": pairs(LOSSES, LOSSES)}
    assert judge({"ppl": PERPLEXITY, "drop": DROP}, [fit], METRICS) == Judged(OPEN, ("drop",))
    assert judge({"drop": DROP}, [fit], METRICS) is None
    assert judge({}, [fit], METRICS) is None and judge({"ppl": PERPLEXITY}, [], METRICS) is None
    one_item = {"fluency.perplexity": pairs(LOSSES, LOSSES).iloc[:1]}
    assert judge({"ppl": PERPLEXITY}, [one_item], METRICS) is None, "one item has no interval"


def test_several_fits_keep_a_bound_together():
    """The ratio is their geometric mean; how fits scatter is in its interval, so two of them resolve little."""

    def fits(*times):
        return [{"fluency.perplexity": pairs(LOSSES + np.log(one), LOSSES)} for one in times]

    bound = {"ppl": PERPLEXITY}
    assert judge(bound, fits(1.1, 1.1, 1.1), METRICS) == Judged(KEPT, ())
    assert judge(bound, fits(1.0, 1.2), METRICS) == Judged(OPEN, ("ppl",))  # Student's t of one degree
    assert judge(bound, fits(1.0, 1.01, 1.02), METRICS) == Judged(KEPT, ())
    assert judge(bound, fits(1.9, 2.0, 2.1), METRICS) == Judged(VIOLATED, ("ppl",))
    assert judge(bound, [*fits(1.0), {}], METRICS) is None, "of one fit nothing is known"


# -- in a table --------------------------------------------------------------------------------------------------------


def measured(results, method, times=1.0, noise=0.0, *, toxic=0.3, **options) -> None:
    """Toxicity .5 of the unsteered model and `toxic` of the method; perplexity `times` as large."""
    base = method == "unsteered"
    level = np.linspace(-0.2, 0.2, 40)
    write(results, "rtp", method, {TOXICITY: level + (0.5 if base else toxic)}, **options)
    own = LOSSES if base else LOSSES + np.log(times) + noise * NOISE
    write(results, "fluency", method, {"perplexity": own}, **options)


def only(results) -> Table:
    (table,) = tables(read_records(results / "runs")[0])
    return table


def tuned(chosen=4.0, feasible=True, **more) -> dict:
    return {"tuning": tuning([(chosen, 1.1, 0.5)], chosen, feasible) | more}


def test_a_row_that_violates_a_bound_is_not_ranked_and_flagged(tmp_path):
    measured(tmp_path, "unsteered")
    measured(tmp_path, "caa", 1.1, **tuned(bounds={"perplexity_ratio": PERPLEXITY}))
    measured(tmp_path, "detox", 1.24, 0.1, toxic=0.2, **tuned(bounds={"perplexity_ratio": PERPLEXITY}))
    measured(tmp_path, "act_add", 2.0, toxic=0.1, **tuned(bounds={"perplexity_ratio": PERPLEXITY}))
    measured(tmp_path, "prompt", 1.0, toxic=0.4, **tuned(feasible=False, bounds={"perplexity_ratio": PERPLEXITY}))
    frame = only(tmp_path).frame.set_index("method")
    assert frame["bounds"].reindex(["caa", "detox", "act_add", "prompt"]).tolist() == [KEPT, OPEN, VIOLATED, KEPT]
    assert pd.isna(frame.loc["unsteered", "bounds"]) and pd.isna(frame.loc["caa", "bounds_decided_by"])
    assert frame.loc[["detox", "act_add"], "bounds_decided_by"].tolist() == ["perplexity_ratio"] * 2
    assert frame["rank"].reindex(["detox", "caa", "prompt"]).tolist() == [1, 2, 3] and pd.isna(
        frame.loc["act_add", "rank"]
    )
    told = {method: columns.flags(row) for method, row in frame.iterrows()}
    assert told == {
        "unsteered": "", "caa": "", "detox": "perplexity ratio: bound not resolved",
        "act_add": "perplexity ratio: bound violated", "prompt": "no feasible strength on dev",
    }  # fmt: skip


def test_bounds_of_old_records_keep_their_meaning(tmp_path):
    measured(tmp_path, "unsteered")
    measured(tmp_path, "caa", 2.0, **tuned(constraints={"perplexity_ratio": 1.25, "unheard_of": 3}))
    measured(tmp_path, "detox", 1.1, **tuned(constraints={"unheard_of": 3}))
    measured(tmp_path, "act_add", 1.1, **tuned(constraints=None))
    frame = only(tmp_path).frame.set_index("method")
    assert frame.loc["caa", ["bounds", "bounds_decided_by"]].tolist() == [VIOLATED, "perplexity_ratio"]
    assert frame.loc[["detox", "act_add"], "bounds"].isna().all()
    assert frame["rank"].reindex(["detox", "act_add", "caa"]).fillna(0).tolist() == [1, 1, 0]


def test_bounds_are_unknown_without_tuning_or_unsteered_model(tmp_path):
    measured(tmp_path, "caa", 2.0, **tuned())
    assert only(tmp_path).frame["bounds"].isna().all()
    measured(tmp_path, "unsteered")
    measured(tmp_path, "detox", 2.0)
    frame = only(tmp_path).frame.set_index("method")
    assert frame.loc["caa", "bounds"] == VIOLATED and pd.isna(frame.loc["detox", "bounds"])


# -- other flags -------------------------------------------------------------------------------------------------------


def test_a_strength_that_was_given_says_so(tmp_path):
    measured(tmp_path, "unsteered")
    for seed in range(3):
        if seed < 2:
            measured(tmp_path, "caa", 1.0, fit_seed=seed, **tuned())
            measured(tmp_path, "act_add", 1.0, fit_seed=seed)
        measured(tmp_path, "detox", 1.0, fit_seed=seed, **tuned())
    told = {row["method"]: columns.flags(row) for _, row in only(tmp_path).frame.iterrows()}
    assert told == {"unsteered": "", "caa": "", "act_add": "strength as given", "detox": ""}


def test_resamples_without_a_value_are_counted_and_said(tmp_path):
    """Without the first prompt the unsteered toxicity is 0, and nothing can be reduced: (3/4)^4 of the resamples."""
    write(tmp_path, "rtp", "unsteered", {TOXICITY: [0.8, 0.0, 0.0, 0.0]})
    write(tmp_path, "rtp", "caa", {TOXICITY: [0.4, 0.0, 0.0, 0.0]}, **tuned())
    write(tmp_path, "rtp", "detox", {TOXICITY: [0.4, 0.1, 0.0, 0.0]})
    frame = only(tmp_path).frame.set_index("method")
    undefined = frame.loc["caa", "undefined_resamples"]
    assert undefined == pytest.approx(RESAMPLES * 0.75**4, rel=0.05) and pd.isna(
        frame.loc["unsteered", "undefined_resamples"]
    )
    assert frame.loc["caa", "toxicity_reduction"] == 0.5
    assert frame.loc["caa", ["toxicity_reduction_low", "toxicity_reduction_high"]].tolist() == pytest.approx([0.5, 0.5])
    assert columns.flags(frame.loc["caa"]) == f"{undefined} of 10,000 resamples have no value"
    assert columns.flags(frame.loc["detox"]) == f"strength as given; {undefined} of 10,000 resamples have no value"


def test_a_ratio_to_zero_over_several_fits_is_violated():
    """A ratio of 0 has no logarithm, so the fits are averaged without it."""
    nothing = [{"fluency.distinct_2": pairs(np.zeros(40), np.full(40, 0.5))} for _ in range(2)]
    bound = {"suite": "fluency", "metric": "distinct_2", "compare": "ratio", "at_least": 0.9}
    assert judge({"distinct": bound}, nothing, METRICS).verdict == VIOLATED
