"""Texts that are longer than a method or the model reads lose the left of their prompt, are counted, or are refused."""

from dataclasses import fields, replace

import pytest
import torch

from methods.base import Examples, FitData, Pairs
from methods.errors import SetupError
from methods.tokens import encode, encode_pairs
from tests.methods.test_contract import NAMES
from tests.methods.yaml_files import load
from tests.tiny import tiny_lm

NEEDS = {name: load(name).needs for name in NAMES}
LEARNING = [name for name in NAMES if NEEDS[name] and name != "word_filter"]  # whose model reads nothing in a fit
NO_CONTRAST = ("mean_centring", "instruction", "stack", "gate")
CONTRASTING = [name for name in LEARNING if name not in NO_CONTRAST and "pairs" in NEEDS[name]]
LIMIT = 40  # of the method where it has an option, else of the model
SHORT = Pairs(["The fox", "We talk", "People walk"], [" sings", " on", " home"], [" is old", " of hate", " over"])
WORD = " the"  # one token, so that a prompt can be cut by hand


def learner(name: str, lm):
    """A method that reads at most LIMIT tokens, and the whole text; the model's own limit where it has no option."""
    method = load(name)
    options = {
        "max_tokens": LIMIT,
        "text": "full",
        "min_steps": 20,
        "steps": 3,
        "vector_epochs": 1,
        "rank": 1,
        "instruction": " love",
    }
    known = {field.name for field in fields(method)}
    if "max_tokens" not in known or name == "gate":  # whose method inside has none
        lm.model.config.max_position_embeddings = LIMIT
    if name == "stack":
        first = replace(method.parts["first"], min_steps=20)
        return replace(method, parts={**method.parts, "first": first})
    return replace(method, **{key: value for key, value in options.items() if key in known})


def data(prompt: str, method) -> FitData:
    """Short texts, and one behind this prompt; its undesired text is the longer one."""
    pairs = Pairs([*SHORT.prompt, prompt], [*SHORT.desired, " river"], [*SHORT.undesired, " bread and the"])
    examples = Examples(pairs.prompt, pairs.undesired)
    known = {"pairs": pairs, "examples": examples, "harmful": examples, "background": SHORT.prompt}
    return FitData(**{need: known[need] for need in method.needs})


@pytest.mark.parametrize("name", LEARNING)
def test_a_long_prompt_is_cut_from_the_left_and_counted(name):
    lm = tiny_lm(blocks=3)
    method = learner(name, lm)
    assert len(lm.tokenizer(WORD, add_special_tokens=False).input_ids) == 1
    tail = {"mean_centring": " river", "instruction": " love"}.get(name, " bread and the")  # what it reads as well
    room = LIMIT - 1 - len(lm.tokenizer(tail, add_special_tokens=False).input_ids)  # BOS stays
    long, short = (method.fit(lm.model, lm.tokenizer, data(WORD * n, method)) for n in (3 * LIMIT, room))
    assert long.keys() == short.keys()
    for key, tensor in long.items():
        if ".cut_" not in key:
            assert torch.equal(tensor, short[key]), key
    counted = {key: int(value) for key, value in long.items() if ".cut_" in key}
    own = {"finetune": ["examples"], "security_vector": ["examples", "harmful", "background"],
           "task_negation": ["harmful"], "dexperts": ["harmful"]}  # fmt: skip
    both = ("mean_centring", "psa", "activation_scaling", "dinm", "kl_then_steer")
    wanted = ["pairs", "background"] if name in both else own.get(name, ["pairs"])
    if name == "stack":
        assert counted == {"info.first.cut_pairs": 1, "info.second.cut_pairs": 1}
    elif name == "gate":
        assert counted == {"info.inner.cut_pairs": 1, "info.cut_pairs": 1, "info.cut_background": 0}
    else:
        assert counted == {f"info.cut_{what}": int(what != "background") for what in wanted}
    assert not any(int(value) for key, value in short.items() if ".cut_" in key)


@pytest.mark.parametrize("name", CONTRASTING)
def test_what_differs_is_cut_off(name):
    lm = tiny_lm(blocks=3)
    method = learner(name, lm)
    same = WORD * 3 * LIMIT
    pairs = Pairs([*SHORT.prompt, "The"], [*SHORT.desired, same + " river"], [*SHORT.undesired, same])
    with pytest.raises(SetupError, match=f"pair 4: .* cut to {LIMIT} they are the same: the part that differs"):
        method.fit(lm.model, lm.tokenizer, FitData(pairs, background=SHORT.prompt))


@pytest.mark.every(4)
@pytest.mark.parametrize("name", CONTRASTING)
def test_a_pair_of_600_tokens_is_read_whole(name):
    """It was cut at 512 from the right, so that both texts were the same."""
    lm = tiny_lm(blocks=3)
    lm.model.config.max_position_embeddings = 2048
    method = load(name)
    known = {field.name for field in fields(method)}
    options = {"max_tokens": 2048, "text": "full", "min_steps": 20, "steps": 3, "rank": 1}
    method = replace(method, **{key: value for key, value in options.items() if key in known})
    pairs = Pairs([WORD * 600] * 3, SHORT.desired, SHORT.undesired)
    artefact = method.fit(lm.model, lm.tokenizer, FitData(pairs, background=SHORT.prompt))
    assert artefact["info.cut_pairs"] == 0


@pytest.mark.parametrize("bos", ["prepend", "none"])
def test_both_texts_of_a_pair_lose_the_same(bos):
    lm = tiny_lm(bos=bos)
    lm.model.config.max_position_embeddings = 12
    pairs = Pairs([WORD * 30], [" river"], [WORD * 5])
    found = encode_pairs(lm.model, lm.tokenizer, pairs)
    ((one,), (other,)) = found.desired, found.undesired
    begin = [1] * (bos == "prepend")
    word = lm.tokenizer(WORD, add_special_tokens=False).input_ids
    river = lm.tokenizer(" river", add_special_tokens=False).input_ids
    kept = 12 - max(5, len(river)) - len(begin)
    assert found.cut == 1 and one.tokens == begin + word * kept + river and other.tokens == begin + word * (kept + 5)
    assert one.prompt == other.prompt == len(begin) + kept


def test_a_continuation_that_is_too_long_by_itself_loses_its_end():
    lm = tiny_lm(blocks=3)
    words = lm.tokenizer("The old tree near the river", add_special_tokens=False).input_ids
    ((text, fits), cut) = encode(lm.model, lm.tokenizer, [WORD * 3, ""], ["The old tree near the river", "a"], 5)
    assert cut == 1 and text.tokens == [1, *words[:4]] and text.prompt == 1
    assert fits.tokens == lm.tokenizer("a").input_ids


@pytest.mark.parametrize("limit", [0, -5])
def test_a_limit_below_one_is_refused(limit):
    lm = tiny_lm(blocks=3)
    with pytest.raises(SetupError, match=f"method.max_tokens={limit}: expected at least 1"):
        encode(lm.model, lm.tokenizer, ["The old"], [" tree"], limit)
    with pytest.raises(SetupError, match=f"method.max_tokens={limit}: expected at least 1"):
        encode_pairs(lm.model, lm.tokenizer, Pairs(["The old"], [" tree"], [" dog"]), limit)
