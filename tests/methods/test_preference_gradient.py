"""DPO's first step against subspaces."""

import pytest
import torch

from methods import layout
from methods.dpo import preference_loss
from methods.preference_gradient import energy_share, random_directions, value_gradients
from methods.tokens import Text
from tests.architectures import model_of
from tests.tiny import tiny_model

DESIRED = [Text([1, 5, 9, 11], 2), Text([1, 30, 31], 1), Text([1, 7, 8, 9, 10], 3)]
UNDESIRED = [Text([1, 5, 40, 41, 42], 2), Text([1, 30, 50], 1), Text([1, 7, 8, 60], 3)]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_it_is_the_gradient_of_dpos_first_step(architecture):
    model = tiny_model(architecture)
    found = value_gradients(model, DESIRED, UNDESIRED, [0, 2], batch_size=2)
    for layer in (0, 2):
        (part,) = layout.stream_rows(model, layer, "down").parts
        part.parameter.requires_grad_(True)
        (wanted,) = torch.autograd.grad(preference_loss(model, DESIRED, UNDESIRED, beta=0.2), [part.parameter])
        part.parameter.requires_grad_(False)
        wanted = wanted.T if wanted.shape != found[layer].shape else wanted
        assert torch.allclose(-0.1 * found[layer], wanted, rtol=1e-4, atol=1e-7)


def test_experts_are_rows_of_one_matrix():
    model = model_of("mixtral")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    found = value_gradients(model, DESIRED, UNDESIRED, [1])
    assert found[1].shape == layout.stream_rows(model, 1, "down").read().shape
    assert found[1].abs().sum() > 0
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_planted_subspace_holds_what_was_put_there():
    directions = random_directions(3, 24, seed=1)
    inside = torch.randn(10, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64) @ directions
    outside = torch.randn(10, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    outside -= (outside @ directions.T) @ directions
    outside *= inside.norm() / outside.norm()
    assert energy_share(inside, directions) == pytest.approx(1)
    assert energy_share(outside, directions) == pytest.approx(0, abs=1e-12)
    assert energy_share(inside + 3**0.5 * outside, directions) == pytest.approx(0.25)


def test_a_random_subspace_has_its_part_of_the_width():
    gradient = torch.randn(200, 64, generator=torch.Generator().manual_seed(4))
    shares = [energy_share(gradient, random_directions(8, 64, seed)) for seed in range(20)]
    assert sum(shares) / 20 == pytest.approx(8 / 64, rel=0.1)
    frame = random_directions(8, 64, 0)
    assert torch.allclose(frame @ frame.T, torch.eye(8, dtype=torch.float64), atol=1e-12)
