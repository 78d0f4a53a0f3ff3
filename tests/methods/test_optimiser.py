import math

import pytest
import torch
from torch import nn

from methods import progress, training
from methods.base import Examples, FitData
from methods.errors import SetupError
from methods.finetune import Finetune
from methods.optimiser import LOSS_SCALE, Optimiser, moment_bytes
from methods.training import Recipe, completion_loss, encoded, gradient_norm, mean_loss, train, trainable
from tests.tiny import tiny_lm

HALF = [torch.bfloat16, torch.float16]
EXAMPLES = Examples(
    ["The quick brown", "People walk along the", "A small", "We talk about", "The old"],
    [" fox jumps over the dog", " water", " bird sings near the river", " work and love", " tree"],
)


def ordinary(dtype):
    """A tiny model whose weights are as large as those of real ones: 0.02."""
    lm = tiny_lm(blocks=3)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            if parameter.ndim > 1:
                parameter.div_(6)
    lm.model.to(dtype)
    return lm


def texts(lm):
    return encoded(lm.model, lm.tokenizer, EXAMPLES, "examples", 128)[0]


def matrices(lm):
    """Those of the blocks: an embedding has rows that no text asks for."""
    return [p for name, p in lm.model.named_parameters() if p.ndim > 1 and ".layers." in name]


def plain_steps(lm, recipe):
    """AdamW on the weights as they are."""
    weights, batches = matrices(lm), recipe.batches(len(EXAMPLES.prompt))
    plain = torch.optim.AdamW(weights, lr=recipe.learning_rate, weight_decay=0.0)
    for step, batch in enumerate(batches):
        plain.param_groups[0]["lr"] = recipe.rate(step, len(batches))
        completion_loss(lm.model, [texts(lm)[int(row)] for row in batch]).backward()
        plain.step()
        plain.zero_grad()


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_in_bfloat16_the_weights_move_at_a_small_learning_rate(optimizer):
    """Steps on bfloat16 weights are rounded away; with masters they add up, and the loss falls as in fp32."""
    recipe, found = Recipe(3e-5, 4, 1, 0, optimizer), {}
    for name, dtype in (("plain", torch.bfloat16), ("masters", torch.bfloat16), ("fp32", torch.float32)):
        lm = ordinary(torch.bfloat16)
        lm.model.to(dtype)
        with trainable(matrices(lm)) as before:
            loss = mean_loss(lm.model, texts(lm))
            trained = matrices(lm)
            if name == "plain":
                plain_steps(lm, recipe)
            else:
                trained = train(lm.model, trained, texts(lm), recipe, stage="x")
                assert {one.dtype for one in trained} == {torch.float32}
            moved = sum(int((now != then.to(now.dtype)).sum()) for now, then in zip(trained, before, strict=True))
            share = moved / sum(one.numel() for one in before)
            rounded = sum(int((now != then).sum()) for now, then in zip(matrices(lm), before, strict=True))
            found[name] = share, loss - mean_loss(lm.model, texts(lm)), rounded / sum(one.numel() for one in before)
    print(found)
    assert found["plain"][0] < 0.3
    assert found["masters"][0] > 0.99 and found["masters"][2] > 2 * found["plain"][2]
    assert found["masters"][1] == pytest.approx(found["fp32"][1], rel=0.2)


@pytest.mark.parametrize("shape", [(3, 4), (5,), (2, 3, 4)])
@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_moments_are_fp32_and_as_large_as_foretold(name, shape):
    parameter = nn.Parameter(torch.randn(shape).bfloat16())
    optimiser = Optimiser([parameter], name, 1e-3)
    parameter.grad = torch.randn(shape).bfloat16()
    optimiser.step(1e-3)
    moments = {key: one for key, one in optimiser.state().items() if "exp_avg" in key}
    assert {one.dtype for one in moments.values()} == {torch.float32}
    assert sum(one.nbytes for one in moments.values()) == moment_bytes(name, shape)
    assert parameter.grad is None and torch.equal(parameter, optimiser.masters[0].bfloat16())


def test_adafactor_by_hand():
    """The first step: rows times columns over the whole mean; at most 1 an entry in length; times the rate as it is."""
    start, gradient = torch.randn(2, 3).double(), torch.tensor([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]])
    parameter = nn.Parameter(start.float())
    optimiser = Optimiser([parameter], "adafactor", 1e-2)
    parameter.grad = gradient.clone()
    optimiser.step(1e-2)
    square = gradient.double() ** 2
    second = square.mean(1, keepdim=True) * square.mean(0, keepdim=True) / square.mean()
    update = gradient.double() / second.sqrt()
    update /= max(1.0, float(update.square().mean().sqrt()))
    torch.testing.assert_close(parameter.detach().double(), start - 1e-2 * update, atol=1e-6, rtol=0)


class StoppedError(Exception):
    """Ctrl-C."""


@pytest.mark.every(2)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path, monkeypatch, dtype, optimizer):
    """Masters, moments, the count of steps and the scale of the loss are kept."""
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_SECONDS", 0.0)
    lm, data = ordinary(dtype), FitData(examples=EXAMPLES)
    method = Finetune(learning_rate=1e-3, epochs=4, batch_size=2, optimizer=optimizer)
    said: list[float] = []
    with progress.listening(said.append):
        whole = method.fit(lm.model, lm.tokenizer, data)
    left = len(said) // 2

    def stop(_tokens: float) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise StoppedError

    with progress.checkpointing(tmp_path):
        with pytest.raises(StoppedError), progress.listening(stop):
            method.fit(lm.model, lm.tokenizer, data)
        again: list[float] = []
        with progress.listening(again.append):
            resumed = method.fit(lm.model, lm.tokenizer, data)
    assert len(again) < len(said)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_state_kept_without_masters_is_not_gone_on_from(tmp_path):
    """As an older version kept it: weights of 16 bits."""
    weights = [nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))]
    optimiser = Optimiser(weights, "adamw", 1e-3)
    training._keep(tmp_path / "x.safetensors", optimiser, [1.0], 0.0)
    assert training._kept(tmp_path / "x.safetensors", optimiser.masters)
    with pytest.raises(SetupError, match="of other weights"):
        training._kept(tmp_path / "x.safetensors", weights)


def test_an_overflow_in_float16_halves_the_scale_alone():
    parameter = nn.Parameter(torch.ones(3, dtype=torch.float16))
    optimiser = Optimiser([parameter], "adamw", 1e-3, scaled=True)
    parameter.grad = torch.tensor([1.0, math.inf, 1.0], dtype=torch.float16)
    assert not optimiser.step(1e-3)
    assert optimiser.scale == LOSS_SCALE / 2 and parameter.grad is None and bool((parameter == 1).all())
    parameter.grad = torch.full((3,), 0.25 * optimiser.scale, dtype=torch.float16)
    assert optimiser.step(1e-3) and torch.allclose(optimiser.masters[0], torch.tensor(0.999))


def test_a_small_float16_gradient_is_not_zero():
    weight = nn.Parameter(torch.full((1,), 1e-4, dtype=torch.float16))
    assert float(torch.autograd.grad((weight.float() * 2e-8).sum(), weight)[0]) == 0
    assert gradient_norm((weight.float() * 2e-8).sum(), [weight]) == pytest.approx(2e-8, rel=0.02)


def test_float16_without_finite_gradients_says_what_to_set():
    lm = ordinary(torch.float16)
    weights = matrices(lm)
    for weight in weights:
        weight.requires_grad_(True)
        weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(SetupError, match="step 0 has no finite gradient of x; .*model.dtype=bfloat16"):
        train(lm.model, weights, texts(lm), Recipe(1e-3, 1, 2, 0), stage="x")


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(SetupError, match="method.optimizer='sgd': allowed are adamw, adafactor"):
        Finetune(optimizer="sgd").check(tiny_lm().model)
