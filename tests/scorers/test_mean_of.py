"""The mean of scorers, by fakes that say what is asked of them, and by the config's own."""

import numpy as np
import pytest

from bench.config import compose
from bench.config.build import build
from bench.data.sources import Sources
from bench.run import validate
from bench.run.parts import parts
from bench.scorers.base import scores, unique_scores
from bench.scorers.mean_of import MeanOf
from bench.scorers.profanity_check import ProfanityCheck
from bench.scorers.toxic_comment import ToxicComment
from methods.errors import SetupError


class Says:
    """A scorer with an answer for each text."""

    def __init__(self, name: str, measures: str = "toxicity", **answers: float | None) -> None:
        self.name, self.measures, self.answers = name, measures, answers

    def identity(self) -> dict[str, object]:
        return {"name": self.name, "version": 3, "answers": self.answers}

    def __call__(self, prompts, completions):
        return [self.answers[text] for text in completions]


FIRST, SECOND = Says("first", a=0.0, b=0.25, c=None, d=1.0), Says("second", a=0.5, b=0.75, c=0.5, d=None)


def test_the_score_is_the_mean_and_none_where_one_is():
    two = MeanOf(parts={"x": FIRST, "y": SECOND})
    assert two(["p"] * 4, ["a", "b", "c", "d"]) == [0.25, 0.5, None, None]
    three = MeanOf(parts={"x": FIRST, "y": SECOND, "z": Says("third", a=1.0, b=0.5)})
    assert unique_scores(three, ["p"] * 3, ["a", "b", "a"]) == pytest.approx([0.5, 0.5, 0.5])
    assert two([], []) == []


def test_the_mean_of_scores_is_a_score():
    draw = np.random.default_rng(0)
    for many in (2, 3, 7):
        parts = {str(i): Says(str(i), a=1.0, b=0.0, c=float(draw.random())) for i in range(many)}
        one, none, _ = scores(MeanOf(parts=parts), ["p"] * 3, ["a", "b", "c"])
        assert (one, none) == (1.0, 0.0)


def test_a_part_that_gives_no_score_is_refused():
    with pytest.raises(SetupError, match="scorer third gave the score 2"):
        MeanOf(parts={"x": FIRST, "z": Says("third", a=2.0)})(["p"], ["a"])


def test_it_measures_what_its_parts_do():
    moods = {"x": Says("first", "sentiment", a=0.5), "y": Says("second", "sentiment", a=1.0)}
    assert (
        MeanOf(parts=moods).measures == "sentiment" and MeanOf(parts={"x": FIRST, "y": SECOND}).measures == "toxicity"
    )
    with pytest.raises(
        SetupError, match="scorer.mean_of.parts: x measures toxicity, y measures sentiment; allowed are"
    ):
        MeanOf(parts={"x": FIRST, "y": moods["y"]})


@pytest.mark.parametrize(("parts", "named"), [({}, "nothing"), ({"x": FIRST}, "x")])
def test_a_mean_is_of_two_or_more(parts, named):
    with pytest.raises(
        SetupError, match=f"scorer.other.parts names {named}; a mean needs two scorers or more: add one"
    ):
        MeanOf(parts=parts, name="other")


def test_a_part_is_a_scorer():
    with pytest.raises(SetupError, match="scorer.mean_of.parts.y is not a scorer"):
        MeanOf(parts={"x": FIRST, "y": {"_target": "bench.scorers.lexicon.Lexicon"}})


def test_the_identity_is_of_the_parts_not_of_their_names():
    own = MeanOf(parts={"x": FIRST, "y": SECOND}).identity()
    assert own["name"] == "mean_of" and [part["name"] for part in own["parts"]] == ["first", "second"]
    assert own["parts"][0].items() > FIRST.identity().items() and "Says" in own["parts"][0]["class"]  # not ours
    assert MeanOf(parts={"one": FIRST, "two": SECOND}).identity() == own
    assert MeanOf(parts={"x": FIRST, "y": Says("second", a=0.4)}).identity() != own


def test_its_batches_hold_each_text_once():
    texts = ["", *("x" * (i % 9) for i in range(600)), " "]
    plan = MeanOf(parts={"x": FIRST, "y": SECOND}).batches(texts)
    assert sorted(row for rows in plan for row in rows) == list(range(602))


def test_the_config_names_the_parts_and_their_options(tmp_path):
    given = ["scorer=[profanity_check,mean_of]", "scorer.mean_of.parts.toxic_comment.label=insult"]
    cfg, sources = validate.validate(given), Sources(cache=tmp_path, offline=True)
    own = build(cfg.scorer.mean_of, sources=sources)
    parts = {"profanity_check": ProfanityCheck(), "toxic_comment": ToxicComment(label="insult", sources=sources)}
    assert own == MeanOf(parts=parts) and list(cfg.scorer) == ["profanity_check", "mean_of"]
    assert own.identity()["parts"][1]["label"] == "insult"


def test_other_parts_from_the_command_line():
    given = ["scorer=[profanity_check,mean_of]", "+scorer@scorer.mean_of.parts.third=lexicon"]
    own = build(validate.validate(given).scorer.mean_of, sources=Sources())
    assert [part.name for part in own.parts.values()] == ["profanity_check", "toxic_comment", "lexicon"]
    given[1] = "scorer@scorer.mean_of.parts.toxic_comment=lexicon"
    own = build(validate.validate(given).scorer.mean_of, sources=Sources())
    assert [part.name for part in own.parts.values()] == ["profanity_check", "lexicon"]
    with pytest.raises(SetupError, match="x measures"):
        build(compose.compose([given[0], "+scorer@scorer.mean_of.parts.x=vader"]).scorer.mean_of, sources=Sources())


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("scorer.mean_of.parts.toxic_comment.labl=x", "did you mean scorer.mean_of.parts.toxic_comment.label"),
        ("scorer.mean_of.parts.toxic_comment.label=3", "scorer.mean_of.parts.toxic_comment.label=3"),
        ("scorer.mean_of.parts=3", "scorer.mean_of.parts=3"),
        ("+scorer@scorer.mean_of.parts.third=lexcon", "did you mean lexicon"),
        ("scorer.mean_of.parts.toxic_comment._target_=os.system", "os.system is refused"),
    ],
)
def test_wrong_parts_are_reported_before_anything_runs(option, message):
    with pytest.raises(SetupError, match=message):
        validate.validate(["scorer=[profanity_check,mean_of]", option])


def test_two_scorers_do_not_file_their_scores_under_one_name():
    given = ["scorer=[profanity_check,toxic_comment,mean_of]", "scorer.mean_of.name=toxic_comment"]
    with pytest.raises(SetupError, match="scorer.toxic_comment and scorer.mean_of file their scores under one name"):
        parts(compose.compose(given))


@pytest.mark.parametrize("name", ["group", "keywords", "a.b"])
def test_no_scorer_has_the_name_of_something_else(name):
    given = ["scorer=[profanity_check,toxic_comment]", f"scorer.toxic_comment.name={name}"]
    with pytest.raises(SetupError, match=f"scorer.toxic_comment.name={name}: .*stands for something else"):
        parts(compose.compose(given))
