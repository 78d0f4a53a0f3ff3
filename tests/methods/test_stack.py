from contextlib import nullcontext

import pytest
import torch

from bench.records import identity
from bench.selftest.subject import logits
from methods.act_add import ActAdd
from methods.base import FitData, Pairs, Steering
from methods.caa import CAA
from methods.decoding import Step
from methods.detox import DeTox
from methods.dexperts import DExperts
from methods.eigenshift import EigenShift
from methods.errors import SetupError
from methods.lora import LoRA
from methods.prompt import Prompt
from methods.stack import Stack, _in_order
from methods.word_filter import WordFilter
from tests.methods.test_contract import PAIRS
from tests.tiny import tiny_lm

DETOX, SECOND = DeTox(rank=1, layer_start=1), CAA(layer=3)


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


def stack(**at: float) -> Stack:
    return Stack(parts={"first": DETOX, "second": SECOND}, at=at or {"first": 0.8, "second": 2.0})


@pytest.mark.parametrize("later", [EigenShift(), CAA(layer=2), LoRA(), stack()], ids=lambda one: one.name)
def test_dexperts_comes_after_all_parts_that_change_the_model(lm, later):
    """Else the form of the later part, hooks or weights, would decide whether the anti-expert is changed, too."""
    experts, words = DExperts(), WordFilter(min_log_odds=-9)
    with pytest.raises(SetupError, match=r"comes after experts, which .* put experts last"):
        Stack(parts={"experts": experts, "later": later}, at={"experts": 1, "later": 1}).check(lm.model)
    inside = Stack(parts={"experts": experts}, at={"experts": 1})
    with pytest.raises(SetupError, match="put experts last"):
        Stack(parts={"inside": inside, "later": later}, at={"inside": 1, "later": 1}).check(lm.model)
    three = {"later": later, "experts": experts, "words": words}
    Stack(parts=three, at=dict.fromkeys(three, 1.0)).check(lm.model)


def test_the_second_part_is_fitted_on_the_edited_model(lm):
    found = stack().fit(lm.model, lm.tokenizer, FitData(PAIRS))
    first = DETOX.fit(lm.model, lm.tokenizer, FitData(PAIRS))
    plain = SECOND.fit(lm.model, lm.tokenizer, FitData(PAIRS))
    with DETOX.apply(lm.model, first, 0.8):
        second = SECOND.fit(lm.model, lm.tokenizer, FitData(PAIRS))
    assert torch.equal(found["first.layers.2.directions"], first["layers.2.directions"])
    assert torch.equal(found["second.layers.3.direction"], second["layers.3.direction"])
    assert not torch.equal(found["second.layers.3.direction"], plain["layers.3.direction"])
    assert torch.equal(found["info.second.direction_norm"], second["info.direction_norm"])


def test_a_part_learns_from_data_of_its_own(lm):
    own = Pairs(PAIRS.prompt, PAIRS.undesired, PAIRS.desired)
    shared, apart = (stack().fit(lm.model, lm.tokenizer, data) for data in (
        FitData(PAIRS), FitData(PAIRS, parts={"second": FitData(own)})))  # fmt: skip
    assert torch.equal(apart["first.layers.2.directions"], shared["first.layers.2.directions"])
    torch.testing.assert_close(apart["second.layers.3.direction"], -shared["second.layers.3.direction"])
    alone = stack().fit(lm.model, lm.tokenizer, FitData(parts={"first": FitData(PAIRS), "second": FitData(own)}))
    assert all(torch.equal(alone[name], tensor) for name, tensor in apart.items())
    assert stack().part_needs == {"first": {"pairs"}, "second": {"pairs"}} and SECOND.part_needs == {}


def test_it_steers_as_its_parts_in_order(lm):
    found = stack().fit(lm.model, lm.tokenizer, FitData(PAIRS))
    parts = [{k.removeprefix(f"{n}."): t for k, t in found.items() if k.startswith(n)} for n in ("first", "second")]
    with DETOX.apply(lm.model, parts[0], 0.4), SECOND.apply(lm.model, parts[1], 1.0):
        expected = logits(lm)
    with stack().apply(lm.model, found, 0.5):
        assert torch.equal(logits(lm), expected)


def test_prefixes_and_functions_of_the_logits_run_in_order(lm):
    pair = Stack(parts={"a": Prompt(prompts=["One. "]), "b": Prompt(prompts=["Two. "])}, at={"a": 1, "b": 1})
    with pair.apply(lm.model, {}, 1) as steering:
        assert steering == Steering("One. Two. ")
    none = torch.zeros(0)
    step = Step(torch.tensor(3.0), none, none, none, none, Recorder())
    assert _in_order([lambda x: x.logits + 1, lambda x: x.logits * 2])(step) == 8


def test_parts_of_one_kind_have_readings_of_their_own():
    none, recorder = torch.zeros(0), Recorder()
    step = Step(torch.tensor(3.0), none, none, none, none, recorder)

    def reads(step):
        return step.streams.other("expert", nullcontext, [1]) + step.streams.ahead(step.logits)

    _in_order([reads, reads])(step)
    assert recorder.asked == [("0.expert", [1]), ("1.expert", [1])]


class Recorder:
    """Readings that note what they are asked for."""

    def __init__(self):
        self.asked = []

    def other(self, name, inside, before=()):
        self.asked.append((name, before))
        return torch.tensor(1.0)

    def ahead(self, tokens):
        return tokens


def test_it_needs_what_its_parts_need():
    assert stack().needs == {"pairs"} and Stack(parts={"a": ActAdd()}, at={"a": 1}).needs == frozenset()


@pytest.mark.parametrize("at", [{"first": 1.0}, {"first": 1.0, "second": 1.0, "third": 1.0}])
def test_each_part_has_a_strength(lm, at):
    with pytest.raises(SetupError, match="give every part a strength"):
        stack(**at).check(lm.model)


def test_a_part_that_does_not_suit_the_model_is_refused(lm):
    with pytest.raises(SetupError, match="layer 40"):
        Stack(parts={"a": CAA(layer=40)}, at={"a": 1}).check(lm.model)


def test_another_part_or_strength_is_another_fit():
    named = [identity.method_identity(one) for one in (stack(), stack(first=0.5, second=2.0))]
    named.append(identity.method_identity(Stack(parts={"first": DETOX, "second": CAA(layer=2)}, at=stack().at)))
    assert len({identity.digest(one) for one in named}) == 3
    assert identity.digest(named[0]) == identity.digest(identity.method_identity(stack()))


@pytest.mark.parametrize(
    "later", [LoRA(rank=2), ActAdd(layer=1, short_prompt="clip")], ids=["one that trains", "one that reads its prompts"]
)
def test_what_is_fitted_behind_a_method_that_steers_by_position(lm, later):
    """Its own forwards say where they stand."""
    pair = Stack(parts={"first": SECOND, "second": later}, at={"first": 2.0, "second": 1.0})
    found = pair.fit(lm.model, lm.tokenizer, FitData(PAIRS))
    assert any(name.startswith("second.") for name in found)
