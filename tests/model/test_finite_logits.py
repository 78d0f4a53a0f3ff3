"""A model that computes NaN or infinity gives no number: not in sampling, likelihood, perplexity or lm-eval's tasks."""

import math
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from bench.__main__ import main
from bench.model.decoding import Sampling
from bench.model.lm import LM, NotFiniteError, Request
from bench.model.lm_eval_adapter import SteeredLM
from bench.model.log_likelihood import likelihoods
from bench.model.sampling import sample
from bench.stats import metrics
from methods import layout
from methods.base import FitData, Pairs, Steering
from methods.caa import CAA
from methods.detox import DeTox
from methods.errors import SetupError
from methods.intervention import Hook, hooked
from methods.probe_rows import ProbeRows
from methods.random_direction import RandomDirection
from tests.model.test_log_likelihood import asked
from tests.run.test_smoke import arguments, world  # noqa: F401  # a fixture
from tests.tiny import tiny_lm


class Blow:
    """Multiplies the residual stream, in half precision beyond what it can hold."""

    name = "blow"

    @contextmanager
    def apply(self, model, artefact, strength):
        with hooked([Hook(layout.blocks(model)[1], "output", lambda h: h * strength)]):
            yield Steering()


def broken(value: float) -> LM:
    """A model with one weight that is not a number."""
    lm = tiny_lm()
    with torch.no_grad():
        lm.model.get_output_embeddings().weight[7, 3] = value  # one token's logit in each column
    return lm


READINGS = {
    "sampling": lambda lm: sample(lm, ["The old tree", "bread"], 3),
    "greedy": lambda lm: sample(lm, ["The old tree"], 1, temperature=0),
    "likelihood": lambda lm: likelihoods(lm, [Request([1, 5], [9]), Request([1, 5], [9, 20, 30])]),
    "lm-eval": lambda lm: SteeredLM(lm).loglikelihood(asked([("The quick", " fox")])),
    "lm-eval rolling": lambda lm: SteeredLM(lm).loglikelihood_rolling(asked([("The quick fox",)])),
    "lm-eval text": lambda lm: SteeredLM(lm).generate_until(
        asked([("The quick", {"until": [], "max_gen_toks": 4})], "generate_until")
    ),
}


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_no_number_stops_every_reading(reading, value):
    with pytest.raises(NotFiniteError, match=r"logits are not finite at strength 0 \(unsteered\): \d+ of \d+ are NaN"):
        READINGS[reading](broken(value))


@pytest.mark.parametrize("reading", READINGS)
def test_the_error_names_strength_and_method(reading):
    lm = tiny_lm()
    lm.model.half()
    READINGS[reading](lm)
    with (
        lm.steered(Blow(), {}, 1e8) as steered,
        pytest.raises(NotFiniteError, match=r"at strength 1e\+08 of blow: .* torch.float16"),
    ):
        READINGS[reading](steered)


@pytest.mark.parametrize(
    ("spoil", "more", "message"),
    [
        (
            lambda lm: lm.model.get_output_embeddings().weight.data[7, 3].fill_(math.nan),
            [],
            "at strength 0 (unsteered)",
        ),
        (lambda lm: None, ["method=caa", "strength=1e8", "model.dtype=float16"], "at strength 1e+08 of caa"),
    ],
)
def test_a_cell_stops_and_leaves_no_record(spoil, more, message, world, tmp_path, capsys):  # noqa: F811
    lm = tiny_lm()
    spoil(lm)
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    given = [one for one in arguments(world, tmp_path / "results") if "capability" not in one]
    command = [*given, "suite=[rtp,fluency]", *more, f"model.path={tmp_path / 'model'}"]
    assert main(command) == 2
    assert f"logits are not finite {message}" in capsys.readouterr().err.replace("\n", " ")
    assert not list((tmp_path / "results/runs").glob("records/*"))
    assert not list((tmp_path / "results/runs").glob("generations/*"))


@pytest.mark.parametrize(
    "method", [CAA(), DeTox(rank=1), ProbeRows(min_steps=1), RandomDirection()], ids=lambda m: m.name
)
def test_nothing_is_learnt_from_a_model_that_computes_nan(method):
    lm = tiny_lm()
    with torch.no_grad():
        lm.model.model.embed_tokens.weight[:, 3] = math.nan
    pairs = Pairs(["The old", "The"], [" tree", " bird"], [" hate", " dog"])
    with pytest.raises(SetupError, match="residual stream is not finite in the training texts"):
        method.fit(lm.model, lm.tokenizer, FitData(pairs=pairs))


def test_padding_may_be_anything():
    """A row of padding alone, whose logits are NaN in some attention kernels, stops nothing."""
    lm = tiny_lm()
    rows = lm.start(torch.tensor([2, 2]))
    real = torch.tensor([[True, True], [False, True]])

    def spoil(_module, _args, output):
        output.logits[1, 0] = math.nan
        return output

    handle = lm.model.register_forward_hook(spoil)
    lm.read(rows, torch.tensor([[5, 6], [0, 6]]), real)
    handle.remove()


def test_decoding_steering_may_forbid_tokens_not_force_them():
    def forbid(step):
        return step.logits.index_fill(-1, torch.tensor([9]), -math.inf)

    lm = replace(tiny_lm(), steering=Steering(next_logits=forbid), sampling=Sampling(seed=1))
    assert sample(lm, ["The old tree"], 2)
    assert likelihoods(lm, [Request([1, 5], [8])])[0].logprob < 0
    with pytest.raises(SetupError, match="a log-probability is not finite"):
        likelihoods(lm, [Request([1, 5], [9])])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("reading", READINGS)
def test_decoding_time_steering_must_leave_a_choice(reading, value):
    """A row of NaN, of +inf, or in which every token is forbidden, is no choice."""

    def spoil(step):
        return torch.full_like(step.logits, value)

    lm = replace(tiny_lm(), steering=Steering(next_logits=spoil), steered_by="3 of spoil")
    with pytest.raises(NotFiniteError, match="not finite at strength 3 of spoil"):
        READINGS[reading](lm)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_mean_never_skips_what_is_no_number(value):
    items = pd.DataFrame({"value": [1.0, value, 2.0], "weight": 1.0})
    with pytest.raises(ValueError, match="1 of 3 items are NaN or infinite"):
        metrics.metric(items, higher_is_better=True)
    with pytest.raises(ValueError, match="1 of 3 items"):
        metrics.metric(items.rename(columns={"value": "weight", "weight": "value"}), higher_is_better=True)


def test_a_perplexity_that_no_float_holds():
    with pytest.raises(ValueError, match="exp of the mean of the items, 800, is larger"):
        metrics.fold(np.array([800.0]), np.array([1.0]), "exp")
