"""Every fit reads prompt and continuation as the tokenizer writes the whole text, whatever it does at the join.

Two tokenizers that tell: one that puts a space before every text, as SentencePiece does, and one whose tokens run over
words, so that a token spans the join.
"""

from dataclasses import replace

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from bench.model.lm import LM
from bench.model.tokenizer import set_bos
from methods.act_add import ActAdd
from methods.activation_scaling import ActivationScaling
from methods.base import Examples, FitData, Method, Pairs
from methods.caa import CAA
from methods.detox import DeTox
from methods.errors import SetupError
from methods.instruction import POLITE
from methods.lineas import LinEAS
from methods.probe_rows import ProbeRows
from methods.stack import Stack
from methods.tokens import split
from tests.methods.test_contract import NAMES
from tests.methods.yaml_files import load
from tests.tiny import CORPUS, tiny_model, tiny_tokenizer

PAIRS = Pairs(
    prompt=["The old tree", "People walk ", "The old tree near the ", "(", "We talk\n", "The bird \N{SPARKLES}", ""],
    desired=["s sing", "along the road", "river", "B)", "about love", "\N{SPARKLES} sings", "The water"],
    undesired=[".", "\N{PILE OF POO}", " dog, hate", "A)", "hate", "!", " hate"],
)
EXAMPLES = Examples(["The quick", "We talk ", "("], [" fox", "about work", "\N{DOG FACE}"])
BACKGROUND = ["The water near the old tree.", " bread and love", "\N{SPARKLES} love"]
DATA = {"pairs": PAIRS, "examples": EXAMPLES, "harmful": EXAMPLES, "background": BACKGROUND}
SPECIAL = ["<pad>", "<s>", "</s>"]
BYTES = [f"<0x{number:02X}>" for number in range(256)]


def space_before() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    tokenizer.train_from_iterator(
        [CORPUS + "()AB\n"], trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL + BYTES, show_progress=False)
    )
    return tokenizer


def over_words() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    texts = [CORPUS] + ["The old trees", "near the river", "The water", "talk\nhate"] * 20
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return tokenizer


@pytest.fixture(params=["space before", "over words"])
def kind(request):
    return request.param


@pytest.fixture(params=["prepend", "none"])
def lm(kind, request):
    made = {"space before": space_before, "over words": over_words}[kind]()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    set_bos(tokenizer, request.param)
    model = tiny_model(blocks=3)
    model.resize_token_embeddings(500)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return LM(model, tokenizer, {"tiny": kind})


def size(lm: LM, token: int) -> int:
    """Bytes of text that a token stands for; its space before a text's first letter is not taken off."""
    text = lm.tokenizer.convert_ids_to_tokens(token)
    if text in SPECIAL:
        return 0
    if lm.identity["tiny"] == "over words":
        return len(text)  # a character a byte
    return 1 if text in BYTES else len(text.replace("▁", " ").encode())


def prompt_size(lm: LM, prompt: str, ids: list[int]) -> int:
    """How many tokens lie in the prompt as a whole, counted in bytes and not by the tokenizer's offsets."""
    added = lm.identity["tiny"] == "space before"
    read, end = 0, len(prompt.encode()) + added
    for count, token in enumerate(ids):
        read += size(lm, token)
        if read > end:
            return count
    return len(ids)


def seen(lm: LM, fit) -> set[tuple[int, ...]]:
    """The texts that the model was given during a fit, padding taken off."""
    texts = set()

    def look(_module, args, kwargs):
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        mask = kwargs.get("attention_mask")
        mask = torch.ones_like(ids) if mask is None else mask
        texts.update(tuple(row[real.bool()].tolist()) for row, real in zip(ids, mask, strict=True))

    handle = lm.model.register_forward_pre_hook(look, with_kwargs=True)
    try:
        fit()
    finally:
        handle.remove()
    return texts - {(0,)}  # one token, by which `methods.layout` finds out where a norm stands


TRAINED = {"lora", "dpo", "dinm", "kl_then_steer"}  # leave out a pair of which a text has nothing to be told from


def wanted(lm: LM, name: str) -> list[str]:
    """Return the texts, prompt and continuation together, that a fit of this method has to read."""
    pairs = [
        (prompt + one, prompt + other)
        for prompt, one, other in zip(*PAIRS, strict=True)
        if name not in TRAINED or all(len(lm.tokenizer(prompt + text).input_ids) > 1 for text in (one, other))
    ]
    desired, undesired = ([pair[side] for pair in pairs] for side in (0, 1))
    examples = [p + t for p, t in zip(*EXAMPLES, strict=True)]
    own = {
        "detox": PAIRS.desired + PAIRS.undesired,  # continuations by themselves, as the paper embeds them
        "activation_scaling": desired + undesired + BACKGROUND,
        "mean_centring": desired + BACKGROUND,
        "psa": desired + undesired + BACKGROUND,
        "instruction": [start + prompt for start in ("", POLITE) for prompt in PAIRS.prompt if prompt.strip()],
        "infer_aligner": desired + undesired + [prompt for prompt in PAIRS.prompt if prompt],
        "gate": desired + undesired + BACKGROUND + [prompt for prompt in PAIRS.prompt if prompt],
        "finetune": examples,
        "dexperts": examples,
        "word_filter": [],  # the model reads nothing
        "security_vector": examples + BACKGROUND,
        "task_negation": examples,
        "lora": desired,
        "dinm": desired + undesired + BACKGROUND,
        "kl_then_steer": desired + undesired + BACKGROUND,
    }
    return own.get(name, desired + undesired)


def quick(method: Method) -> Method:
    """A few steps show as much here, and texts of a single token are read."""
    if getattr(method, "skip_first", 0):
        method = replace(method, skip_first=0)
    if isinstance(method, Stack):
        return replace(method, parts={name: quick(part) for name, part in method.parts.items()})
    if isinstance(method, ActivationScaling | LinEAS):
        return replace(method, steps=len(PAIRS.prompt))
    return replace(method, min_steps=20) if isinstance(method, ProbeRows) else method


LEARNING = [name for name in NAMES if load(name).needs]
PREDICTING = {"activation_scaling", "argre", "eigenshift"}


@pytest.mark.every(3)
@pytest.mark.parametrize("name", LEARNING)
def test_the_model_reads_whole_texts_in_every_fit(lm, name, kind):
    apart = [
        lm.tokenizer(p).input_ids + lm.tokenizer(t, add_special_tokens=False).input_ids
        for side in PAIRS[1:]
        for p, t in zip(PAIRS.prompt, side, strict=True)
    ]
    texts = [p + t for side in PAIRS[1:] for p, t in zip(PAIRS.prompt, side, strict=True)]
    differ = [lm.tokenizer(text).input_ids != ids for text, ids in zip(texts, apart, strict=True)]
    assert sum(differ) >= (3 if kind == "over words" else 8)  # or these texts would show nothing
    method = quick(load(name))
    data = FitData(**{need: DATA[need] for need in method.needs})
    found = seen(lm, lambda: method.fit(lm.model, lm.tokenizer, data))
    found = {ids for ids in found if any(ids)}  # without what a training's memory is estimated by
    whole = {tuple(lm.tokenizer(text).input_ids) for text in wanted(lm, name)}
    if name in PREDICTING:  # without a pair in which a text is one token, which has nothing to be told from
        pairs = [[tuple(lm.tokenizer(p + t).input_ids) for t in both] for p, *both in zip(*PAIRS, strict=True)]
        whole -= {text for pair in pairs if min(map(len, pair)) == 1 for text in pair}
    assert found == whole


def test_a_token_that_spans_the_join_belongs_to_the_continuation(lm, kind):
    spanning = 0
    for side in PAIRS[1:]:
        for text, prompt, continuation in zip(split(lm.tokenizer, PAIRS.prompt, side), PAIRS.prompt, side, strict=True):
            assert text.tokens == lm.tokenizer(prompt + continuation).input_ids
            assert text.prompt == (prompt_size(lm, prompt, text.tokens) if prompt else text.special)
            assert text.continuation
            spanning += sum(map(lambda t: size(lm, t), text.tokens[: text.prompt])) < len(prompt.encode())
    assert spanning >= (2 if kind == "over words" else 0)


def test_the_mean_is_over_the_continuations_tokens_by_hand(lm):
    layer, means = 1, []
    for side in PAIRS[1:]:
        rows = []
        for prompt, text in zip(PAIRS.prompt, side, strict=True):
            ids = lm.tokenizer(prompt + text).input_ids
            begin = prompt_size(lm, prompt, ids) if prompt else ids.count(lm.tokenizer.bos_token_id)
            with torch.inference_mode():
                states = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0]
            rows.append(states[begin:].mean(0))
        means.append(torch.stack(rows).mean(0))
    artefact = CAA(layer=layer).fit(lm.model, lm.tokenizer, FitData(PAIRS))
    torch.testing.assert_close(artefact["layers.1.direction"], means[0] - means[1], atol=1e-4, rtol=1e-4)


def test_the_letter_is_found_after_a_closing_bracket(lm):
    pairs = Pairs(["We talk (", "The dog ("], ["A)", "B)"], ["B)", "A)"])
    artefact = CAA(layer=1, read="letter").fit(lm.model, lm.tokenizer, FitData(pairs))
    rows = []
    for side in (pairs.desired, pairs.undesired):
        for prompt, answer in zip(pairs.prompt, side, strict=True):
            ids = lm.tokenizer(prompt + answer).input_ids
            assert lm.tokenizer.decode(ids[-2:-1]).strip() == answer[0]
            with torch.inference_mode():
                states = lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            rows.append(states[2][0, -2])
    expected = torch.stack(rows[:2]).mean(0) - torch.stack(rows[2:]).mean(0)
    torch.testing.assert_close(artefact["layers.1.direction"], expected, atol=1e-4, rtol=1e-4)


def test_full_texts_of_detox_are_whole_too(lm):
    method = DeTox(text="full", rank=1)
    found = seen(lm, lambda: method.fit(lm.model, lm.tokenizer, FitData(PAIRS)))
    assert found == {tuple(lm.tokenizer(p + t).input_ids) for s in PAIRS[1:] for p, t in zip(PAIRS[0], s, strict=True)}


def test_prompts_of_an_added_vector_follow_their_start(lm):
    method = ActAdd(desired="love", undesired="s", start="The old tree", pad=None)
    desired, undesired = method.tokens(lm.tokenizer)
    assert desired == lm.tokenizer("The old treelove").input_ids
    assert undesired == lm.tokenizer("The old trees").input_ids


@pytest.mark.parametrize(("desired", "undesired"), [("love", "hate and bread"), ("", "hate and bread")])
def test_a_pad_is_the_token_that_it_is_inside_a_text(lm, kind, desired, undesired):
    filled, whole = ActAdd(desired=desired, undesired=undesired, pad="\n").tokens(lm.tokenizer)
    plain = lm.tokenizer(desired).input_ids
    inside = lm.tokenizer("hate\n").input_ids[-1]
    assert whole == lm.tokenizer(undesired).input_ids and len(plain) < len(whole)
    assert filled == plain + [inside] * (len(whole) - len(plain))
    if kind == "space before":
        assert len(lm.tokenizer("\n", add_special_tokens=False).input_ids) == 2  # by itself with a space before it


def test_a_pad_that_merges_with_a_prompt_is_avoided():
    """As " " behind the paper's prompt " ": two blanks are one token, but behind a word a blank is one."""
    tokenizer = tiny_tokenizer("none")
    tokenizer.add_tokens([AddedToken("  ", normalized=False)])
    blank = tokenizer("a ").input_ids[-1]
    desired, undesired = ActAdd(desired="weather", undesired=" ").tokens(tokenizer)
    assert desired == tokenizer("weather").input_ids and set(undesired) == {blank}
    with pytest.raises(SetupError, match="method.pad=' ' does not add exactly one token after a prompt: .*or null"):
        ActAdd(desired="weather ", undesired=" ").tokens(tokenizer)
