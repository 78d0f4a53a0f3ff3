"""What the formats hold of architectures beside those that test_export.py writes and loads again."""

import pytest
import torch

from bench.export import bias, lm_eval, peft
from bench.export.effect import Steered, measure
from methods import CAA, DeTox, FitData, layout
from methods.errors import SetupError
from tests.architectures import lm_of
from tests.methods.test_contract import PAIRS


def steered(architecture, method, strength=1.0):
    lm = lm_of(architecture)
    artefact = method.fit(lm.model, lm.tokenizer, FitData(pairs=PAIRS))
    return Steered(lm, method, artefact, strength, measure(lm, method, artefact, strength), "", None, "tiny")


@pytest.mark.parametrize("architecture", ["phi3", "bloom", "falcon", "gemma3_multimodal", "mixtral", "olmo2"])
def test_a_vector_is_measured_and_named_as_lm_eval_looks_for_it(architecture, tmp_path):
    one = steered(architecture, CAA(scope="all", layer=1))
    assert one.effect.beyond is None and list(one.effect.vectors) == [1] and not one.effect.weights
    lm_eval.write(tmp_path / "vector.pt", one)
    (name,) = torch.load(tmp_path / "vector.pt", weights_only=True)
    model = one.lm.model
    assert dict(model.base_model.named_modules())[name] is layout.blocks(model)[1]


@pytest.mark.parametrize("architecture", ["phi3", "mixtral"])
def test_edited_parts_of_a_parameter_are_one_weight(architecture):
    one = steered(architecture, DeTox(layer_start=1, keys=True))
    both = {
        part.parameter for kind in ("down", "gate", "up") for part in layout.stream_rows(one.lm.model, 1, kind).parts
    }
    names = {name for name, parameter in one.lm.model.named_parameters() if parameter in both}
    assert set(one.effect.weights) == names and len(names) == 2 and one.effect.beyond is None


@pytest.mark.parametrize(
    ("architecture", "told"),
    [
        ("gemma2", "gemma2: the output of its MLPs passes through a norm .* format=lm_eval"),
        ("olmo3", "olmo3: the output of its MLPs passes through a norm"),
        ("mixtral", r"mixtral: its blocks write through mlp\.experts\.down_proj, a mixture of.* format=lm_eval"),
        ("qwen3_moe_mixed", "qwen3_moe: its blocks write through mlp.down_proj, mlp.experts.down_proj, a mixture"),
        ("phi3", "phi3 has no bias in mlp.down_proj and no option"),
    ],
)
def test_a_model_without_room_for_a_bias_is_refused(architecture, told):
    with pytest.raises(SetupError, match=told):
        bias.new_biases(lm_of(architecture).model, {1: torch.ones(32)})


@pytest.mark.parametrize("architecture", ["bloom", "falcon_alibi", "phi2", "granite"])
def test_a_bias_gives_the_same_logits_in_transformers(architecture, tmp_path):
    if architecture == "falcon_alibi":
        with pytest.raises(SetupError, match="falcon has no bias"):
            bias.new_biases(lm_of(architecture).model, {1: torch.ones(32)})
        return
    assert bias.write(tmp_path, steered(architecture, CAA(scope="all", layer=1))) < 1e-3


def test_experts_are_no_linear_layers_for_an_adapter(tmp_path):
    with pytest.raises(
        SetupError, match=r"2 other parameters \(the first is model\.layers\.\d\.mlp\.experts\.down_proj.*"
    ):
        peft.write(tmp_path, steered("mixtral", DeTox(layer_start=0)))
