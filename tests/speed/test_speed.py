"""What bench.speed measures, on a tiny model; how fast it is on this machine is no matter here."""

import math
from types import SimpleNamespace

import pandas as pd
import pytest

from bench.console.progress import Bar
from bench.speed import figure, fitting, likelihood, sampling, table
from bench.speed.turns import compared, in_turns
from methods.aura import AurA
from methods.caa import CAA
from tests.architectures import lm_of
from tests.tiny import tiny_lm

SIZE = table.Size(prompts=2, together=(1, 2), documents=2, rounds=2, slow_rounds=1)
ASKED = [
    SimpleNamespace(args=(context, ending), task_name="t", doc_id=number)
    for number, context in enumerate(("The quick brown", "The lazy dog is"))
    for ending in (" fox jumps", " dog sleeps", " cat")
]


def test_works_take_turns_and_every_second_round_goes_backwards():
    said = []
    taken = in_turns({"a": lambda: said.append("a"), "b": lambda: said.append("b")}, 3)
    assert said == list("abbaab") and all(len(seconds) == 3 for seconds in taken.values())


def test_a_speed_ratio_has_an_interval_from_two_rounds_on():
    found = compared([1.0, 2.0, 1.0], [2.0, 4.0, 3.0])
    assert found.ratio == 2 and found.low < 2 < found.high and found.seconds == 1 and found.other_seconds == 3
    assert compared([1.0], [3.0])[2:] == (pytest.approx(3), None, None)


def test_distinct_tokens_are_those_of_a_prefix_tree():
    lm = tiny_lm()
    read, predicted = likelihood.distinct_tokens(lm, ASKED)
    seen, said = set(), set()
    for one in ASKED:
        context, answer = lm.encode_pairs([one.args[0]], [one.args[1]])[0]
        seen |= {tuple([*context, *answer][:i]) for i in range(1, len(context) + len(answer))}
        said |= {(*context, *answer[:i]) for i in range(len(answer))}
    assert (read, predicted) == (len(seen), len(said))


def test_ours_and_hflm_agree():
    lm = tiny_lm()
    found = likelihood.agreement(ASKED, likelihood.ours(lm, ASKED)(), likelihood.hflm(lm, ASKED)())
    assert found.documents == 2 and found.other_choices == 0 and 0 <= found.difference < 1e-4


def test_the_table_and_its_figure(tmp_path):
    lm = tiny_lm()
    with Bar(table.planned(SIZE, {"PIQA": ASKED})) as bar:
        methods = [CAA(layer=0)]
        rows = [*table.sampling_rows(lm, SIZE, methods, bar), *table.likelihood_rows(lm, SIZE, {"PIQA": ASKED}, bar)]
    frame = table.frame(rows)
    assert list(frame["against"]) == [
        table.MATRICES, "generate, 25 rows", "generate, 50 rows", "unsteered", "HFLM, batch 8", table.MATRICES
    ]  # fmt: skip
    assert (frame["ratio"] > 0).all() and frame["tokens"].gt(0).all() and not math.isnan(frame["goal"].sum())
    table.show(frame)
    assert len(pd.read_csv(table.write(frame, tmp_path))) == len(frame)
    assert [path.suffix for path in figure.write(frame, tmp_path)] == [".pdf", ".svg", ".png"]


def test_as_many_tokens_are_counted_as_are_sampled():
    lm = tiny_lm()
    assert 0 < sampling.count(lm, 2) <= 2 * sampling.SAMPLES * sampling.NEW_TOKENS


def test_fits_learn_from_two_answers_of_each_question():
    lm = tiny_lm()
    pairs = fitting.pairs(ASKED)
    assert pairs.prompt == ["The quick brown", "The lazy dog is"]
    assert (pairs.desired, pairs.undesired) == ([" fox jumps"] * 2, [" dog sleeps"] * 2)
    texts = [lm.encode(prompt + end) for prompt in pairs.prompt for end in (" fox jumps", " dog sleeps")]
    assert fitting.distinct_tokens(lm, pairs) == len({tuple(one[:i]) for one in texts for i in range(1, len(one) + 1)})
    with Bar(table.planned(SIZE, {"PIQA": ASKED})) as bar:
        (row,) = table.fit_rows(lm, SIZE, [CAA(layer=0)], ASKED, bar)
    assert row.work == "fit of CAA, 2 pairs" and row.found.ratio > 0


def test_a_fit_that_is_refused_leaves_the_other_rows(capsys):
    """A mixture of experts has no neurons that AurA could damp; twenty minutes of measuring are not lost for that."""
    lm = lm_of("mixtral")
    with Bar(table.planned(SIZE, {"PIQA": ASKED})) as bar:
        (row,) = table.fit_rows(lm, SIZE._replace(rounds=1), [AurA(), CAA(layer=0)], ASKED, bar)
        assert not list(table.fit_rows(lm, SIZE, [CAA(layer=0)], [], bar))
    assert row.work == "fit of CAA, 2 pairs" and row.found.low is None
    told = capsys.readouterr().err
    assert "the fit of aura is left out: mixtral" in told and "the fit of caa is left out: caa learns from" in told


def test_a_question_with_one_answer_makes_no_pair():
    assert fitting.pairs([*ASKED, SimpleNamespace(args=("Why", " so"), doc_id=7)]) == fitting.pairs(ASKED)


def test_the_unsteered_rounds_are_unsteered(monkeypatch):
    lm, seen = tiny_lm(), []
    real = sampling.continuations
    monkeypatch.setattr(sampling, "continuations", lambda own, *rest: seen.append(own.steered_by) or real(own, *rest))
    with Bar(table.planned(SIZE, {})) as bar:
        list(table.sampling_rows(lm, SIZE, [CAA(layer=0)], bar))
    assert seen[-2 * SIZE.rounds :].count("0 (unsteered)") == SIZE.rounds and any("caa" in one for one in seen)
