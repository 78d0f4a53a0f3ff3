"""What every method promises; each YAML in conf/method is picked up by itself."""

import dataclasses
import functools
import hashlib
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from bench.cell import build
from bench.config import compose
from bench.lm import LM
from bench.sampling import prefill, sample
from methods import base
from methods.base import Examples, FitData, Method, Pairs
from tests.tiny import tiny_lm

CONF = Path(__file__).parents[1] / "conf" / "method"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
ARCHITECTURES = ["llama", "gpt2"]
PAIRS = Pairs(
    prompt=[
        "The quick brown fox", "People walk along the river", "A small bird in the old tree", "We talk about work",
        "The lazy dog and the fox", "On the long road home", "Bread and water near the", "The weather today is",
    ],
    desired=[
        " jumps over the dog", " and talk about love", " sings in the old tree", " and bread", " walk along",
        " people sing", " river", " quick and small",
    ],
    undesired=[
        " is lazy", " and talk about hate and the weather", " is old", " and the long lazy road home", " hate",
        " the water is over the tree", " lazy dog jumps", " long and old and lazy",
    ],
)  # fmt: skip
PROMPTS = ["The quick brown fox", "People walk along the water and talk about", "a small bird near the river sings"]
CONTINUATION = " the old tree and bread"
HARMFUL = Examples(["People walk along", "We talk about", "The"], [" and hate the dog", " hate and work", " lazy fox"])
DATA = {
    "pairs": PAIRS,
    "examples": Examples([*PAIRS.prompt, *HARMFUL.prompt], [*PAIRS.desired, *HARMFUL.completion]),
    "harmful": HARMFUL,
    "background": [*PAIRS.prompt, "The water near the old tree is quick and long."],
}


EAGER = {name: ["method.learning_rate=0.01"] for name in ("finetune", "security_vector")}  # a dozen texts, not 1000


def load(name: str) -> Method:
    """The method of a YAML, as the application composes it."""
    return build(compose([f"method={name}", *EAGER.get(name, [])]).method)


def fit(method: Method, lm: LM) -> base.Artefact:
    return method.fit(lm.model, lm.tokenizer, FitData(**{name: DATA[name] for name in method.needs}))


@functools.cache
def shared(architecture: str) -> LM:
    """One model for all tests of an architecture: a method that leaves a trace fails here and everywhere after."""
    return tiny_lm(architecture)


@functools.cache
def fitted(name: str, architecture: str) -> tuple[Method, LM, base.Artefact, float]:
    """Method, model, artefact and the strongest setting of the method's grid (0 where it has none)."""
    method, lm = load(name), shared(architecture)
    return method, lm, fit(method, lm), (list(method.strengths) or [0])[-1]


each = pytest.mark.parametrize(("name", "architecture"), [(n, a) for n in NAMES for a in ARCHITECTURES])


def state(lm: LM) -> tuple[str, int, bool, bool]:
    """Hash of all weights and buffers, number of hooks, training mode, whether anything wants a gradient."""
    digest = hashlib.sha256()
    for key, tensor in {**dict(lm.model.named_parameters()), **dict(lm.model.named_buffers())}.items():
        digest.update(key.encode() + tensor.detach().contiguous().numpy().tobytes())
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooks = sum(len(getattr(module, table)) for module in lm.model.modules() for table in tables)
    wanting = any(p.requires_grad or p.grad is not None for p in lm.model.parameters())
    return digest.hexdigest(), hooks, lm.model.training, wanting


def logits(lm: LM, prompt: str = PROMPTS[0], continuation: str = CONTINUATION) -> torch.Tensor:
    """(T, V) of the continuation's tokens and the last prompt token, read in one forward as a likelihood is."""
    head, tail = lm.encode(prompt), lm.tokenizer(continuation, add_special_tokens=False).input_ids
    ids = torch.tensor([head + tail])
    rows = lm.start(torch.tensor([len(head)]))
    return lm.read(rows, ids, torch.ones_like(ids, dtype=torch.bool), keep=len(tail) + 1)[0]


def greedy_uncached(lm: LM, prompt: str, steps: int) -> list[int]:
    """Greedy tokens, the whole text read afresh at each step."""
    ids = lm.encode(prompt)
    length = torch.tensor([len(ids)])
    new: list[int] = []
    for _ in range(steps):
        text = torch.tensor([ids + new])
        new.append(
            int(lm.read(lm.start(length), text, torch.ones_like(text, dtype=torch.bool), keep=1)[0, -1].argmax())
        )
        if new[-1] in lm.stop_tokens:
            break
    return new


def greedy_cached(lm: LM, prompt: str, steps: int) -> list[int]:
    rows, last = prefill(lm, [lm.encode(prompt)])
    new: list[int] = []
    for _ in range(steps):
        new.append(int(last[0].argmax()))
        if new[-1] in lm.stop_tokens:
            break
        last = lm.read(rows, torch.tensor([[new[-1]]]), torch.tensor([[True]]), keep=1)[:, -1]
    return new


def test_some_methods_were_found():
    assert {"unsteered", "prompt", "random_direction", "act_add", "caa"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_protocol(name):
    method = load(name)
    assert isinstance(method, Method)
    assert method.name == name
    assert method.family in {"none", "prompt", "weights", "activation", "adapter", "decoding", "stack"}
    assert method.needs <= set(FitData._fields)
    assert isinstance(method.version, int) and method.version >= 1
    assert method.strength_unit
    assert len(set(method.strengths)) == (0 if method.family == "none" else 5)
    assert 0 not in method.strengths
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.strengths = [1]


@pytest.mark.parametrize("name", NAMES)
def test_yaml_lists_every_option_and_how_to_run_it(name):
    text = (CONF / f"{name}.yaml").read_text()
    assert text.startswith("# python -m bench") and f"method={name}" in text.splitlines()[0]
    fields = {field.name for field in dataclasses.fields(load(name))}
    assert set(OmegaConf.create(text)) - {"defaults"} == fields | {"_target_"}
    for key in fields:
        line = next(line for line in text.splitlines() if line.startswith(f"{key}:"))
        assert "  # " in line, f"{key} is not explained"


@pytest.mark.parametrize("name", NAMES)
def test_yaml_and_class_agree_on_the_defaults(name):
    """A notebook that writes `CAA()` gets what `method=caa` gets."""
    method = load(name)
    for field in dataclasses.fields(method):
        if field.default is not dataclasses.MISSING and not any(field.name in one for one in EAGER.get(name, [])):
            value = getattr(method, field.name)
            assert (tuple(value) if isinstance(value, list) else value) == field.default, field.name


@each
def test_check_accepts_the_yaml(name, architecture):
    load(name).check(shared(architecture).model)


@each
def test_fit_leaves_no_trace_and_is_deterministic(name, architecture):
    method, lm, first, _ = fitted(name, architecture)
    before = state(lm)
    torch.manual_seed(11)
    np.random.seed(11)
    random.seed(11)
    drawn = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    again = fit(method, lm)
    assert state(lm) == before
    assert torch.equal(drawn[0], torch.get_rng_state())
    assert np.array_equal(drawn[1], np.random.get_state()[1]) and drawn[2] == random.getstate()
    assert first.keys() == again.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, again[key]), key
        assert tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_inference(), key


@each
def test_strength_zero_is_the_base_exactly(name, architecture):
    method, lm, artefact, _ = fitted(name, architecture)
    base_logits, before = logits(lm), state(lm)
    with method.apply(lm.model, artefact, 0) as steering:  # the method's own promise, not the LM's shortcut
        assert state(lm) == before
        assert steering == base.Steering()
        assert torch.equal(logits(lm), base_logits)
    with lm.steered(method, artefact, 0) as steered:
        assert torch.equal(logits(steered), base_logits)


@each
def test_texts_and_likelihoods_differ_inside(name, architecture):
    method, lm, artefact, strength = fitted(name, architecture)
    base_logits, base_texts = logits(lm), sample(lm, PROMPTS, 4, 12)
    with lm.steered(method, artefact, strength) as steered:
        inside, texts = logits(steered), sample(steered, PROMPTS, 4, 12)
    if method.family == "none":
        assert torch.equal(inside, base_logits) and texts == base_texts
    else:
        assert not torch.allclose(inside, base_logits, atol=1e-3)
        assert texts != base_texts


@each
def test_each_strength_of_the_grid_is_another_model(name, architecture):
    method, lm, artefact, _ = fitted(name, architecture)
    seen = [logits(lm)]
    for strength in method.strengths:
        with lm.steered(method, artefact, strength) as steered:
            seen.append(logits(steered))
    for i, one in enumerate(seen):
        assert not any(torch.equal(one, other) for other in seen[:i])


@each
def test_bit_equal_after_exit_and_after_an_exception(name, architecture):
    method, lm, artefact, strength = fitted(name, architecture)
    before, base_logits = state(lm), logits(lm)
    with lm.steered(method, artefact, strength) as steered:
        logits(steered)
    assert state(lm) == before and torch.equal(logits(lm), base_logits)
    with pytest.raises(KeyError, match="inside"), lm.steered(method, artefact, strength) as steered:
        logits(steered)
        raise KeyError("inside")
    assert state(lm) == before and torch.equal(logits(lm), base_logits)


@each
def test_saved_and_loaded_it_steers_alike(name, architecture, tmp_path):
    method, lm, artefact, strength = fitted(name, architecture)
    base.save(artefact, tmp_path / "artefact.safetensors")
    loaded = base.load(tmp_path / "artefact.safetensors")
    needed = {key: tensor for key, tensor in loaded.items() if not key.startswith(base.INFO)}
    with lm.steered(method, artefact, strength) as steered:
        expected = logits(steered)
    with lm.steered(load(name), needed, strength) as steered:
        assert torch.equal(logits(steered), expected)


@each
def test_left_padded_batch_equals_single(name, architecture):
    method, lm, artefact, strength = fitted(name, architecture)
    with lm.steered(method, artefact, strength) as steered:
        encoded = [steered.encode(prompt) for prompt in PROMPTS]
        assert len({len(ids) for ids in encoded}) > 1
        _, batch = prefill(steered, encoded)
        for row, ids in zip(batch, encoded, strict=True):
            _, single = prefill(steered, [ids])
            torch.testing.assert_close(row, single[0], atol=1e-4, rtol=1e-4)
        together = sample(steered, PROMPTS, 1, 12, temperature=0)
        assert together == [sample(steered, [prompt], 1, 12, temperature=0)[0] for prompt in PROMPTS]


@each
def test_right_padded_likelihood_equals_single(name, architecture):
    method, lm, artefact, strength = fitted(name, architecture)
    with lm.steered(method, artefact, strength) as steered:
        heads = [steered.encode(prompt) for prompt in PROMPTS]
        tail = steered.tokenizer(CONTINUATION, add_special_tokens=False).input_ids
        width = max(map(len, heads)) + len(tail)
        ids = torch.tensor([head + tail + [0] * (width - len(head + tail)) for head in heads])
        real = torch.tensor([[column < len(head + tail) for column in range(width)] for head in heads])
        batch = steered.read(steered.start(torch.tensor([len(head) for head in heads])), ids, real)
        for row, head, prompt in zip(batch, heads, PROMPTS, strict=True):
            mine = row[len(head) - 1 : len(head + tail)]
            torch.testing.assert_close(mine, logits(steered, prompt), atol=1e-4, rtol=1e-4)


@each
def test_cached_equals_uncached_greedy(name, architecture):
    method, lm, artefact, strength = fitted(name, architecture)
    with lm.steered(method, artefact, strength) as steered:
        for prompt in PROMPTS:
            assert greedy_cached(steered, prompt, 12) == greedy_uncached(steered, prompt, 12)
