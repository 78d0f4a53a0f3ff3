from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, OPTConfig

from bench.export import checkpoint, peft
from bench.export.effect import Steered, measure
from bench.export.effect import logits as plain_logits
from bench.model.lm import LM
from methods import directions, layout, sites, untying
from methods.ablation import Ablation, whitened_reader
from methods.base import FitData, Pairs
from methods.erasing import Erasure
from methods.errors import SetupError
from methods.intervention import Hook, adding, hooked, record
from tests.architectures import CONFIGS, lm_of
from tests.methods.test_contract import PAIRS
from tests.tiny import CONFIGS as TINY
from tests.tiny import tiny_lm, tiny_tokenizer

LAYER = 1
IDS = torch.tensor([[5, 90, 17, 3, 200, 41, 41, 8, 120, 33], [7, 7, 60, 299, 14, 18, 2, 9, 11, 100]])
FOLDING = ["llama", "llama tied", "gpt2", "opt", "gptj", "gpt_neox", "gemma", "granite", "mixtral", "falcon"]
NORMED = ["gemma2", "gemma3", "olmo2", "olmo3", "bloom"]


def built(name: str) -> LM:
    """A tiny model, biases and all other weights random; `tied`: its unembedding is its token embedding."""
    architecture, _, tied = name.partition(" ")
    lm = lm_of(architecture) if not tied else None
    if lm is None:
        config = CONFIGS[architecture]()
        config.tie_word_embeddings = True
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config).eval()
        model.requires_grad_(False)
        lm = LM(model, tiny_tokenizer(), {"tiny": name})
        assert untying.is_tied(model)
    return lm


def fit(method: Ablation, lm: LM, pairs: Pairs = PAIRS):
    return method.fit(lm.model, lm.tokenizer, FitData(pairs))


@torch.no_grad()
def logits(lm: LM, method: Ablation, artefact, strength: float) -> torch.Tensor:
    with method.apply(lm.model, artefact, strength):
        return lm.model(input_ids=IDS, use_cache=False).logits


@torch.no_grad()
def inputs(lm: LM, method: Ablation, artefact, strength: float) -> torch.Tensor:
    """(L + 1, B, T, D) the input of every block and the output of the last, steered."""
    depth = len(layout.blocks(lm.model))
    with (
        method.apply(lm.model, artefact, strength),
        record(lm.model, range(depth), "input") as before,
        record(lm.model, [depth - 1]) as after,
    ):
        lm.model(input_ids=IDS, use_cache=False)
        return torch.stack([*(before[layer] for layer in range(depth)), after[depth - 1]]).clone()


def features_by_hand(lm: LM, side: list[str]) -> np.ndarray:
    """(N, D) mean over the continuation of the input of block LAYER."""
    rows = []
    for prompt, text in zip(PAIRS.prompt, side, strict=True):
        head, tail = lm.encode(prompt), lm.tokenizer(text, add_special_tokens=False).input_ids
        with torch.inference_mode():
            out = lm.model(torch.tensor([head + tail]), output_hidden_states=True)
        rows.append(out.hidden_states[LAYER][0, len(head) :].double().mean(0))  # input of block LAYER
    return torch.stack(rows).numpy()


# -- the fit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eraser", ["orth", "leace"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_directions_by_hand(architecture, eraser):
    lm = tiny_lm(architecture)
    desired, undesired = features_by_hand(lm, PAIRS.desired), features_by_hand(lm, PAIRS.undesired)
    difference = undesired.mean(0) - desired.mean(0)
    unit = reader = difference / np.linalg.norm(difference)
    if eraser == "leace":
        covariance = np.cov(np.concatenate([desired, undesired]).T)
        shrunk = 0.7 * covariance + 0.3 * np.trace(covariance) / len(unit) * np.eye(len(unit))
        solved = np.linalg.solve(shrunk, unit)
        reader = solved / (unit @ solved)
    found = fit(Ablation(layer=LAYER, eraser=eraser, shrinkage=0.3, operation="affine"), lm)
    np.testing.assert_allclose(found["directions"].numpy(), np.stack([unit, reader]), rtol=1e-4, atol=1e-5)
    assert float(found["offset"]) == pytest.approx(reader @ desired.mean(0), rel=1e-4, abs=1e-5)
    assert float(found["info.direction_norm"]) == pytest.approx(np.linalg.norm(difference), rel=1e-4)
    assert float(found["directions"][0] @ found["directions"][1]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("eraser", ["orth", "leace"])
def test_a_planted_flag_is_found_and_taken_out(monkeypatch, eraser):
    """Both sides are the same texts; the undesired ones have a flag. Erased they are equal; ACE puts them at clean."""
    lm, generator = tiny_lm(), torch.Generator().manual_seed(0)
    width, axis = layout.width(lm.model), torch.zeros(layout.width(lm.model))
    axis[7] = 1.0
    clean = torch.randn(8, width, generator=generator) + 2 * axis
    flagged = clean + 3 * axis
    sides = iter([clean, flagged])
    monkeypatch.setattr(directions, "pooled_features", lambda *_, **__: next(sides)[None])
    found = fit(Ablation(eraser=eraser, operation="affine", shrinkage=0.5), lm)
    torch.testing.assert_close(found["directions"][0], axis)
    reader, offset = found["directions"][1], float(found["offset"])
    erased = [Erasure(*found["directions"], 0.0, 1.0).of_stream(one, constant=True) for one in (clean, flagged)]
    torch.testing.assert_close(*erased)
    moved = [Erasure(*found["directions"], offset, 1.0).of_stream(one, constant=True) for one in (clean, flagged)]
    torch.testing.assert_close(*moved)
    torch.testing.assert_close(moved[1] @ reader, (clean.mean(0) @ reader).expand(8))
    torch.testing.assert_close(moved[0].mean(0), clean.mean(0))


def test_wholly_shrunk_leace_is_orth():
    features = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(features[0] - features[1], dim=0)
    torch.testing.assert_close(whitened_reader(features, unit, 1.0), unit.double())
    assert not torch.allclose(whitened_reader(features, unit, 0.1), unit.double(), atol=1e-3)


def test_labels_matter_for_the_affine_form_alone():
    lm = tiny_lm()
    swapped = Pairs(PAIRS.prompt, PAIRS.undesired, PAIRS.desired)
    for operation, same in (("ablate", True), ("affine", False)):
        method = Ablation(operation=operation)
        one, other = (logits(lm, method, fit(method, lm, pairs), 1.0) for pairs in (PAIRS, swapped))
        assert torch.allclose(one, other, atol=1e-4) == same and method.reads_labels != same


# -- what it does -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eraser", ["orth", "leace"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gptj", "gemma2", "olmo2", "bloom", "granite"])
def test_nothing_of_the_direction_is_left_at_any_block(architecture, eraser):
    """At strength 1, at every token; in the affine form what the desired texts have."""
    lm = built(architecture)
    for operation in ("ablate", "affine"):
        method = Ablation(layer=LAYER, eraser=eraser, operation=operation)
        found = fit(method, lm)
        along = inputs(lm, method, found, 1.0) @ found["directions"][1]  # (L + 1, B, T)
        usual = inputs(lm, method, found, 0.0) @ found["directions"][1]
        torch.testing.assert_close(along, found["offset"].expand_as(along), atol=2e-4, rtol=1e-4)
        assert (usual - found["offset"]).abs().max() > 0.1
    assert (found["offset"] != 0).all()


def test_half_of_it_is_left_at_half_the_strength():
    """Of what the embeddings write; only in the direction."""
    lm, method = tiny_lm(), Ablation(operation="affine")
    found = fit(method, lm)
    unit, offset = found["directions"][0], found["offset"]
    before, after = (inputs(lm, method, found, strength)[0] for strength in (0.0, 0.5))
    torch.testing.assert_close(after @ unit - offset, (before @ unit - offset) / 2, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after - (after @ unit)[..., None] * unit, before - (before @ unit)[..., None] * unit)


def test_twice_is_once():
    lm, method = tiny_lm(), Ablation(eraser="leace")
    found = fit(method, lm)
    once = logits(lm, method, found, 1.0)
    with method.apply(lm.model, found, 1.0):
        torch.testing.assert_close(logits(lm, method, found, 1.0), once, atol=1e-4, rtol=1e-4)


def test_the_affine_form_without_a_constant_is_ablation():
    lm, method = tiny_lm(), Ablation(operation="affine")
    found = fit(method, lm)
    ablated = logits(lm, replace(method, operation="ablate"), found, 1.0)
    assert torch.equal(logits(lm, method, found | {"offset": torch.zeros(())}, 1.0), ablated)
    assert not torch.equal(logits(lm, method, found, 1.0), ablated)


@pytest.mark.parametrize("form", ["hooks", "weights"])
def test_embeddings_can_be_left(form):
    lm, method = tiny_lm(), Ablation(embeddings="leave", form=form)
    found = fit(method, lm)
    after, unit = inputs(lm, method, found, 1.0), found["directions"][0]
    assert torch.equal(after[0], inputs(lm, method, found, 0.0)[0])
    torch.testing.assert_close((after - after[0]) @ unit, torch.zeros(after.shape[:-1]), atol=2e-4, rtol=0)


@pytest.mark.parametrize("form", ["hooks", "weights"])
def test_strength_zero_is_the_model(form):
    lm, method = built("llama tied"), Ablation(form=form, operation="affine")
    found = fit(method, lm)
    with torch.no_grad():
        plain = lm.model(input_ids=IDS, use_cache=False).logits
    assert torch.equal(logits(lm, method, found, 0.0), plain)
    assert not torch.equal(logits(lm, method, found, 0.25), plain)


# -- hooks and weights --------------------------------------------------------------------------------------------


@pytest.mark.every(3)
@pytest.mark.parametrize("operation", ["ablate", "affine"])
@pytest.mark.parametrize("eraser", ["orth", "leace"])
@pytest.mark.parametrize("name", FOLDING)
def test_weights_do_what_hooks_do(name, eraser, operation):
    lm = built(name)
    method = Ablation(layer=LAYER, eraser=eraser, operation=operation)
    found, plain = fit(method, lm), logits(lm, method, {}, 0.0)
    for strength in (0.3, 1.0):
        hooks = logits(lm, method, found, strength)
        weights = logits(lm, replace(method, form="weights"), found, strength)
        assert (hooks - weights).abs().max() <= 1e-5 * hooks.abs().max()
        assert (hooks - plain).abs().max() > 1e-3 * hooks.abs().max()


@pytest.mark.parametrize("name", NORMED)
def test_weights_behind_which_a_norm_stands_are_refused(name):
    lm, method = built(name), Ablation(form="weights")
    with pytest.raises(SetupError, match="a norm .*stands between .*set method.form=hooks"):
        method.check(lm.model)
    found = fit(Ablation(), lm)
    before = {key: value.clone() for key, value in lm.model.state_dict().items()}
    with pytest.raises(SetupError, match="set method.form=hooks"), method.apply(lm.model, found, 1.0):
        raise AssertionError("it must not get here")
    assert all(torch.equal(value, before[key]) for key, value in lm.model.state_dict().items())


def test_an_embedding_of_another_width_is_refused_for_weights():
    config = OPTConfig(**(TINY["opt"].to_dict() | {"word_embed_proj_dim": 16}))
    lm = LM(AutoModelForCausalLM.from_config(config).eval().requires_grad_(False), tiny_tokenizer(), {})
    with pytest.raises(SetupError, match="the token embedding is 16 wide and the stream 28"):
        Ablation(form="weights").check(lm.model)
    method = Ablation(layer=LAYER)
    found = fit(method, lm)
    along = inputs(lm, method, found, 1.0) @ found["directions"][0]
    torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-4, rtol=0)


def test_another_writer_is_noticed():
    """Something adds to the stream that no weight of the model says: the two forms are not the same then."""
    lm, method = tiny_lm(), Ablation(form="weights")
    found = fit(Ablation(), lm)
    extra = Hook(layout.blocks(lm.model)[0], "input", adding(3 * found["directions"][0], "all"))
    with hooked([extra]), pytest.raises(SetupError, match="something else writes to the stream here"):
        logits(lm, method, found, 1.0)
    logits(lm, method, found, 1.0)  # without it nothing is wrong, and the answer was not kept


def test_a_tie_is_undone_and_tied_again_byte_for_byte():
    lm, method = built("llama tied"), Ablation(form="weights", operation="affine")
    found, model = fit(method, lm), lm.model
    shared, keys = model.lm_head.weight, model.all_tied_weights_keys
    before, names = shared.clone(), list(model.state_dict())
    with pytest.raises(RuntimeError, match="in between"), method.apply(model, found, 1.0):
        model.tie_weights()  # as lm-eval does
        assert not untying.is_tied(model) and model.config.tie_word_embeddings is False
        assert torch.equal(model.lm_head.weight, before) and not torch.equal(shared, before)
        raise RuntimeError("in between")
    assert model.lm_head.weight is shared is model.get_input_embeddings().weight
    assert torch.equal(shared, before) and model.config.tie_word_embeddings is True
    assert model.all_tied_weights_keys is keys and list(model.state_dict()) == names
    model.tie_weights()
    assert model.lm_head.weight is shared


@pytest.mark.parametrize("form", ["hooks", "weights"])
def test_half_precision(form):
    lm = tiny_lm()
    found = fit(Ablation(), lm)
    wanted = logits(lm, Ablation(), found, 1.0)
    lm.model.to(torch.bfloat16)
    got = logits(lm, Ablation(form=form), found, 1.0)
    assert got.dtype == torch.bfloat16
    assert (got.float() - wanted).norm() < 0.1 * wanted.norm()


# -- exports ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "llama tied", "gpt2"])
def test_the_weight_form_is_a_checkpoint(tmp_path, name):
    lm, method = built(name), Ablation(form="weights", operation="affine")
    found = fit(method, lm)
    effect = measure(lm, method, found, 0.75)
    assert effect.beyond is None and effect.unties == untying.is_tied(lm.model) == (name != "llama")
    one = Steered(lm, method, found, 0.75, effect, "", None, "tiny")
    assert checkpoint.write(tmp_path / "whole", one) == 0
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=IDS, use_cache=False).logits, logits(lm, method, found, 0.75))


def test_without_embeddings_it_is_an_adapter_of_rank_1(tmp_path):
    lm, method = built("llama tied"), Ablation(form="weights", embeddings="leave")
    lm.model.save_pretrained(tmp_path / "base")
    found = fit(method, lm)
    effect = measure(lm, method, found, 1.0)
    assert not effect.unties and all(key.endswith(("o_proj.weight", "down_proj.weight")) for key in effect.weights)
    one = Steered(lm, method, found, 1.0, effect, str(tmp_path / "base"), None, "tiny")
    assert peft.write(tmp_path / "adapter", one) < 1e-4
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert loaded.peft_config["default"].r == 1
    with one.on() as steered:
        wanted = plain_logits(steered.model, lm)
    torch.testing.assert_close(plain_logits(loaded, lm), wanted, atol=1e-4, rtol=1e-4)


def test_hooks_are_no_constant_vector():
    lm, method = tiny_lm(), Ablation()
    assert "depends on what is there" in str(measure(lm, method, fit(method, lm), 1.0).beyond)


# -- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 40}, "layer 40 out of range: this model of type llama has 5 blocks"),
        ({"read": "first"}, "method.read='first': allowed are all, continuation, last"),
        ({"operation": "add"}, "method.operation='add': allowed are ablate, affine"),
        ({"eraser": "pca"}, "method.eraser='pca': allowed are orth, leace"),
        ({"form": "bias"}, "method.form='bias': allowed are hooks, weights"),
        ({"embeddings": "yes"}, "method.embeddings='yes': allowed are project, leave"),
        ({"skip_first": -1}, "method.skip_first=-1 is negative"),
        ({"shrinkage": 0}, "method.shrinkage=0: expected a number in"),
        ({"operation": "affine", "embeddings": "leave"}, "set method.embeddings=project, or method.operation=ablate"),
    ],
)
def test_settings_that_are_not_allowed(options, message):
    with pytest.raises(SetupError, match=message):
        Ablation(**options).check(tiny_lm().model)


def test_bad_texts_are_refused():
    lm, same = tiny_lm(), Pairs(["The", "A"], [" fox", " bird"], [" fox", " bird"])
    with pytest.raises(SetupError, match=r"input of block 2 have the same mean .*give pairs whose texts differ"):
        fit(Ablation(layer=2), lm, same)
    with pytest.raises(SetupError, match="learns from contrast pairs and got 1"):
        fit(Ablation(), lm, Pairs(["The"], [" fox"], [" bird"]))


def test_an_artefact_of_another_model_is_refused():
    lm, method = tiny_lm(), Ablation()
    with pytest.raises(SetupError, match="was not fitted on this model, whose width is 36"):
        logits(lm, method, fit(method, tiny_lm("gpt2")), 1.0)
    with pytest.raises(SetupError, match="without directions was not fitted on this model"):
        logits(lm, method, {"layers.1.direction": torch.ones(36)}, 1.0)


def test_every_writer_has_a_hook():
    """Attention and MLP of every block, and the embeddings."""
    lm = tiny_lm()
    places = {id(sites.written(lm.model, layer, part).module) for layer in range(5) for part in sites.PARTS}
    method = Ablation()
    with method.apply(lm.model, fit(method, lm), 1.0):
        hooks = {id(one) for one in lm.model.modules() if one._forward_hooks}
        assert hooks == places and len(places) == 10
        assert [id(one) for one in lm.model.modules() if one._forward_pre_hooks] == [id(layout.blocks(lm.model)[0])]


def test_skip_first_leaves_out_the_beginning_of_each_text():
    lm, means = tiny_lm(), []
    for side in (PAIRS.desired, PAIRS.undesired):
        with torch.inference_mode():
            ids = [torch.tensor([lm.encode(prompt + text)]) for prompt, text in zip(PAIRS.prompt, side, strict=True)]
            rows = [lm.model(one, output_hidden_states=True).hidden_states[LAYER][0, 2:].double() for one in ids]
        means.append(torch.stack([one.mean(0) for one in rows]).mean(0))
    found = fit(Ablation(layer=LAYER, read="all", skip_first=2), lm)["directions"][0]
    wanted = torch.nn.functional.normalize(means[1] - means[0], dim=0)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
