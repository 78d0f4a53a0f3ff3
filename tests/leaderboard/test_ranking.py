"""Corrected p, verdicts, groups, fronts and ranks of plain frames."""

import numpy as np
import pandas as pd
import pytest

from bench.leaderboard import ranking


def frame(**columns) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    whole = {"family": ["activation"] * n, "method": list("abcdef"[:n]), "collapsed": [False] * n, "tuned": [True] * n,
             "feasible": [True] * n}  # fmt: skip
    return pd.DataFrame(whole | columns)


def test_p_is_corrected_over_the_rows_and_a_missing_one_does_not_count():
    found = ranking.corrected(frame(**{"m.p": [0.01, None, 0.04]}), ["m", "other"])
    assert found["m.p_holm"].tolist()[::2] == [0.02, 0.04] and pd.isna(found["m.p_holm"][1])
    assert found["other.p_holm"].isna().all()


@pytest.mark.parametrize("higher, words", [(False, ["better", "worse"]), (True, ["worse", "better"])])
def test_a_verdict_follows_the_better_direction(higher, words):
    rows = frame(**{"m.p_holm": [0.01, 0.01, 0.3, None, 0.01], "m.delta": [-1.0, 1.0, -1.0, -1.0, 0.0]})
    found = ranking.with_verdict(rows, "m", higher)["verdict"].fillna("").tolist()
    assert found == [*words, "no difference found", "", "no difference found"]


def test_rows_that_are_not_told_apart_share_a_letter():
    rows = frame(m=[0.3, 0.1, None, 0.2])
    p = {(0, 1): 0.001, (0, 3): 0.5, (1, 3): 0.5}
    assert ranking.grouped(rows, "m", False, p)["group"].fillna("").tolist() == ["b", "a", "", "ab"]
    assert ranking.grouped(rows, "m", True, p)["group"].fillna("").tolist() == ["a", "b", "", "ab"]
    assert ranking.grouped(rows, "m", True, dict.fromkeys(p))["group"].fillna("").tolist() == ["a", "a", "", "a"]


def test_the_front_of_either_plane_without_what_has_collapsed():
    rows = frame(
        toxicity_reduction=[0.5, 0.2, 0.9, 0.1, None],
        fluency_kept=[0.5, 0.9, 0.9, 0.1, 1.0],
        capability_kept=[None, None, None, 0.8, None],
        collapsed=[False, False, True, None, False],
    )
    assert ranking.with_front(rows)["on_front"].tolist() == [True, True, None, True, None]


def test_what_may_be_ranked():
    rows = frame(family=["none", "activation", "activation", "activation", "activation", "activation"],
                 method=["unsteered", "random_direction", "a", "b", "c", "d"],
                 feasible=[None, True, True, False, True, None], collapsed=[None, None, False, False, True, False],
                 tuned=[False, True, True, True, True, False])  # fmt: skip
    assert ranking.eligible(rows).tolist() == [False, False, True, False, False, False]
    given = rows.assign(tuned=False, feasible=None)
    assert ranking.eligible(given).tolist() == [False, False, True, True, False, True]  # none was tuned


@pytest.mark.parametrize("higher", [False, True])
def test_ranks_by_the_change_of_a_metric_with_their_interval(higher):
    sign = 1 if higher else -1
    draws = [sign * np.array([0.5, 0.5, 0.5]), None, sign * np.array([0.4, 0.6, 0.4]), np.zeros(3)]
    delta = [0.5 * sign, None, 0.45 * sign, 0.0]
    rows = frame(table=[1] * 4, **{"m.delta": delta})[["table", "m.delta", *frame(x=[1]).columns[:-1]]]
    found = ranking.ranked(rows, "m", higher, draws)
    assert list(found.columns[:4]) == ["table", "rank", "rank_low", "rank_high"]
    assert found["rank"].tolist()[::2] == [1.0, 2.0] and pd.isna(found["rank"][1]) and found["rank"][3] == 3
    assert found[["rank_low", "rank_high"]].loc[[0, 2, 3]].to_numpy().tolist() == [[1, 2], [1, 2], [3, 3]]
    assert list(rows.columns) == ["table", "m.delta", *frame(x=[1]).columns[:-1]]  # the frame given is left as it is
