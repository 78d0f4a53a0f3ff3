"""Corrected p, verdicts, groups, fronts and ranks of plain frames."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.leaderboard import ranking
from bench.leaderboard.bounds import KEPT, OPEN, VIOLATED
from bench.leaderboard.frame import tables
from bench.records.table import read_records
from bench.stats import significance
from tests.record_files import write


def frame(**columns) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    whole = {"family": ["activation"] * n, "method": list("abcdefgh"[:n]), "collapsed": [False] * n,
             "tuned": [True] * n, "feasible": [True] * n, "bounds": [None] * n, "verdict": [None] * n}  # fmt: skip
    return pd.DataFrame(whole | columns)


def with_controls(**columns) -> pd.DataFrame:
    """The unsteered model and a random direction come first."""
    n = len(next(iter(columns.values())))
    names = ["unsteered", "random_direction", *"abcdef"[: n - 2]]
    return frame(family=["none"] + ["activation"] * (n - 1), method=names, **columns)


def test_p_is_corrected_over_rows_that_have_one():
    found = ranking.corrected(frame(**{"m.p": [0.01, None, 0.04]}), ["m", "other"])
    assert found["m.p_holm"].tolist()[::2] == [0.02, 0.04] and pd.isna(found["m.p_holm"][1])
    assert found["other.p_holm"].isna().all()


def test_controls_are_no_hypotheses():
    rows = with_controls(**{"m.p": [None, 0.001, 0.01, 0.04], "vs_control_p": [0.5, None, 0.02, 0.03]})
    rows = rows.assign(**{"m.detectable": [None, 0.1, 0.1, 0.1], "m.n": 20})
    found = ranking.corrected(rows, ["m"])
    assert found["m.p_holm"].isna().tolist() == [True, True, False, False]
    assert found["m.p_holm"].tolist()[2:] == [0.02, 0.04]  # .01 x 2, not x 3
    assert found["vs_control_p_holm"].tolist()[2:] == [0.04, 0.04] and pd.isna(found["vs_control_p_holm"][0])
    assert found["m.detectable_holm"][2] == significance.detectable_after_holm(0.1, 20, 2)


@pytest.mark.parametrize("higher, words", [(False, ["better", "worse"]), (True, ["worse", "better"])])
def test_a_verdict_follows_the_better_direction(higher, words):
    rows = frame(**{"m.p_holm": [0.01, 0.01, 0.3, None, 0.01], "m.delta": [-1.0, 1.0, -1.0, -1.0, 0.0]})
    found = ranking.with_verdict(rows, "m", higher, [True] * 5)["verdict"].fillna("").tolist()
    assert found == [*words, "no difference found", "", "no difference found"]


def test_no_claim_by_a_scorer_that_tuned_or_picked_pairs():
    rows = frame(**{"m.p_holm": [0.01, 0.01, 0.3, None], "m.delta": [-1.0, -1.0, -1.0, -1.0]})
    found = ranking.with_verdict(rows, "m", False, [True, False, False, False])["verdict"].fillna("").tolist()
    assert found == ["better", ranking.NOT_INDEPENDENT, ranking.NOT_INDEPENDENT, ""]


# -- letters ---------------------------------------------------------------------------------------------------------


def letters(rows: pd.DataFrame, p: dict, higher: bool = False) -> list[str]:
    return ranking.grouped(rows, "m", higher, p)["group"].fillna("").tolist()


def test_without_unsteered_equal_methods_share_a_letter():
    rows = frame(m=[0.3, 0.1, None, 0.2])
    p = {(0, 1): 0.001, (0, 3): 0.5, (1, 3): 0.5}
    assert letters(rows, p) == ["b", "a", "", "ab"]
    assert letters(rows, p, True) == ["a", "b", "", "ab"]
    assert letters(rows, dict.fromkeys(p), True) == ["a", "a", "", "a"]


def test_a_method_shares_unsteereds_letter_unless_it_differs():
    """Whatever the p of that pair is: the verdict has it corrected over the methods. A random direction has none."""
    rows = with_controls(m=[0.5, 0.5, 0.2, 0.4], verdict=[None, None, "better", "no difference found"])
    p = {(0, 2): 0.9, (0, 3): 0.0001, (2, 3): 0.9, (0, 1): 0.0001, (1, 2): 0.0001, (1, 3): 0.0001}
    assert letters(rows, p) == ["b", "", "a", "ab"]


def test_methods_that_do_nothing_do_not_differ_from_each_other():
    nothing = "no difference found"
    rows = with_controls(m=[0.4, 0.4, 0.3, 0.5, 0.1], verdict=[None, None, nothing, nothing, "better"])
    p = {(2, 3): 0.0001, (2, 4): 0.0001, (3, 4): 0.0001}
    assert letters(rows, p) == ["b", "", "b", "b", "a"]


def test_letters_are_corrected_over_pairs_of_methods_alone():
    rows = with_controls(m=[0.5, 0.5, 0.1, 0.2], verdict=[None, None, "better", "better"])
    p = {(0, 1): 0.5, (0, 2): 0.5, (0, 3): 0.5, (1, 2): 0.5, (1, 3): 0.5, (2, 3): 0.04}
    assert letters(rows, p) == ["c", "", "a", "b"]  # the only pair: .04 is not corrected
    three = with_controls(m=[0.5, 0.5, 0.1, 0.2, 0.3], verdict=[None, None, "better", "better", "better"])
    assert letters(three, {**p, (2, 4): 0.5, (3, 4): 0.5}) == ["b", "", "a", "a", "a"]  # .04 x 3


def test_letters_claim_nothing_of_a_method_that_its_scorer_tuned():
    rows = with_controls(m=[0.5, 0.5, 0.1, 0.2], verdict=[None, None, ranking.NOT_INDEPENDENT, "better"])
    assert letters(rows, {(2, 3): 0.0001}) == ["b", "", "ab", "a"]


PS = st.one_of(st.none(), st.sampled_from([0.0001, 0.004, 0.012, 0.03, 0.049]), st.floats(0.0, 1.0))


@st.composite
def standing(draw) -> tuple[pd.DataFrame, dict]:
    """Any table of a few rows, some of which the headline's scorer tuned, and the p of each pair."""
    n = draw(st.integers(3, 7))
    family = ["none" if i == 0 and draw(st.booleans()) else "activation" for i in range(n)]
    method = ["unsteered" if one == "none" else f"m{i}" for i, one in enumerate(family)]
    if draw(st.booleans()):
        method[1] = "random_direction"
    values = [draw(st.sampled_from([0.1, 0.2, 0.3, 0.4, math.nan])) for _ in range(n)]
    base = values[0] if family[0] == "none" else math.nan
    p = {(i, j): draw(PS) for i in range(n) for j in range(i + 1, n)}
    known = {pair: one for pair, one in p.items() if not math.isnan(values[pair[0]] + values[pair[1]])}
    own = [None if math.isnan(base) or i == 0 else known.get((0, i)) for i in range(n)]
    rows = frame(m=values).assign(
        family=family, method=method, **{"m.p": own, "m.delta": np.array(values) - base, "m.n": 20}
    )
    rows = ranking.corrected(rows, ["m"])
    return ranking.with_verdict(rows, "m", False, [draw(st.booleans()) for _ in range(n)]), known


@settings(max_examples=150, deadline=None)
@given(standing())
def test_stars_and_letters_never_contradict_each_other(made):
    rows, p = made
    found = ranking.grouped(rows, "m", False, p)
    shared = [set(one) if isinstance(one, str) else None for one in found["group"]]
    assert all(
        one is None for one, control in zip(shared, found["method"] == "random_direction", strict=True) if control
    )
    if found["family"][0] != "none" or shared[0] is None:
        return
    starred = found["verdict"].isin(["better", "worse"]).tolist()
    for i, one in enumerate(shared[1:], 1):
        if one is not None:
            assert starred[i] == (not one & shared[0]), found
    for (i, j), _ in p.items():
        if i and shared[i] is not None and shared[j] is not None and not shared[i] & shared[j]:
            assert starred[i] or starred[j], "neither differs from the unsteered model, so neither from the other"
            assert ranking.NOT_INDEPENDENT not in (found["verdict"][i], found["verdict"][j])


# -- fronts and ranks ------------------------------------------------------------------------------------------------


def test_the_front_of_either_plane_without_what_has_collapsed():
    rows = frame(
        toxicity_reduction=[0.5, 0.2, 0.9, 0.1, None],
        fluency_kept=[0.5, 0.9, 0.9, 0.1, 1.0],
        gold_choice_change=[None, None, None, -0.3, None],
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


def test_the_test_split_decides_on_the_bounds_where_it_can():
    """feasible: on the dev split, which decides where no bound was measured on the test split."""
    rows = frame(bounds=[KEPT, OPEN, VIOLATED, None, KEPT, None],
                 feasible=[True, True, True, True, False, False])  # fmt: skip
    assert ranking.eligible(rows).tolist() == [True, True, False, True, True, False]


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


@pytest.mark.filterwarnings("error")
def test_hundreds_of_columns_bring_no_warning(tmp_path):
    """Pandas warns of frames that grew column by column; the warning would be on the user's terminal."""
    for method, share in (("unsteered", 0.0), ("caa", 0.5)):
        values = {f"task_{i}.accuracy": [1.0, 0.0, share, 1.0] for i in range(120)}
        write(tmp_path, "qa", method, values)
    (table,) = tables(read_records(tmp_path / "runs")[0])
    assert len(table.frame.columns) > 1000 and table.frame["qa.task_7.accuracy.p_holm"].notna().sum() == 1
