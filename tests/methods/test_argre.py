"""ARGRE: the fit against a descent of the test's own, rewards by hand, which states move, and a planted axis."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from bench.export.effect import measure
from bench.model.lm import LM
from bench.model.sampling import prefill
from bench.run import control
from methods import layout
from methods.argre import ARGRE, Reward, drawn, main_direction
from methods.base import FitData, Pairs
from methods.directions import final_states, pooled_features
from methods.eigenshift import EigenShift
from methods.errors import SetupError
from methods.gate import Gate
from methods.intervention import Positions, at, record
from methods.sasa import SASA
from methods.stack import Stack
from methods.tokens import Text
from tests.architectures import lm_of
from tests.methods.test_contract import PAIRS
from tests.sinks import planted_sink
from tests.tiny import tiny_lm

TEXT = ("The old tree near", " the river sings")
SMALL = ARGRE(hidden=20, epochs=2, batch_size=5, points=3)


def fit(method: ARGRE, lm: LM, pairs: Pairs = PAIRS) -> dict[str, torch.Tensor]:
    return method.fit(lm.model, lm.tokenizer, FitData(pairs))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def states(lm: LM, side: list[str]) -> list[torch.Tensor]:
    """(C, D) of each text, by transformers' own output: the states after the tokens of its continuation."""
    found = []
    for prompt, text in zip(PAIRS.prompt, side, strict=True):
        ids, begin = lm.tokenizer(prompt + text).input_ids, len(lm.encode(prompt))
        with torch.no_grad():
            found.append(lm.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, begin:].double())
    return found


def by_hand(lm: LM, method: ARGRE) -> tuple[np.ndarray, nn.Sequential, float]:
    """Direction, reward and target from the formulas: torch's own layers and Adam, in double precision."""
    desired, undesired = states(lm, PAIRS.desired), states(lm, PAIRS.undesired)
    ends = np.stack([(good[-1] - bad[-1]).numpy() for good, bad in zip(desired, undesired, strict=True)])
    values, vectors = np.linalg.eigh(ends.T @ ends)
    axis = vectors[:, values.argmax()]
    axis = torch.tensor(axis * np.sign(ends.mean(0) @ axis))
    generator = torch.Generator().manual_seed(method.seed)
    width, start = len(axis), torch.Generator().manual_seed(method.seed)
    layers = nn.Sequential(nn.Linear(width, method.hidden), nn.ReLU(), nn.Linear(method.hidden, 1, bias=False))
    for parameter, inputs in zip(layers.parameters(), (width, width, method.hidden), strict=True):
        own = (torch.rand(parameter.numel(), generator=start, dtype=torch.float64) * 2 - 1) / math.sqrt(inputs)
        parameter.data = own.view(parameter.shape)
        torch.rand(parameter.numel(), generator=generator, dtype=torch.float64)
    pairs = []
    for good, bad in zip(desired, undesired, strict=True):
        count = min(len(good), len(bad))
        line = [bad[:count]]
        for k in range(1, method.points + 1):
            along = torch.outer(axis, axis) @ (good[:count] - bad[:count]).T
            line.append(bad[:count] + k / (method.points + 1) * along.T)
        line.append(good[:count])
        pairs += list(zip(line[1:], line[:-1], strict=True))
    optimiser = torch.optim.Adam(layers.parameters(), lr=method.learning_rate)
    for _ in range(method.epochs):
        order = torch.randperm(len(pairs), generator=generator).tolist()
        for begin in range(0, len(order), method.batch_size):
            chosen = order[begin : begin + method.batch_size]
            optimiser.zero_grad()
            for i in chosen:
                better, worse = (layers(side).sum() for side in pairs[i])
                (-torch.log(torch.sigmoid(method.reward_beta * (better - worse))) / len(chosen)).backward()
            optimiser.step()
    with torch.no_grad():
        target = float(torch.cat([layers(good) for good in desired]).mean())
    return axis.numpy(), layers, target


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_direction_reward_and_target_by_hand(architecture):
    lm = tiny_lm(architecture)
    method = ARGRE(hidden=20, epochs=2, batch_size=5, points=3, learning_rate=0.01, reward_beta=0.3)
    axis, layers, target = by_hand(lm, method)
    artefact = fit(method, lm)
    np.testing.assert_allclose(artefact["direction"].numpy(), axis, atol=2e-6)
    worst = float(np.abs(artefact["direction"].numpy() - axis).max() / np.abs(axis).max())
    start = drawn(len(axis), 20, torch.Generator().manual_seed(0))
    for name, parameter in zip(Reward._fields, layers.parameters(), strict=True):
        wanted = parameter.detach().view(artefact[name].shape)
        worst = max(worst, float((artefact[name] - wanted).abs().max() / wanted.abs().max()))
        assert (getattr(start, name).detach() - wanted).abs().max() > 0.01  # it has learnt
    assert float(artefact["target"]) == pytest.approx(target, rel=1e-3)
    assert worst < 1e-3


def test_the_reward_and_its_gradient_are_those_of_a_perceptron():
    reward, points = Reward(normal(9, 4), normal(9, seed=1), normal(9, seed=2)), normal(3, 5, 4, seed=3)
    layers = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 1, bias=False))
    for parameter, own in zip(layers.parameters(), reward, strict=True):
        parameter.data = own.view(parameter.shape).clone()
    points.requires_grad_()
    wanted = layers(points)[..., 0]
    torch.testing.assert_close(reward(points), wanted)
    torch.testing.assert_close(reward.gradient(points), torch.autograd.grad(wanted.sum(), [points])[0])


def test_neighbours_on_a_line_by_hand():
    """Along the first axis from (0, 1) to (8, 9): three points 2 apart, then the desired state itself."""
    good, bad = torch.tensor([[8.0, 9.0], [0.0, 0.0], [5.0, 5.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    axis, method = torch.tensor([1.0, 0.0]), ARGRE(points=3)
    found = [method.neighbours((good, bad), point, axis)[:, 0].tolist() for point in range(4)]
    assert found == [[[0, 1], [2, 1]], [[2, 1], [4, 1]], [[4, 1], [6, 1]], [[6, 1], [8, 9]]]
    assert method.neighbours((good, bad), 0, axis).shape == (2, 2, 2)  # as many tokens as the shorter has
    ends = ARGRE(points=0).neighbours((good, bad), 0, axis)
    assert torch.equal(ends[0], bad) and torch.equal(ends[1], good[:2])


def test_the_loss_of_equal_states_is_that_of_a_coin():
    method, reward = ARGRE(), Reward(normal(6, 4), normal(6), normal(6))
    same = normal(3, 4, seed=5).expand(2, 3, 4)
    assert float(method.loss(reward, [same, same])) == pytest.approx(math.log(2))
    apart = torch.stack([normal(3, 4, seed=6), normal(3, 4, seed=7)])
    gap = float((reward(apart[1]) - reward(apart[0])).sum())
    wanted = (math.log(1 + math.exp(-0.05 * gap)) + math.log(2)) / 2
    assert float(method.loss(reward, [apart, same])) == pytest.approx(wanted, rel=1e-5)


# -- what moves ----------------------------------------------------------------------------------------------------


def linear(weight: torch.Tensor) -> Reward:
    """theta(h) = weight . h, as relu(w.h) - relu(-w.h)."""
    return Reward(torch.stack([weight, -weight]), torch.zeros(2), torch.tensor([1.0, -1.0]))


def test_a_linear_reward_reaches_the_target_in_one_step():
    direction = nn.functional.normalize(normal(8), dim=0)
    weight = normal(8, seed=1)
    weight = weight / (weight @ direction)
    points, reward = 3 * normal(50, 8, seed=2), linear(weight)
    method = ARGRE(iterations=0)
    closed = reward(points) >= 0.7
    full, part = (method.moved(points, reward, direction, 0.7, strength) for strength in (1.0, 0.25))
    assert closed.any() and (~closed).any()
    assert torch.equal(full[closed], points[closed])
    torch.testing.assert_close(reward(full[~closed]), torch.full((int((~closed).sum()),), 0.7), atol=1e-5, rtol=0)
    torch.testing.assert_close(part - points, 0.25 * (full - points), atol=1e-6, rtol=0)


def test_constant_rewards_move_nothing_and_iterations_raise_one():
    direction, points = nn.functional.normalize(normal(8), dim=0), normal(20, 8, seed=2)
    constant = Reward(torch.zeros(3, 8), torch.ones(3), torch.ones(3))
    assert torch.equal(ARGRE().moved(points, constant, direction, 3.0, 1.0), points)
    reward = Reward(normal(30, 8, seed=3) / 3, normal(30, seed=4), normal(30, seed=5) / 6)
    before = ARGRE(iterations=0).moved(points, reward, direction, -100.0, 1.0)
    assert torch.equal(before, points)
    after = ARGRE(iterations=5, step=0.05).moved(points, reward, direction, -100.0, 1.0)
    assert (reward(after) > reward(points)).all()
    once = ARGRE(iterations=1, step=0.3).moved(points, reward, direction, -100.0, 0.5)
    torch.testing.assert_close(once, points + 0.15 * reward.gradient(points))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
def test_final_states_move_from_the_end_of_the_prompt_on(architecture):
    """Logits are those of moved states; the stream inside the model, and so the KV cache, stays."""
    lm = lm_of(architecture)
    artefact = fit(SMALL, lm)
    prompt, ids = len(lm.encode(TEXT[0])), lm.encode(TEXT[0] + TEXT[1])
    given, layers = torch.tensor([ids]), range(len(layout.blocks(lm.model)))

    def read(lm: LM) -> torch.Tensor:
        return lm.read(lm.start(torch.tensor([prompt])), given, torch.ones_like(given, dtype=torch.bool))[0]

    with torch.no_grad():
        last = lm.model(given, output_hidden_states=True).hidden_states[-1]
        reward = Reward(*(artefact[name] for name in Reward._fields))
        moved = SMALL.moved(last, reward, artefact["direction"], float(artefact["target"]), 0.6)
        moved[:, : prompt - 1] = last[:, : prompt - 1]
        head = layout.final_norm(lm.model).register_forward_hook(lambda *_: moved)
        wanted = read(lm)
        head.remove()
        with record(lm.model, layers) as seen:
            base = read(lm)
            streams = [one.clone() for one in seen.values()]
            with lm.steered(SMALL, artefact, 0.6) as steered:
                found = read(steered)
            assert all(torch.equal(one, seen[layer]) for layer, one in enumerate(streams))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(found[: prompt - 1], base[: prompt - 1])
    assert (found[prompt - 1 :] != base[prompt - 1 :]).any(-1).all()


@pytest.mark.parametrize("swapped", [False, True])
def test_a_planted_axis_is_found_and_the_bad_half_is_moved(swapped):
    lm, pairs, direction, _ = planted_sink()
    if swapped:
        pairs = Pairs(pairs.prompt, pairs.undesired, pairs.desired)
    artefact = fit(ARGRE(hidden=64, learning_rate=0.02, reward_beta=0.5), lm, pairs)
    assert float(artefact["direction"] @ direction) * (-1 if swapped else 1) > 0.99
    assert artefact["info.explained_variance"] > 0.95 and artefact["info.last_loss"] < artefact["info.first_loss"]
    assert artefact["info.open_for_undesired"] == 1 and 0.2 < artefact["info.open_for_desired"] < 0.8
    assert artefact["info.target_reward"] > artefact["info.undesired_reward"] + 1
    assert artefact["info.target_reward"] == artefact["target"]


def test_the_main_direction_is_not_centred_and_has_a_sign():
    """A mean difference that all pairs share would be taken away by centring."""
    axis, other = torch.eye(6)[:2]
    noise = 0.5 * normal(40, 1) * other
    found, explained = main_direction(noise + 2 * axis, torch.zeros(40, 6))
    assert float(found @ axis) > 0.99 and explained > 0.9
    turned, _ = main_direction(torch.zeros(40, 6), noise + 2 * axis)
    torch.testing.assert_close(turned, -found)


def test_strength_zero_and_the_way_out_leave_every_bit():
    lm, ids = tiny_lm(), [tiny_lm().encode("The old tree near")]
    base, before = prefill(lm, ids)[1], {name: one.clone() for name, one in lm.model.named_parameters()}
    artefact = fit(SMALL, lm)
    assert torch.equal(fit(SMALL, lm)["inner"], artefact["inner"])
    assert not torch.equal(fit(ARGRE(hidden=20, seed=1), lm)["inner"], artefact["inner"])
    with SMALL.apply(lm.model, artefact, 0):
        assert torch.equal(prefill(lm, ids)[1], base)
    with pytest.raises(KeyboardInterrupt), lm.steered(SMALL, artefact, 1) as steered:
        assert not torch.equal(prefill(steered, ids)[1], base)
        raise KeyboardInterrupt
    assert torch.equal(prefill(lm, ids)[1], base)
    assert all(torch.equal(one, before[name]) for name, one in lm.model.named_parameters())


def test_a_later_part_of_a_stack_learns_from_moved_states():
    """Final states are read behind what is hooked to the final norm, which has to know where a prompt ends."""
    lm, artefact = tiny_lm(), fit(SMALL, tiny_lm())
    prompt = len(lm.encode(TEXT[0]))
    text = Text(lm.encode("".join(TEXT)), prompt)
    last = len(layout.blocks(lm.model)) - 1
    (base,) = final_states(lm.model, [text])
    reward = Reward(*(artefact[name] for name in Reward._fields))
    wanted = SMALL.moved(base, reward, artefact["direction"], float(artefact["target"]), 0.8)
    with SMALL.apply(lm.model, artefact, 0.8):
        (found,) = final_states(lm.model, [text])
        ends = pooled_features(lm.model, [text], [last], read="last", after_final_norm=True)[0, 0]
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(ends, wanted[-1])
    assert not torch.equal(found, base)
    parts = {"first": SMALL, "second": EigenShift(), "third": SASA()}
    Stack(parts=parts, at=dict.fromkeys(parts, 1.0)).fit(lm.model, lm.tokenizer, FitData(PAIRS))


def test_a_gate_cannot_read_behind_the_blocks():
    lm, background = tiny_lm(), [*PAIRS.prompt, *PAIRS.desired]
    with pytest.raises(SetupError, match=r"method\.inner=argre acts at model\.norm\.output, outside the blocks"):
        Gate(inner=SMALL, kind="dsas").fit(lm.model, lm.tokenizer, FitData(PAIRS, background=background))


def test_it_cannot_be_exported():
    lm = tiny_lm()
    assert measure(lm, SMALL, fit(SMALL, lm), 1.0).beyond is not None


@pytest.mark.parametrize("iterations", [0, 5])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_control_moves_as_far_in_other_directions(iterations, seed):
    """Also where a reward has learnt much, and nearly every state or none is moved."""
    lm, method = tiny_lm(), ARGRE(hidden=64, epochs=10, learning_rate=0.01, iterations=iterations)
    artefact = fit(method, lm)
    turned = artefact | control.rotated(method.changes(artefact), seed)
    assert control.strength(0.7, method.changes(artefact), method.changes(turned)) == 0.7
    ids = torch.tensor([lm.encode("".join(TEXT))])

    def added(artefact: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad(), at(Positions(*(torch.tensor([n]) for n in (0, ids.shape[1], 0, 1)))):
            base = lm.model(ids, output_hidden_states=True).hidden_states[-1]
            with method.apply(lm.model, artefact, 0.7):
                return (lm.model(ids, output_hidden_states=True).hidden_states[-1] - base)[0]

    own, other = added(artefact), added(turned)  # (T, D)
    torch.testing.assert_close(other.norm(dim=-1), own.norm(dim=-1), rtol=1e-3, atol=1e-4)
    moved = own.norm(dim=-1) > 0.1
    assert moved.sum() > 5 and torch.cosine_similarity(own[moved], other[moved]).abs().max() < 0.7


@pytest.mark.parametrize("wrong", [
    {"inner": None}, {"offset": None}, {"outer": None}, {"target": None}, {"offset": torch.zeros(3)},
    {"outer": torch.zeros(20, 1)}, {"target": torch.zeros(2)}, {"direction": torch.zeros(2, 36)},
    {"inner": torch.zeros(20, 35)}, {"turn": torch.zeros(36)},
])  # fmt: skip
def test_an_artefact_without_a_part_is_refused(wrong):
    lm = tiny_lm()
    damaged = {name: one for name, one in (fit(SMALL, lm) | wrong).items() if one is not None}
    with pytest.raises(SetupError, match="fit it again"), SMALL.apply(lm.model, damaged, 1):
        pass


def test_wrong_settings_and_data():
    lm = tiny_lm()
    for options, message in (
        ({"hidden": 0}, r"method\.hidden=0: expected a whole number, at least 1"),
        ({"epochs": 0}, r"method\.epochs=0: expected a whole number, at least 1"),
        ({"points": -1}, r"method\.points=-1: expected a whole number, at least 0"),
        ({"iterations": -1}, r"method\.iterations=-1: expected a whole number, at least 0"),
        ({"iterations": 2.5}, r"method\.iterations=2\.5: expected a whole number, at least 0"),
        ({"batch_size": True}, r"method\.batch_size=True: expected a whole number, at least 1"),
        ({"seed": None}, r"method\.seed=None: expected a whole number"),
        ({"reward_beta": 0}, r"method\.reward_beta=0: expected a number above 0"),
        ({"learning_rate": math.nan}, r"method\.learning_rate=nan: expected a number above 0"),
        ({"reward_beta": 10**301}, r"method\.reward_beta=1000.*: expected a number above 0"),
        ({"step": -1}, r"method\.step=-1: expected a number above 0"),
        ({"max_tokens": 0}, r"method\.max_tokens=0: expected a whole number, at least 1"),
        ({"learning_rate": "fast"}, r"method\.learning_rate='fast': expected a number above 0"),
    ):
        with pytest.raises(SetupError, match=message):
            fit(ARGRE(**options), lm)
    fit(ARGRE(hidden=4, reward_beta=10**30), lm)  # a whole number, as YAML may give it
    with pytest.raises(SetupError, match="argre learns from contrast pairs and got 1; give at least 2"):
        fit(ARGRE(), lm, Pairs(*(column[:1] for column in PAIRS)))
    with pytest.raises(SetupError, match="the states at the ends of desired and undesired texts are the same"):
        fit(ARGRE(), lm, PAIRS._replace(undesired=PAIRS.desired))
    with pytest.raises(
        SetupError, match=r"the reward of desired and undesired texts is (nan|inf) after \d+ steps; low"
    ):
        fit(ARGRE(hidden=8, learning_rate=1e60), lm)
    with pytest.raises(SetupError, match=r"the loss of the reward is (nan|inf) after \d+ steps; lower"):
        fit(ARGRE(learning_rate=1e200), lm)
    other = tiny_lm("gpt2")
    with pytest.raises(SetupError, match=r"direction \(36,\) was not fitted on this model, whose width is 28"):
        with SMALL.apply(other.model, fit(SMALL, lm), 1):
            pass


def test_a_turn_multiplies_each_move_as_a_row():
    lm, method = tiny_lm(), ARGRE(hidden=64, epochs=10, learning_rate=0.01)
    artefact, ids = fit(method, lm), torch.tensor([lm.encode("".join(TEXT))])
    turn, found = torch.linalg.qr(normal(36, 36)).Q, []
    with torch.no_grad(), at(Positions(*(torch.tensor([n]) for n in (0, ids.shape[1], 0, 1)))):
        base = lm.model(ids, output_hidden_states=True).hidden_states[-1]
        for given in (artefact, artefact | {"turn": turn}):
            with method.apply(lm.model, given, 0.7):
                found.append(lm.model(ids, output_hidden_states=True).hidden_states[-1] - base)
    torch.testing.assert_close(found[1], found[0] @ turn, rtol=1e-3, atol=1e-4)
    assert float(found[0].norm()) > 0.1
