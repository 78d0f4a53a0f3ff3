import pytest
import torch

from bench.data.splits import prompt as prompt_of
from bench.model.decoding import Sampling
from bench.model.generation_cache import sampled
from bench.model.lm import LM
from bench.model.nucleus import draw, exponential
from bench.model.sampling import sample, stream
from methods.errors import SetupError
from tests.tiny import CONFIGS, tiny_lm

PROMPTS = ["The quick brown", "People walk along the water and talk about", "A", "the old tree near the river", ""]


def generate(lm: LM, prompt: str, new: int) -> list[int]:
    ids = torch.tensor([lm.encode(prompt)])
    out = lm.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new)
    return out[0, ids.shape[1] :].tolist()


@pytest.mark.every(2)
@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_greedy_equals_generate(architecture, batch_size):
    lm = tiny_lm(architecture)
    texts = sample(lm, PROMPTS, 1, 12, temperature=0, batch_size=batch_size)
    for prompt, (text,) in zip(PROMPTS, texts, strict=True):
        ids = lm.encode(prompt)
        whole = ids + generate(lm, prompt, 12)
        decode = lm.tokenizer.decode
        expected = decode(whole, skip_special_tokens=True)[len(decode(ids, skip_special_tokens=True)) :]
        assert text == expected


def test_sampled_distribution_is_the_exact_nucleus():
    from scipy.stats import chisquare

    torch.manual_seed(0)
    logits, n, top_p = 3 * torch.randn(3000), 20_000, 0.9
    probability = logits.double().softmax(-1)
    values, tokens = probability.sort(descending=True)
    size = int((values.cumsum(-1) < top_p).sum()) + 1
    assert size > 20
    keys = torch.stack([torch.from_numpy(stream(0, "prompt", i, 1)) for i in range(n)])[:, 0]
    counts = torch.bincount(draw(logits.expand(n, -1), keys, 1.0, top_p), minlength=3000)
    assert counts[tokens[size:]].sum() == 0
    expected = values[:size] / values[:size].sum() * n
    often = expected >= 5  # the test's own condition; the rest is pooled
    seen = torch.cat([counts[tokens[:size]][often], counts[tokens[:size]][~often].sum()[None]]).double()
    wanted = torch.cat([expected[often], expected[~often].sum()[None]])
    seen, wanted = seen[wanted > 0], wanted[wanted > 0]
    assert chisquare(seen.numpy(), wanted.numpy()).pvalue > 1e-3


@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999, 1.0])
def test_partial_candidates_change_nothing(monkeypatch, top_p):
    torch.manual_seed(1)
    logits = torch.randn(64, 5000)  # flat: the nucleus holds thousands
    keys = torch.from_numpy(stream(0, "x", 0, 64))
    partial = draw(logits, keys, 0.7, top_p)
    monkeypatch.setattr("bench.model.nucleus.CANDIDATES", ())
    monkeypatch.setattr("bench.model.nucleus.FLOORS", (2.0,))  # no token has a higher probability
    assert torch.equal(partial, draw(logits, keys, 0.7, top_p))


def test_exponential_hash_is_exponential_in_keys_and_tokens():
    from scipy.stats import kstest

    keys = torch.from_numpy(stream(0, "x", 0, 20_000))
    assert kstest(exponential(keys, torch.tensor(7)).numpy(), "expon").pvalue > 1e-3
    assert kstest(exponential(keys[:1], torch.arange(20_000)).numpy(), "expon").pvalue > 1e-3


def test_order_of_prompts_and_number_of_samples_change_no_text():
    lm = tiny_lm()
    there = sample(lm, PROMPTS, 4, seed=3)
    back = sample(lm, PROMPTS[::-1], 4, seed=3)
    assert there == back[::-1]
    assert [row[:2] for row in there] == sample(lm, PROMPTS, 2, seed=3)
    assert there != sample(lm, PROMPTS, 4, seed=4)
    assert len(set(there[1])) > 1  # samples of one prompt differ


@pytest.mark.slow
@pytest.mark.parametrize("letters", ["ab", pytest.param("abcdefgh", marks=pytest.mark.slow)])
def test_batch_size_flips_not_one_text_of_a_thousand(letters):
    lm = tiny_lm()
    prompts = [f"{a} {b} and" for a in ("love", "bread", "the dog", "home", "work") for b in letters]
    small, large = (sample(lm, prompts, 25, batch_size=size) for size in (4, 64))
    pairs = [(x, y) for a, b in zip(small, large, strict=True) for x, y in zip(a, b, strict=True)]
    assert len(pairs) == 125 * len(letters)
    assert sum(x != y for x, y in pairs) < 1


def test_rows_that_end_leave_the_batch():
    lm = tiny_lm()
    ended = [c for row in sampled(lm, PROMPTS, 8) for c in row if c.ended]
    widths = []
    handle = lm.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: widths.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        sampled(lm, PROMPTS, 8)
    finally:
        handle.remove()
    assert ended and widths[1] == 40 and widths[-1] < 40
    assert all("</s>" not in c.text for c in ended)


@pytest.mark.parametrize("top_p", [0, -0.1, 1.01])
def test_top_p_out_of_range(top_p):
    with pytest.raises(SetupError, match=r"outside \(0, 1\]"):
        Sampling(top_p=top_p)


def test_prompt_longer_than_the_model():
    """The message names it by the id that records give it, and shows nothing of a text that may be toxic."""
    text = "word " * 300
    with pytest.raises(SetupError, match=f"exceed the model's 256; .* sha256 {prompt_of(text).id}...,") as caught:
        sample(tiny_lm(), [text], 1)
    assert "word" not in str(caught.value)
