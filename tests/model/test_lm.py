import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from bench.model.lm import LM, load_lm
from bench.model.log_likelihood import log_likelihood
from bench.model.sampling import prefill, sample
from bench.model.tokenizer import set_bos
from methods import CAA, ActAdd, Instruction, MeanCentring, SelfDebias, WordFilter, layout
from methods.base import FitData, Pairs, Steering
from methods.decoding import Step
from methods.errors import SetupError
from methods.intervention import Hook, current_positions, hooked
from tests.methods.test_contract import PAIRS
from tests.tiny import CONFIGS, tiny_lm, tiny_model, tiny_tokenizer

BOS, EOS = 1, 2
CHAT = (
    "{{ '<s>' }}{% for m in messages %}[{{ m['role'] }}: {{ m['content'] }}]{% endfor %}"
    "{% if add_generation_prompt %}[assistant: {% endif %}"
)


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama on disk, its tokenizer set to prepend BOS by itself."""
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer("prepend").save_pretrained(tmp_path)
    return tmp_path


class Shift:
    """Adds a constant at one block's output everywhere, with a prefix; counts how often it was entered."""

    name = "shift"

    def __init__(self, next_logits=None):
        self.entered = self.left = 0
        self.next_logits = next_logits

    @contextmanager
    def apply(self, model, artefact, strength):
        self.entered += 1
        with hooked([Hook(layout.blocks(model)[1], "output", lambda hidden: hidden + strength)]):
            try:
                yield Steering(prefix="Be kind. ", next_logits=self.next_logits)
            finally:
                self.left += 1


def logits(lm: LM, prompt: str = "the old tree") -> torch.Tensor:
    return prefill(lm, [lm.encode(prompt)])[1]


def test_bos_prepend_puts_it_once_and_none_never(folder):
    plain = tiny_tokenizer("none")("the old tree").input_ids
    assert BOS not in plain
    assert load_lm(str(folder), bos="prepend").encode("the old tree") == [BOS, *plain]
    lm = load_lm(str(folder), bos="none")
    assert lm.encode("the old tree") == plain
    assert lm.tokenizer("a b", add_special_tokens=False).input_ids == lm.tokenizer("a b").input_ids
    again = load_lm(str(folder), bos="prepend")
    set_bos(again.tokenizer, "prepend")
    assert again.encode("the old tree") == [BOS, *plain]


@pytest.mark.parametrize("bos", ["prepend", "none"])
def test_an_empty_prompt_is_one_token(bos):
    assert tiny_lm(bos=bos).encode("") == [BOS]


def test_an_empty_prompt_without_any_special_token():
    lm = tiny_lm(bos="none")
    lm.tokenizer.bos_token = lm.tokenizer.eos_token = None
    with pytest.raises(SetupError, match="neither BOS nor EOS"):
        lm.encode("")


def test_bos_errors():
    tokenizer = tiny_tokenizer("none")
    with pytest.raises(SetupError, match="allowed are tokenizer, prepend, none"):
        set_bos(tokenizer, "always")
    tokenizer.bos_token = None
    with pytest.raises(SetupError, match=r"no BOS token; set model\.bos=none"):
        set_bos(tokenizer, "prepend")


def test_prefix_stands_before_a_plain_prompt():
    lm = tiny_lm()
    with lm.steered(Shift(), {}, 1.0) as steered:
        assert steered.encode("the old tree") == lm.encode("Be kind. the old tree")


def test_a_chat_prefix_is_the_system_message_with_one_bos(folder):
    tokenizer = tiny_tokenizer("prepend")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    lm = load_lm(str(folder), bos="prepend", chat=True)
    assert lm.tokenizer.decode(lm.encode("hi")) == "<s>[user: hi][assistant: "
    assert lm.encode("hi").count(BOS) == 1
    with lm.steered(Shift(), {}, 1.0) as steered:
        assert lm.tokenizer.decode(steered.encode("hi")) == "<s>[system: Be kind. ][user: hi][assistant: "
    assert lm.identity["chat"] is True


def test_chat_without_a_template(folder):
    with pytest.raises(SetupError, match=r"no chat template; set model\.chat=false"):
        load_lm(str(folder), chat=True)


def test_a_folder_without_weights_or_without_anything(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(SetupError, match=r"cannot load a model from .*give a folder with config\.json"):
        load_lm(str(folder))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SetupError, match="cannot load a model"):
        load_lm(str(empty))
    with pytest.raises(SetupError, match="cannot load a model"):
        load_lm(str(tmp_path / "missing"))


def test_loaded_model_is_ready_and_named(folder):
    lm = load_lm(str(folder), dtype="bfloat16", identity={"path": "x", "fingerprint": "abc"})
    assert not lm.model.training and not any(p.requires_grad for p in lm.model.parameters())
    assert lm.model.dtype == torch.bfloat16
    expected = {
        "path": "x",
        "fingerprint": "abc",
        "dtype": "bfloat16",
        "device": "cpu",
        "bos": "prepend",
        "chat": False,
    }
    assert expected.items() <= lm.identity.items()
    assert lm.identity["threads"] == torch.get_num_threads()
    assert lm.max_length == 256 and lm.stop_tokens == {EOS}


def test_a_tokenizer_without_pad_token_gets_one(folder):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert load_lm(str(folder)).tokenizer.pad_token_id == EOS


@pytest.mark.parametrize("architecture", CONFIGS)
def test_padding_on_either_side_changes_no_logit(architecture):
    lm = tiny_lm(architecture)
    texts = [lm.encode("the old tree near the river"), lm.encode("bread")]
    width, short = len(texts[0]), len(texts[1])
    single = [prefill(lm, [text])[1][0] for text in texts]
    left = prefill(lm, texts)[1]
    ids = torch.tensor([texts[0], texts[1] + [7] * (width - short)])
    real = torch.tensor([[True] * width, [True] * short + [False] * (width - short)])
    right = lm.read(lm.start(torch.tensor([width, short])), ids, real)
    for i, last in enumerate((width - 1, short - 1)):
        torch.testing.assert_close(left[i], single[i], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(right[i, last], single[i], atol=1e-4, rtol=1e-4)


def test_hooks_are_told_where_each_forward_stands():
    lm = tiny_lm()
    seen = []

    def look(hidden):
        told = current_positions()._asdict()
        seen.append({name: told[name].tolist() for name in ("first", "length", "cached", "prompt")})
        return hidden

    with hooked([Hook(layout.blocks(lm.model)[0], "input", look)]):
        rows, _ = prefill(lm, [[BOS, 40, 41, 42], [BOS, 43]])
        rows.select(torch.tensor([1, 0, 1]))  # as when samples share a prompt
        step, real = torch.tensor([[50], [51], [52]]), torch.ones(3, 1, dtype=torch.bool)
        lm.read(rows, step, real)
        rows.select(torch.tensor([1, 2]))
        chunk = torch.tensor([[60, 61, 62], [63, 0, 0]])
        lm.read(rows, chunk, torch.tensor([[True, True, True], [True, False, False]]))
        lm.read(rows, torch.tensor([[70], [71]]), torch.ones(2, 1, dtype=torch.bool))
    assert seen == [
        {"first": [0, 2], "length": [4, 2], "cached": [0, 0], "prompt": [4, 2]},
        {"first": [0, 0, 0], "length": [1, 1, 1], "cached": [2, 4, 2], "prompt": [2, 4, 2]},
        {"first": [0, 0], "length": [3, 1], "cached": [5, 3], "prompt": [4, 2]},
        {"first": [0, 0], "length": [1, 1], "cached": [8, 4], "prompt": [4, 2]},
    ]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_reading_in_pieces_equals_reading_at_once(architecture):
    """Also where a row's earlier piece was padded on the right: those cache columns stay unseen."""
    lm = tiny_lm(architecture)
    text = [BOS, 40, 41, 42, 43, 44, 45]
    whole = prefill(lm, [text])[1][0]
    rows = lm.start(torch.tensor([3, 3]))
    lm.read(rows, torch.tensor([text[:3], text[:3]]), torch.ones(2, 3, dtype=torch.bool))
    lm.read(rows, torch.tensor([[42, 43, 44], [42, 9, 9]]), torch.tensor([[True] * 3, [True, False, False]]))
    rows.select(torch.tensor([1]))
    pieces = lm.read(rows, torch.tensor([[43, 44, 45]]), torch.ones(1, 3, dtype=torch.bool))[0, -1]
    torch.testing.assert_close(pieces, whole, atol=1e-4, rtol=1e-4)


def test_after_the_block_the_model_is_the_base_again():
    lm, method = tiny_lm(), Shift()
    base = logits(lm)
    with lm.steered(method, {}, 2.0, {"method": "shift"}) as steered:
        assert steered.steering_identity == {"method": "shift"} and lm.steering_identity is None
        inside = logits(steered)
        assert not torch.allclose(inside, base)
    assert torch.equal(logits(lm), base)
    with pytest.raises(KeyError), lm.steered(method, {}, 2.0) as steered:
        assert torch.equal(logits(steered), inside)
        raise KeyError
    assert torch.equal(logits(lm), base)
    assert method.entered == method.left == 2


def test_strength_zero_is_the_unsteered_model_itself():
    lm, method = tiny_lm(), Shift()
    with lm.steered(method, {}, 0) as steered:
        assert steered is lm
    assert method.entered == 0


def test_decoding_time_steering_reaches_every_logit():
    lm = tiny_lm()
    shapes = []

    def forbid(step: Step) -> torch.Tensor:
        shapes.append(step.logits.shape)
        return step.logits.index_fill(-1, torch.tensor([5]), -torch.inf)

    ids = torch.tensor([lm.encode("the old tree")] * 2)
    with lm.steered(Shift(forbid), {}, 1e-9) as steered:
        out = steered.read(steered.start(torch.tensor([2, 2])), ids, torch.ones_like(ids, dtype=torch.bool))
    assert out.shape[:2] == ids.shape and shapes == [out.shape]
    assert torch.isinf(out[..., 5]).all() and torch.isfinite(out[..., 6:]).all()


def test_a_steered_model_is_refused_after_its_with():
    """Its weights and hooks are undone then, and only what it does while decoding would be left."""
    lm, word_filter = tiny_lm(), WordFilter(words=str(Path(__file__).parents[1] / "methods" / "words.txt"))
    with lm.steered(word_filter, word_filter.fit(lm.model, lm.tokenizer, FitData()), 4) as steered:
        inside = sample(steered, ["the fox"], num_samples=2, max_new_tokens=3)
    assert len(inside[0]) == 2 and sample(lm, ["the fox"], num_samples=1, max_new_tokens=3)
    for use in (lambda: sample(steered, ["the fox"]), lambda: log_likelihood(steered, ["the"], [" fox"])):
        with pytest.raises(SetupError, match="steered at strength 4 of word_filter inside a `with` that has ended"):
            use()


def test_only_the_steered_lm_is_used_inside_its_with():
    """The weights and hooks are those of the steered model, whatever another LM of the model is called."""
    lm = tiny_lm()
    caa = CAA(layer=1, scope="all")
    artefact = caa.fit(lm.model, lm.tokenizer, FitData(pairs=PAIRS))
    with lm.steered(caa, artefact, 2.0) as steered:
        with pytest.raises(SetupError, match="now, at strength 2 of caa, .* for strength 0 .unsteered"):
            sample(lm, ["the fox"], num_samples=1, max_new_tokens=2)
        with (
            pytest.raises(SetupError, match="steered already, at strength 2 of caa"),
            steered.steered(caa, artefact, 1),
        ):
            pass
        inside = sample(steered, ["the fox"], num_samples=1, max_new_tokens=2)
    assert len(inside[0]) == 1 and sample(lm, ["the fox"], num_samples=1, max_new_tokens=2)


@pytest.mark.parametrize("inner", [Shift(), WordFilter(words=str(Path(__file__).parents[1] / "methods" / "words.txt"))])
def test_a_steered_model_is_not_steered_once_more(inner):
    """By the same unsteered LM, or by another LM of the model; the refusal leaves the outer steering as it is."""
    lm = tiny_lm()
    with lm.steered(Shift(), {}, 2.0) as steered:
        inside = logits(steered)
        for again in (lm, LM(lm.model, lm.tokenizer, {})):
            with (
                pytest.raises(SetupError, match="steered already, at strength 2 of shift"),
                again.steered(inner, {}, 1),
            ):
                pass
            with pytest.raises(SetupError, match="now, at strength 2 of shift, .* for strength 0 .unsteered"):
                logits(again)
        assert torch.equal(logits(steered), inside)
    assert not torch.equal(logits(lm), inside)


def test_generators_that_steer_leave_the_model_as_it_was():
    """Closed in the order in which they were opened, two would restore each other's weights."""
    lm = tiny_lm()
    base = logits(lm)

    def steer():
        with lm.steered(Shift(), {}, 1.0) as steered:
            yield logits(steered)

    first, second = steer(), steer()
    next(first)
    with pytest.raises(SetupError, match="steered already, at strength 1 of shift"):
        next(second)
    first.close()
    second.close()
    assert torch.equal(logits(lm), base)


def test_threads_do_not_steer_a_model_together():
    lm, both, found = tiny_lm(), threading.Barrier(2), []

    class Meet(Shift):
        @contextmanager
        def apply(self, model, artefact, strength):
            with super().apply(model, artefact, strength) as steering:
                both.wait(60)  # until the other thread was refused
                yield steering

    def steer():
        try:
            with lm.steered(Meet(), {}, 1.0):
                found.append("steered")
        except SetupError as error:
            found.append(str(error))
            both.wait(60)

    threads = [threading.Thread(target=steer) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused, steered = sorted(found, key=lambda one: one == "steered")
    assert steered == "steered" and "steered already, at strength 1 of shift" in refused


@pytest.mark.parametrize("strength", ["2", None, float("nan"), float("inf"), True])
def test_a_strength_that_is_no_finite_number_is_refused(strength):
    lm, method = tiny_lm(), Shift()
    told = rf"strength={strength!r} of shift: expected a finite number"
    with pytest.raises(SetupError, match=told), lm.steered(method, {}, strength):
        pass
    assert not method.entered


FITS = {
    "caa": (CAA(layer=1), Pairs(["the <extra>"] * 3, [" is", " a", " b"], [" was", " c", " d"])),
    "background": (MeanCentring(), Pairs(["the"] * 3, [" is", " <extra>", " b"], [" was", " c", " d"])),
    "act_add": (ActAdd(desired="<extra>", undesired=" hate", pad=None), None),
    "instruction": (Instruction(instruction="<extra>"), PAIRS),
    "self_debias": (SelfDebias(unwanted=["<extra>"]), None),
}


@pytest.mark.parametrize("name", ["sample", *FITS])
def test_a_token_that_the_model_lacks_is_named(name):
    lm = tiny_lm()
    lm.tokenizer.add_tokens(["<extra>"])
    with pytest.raises(SetupError, match=r"a text holds '<extra>', token \d+ of the tokenizer"):
        if name == "sample":
            sample(lm, ["the <extra> fox"])
        method, pairs = FITS[name]
        method.fit(lm.model, lm.tokenizer, FitData(pairs=pairs, background=["a b", "c d", "e f"]))


@pytest.mark.parametrize("name", ["caa", "act_add", "instruction"])
def test_a_steered_model_is_not_learned_from(name):
    lm, (method, _) = tiny_lm(), FITS[name]
    with lm.steered(Shift(), {}, 1.0), pytest.raises(SetupError, match="steered now, and a method would learn from"):
        method.fit(lm.model, lm.tokenizer, FitData(pairs=PAIRS))
    CAA(layer=1).fit(lm.model, lm.tokenizer, FitData(pairs=PAIRS))
