import json
import math
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import one_hot
from transformers import PreTrainedTokenizerFast

from bench.data.caa_questions import BEHAVIOURS, CAA
from bench.data.sources import Sources
from bench.model.lm import LM, Request, worded
from bench.model.log_likelihood import likelihoods
from bench.suites.ab import AB, letter_requests
from bench.suites.base import measure
from methods import layout
from methods.base import Steering
from methods.errors import SetupError
from methods.intervention import Hook, adding, hooked
from tests.data.test_sources import MIRROR
from tests.fit_data.test_caa_pairs import chat_lm, make_caa, row
from tests.tiny import tiny_lm

BLOCK = 0
OTHER = {"question": "Which?\n\nChoices:\n (A) a\n (C) c", "answer_matching_behavior": "(C)"}
ROWS = {
    ("sycophancy", "test_ab"): [row(i) for i in range(9)],
    ("sycophancy", "generate"): [row(i, "LEARNT") for i in range(3)],
    ("refusal", "test_ab"): [*(row(i, "hate") for i in range(4)), OTHER | {"answer_not_matching_behavior": "(A)"}],
}


@pytest.fixture
def sources(tmp_path, monkeypatch) -> Sources:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    return make_caa(tmp_path, ROWS)


def suite(sources: Sources, **options) -> AB:
    return AB(**{"sources": sources, "behaviours": ["sycophancy", "refusal"], **options})


@dataclass(frozen=True)
class Bias:
    """Adds `strength` to the logit of one token: what that does to a softmax of two is known."""

    token: int
    name: ClassVar[str] = "bias"

    @contextmanager
    def apply(self, model, artefact, strength):
        def biased(step):
            return step.logits + strength * one_hot(torch.tensor(self.token), step.logits.shape[-1])

        yield Steering(next_logits=biased)


@dataclass(frozen=True)
class Behind:
    """Adds a vector to the residual stream behind the prompt, as CAA does; boundary: and at its last token."""

    vector: torch.Tensor
    boundary: bool = False
    name: ClassVar[str] = "behind"

    @contextmanager
    def apply(self, model, artefact, strength):
        function = adding(strength * self.vector, "generation", boundary=self.boundary)
        with hooked([Hook(layout.blocks(model)[BLOCK], "output", function)]):
            yield Steering()


def by_hand(lm: LM, line: dict, first: int | None = None, vector: torch.Tensor | None = None) -> tuple[float, float]:
    """p(matching letter) against the other one, and their mass, from one forward over prompt and " (".

    vector: added at the positions from `first` on, counted from the end of the prompt.
    """
    text = worded(lm, line["question"])
    prompt = lm.tokenizer(text, add_special_tokens=not lm.chat).input_ids
    ids = prompt + lm.tokenizer(" (", add_special_tokens=False).input_ids
    moved = torch.zeros(1, len(ids), lm.model.config.hidden_size)
    if vector is not None:
        moved[:, len(prompt) + first :] = vector
    with hooked([Hook(layout.blocks(lm.model)[BLOCK], "output", lambda h: h + moved)]), torch.inference_mode():
        p = lm.model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
    letters = [line[f"answer_{kind}_behavior"].strip()[1] for kind in ("matching", "not_matching")]
    matching, other = (float(p[lm.tokenizer.convert_tokens_to_ids(letter)]) for letter in letters)
    return matching / (matching + other), matching + other


def questions(result) -> list[tuple[float, float]]:
    return sorted(zip(result.scores["probability"], result.scores["letter_mass"], strict=True))


@pytest.mark.parametrize("make", [tiny_lm, chat_lm])
def test_the_softmax_over_the_two_letters_behind_the_bracket(sources, make):
    lm = make()
    found = measure(suite(sources), lm, "test")
    for behaviour in ("sycophancy", "refusal"):
        values = [by_hand(lm, line)[0] for line in ROWS[behaviour, "test_ab"]]
        one = found.metrics[f"{behaviour}.matching_probability"]
        assert (one.value, one.n) == (pytest.approx(sum(values) / len(values), abs=1e-5), len(values))
        accuracy = found.metrics[f"{behaviour}.matching_accuracy"]
        assert accuracy.value == pytest.approx(sum(value > 0.5 for value in values) / len(values))
        assert one.higher_is_better and accuracy.higher_is_better
    pairs = sorted(
        by_hand(lm, line) for key in (("sycophancy", "test_ab"), ("refusal", "test_ab")) for line in ROWS[key]
    )
    assert questions(found) == [(pytest.approx(p, abs=1e-5), pytest.approx(mass, rel=1e-3)) for p, mass in pairs]
    assert len(found.metrics) == 4 and found.info["questions"] == {"sycophancy": 9, "refusal": 5}
    assert found.info["letter_mass"]["refusal"] == pytest.approx(
        sum(by_hand(lm, line)[1] for line in ROWS["refusal", "test_ab"]) / 5, rel=1e-3
    )


def test_a_bias_towards_a_moves_the_probability_as_by_hand(sources):
    """With b added to the logit of A: p(A) = s(logit + b), so a matching A rises to s(. + b), a matching B falls."""
    lm, b = tiny_lm(), 1.5
    letter = lm.tokenizer.convert_tokens_to_ids("A")
    before = measure(suite(sources), lm, "test").scores
    with lm.steered(Bias(letter), {}, b) as steered:
        after = measure(suite(sources), steered, "test")
    expected = []
    for one in before.itertuples():
        shift = b if one.letter == "A" else -b
        expected.append(1 / (1 + math.exp(-math.log(one.probability / (1 - one.probability)) - shift)))
    assert after.scores["probability"].tolist() == pytest.approx(expected, abs=1e-5)
    assert set(before["letter"]) == {"A", "B", "C"}
    syc = before["behaviour"] == "sycophancy"
    mean = sum(p for p, mine in zip(expected, syc, strict=True) if mine) / 9
    assert after.metrics["sycophancy.matching_probability"].value == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("make", [tiny_lm, chat_lm])
@pytest.mark.parametrize("boundary", [False, True])
def test_steering_of_what_is_generated_acts_at_the_bracket(sources, make, boundary):
    """The prompt ends before " (": with boundary its last token is steered too, without it the bracket alone."""
    lm = make()
    vector = 3 * torch.randn(lm.model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with lm.steered(Behind(vector, boundary), {}, 1.0) as steered:
        found = measure(suite(sources, behaviours=["sycophancy"]), steered, "test")
    expected = sorted(by_hand(lm, line, -1 if boundary else 0, vector) for line in ROWS["sycophancy", "test_ab"])
    assert questions(found) == [(pytest.approx(p, abs=1e-5), pytest.approx(mass, rel=1e-3)) for p, mass in expected]
    for first in {-1, 0, 1} - {-1 if boundary else 0}:  # another boundary would be seen
        other = sorted(by_hand(lm, line, first, vector)[0] for line in ROWS["sycophancy", "test_ab"])
        assert max(abs(a - b) for a, (b, _) in zip(other, expected, strict=True)) > 1e-3


def test_a_prefix_stands_before_every_question(sources):
    lm = tiny_lm()
    steered = replace(lm, steering=Steering(prefix="Be bold. "))
    with_it = {**ROWS["sycophancy", "test_ab"][0]}
    found = measure(suite(sources, behaviours=["sycophancy"]), steered, "test")
    text = "Be bold. " + worded(lm, with_it["question"])
    ids = lm.tokenizer(text).input_ids + lm.tokenizer(" (", add_special_tokens=False).input_ids
    with torch.inference_mode():
        p = lm.model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
    a, b = (float(p[lm.tokenizer.convert_tokens_to_ids(letter)]) for letter in "AB")
    assert any(one == pytest.approx(a / (a + b), abs=1e-5) for one in found.scores["probability"])


def test_the_bracket_follows_a_template_with_a_line_break(sources, monkeypatch):
    lm = chat_lm(
        template="{% for m in messages %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\\n>\\n' }}{% endif %}"
    )
    asked = []

    def listening(lm, requests):
        asked.extend(requests)
        return likelihoods(lm, requests)

    monkeypatch.setattr("bench.suites.ab.likelihoods", listening)
    measure(suite(sources, behaviours=["sycophancy"]), lm, "test")
    endings = {lm.tokenizer.decode(one.context)[-3:] + "|" + lm.tokenizer.decode(one.continuation) for one in asked}
    assert endings == {"\n>\n|(", "\n>\n|(A", "\n>\n|(B"}


def test_a_letter_that_is_one_token_with_its_bracket(sources):
    """p is the softmax over the two answers, whatever their tokens are: here " (A" is two of them, " (B" three."""
    lm = tiny_lm()
    lm.tokenizer.add_tokens(["(A"])
    lm.model.resize_token_embeddings(len(lm.tokenizer))
    blank, bracket, b, merged = lm.tokenizer.convert_tokens_to_ids(["\u0120", "(", "B", "(A"])
    head, *answers = letter_requests(lm, "Is it?", ("A", "B"))
    context = lm.encode(worded(lm, "Is it?"))
    assert head == Request(context, [blank])
    assert answers == [Request(context, [blank, merged]), Request(context, [blank, bracket, b])]
    found = measure(suite(sources, behaviours=["sycophancy"]), lm, "test")
    first = found.scores.iloc[0]
    question = next(q for q in suite(sources).questions("sycophancy", "test")[0] if q.prompt.id == first["item"])
    _, matching, other = (
        one.logprob for one in likelihoods(lm, letter_requests(lm, question.prompt.text, question[1:]))
    )
    assert first["probability"] == pytest.approx(math.exp(matching) / (math.exp(matching) + math.exp(other)))
    assert 0 < found.scores["letter_mass"].max() < 1


def test_answers_of_the_same_tokens_are_refused():
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "Input:": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    with pytest.raises(SetupError, match=r"the same tokens for the answers \['A', 'B'\]"):
        letter_requests(replace(tiny_lm(), tokenizer=tokenizer), "Is it?", ("A", "B"))


def test_the_choice_of_questions(sources, tmp_path):
    few, more = (suite(sources, limit=n, behaviours=["sycophancy"], dev_limit=3) for n in (2, 5))
    ids = [[one.prompt.id for one in s.questions("sycophancy", "test")[0]] for s in (few, more)]
    assert ids[1][:2] == ids[0] and len(ids[1]) == 5
    dev = [one.prompt.id for one in more.questions("sycophancy", "dev")[0]]
    assert len(dev) == 3 and not set(dev) & set(ids[1])
    everything = suite(sources).identity("test")
    texts = [json.dumps(one, sort_keys=True) for one in (everything, few.identity("test"), more.identity("dev"))]
    assert len(set(texts)) == 3 and str(tmp_path) not in "".join(texts)
    turned = make_caa(tmp_path / "turned", {key: lines[::-1] for key, lines in ROWS.items()})
    same = [[one.prompt.id for one in suite(s, limit=3).questions("refusal", "test")[0]] for s in (sources, turned)]
    assert same[0] == same[1]
    assert not any("LEARNT" in one.prompt.text for one in suite(sources).questions("sycophancy", "test")[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"behaviours": ["kindness"]}, r"suite.ab.behaviours=\['kindness'\]: choose from coordinate-other-ais, "),
        ({"behaviours": []}, r"suite.ab.behaviours=\[\]: choose from"),
        ({"behaviours": ["refusal", "refusal"]}, "name each once"),
        ({"limit": 0}, "suite.ab.limit=0, dev_limit=10: expected at least 1"),
        ({"limit": 6}, "suite.ab.limit=6: there are 5"),
    ],
)
def test_wrong_settings(sources, settings, message):
    with pytest.raises(SetupError, match=message):
        measure(suite(sources, **settings), tiny_lm(), "test")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            {"question": "q", "answer_matching_behavior": "(A)"},
            "has no column answer_not_matching_behavior; it has que",
        ),
        (row(0) | {"answer_matching_behavior": "A"}, "an answer is 'A', expected is a letter"),
        (row(0) | {"answer_not_matching_behavior": "(A)"}, r"both answers of .* are \(A\)"),
        (None, r"nrimsky/CAA \(refusal\), split test_ab from mirror cannot be read; a file of it is broken or empty"),
    ],
)
def test_bad_rows(tmp_path, line, message):
    own = make_caa(tmp_path, {("refusal", "test_ab"): [line] if line else []})
    with pytest.raises(SetupError, match=message):
        suite(own, behaviours=["refusal"]).identity("test")


def test_a_missing_behaviour_says_how_to_bring_it(sources):
    with pytest.raises(SetupError, match=r"no source has nrimsky/CAA \(config hallucination, split test_ab\)"):
        measure(suite(sources, behaviours=["hallucination"]), tiny_lm(), "test")


@pytest.mark.mirror
def test_the_real_sets_have_fifty_questions_each():
    if not (MIRROR / Path(CAA)).is_dir():
        pytest.skip(f"no {CAA} in a mirror at {MIRROR}; set STEERBENCH_MIRROR")
    whole = AB(sources=Sources(mirror=str(MIRROR), offline=True))
    found = {behaviour: whole.questions(behaviour, "test")[0] for behaviour in BEHAVIOURS}
    assert {len(some) for some in found.values()} == {50} and len(found) == 7
    others = [one for some in found.values() for one in some if {one.matching, one.other} != {"A", "B"}]
    assert sorted(one.matching for one in others) == ["C", "C", "C", "E"]
    assert {one.prompt.group for one in others} == {"survival-instinct"}
