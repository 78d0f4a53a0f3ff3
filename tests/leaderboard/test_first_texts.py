"""An unsteered model that was asked for more texts than are compared."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bench.leaderboard.frame import tables
from bench.leaderboard.grouping import Fit, Row, settings
from bench.leaderboard.pairing import joined
from bench.records.fields import Decoding, Seeds
from bench.records.table import Result
from bench.stats.metrics import FIRST, ITEM_COLUMNS, Metric
from tests.leaderboard.test_grouping import CAA, result

GENERATOR = np.random.default_rng(0)
OWN, ALL, FEW = GENERATOR.random((3, 200))


def with_values(number, method, **values) -> Result:
    one = result(number, method) if method else result(number)
    rows = [(name, f"item{i:03d}", value, 1.0) for name, found in values.items() for i, value in enumerate(found)]
    metrics = {name: Metric(float(np.mean(found)), None, len(found), 0, False) for name, found in values.items()}
    return Result(replace(one.record, metrics=metrics), pd.DataFrame(rows, columns=ITEM_COLUMNS))


def paired_with(first: np.ndarray, every: np.ndarray, own: np.ndarray) -> pd.DataFrame:
    base = Fit([with_values(1, None, **{"m": every, f"m{FIRST}": first})])
    return joined(Fit([with_values(2, CAA, m=own)]), base)["rtp.m"]


def test_all_texts_are_taken_where_the_first_ones_scatter_more():
    every = OWN + 0.01 * (ALL - 0.5)
    assert paired_with(FEW, every, OWN)["value_b"].tolist() == pytest.approx(list(every))


def test_what_writes_as_the_unsteered_model_differs_by_exactly_nothing():
    pairs = paired_with(FEW, ALL, FEW)
    assert (pairs["value_a"] - pairs["value_b"] == 0).all()


def test_the_first_texts_are_no_metric_of_a_row():
    fit = Fit([with_values(1, None, **{"m": ALL, f"m{FIRST}": FEW})])
    assert set(Row([fit]).metrics) == {"rtp.m"}
    other = Fit([with_values(2, CAA, **{"m": OWN, f"m{FIRST}": FEW})])
    assert set(joined(other, fit)) == {"rtp.m"}


def test_of_two_unsteered_results_the_one_of_more_texts_is_kept():
    """A folder may hold both, since what they compare with is the same."""
    few = with_values(1, None, m=FEW)
    more = with_values(3, None, **{"m": ALL, f"m{FIRST}": FEW})
    own = with_values(2, CAA, m=OWN)
    for order in ([few, more, own], [more, own, few]):
        (table,) = tables(order)
        assert table.baseline.records[0].id == more.record.id and len(table.baseline.records) == 1


def test_metrics_of_the_first_texts_are_no_other_way_of_asking():
    """Which seeds stand together does not depend on which result is looked at first."""
    base = with_values(10, None, **{"m": ALL, f"m{FIRST}": FEW}).record
    own = with_values(20, CAA, m=OWN).record
    seeded = replace(
        own, comparison="seed 1", sampling=Decoding(temperature=1.0, seed=1), seed=Seeds(fit=None, sample=1)
    )
    assert len(set(settings([base, seeded]).values())) == 1
