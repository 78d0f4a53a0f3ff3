"""The numbers of a document, by hand, from what lm-eval noted of it."""

import math
from types import SimpleNamespace

import pytest

from bench.data.lm_eval_tasks import higher_is_better, task_items


def mean(values):
    return sum(values) / len(values)


def task(kind="multiple_choice", **fields):
    """As much of an lm-eval task as is read; `gold` of a document numbers the right answer, or several."""
    return SimpleNamespace(
        OUTPUT_TYPE=kind, multiple_input=False, aggregation=lambda: {"acc": mean},
        doc_to_target=lambda doc: doc["gold"], doc_to_choice=lambda doc: doc.get("choices"),
        higher_is_better=lambda: {"acc": True}, **fields,
    )  # fmt: skip


def sample(gold, *logprobs, right=1.0, **document):
    answers = [[(logprob, False)] for logprob in logprobs]
    return {"doc": {"gold": gold, **document}, "filter": "none", "metrics": ["acc"], "acc": right, "resps": answers}


def values(kind, *samples):
    items, _ = task_items("piqa", task(kind), samples)
    return {name.partition(".")[2]: own["value"].tolist() for name, own in items.groupby("metric")}


def test_the_right_answer_among_the_choices():
    found = values("multiple_choice", sample(0, math.log(0.02), math.log(0.06)), sample(1, -1.0, -1.0, -1.0, n=2))
    assert found["gold_logprob"] == pytest.approx([math.log(0.02), -1.0])
    assert found["gold_choice_logprob"] == pytest.approx([math.log(0.25), -math.log(3)])
    assert found["accuracy"] == [1.0, 1.0]
    assert higher_is_better(task(), "piqa.gold_choice_logprob")


def test_what_makes_all_answers_less_probable_changes_nothing():
    near, far = (values("multiple_choice", sample(0, -1.0 - by, -2.0 - by))["gold_choice_logprob"] for by in (0, 2000))
    assert near == pytest.approx([-math.log(1 + math.exp(-1))])
    assert far == pytest.approx(near)  # e^-2000 is 0
    assert values("multiple_choice", sample(1, 0.0, -5000.0))["gold_choice_logprob"] == [-5000.0]


def test_of_several_right_answers_the_most_probable_one_counts():
    found = values("multiple_choice", sample([0, 2], math.log(0.1), math.log(0.6), math.log(0.3)))
    assert found["gold_choice_logprob"] == pytest.approx([math.log(0.3)])
    named = sample("b", math.log(0.4), math.log(0.1), choices=["a", "b"])
    assert values("multiple_choice", named)["gold_choice_logprob"] == pytest.approx([math.log(0.2)])


def test_without_choices_there_is_no_accuracy():
    assert set(values("loglikelihood", sample(0, -2.0))) == {"accuracy", "gold_logprob"}
    assert set(values("multiple_choice", sample(0, -2.0))) == {"accuracy", "gold_logprob"}
    assert set(values("generate_until", sample(0))) == {"accuracy"}
