"""Which results share a table, and which fits share a row: straight from results, without a file."""

from dataclasses import replace

import pandas as pd
import pytest

from bench.leaderboard.formatting import labels
from bench.leaderboard.frame import tables
from bench.leaderboard.grouping import Fit, Row, by_cell, groups, learnt_from, pooled, rows, settings
from bench.records.fields import Decoding, Info, LearntFrom, MethodFacts, ModelFacts, Seeds, Tuned
from bench.records.record import Record
from bench.records.table import Result
from bench.stats.metrics import ITEM_COLUMNS, Metric
from tests.record_files import tuning

UNSTEERED = MethodFacts(name="unsteered", family="none", version=1, parameters={}, strength=0.0)
CAA = MethodFacts(name="caa", family="activation", version=1, parameters={"layer": 3}, strength=4.0)


def result(
    number: int,
    method=UNSTEERED,
    *,
    suite="rtp",
    comparison="one",
    items=2,
    sample=0,
    fit=None,
    split="test",
    **changes,
) -> Result:
    """A result with so many items, each of value `number`."""
    record = Record(
        id=f"{number:012x}", suite=suite, split=split, comparison=comparison, model=ModelFacts(name="tiny"),
        method=method, fit_id=None if method is UNSTEERED else f"fit {fit} {method.parameters}",
        seed=Seeds(fit=fit, sample=sample), data=None, fit=None, cost=None, tuning=None,
        sampling=Decoding(temperature=1.0, seed=sample), metrics={"m": Metric(float(number), None, items, 0, True)},
        info=Info(k=5, prompts=items), sources=(),
    )  # fmt: skip
    rows = [("m", f"item{i}", float(number), 1.0) for i in range(items)]
    return Result(replace(record, **changes), pd.DataFrame(rows, columns=ITEM_COLUMNS))


def ids(group: tuple[Fit, ...]) -> set[str]:
    return {record.id[-1] for fit in group for record in fit.records}


def test_other_models_and_decodings_have_tables_of_their_own():
    found = groups([
        result(1), result(2, CAA), result(3, split="dev"),
        result(4, model=ModelFacts(name="other"), comparison="two"),
        result(5, comparison="three", sampling=Decoding(temperature=0.5, seed=0)),
    ])  # fmt: skip
    assert [ids(group) for group in found] == [{"4"}, {"1", "2"}, {"5"}]  # models by name


def test_the_setting_with_most_items_is_the_one_shown():
    short, long = result(1, comparison="short"), result(2, comparison="long", items=9)
    both = result(3, CAA, comparison="short")
    assert [ids(group) for group in groups([short, long, both])] == [{"2"}, {"1", "3"}]


def test_each_suite_has_one_setting_in_a_group():
    texts = [result(1), result(2, CAA)]
    tasks = [
        result(3, suite="qa", comparison="qa", sampling=None),
        result(4, CAA, suite="qa", comparison="qa", sampling=None),
    ]
    assert [ids(group) for group in groups([*texts, *tasks])] == [{"1", "2", "3", "4"}]


def test_of_two_results_of_one_cell_the_first_by_id_is_kept():
    (cell,) = by_cell([result(7), result(6)])
    assert [one.record.id[-1] for one in cell] == ["6"]


def test_sampling_seeds_are_one_setting_unless_two_are_equal():
    first, second = result(1).record, result(2, comparison="two", sample=1).record
    looks = settings([first, second])
    assert looks["one"] == looks["two"]
    looks = settings([first, replace(second, seed=Seeds(fit=None, sample=0))])
    assert looks["one"] != looks["two"]


def fits(*seeds: int, **changes) -> list[Fit]:
    """A fit of caa for each seed."""
    made = []
    for seed in seeds:
        method = replace(CAA, parameters={"layer": 3, "seed": seed})
        made.append(Fit([result(seed + 1, method, fit=seed, **changes)]))
    return made


def test_fits_that_differ_in_their_seed_alone_are_a_row():
    (row,) = rows(fits(1, 0, 2))
    assert [fit.about.fit_seed for fit in row.fits] == [0, 1, 2] and row.strengths == [4.0]
    assert len(rows(fits(0, 1), each_fit=True)) == 2
    assert len(rows([*fits(0), *fits(0)])) == 2  # of one seed: what they learnt from tells them apart


@pytest.mark.parametrize("changes", [
    {"data": LearntFrom(name="other", stored={"name": "other"})},
    {"suite": "qa"},
    {"tuning": Tuned.from_json(tuning([(1.0, 1.0, 0.1)], 1.0))},
])  # fmt: skip
def test_fits_that_differ_in_more_are_rows_of_their_own(changes):
    assert len(rows([*fits(0), *fits(1, **changes)])) == 2


@pytest.mark.parametrize("drawn", [("flipping", {"flip": "0.25"}), ("subset", {})])
def test_draws_of_the_pairs_are_fits_of_a_row(drawn):
    key, more = drawn
    data = [LearntFrom.from_json({"name": "on_policy", "pairs": 8, key: {"seed": i}, **more}) for i in range(3)]
    several = [result(i, CAA, data=one, fit_id=f"fit {i}") for i, one in enumerate(data)]
    whole = result(9, CAA, data=LearntFrom(name="on_policy", pairs=8 if more else 59), fit_id="whole")
    found = sorted(rows(Fit([one]) for one in [*several, whole]), key=lambda row: len(row.fits))
    assert [len(row.fits) for row in found] == [1, 3]
    assert [fit.about.fit_seed for fit in found[1].fits] == [0, 1, 2]


def test_a_row_names_the_share_of_its_swapped_pairs():
    shares = {"0": {}, "1": {"flip": "0.1", "flipping": {"seed": 0}}, "2": {"flip": "0.5", "flipping": {"seed": 0}}}
    several = [
        result(3 + int(i), CAA, fit_id=f"fit {i}", data=LearntFrom.from_json({"name": "on_policy", "pairs": 8, **more}))
        for i, more in shares.items()
    ]
    (table,) = tables([result(1), *several])
    assert sorted(labels(table.frame)) == ["caa", "caa (pairs.flip=0.1)", "caa (pairs.flip=0.5)", "unsteered"]


def test_tuned_fits_are_one_row_if_their_budgets_are_equal():
    def tuned(chosen: float, *strengths: float) -> dict:
        return {"tuning": Tuned.from_json(tuning([(one, 1.0, 0.1) for one in strengths], chosen))}

    stronger = replace(CAA, strength=8.0, parameters={"layer": 3, "seed": 1})
    other = Fit([result(2, stronger, fit=1, **tuned(8.0, 4.0, 8.0))])
    (row,) = rows([*fits(0, **tuned(4.0, 4.0, 8.0)), other])
    assert row.strengths == [4.0, 8.0]
    assert len(rows([*fits(0, **tuned(4.0, 4.0)), other])) == 2


def test_learnt_from_holds_names_and_counts():
    data = {"name": "pairs", "pairs": 3, "mean_gap": 0.5, "harmful": {"texts": 2}, "swap": False}
    (fit,) = fits(0, data=LearntFrom.from_json(data))
    assert learnt_from(fit) == {"name": "pairs", "pairs": 3, "swap": False}
    assert learnt_from(fits(0)[0]) == {}


def test_items_are_averaged_over_seeds_and_pooled_over_fits():
    one = Fit([result(2), result(4, comparison="two", sample=1)])
    assert one.items()["rtp.m"].value.tolist() == [3.0, 3.0]
    assert one.items({"two"})["rtp.m"].value.tolist() == [4.0, 4.0] and one.items(set()) == {}
    row = Row([one, *fits(7)])  # of value 8
    assert row.items()["rtp.m"].value.tolist() == [pytest.approx((3 * 2 + 8) / 3)] * 2
    assert pooled([one.items(), {}]) == {}


def drawn(number, seed, data):
    return Fit([result(number, CAA, fit=seed, fit_id=f"fit {number}", data=LearntFrom.from_json({"pairs": 8} | data))])


@pytest.mark.parametrize("name", ["sources", "first.pairs"])
def test_other_data_of_equal_counts_is_another_row(name):
    sources = [[{"name": "pairs.jsonl", "source": "file", "fingerprint": of}] for of in "ab"]
    data = {"sources": [{name: one} for one in sources]}
    data["first.pairs"] = [{name: {"pairs": 8, "flip": of, "sources": sources[0]}} for of in ("0.1", "0.3")]
    one, other = data[name]
    mixed = [drawn(1, 0, one), drawn(2, 0, other), drawn(3, 1, other), drawn(4, 1, one)]
    found = {frozenset(record.id[-1] for record in row.records) for row in rows(mixed)}
    assert found == {frozenset("14"), frozenset("23")}


def test_each_draw_is_a_fit_of_one_row():
    both = [{"flip": "0.3", "flipping": {"seed": 0}, "subset": {"seed": i}} for i in range(3)]
    (row,) = rows(drawn(i, None, one) for i, one in enumerate(both))
    assert len(row.fits) == 3
    (row,) = rows(drawn(i, 7, {"flip": "0.3", "flipping": {"seed": i}}) for i in range(3))  # the fit draws as well
    assert len(row.fits) == 3


def test_fits_of_equal_seeds_are_told_apart_by_what_was_measured():
    mixed = [
        drawn(i, seed, {"mean_gap": gap}) for i, (seed, gap) in enumerate([(0, 0.1), (0, 0.2), (1, 0.2), (1, 0.1)])
    ]
    found = {frozenset(record.id[-1] for record in row.records) for row in rows(mixed)}
    assert found == {frozenset("03"), frozenset("12")}
