"""What a fit or an artefact cannot be made of: each is refused in words, before a number comes of it."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from methods.act import AcT
from methods.activation_scaling import ActivationScaling
from methods.argre import ARGRE
from methods.aura import AurA
from methods.base import FitData, Pairs
from methods.caa import CAA
from methods.dinm import DINM
from methods.eigenshift import EigenShift
from methods.errors import SetupError
from methods.gate import Gate
from methods.imported import Imported
from methods.lineas import LinEAS
from methods.lora import LoRA
from methods.psa import PSA
from methods.sadi import SADI
from methods.sasa import SASA
from methods.self_debias import SelfDebias
from methods.task_negation import TaskNegation
from methods.word_filter import WordFilter
from tests.methods.test_contract import DATA, PAIRS
from tests.tiny import tiny_lm


@pytest.fixture(scope="module")
def lm():
    return tiny_lm()


def fit(method, lm, **data):
    return method.fit(lm.model, lm.tokenizer, FitData(**DATA | data))


def test_lists_of_unequal_length_are_no_pairs(lm):
    uneven = PAIRS._replace(desired=PAIRS.desired[:5])
    for method in (WordFilter(min_log_odds=-9), CAA()):
        with pytest.raises(SetupError, match=r"prompts, desired and undesired texts are \[8, 5, 8\]; give"):
            fit(method, lm, pairs=uneven)


def test_texts_that_are_all_the_same(lm):
    with pytest.raises(SetupError, match="aura: the desired texts are the undesired ones"):
        fit(AurA(), lm, pairs=Pairs([""] * 3, [""] * 3, [""] * 3))
    with pytest.raises(SetupError, match="activation_scaling: the two texts of every pair are the same"):
        fit(ActivationScaling(steps=2), lm, pairs=PAIRS._replace(undesired=PAIRS.desired))


def test_broken_weights_are_named_as_the_cause():
    broken = tiny_lm(seed=3)
    next(one for one in broken.model.model.layers[0].parameters()).fill_(math.nan)
    with pytest.raises(SetupError, match="residual stream is not finite"):
        fit(AcT(), broken)
    with pytest.raises(SetupError, match="after 0 steps of lora; check that the model's weights are whole"):
        fit(LoRA(), broken)


@pytest.mark.parametrize(
    "method",
    [SelfDebias(), WordFilter(), SADI(), TaskNegation(), DINM(), EigenShift(), LinEAS(), ARGRE()],
    ids=lambda method: method.name,
)
def test_an_artefact_of_something_else_is_refused(method, lm):
    with pytest.raises(SetupError, match="fit it again|fitted with other options"), method.apply(lm.model, {}, 1.0):
        pass


@pytest.mark.parametrize(
    "method",
    [
        PSA(sigma=1e-300), PSA(sigma=1e300), PSA(sigma=None, epsilon=1e300), Gate(inner=CAA(), threshold=math.nan),
        LoRA(alpha=math.nan), LoRA(rank=2.5), SASA(max_candidates=2.5),
    ],
)  # fmt: skip
def test_numbers_that_no_fit_ends_with(method, lm):
    with pytest.raises(SetupError, match="method\\."):
        method.check(lm.model)


VECTOR = torch.arange(36.0) - 10
ENTRY = {"steering_vector": VECTOR, "steering_coefficient": 2.0, "action": "add"}
WRONG = {
    "not finite": {"layers.2": ENTRY | {"steering_coefficient": math.nan}},
    "too large": {"layers.2": ENTRY | {"steering_coefficient": 10**400}},
    "infinite in fp32": {"layers.2": ENTRY | {"steering_coefficient": 1e300}},
    "a list of modules, which never runs": {"layers": ENTRY},
    "a narrower output": {"layers.2.self_attn.k_proj": ENTRY},
    "a wider output": {"layers.2.mlp.act_fn": ENTRY},
    "no numbers": {"layers.2": ENTRY | {"steering_vector": VECTOR.to("meta")}},
    "sparse": {"layers.2": ENTRY | {"steering_vector": VECTOR.to_sparse()}},
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_lm_eval_files_that_steer_nothing_or_fail_later(content, tmp_path: Path, lm):
    path = tmp_path / "steer.pt"
    torch.save(content, path)
    with pytest.raises(SetupError, match="finite|module|sparse"):
        Imported(path=str(path)).check(lm.model)


@pytest.mark.parametrize("layer", [2.0, "2", True])
def test_an_imported_layer_is_a_whole_number(layer, tmp_path: Path, lm):
    path = tmp_path / "x.pt"
    torch.save(VECTOR, path)
    with pytest.raises(SetupError, match=r"method\.layer="):
        Imported(path=str(path), format="caa", layer=layer).check(lm.model)


@pytest.mark.parametrize("size", [1e-30, 1e38])
def test_the_length_of_a_vector_neither_overflows_nor_vanishes(size, tmp_path: Path, lm):
    path = tmp_path / "v.safetensors"
    save_file({"layers.2.direction": torch.full((36,), size)}, path)
    method = Imported(path=str(path), hook="output", operation="ablate", scope="all")
    found = fit(method, lm)["ablate.output.all.layers.2"]
    assert float(found.norm()) == pytest.approx(1, rel=1e-5)


def test_two_names_of_one_block_are_refused(tmp_path: Path, lm):
    path = tmp_path / "v.safetensors"
    save_file({"layers.2.direction": VECTOR, "layers.02.direction": VECTOR.clone()}, path)
    with pytest.raises(SetupError, match=r"layers\.02\.direction"):
        Imported(path=str(path), hook="output", operation="add", scope="all").check(lm.model)
