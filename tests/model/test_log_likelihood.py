import random
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from bench.model import padding
from bench.model.decoding import Sampling
from bench.model.lm import Request
from bench.model.lm_eval_adapter import SteeredLM
from bench.model.log_likelihood import likelihoods
from methods import layout
from methods.base import Steering
from methods.intervention import Hook, Scope, hooked, scope_mask
from methods.progress import listening
from tests.tiny import CONFIGS, tiny_lm

CONTEXTS = ["The quick brown", "People walk along the water and talk about", "A", "the old tree near the river ", ""]
ANSWERS = [" fox", " a", " lazy dog while a small bird sings", "x", " love and hate"]


@dataclass(frozen=True)
class Push:
    """Adds a fixed vector to one block's output, at the positions of a scope."""

    name: ClassVar[str] = "push"
    scope: Scope = "all"

    @contextmanager
    def apply(self, model, artefact, strength):
        block = layout.blocks(model)[1]
        vector = strength * torch.randn(layout.width(model), generator=torch.Generator().manual_seed(1))

        def push(hidden):
            mask = scope_mask(self.scope, hidden.shape[1], front=2)
            return hidden + vector if mask is None else torch.where(mask[..., None], hidden + vector, hidden)

        with hooked([Hook(block, "output", push)]):
            yield Steering()


@dataclass(frozen=True)
class Say:
    """A prefix and nothing else."""

    name: ClassVar[str] = "say"
    family: ClassVar[str] = "prompt"

    @contextmanager
    def apply(self, model, artefact, strength):
        yield Steering(prefix="Be kind. ")


@dataclass(frozen=True)
class Favour:
    """Adds to one token's logit: decoding-time steering."""

    name: ClassVar[str] = "favour"

    @contextmanager
    def apply(self, model, artefact, strength):
        bonus = torch.zeros(model.config.vocab_size)
        bonus[70] = strength
        yield Steering(next_logits=lambda step: step.logits + bonus)


def tokens(lm, context, answer):
    return Request(lm.encode(context), lm.tokenizer(answer, add_special_tokens=False).input_ids)


def grid(lm):
    return [tokens(lm, context, answer) for context in CONTEXTS for answer in ANSWERS]


def alone(lm, request):
    """log p of one request by the plainest means: one forward over the whole text, positions set by hand."""
    from methods.intervention import Positions, at

    whole = torch.tensor([request.context + request.continuation])
    n = torch.tensor([whole.shape[1]])
    with torch.inference_mode(), at(Positions(0 * n, n, 0 * n, torch.tensor([len(request.context)]))):
        logprob = lm.model(input_ids=whole).logits[0].double().log_softmax(-1)
    start = len(request.context) - 1
    chosen = [logprob[start + i] for i in range(len(request.continuation))]
    total = sum(float(row[token]) for row, token in zip(chosen, request.continuation, strict=True))
    return total, all(int(row.argmax()) == token for row, token in zip(chosen, request.continuation, strict=True))


def asked(pairs, kind="loglikelihood"):
    return [Instance(kind, {}, arguments, i, (None, None, 1)) for i, arguments in enumerate(pairs)]


def hflm(lm, **kwargs):
    return HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=3, backend="causal", **kwargs)


@pytest.mark.every(3)
@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("scope", ["all", "front", "prompt", "generation"])
@pytest.mark.parametrize("enough", [1 / 8, 0])  # 0: contexts of unlike length are batches of their own
def test_a_shared_context_equals_one_text_alone(architecture, scope, enough, monkeypatch):
    monkeypatch.setattr("bench.model.log_likelihood.ENOUGH", enough)
    base = tiny_lm(architecture)
    with base.steered(Push(scope), {}, 2.0) as lm:
        requests = grid(lm)
        found = likelihoods(lm, requests)
        for request, one in zip(requests, found, strict=True):
            logprob, greedy = alone(lm, request)
            assert one.logprob == pytest.approx(logprob, abs=1e-4)
            assert one.greedy == greedy and one.tokens == len(request.continuation)
    unsteered = likelihoods(base, requests)
    changed = [abs(a.logprob - b.logprob) > 3e-5 for a, b in zip(found, unsteered, strict=True)]
    if scope == "generation":  # the first token of an answer is predicted from the prompt, which it leaves alone
        assert changed == [len(request.continuation) > 1 for request in requests]
    else:
        assert all(changed)


def test_order_and_batch_size_change_nothing():
    lm = tiny_lm()
    requests = grid(lm)
    there = likelihoods(lm, requests)
    shuffled = random.Random(0).sample(range(len(requests)), len(requests))
    again = likelihoods(lm, [requests[i] for i in shuffled])
    assert [there[i] for i in shuffled] == again  # bit for bit
    single = likelihoods(replace(lm, sampling=Sampling(batch_size=1)), requests)
    for a, b in zip(there, single, strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4) and a.greedy == b.greedy


@pytest.mark.parametrize("limit", ["LOGITS", "BATCH_TOKENS"])
def test_limits_split_batches_and_change_nothing(monkeypatch, limit):
    lm = tiny_lm()
    whole = likelihoods(lm, grid(lm))
    monkeypatch.setattr(f"bench.model.log_likelihood.{limit}", 40 if limit == "BATCH_TOKENS" else 300 * 7)
    shapes = []  # rows, columns, whether all columns' logits are kept

    def note(_module, _args, kwargs):
        shapes.append((*kwargs["input_ids"].shape, kwargs["logits_to_keep"] == 0))

    lm.model.register_forward_pre_hook(note, with_kwargs=True)
    for a, b in zip(whole, likelihoods(lm, grid(lm)), strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
    assert len(shapes) > 4
    if limit == "LOGITS":  # seven positions' worth; a single row may need more
        assert all((rows * columns if every else rows) <= 7 or rows == 1 for rows, columns, every in shapes)
    else:
        assert all(rows * columns <= 40 or rows == 1 for rows, columns, _ in shapes)


def test_each_context_is_read_once():
    lm = tiny_lm()
    read = []
    with listening(read.append):
        likelihoods(lm, grid(lm) * 2)
    contexts = {tuple(request.context) for request in grid(lm)}
    answers = {(tuple(r.context), tuple(r.continuation)) for r in grid(lm)}
    assert sum(read) == sum(map(len, contexts)) + sum(len(answer) - 1 for _, answer in answers)


def test_continuations_of_several_contexts_share_a_forward(monkeypatch):
    monkeypatch.setattr("bench.model.log_likelihood.ENOUGH", 0)
    lm = tiny_lm()
    padding.needs_no_gaps(lm.model)  # is found out by some forwards, once for a model
    shapes = []
    lm.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    lengths = (4, 6, 9)
    likelihoods(lm, [Request([1, *range(40, 40 + n)], [50, 51, 52, token]) for n in lengths for token in (60, 61)])
    assert shapes == [(1, 5), (1, 7), (1, 10), (6, 3)]


def test_single_token_answers_need_one_forward():
    lm = tiny_lm()
    padding.needs_no_gaps(lm.model)
    calls = []
    lm.model.register_forward_pre_hook(lambda *_: calls.append(1))
    likelihoods(lm, [Request([1, 50, 60], [token]) for token in range(40, 80)])
    assert len(calls) == 1


def test_greedy_answer_is_found():
    lm = tiny_lm()
    ids = lm.encode("The quick brown")
    best = lm.model.generate(
        torch.tensor([ids]), do_sample=False, max_new_tokens=4, attention_mask=torch.ones(1, len(ids))
    )[0, len(ids) :].tolist()
    other = [*best[:3], best[3] + 1]
    assert [one.greedy for one in likelihoods(lm, [Request(ids, best), Request(ids, other)])] == [True, False]


def test_edge_requests():
    lm = tiny_lm()
    with pytest.raises(ValueError, match="a continuation of at least one token"):
        likelihoods(lm, [Request([1], []), Request([1], [5])])
    with pytest.raises(ValueError, match="at least one token"):
        likelihoods(lm, [Request([], [5])])
    with pytest.raises(ValueError, match="exceeds the model's 256"):
        likelihoods(lm, [Request([1], [5] * 257)])


def test_decoding_time_steering_reaches_likelihood():
    base = tiny_lm()
    request = Request(base.encode("The quick"), [70])
    with base.steered(Favour(), {}, 3.0) as lm:
        (steered,) = likelihoods(lm, [request])
    (plain,) = likelihoods(base, [request])
    # the odds of the favoured token are e^3 times what they were
    p, q = torch.tensor([plain.logprob, steered.logprob]).double().exp().tolist()
    assert torch.log(torch.tensor(q / (1 - q) / (p / (1 - p)))) == pytest.approx(3.0, abs=1e-3)


@pytest.mark.parametrize("bos", ["prepend", "none"])
@pytest.mark.parametrize("strength", [0.0, 2.0])
def test_equals_hflm(bos, strength):
    base = tiny_lm(bos=bos)
    pairs = [(context, answer) for context in CONTEXTS for answer in ANSWERS]
    texts = [("The quick brown fox jumps over the lazy dog.",), ("a " * 400,), ("",)]
    with base.steered(Push(), {}, strength) as lm:
        ours, theirs = SteeredLM(lm), hflm(lm, add_bos_token=bos == "prepend")
        a, b = ours.loglikelihood(asked(pairs)), theirs.loglikelihood(asked(pairs), disable_tqdm=True)
        rolling = ours.loglikelihood_rolling(asked(texts)), theirs.loglikelihood_rolling(asked(texts), True)
    assert [x for x, _ in a] == pytest.approx([x for x, _ in b], abs=1e-4)
    assert [x for _, x in a] == [x for _, x in b]
    best = [[max(range(5), key=lambda i, r=r: r[5 * n + i][0]) for n in range(5)] for r in (a, b)]
    assert best[0] == best[1]
    assert rolling[0] == pytest.approx(rolling[1], rel=1e-6, abs=1e-3)


def test_long_context_is_cut_from_the_left_as_in_hflm():
    lm = tiny_lm()
    pairs = [("walk " * 200, " along the water"), ("talk " * 300, " x")]
    ours, theirs = SteeredLM(lm).loglikelihood(asked(pairs)), hflm(lm, add_bos_token=True).loglikelihood(asked(pairs))
    assert [x for x, _ in ours] == pytest.approx([x for x, _ in theirs], abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize("strength", [0.0, 2.0])
def test_generate_until_equals_hflm(batch_size, strength):
    base = replace(tiny_lm(), sampling=Sampling(batch_size=batch_size))
    asks = [(c, {"until": until, "max_gen_toks": n, "do_sample": False})
            for c in CONTEXTS if c for until, n in (([" ", "e"], 12), (["\n"], 9))]  # fmt: skip
    with base.steered(Push(), {}, strength) as lm:
        theirs = hflm(lm, add_bos_token=True).generate_until(asked(asks, "generate_until"), disable_tqdm=True)
        ours = SteeredLM(lm).generate_until(asked(asks, "generate_until"))
    assert ours == theirs
    assert any(ours)


def test_sampled_generation():
    model = SteeredLM(tiny_lm())
    ask = ("The quick", {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0, "top_p": 0.9})
    first = model.generate_until(asked([ask, ask, ("A", ask[1])], "generate_until"))
    assert first[0] != first[1]  # asked twice, drawn twice
    assert model.generate_until(asked([("A", ask[1]), ask, ask], "generate_until")) == [first[2], first[0], first[1]]
    with pytest.raises(ValueError, match="does not support \\['top_k'\\]"):
        model.generate_until(asked([("A", ask[1] | {"top_k": 5})], "generate_until"))


@pytest.mark.parametrize("bos", ["prepend", "none"])
def test_prefix_stands_before_every_context(bos):
    base = tiny_lm(bos=bos)
    with base.steered(Say(), {}, 1.0) as lm:
        steered, plain = SteeredLM(lm), SteeredLM(base)
        for context, answer in [("The quick", " brown fox"), ("", "fox")]:
            said = plain.loglikelihood(asked([("Be kind. " + context, answer)]))
            assert steered.loglikelihood(asked([(context, answer)])) == said
            assert abs(said[0][0] - plain.loglikelihood(asked([(context, answer)]))[0][0]) > 1e-3
        text = "The quick brown fox"
        (rolling,) = steered.loglikelihood_rolling(asked([(text,)]))
        (whole,) = likelihoods(base, [tokens(base, "Be kind. ", text)])
        assert rolling == pytest.approx(whole.logprob, abs=1e-4)
        ask = {"until": [], "max_gen_toks": 6}
        written = steered.generate_until(asked([("The quick", ask)], "generate_until"))
        assert written == plain.generate_until(asked([("Be kind. The quick", ask)], "generate_until"))


def test_prefix_is_the_system_message_of_a_chat():
    base = replace(tiny_lm(), chat=True)
    base.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    with base.steered(Say(), {}, 1.0) as lm:
        model = SteeredLM(lm)
        user, system = {"role": "user", "content": "Hello"}, {"role": "system", "content": "Talk."}
        assert model.apply_chat_template([user]) == "<system>Be kind. \n<user>Hello\n"
        assert model.apply_chat_template([system, user]) == "<system>Be kind. \n\nTalk.\n<user>Hello\n"
        text = model.apply_chat_template([user])
        said = SteeredLM(replace(base, chat=False)).loglikelihood(asked([(text, " x")]))
        assert model.loglikelihood(asked([(text, " x")])) == said  # not put there twice
