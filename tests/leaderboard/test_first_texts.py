"""An unsteered model that was asked for more texts than are compared."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from bench.leaderboard.frame import Table, tables
from bench.leaderboard.grouping import Fit, Row, settings
from bench.leaderboard.items import Pair
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


def table_of(first: np.ndarray, every: np.ndarray, *own: np.ndarray) -> Table:
    """The unsteered model with its first and with all of its texts, and methods."""
    base = with_values(1, None, **{"m": every, f"m{FIRST}": first})
    methods = [with_values(2 + i, replace(CAA, name=f"method{i}"), m=one) for i, one in enumerate(own)]
    (table,) = tables([base, *methods])
    return table


def pairs_of(table: Table) -> Pair:
    ((pairs,),) = table.paired.pairs.values()
    return pairs["rtp.m"]


def test_all_texts_are_taken_where_the_first_ones_scatter_more():
    every = OWN + 0.01 * (ALL - 0.5)
    table = table_of(FEW, every, OWN)
    assert not table.paired.first and pairs_of(table).value_b.tolist() == pytest.approx(list(every))


def test_equal_texts_have_a_change_of_exactly_zero():
    table = table_of(FEW, ALL, FEW)
    assert table.paired.first == {"rtp.m"} and (pairs_of(table).value_a == pairs_of(table).value_b).all()


def test_all_rows_of_a_table_are_held_against_the_same_texts():
    """Else a row could have the better value and the worse change."""
    close, far = FEW + 0.01 * (OWN - 0.5), ALL + 0.3 * (OWN - 0.5)
    frame = table_of(FEW, ALL, close, far, FEW).frame
    base = frame.loc[frame["family"] == "none", "rtp.m"].iloc[0]
    others = frame[frame["family"] != "none"]
    assert (others["rtp.m"] - base).to_numpy() == pytest.approx(others["rtp.m.delta"].to_numpy()), "and the one shown"


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
