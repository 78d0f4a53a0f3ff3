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
from methods.base import Examples, FitData, Pairs
from methods.caa import CAA
from methods.dexperts import DExperts
from methods.dinm import DINM
from methods.dpo import DPO
from methods.eigenshift import EigenShift
from methods.errors import SetupError
from methods.gate import Gate
from methods.imported import Imported
from methods.iti import ITI
from methods.itic import ITIC
from methods.kl_then_steer import KLThenSteer
from methods.lineas import LinEAS
from methods.lora import LoRA
from methods.mean_centring import MeanCentring
from methods.psa import PSA
from methods.sadi import SADI
from methods.sasa import SASA
from methods.security_vector import SecurityVector
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


@pytest.mark.parametrize(
    "method",
    [AcT(), AurA(), LinEAS(steps=2), Gate(inner=CAA(), condition_layer=1), CAA(read="all", skip_first=1)],
    ids=lambda method: method.name,
)
def test_a_text_of_which_only_an_attention_sink_is_left(method):
    plain = tiny_lm(bos="none")
    short = Pairs([*PAIRS.prompt[:7], ""], [*PAIRS.desired[:7], "a"], [*PAIRS.undesired[:7], "b"])
    with pytest.raises(SetupError, match=r"^(1 of 8|2 of 16) texts have nothing to read .*method\.skip_first=1"):
        fit(method, plain, pairs=short)


def test_background_texts_that_are_all_empty(lm):
    for method in (PSA(), Gate(inner=CAA()), KLThenSteer(), DINM(), ActivationScaling(), MeanCentring()):
        with pytest.raises(SetupError, match=f"^{method.name} .* and got 5, all empty; set background=wiki"):
            fit(method, lm, background=[""] * 5)


def test_pairs_that_are_all_the_same_leave_no_value_to_map(lm):
    same = Pairs(*(column[:1] * 6 for column in PAIRS))
    for method in (AcT(), AcT(kind="mean"), AcT(causal=False)):
        with pytest.raises(SetupError, match="act: the fit changed nothing, so every strength is the unsteered model"):
            fit(method, lm, pairs=same)
    assert fit(AcT(support="infinite"), lm, pairs=same)["layers.1.attention.shift"].any()


@pytest.mark.parametrize("method", [DPO(beta=1e30), DINM(edit_weight=1e30, layer=2)], ids=lambda method: method.name)
def test_a_training_that_leaves_everything_as_it_was(method, lm):
    with pytest.raises(SetupError, match=f"{method.name}: the fit changed nothing, .* nearer to their defaults"):
        fit(method, lm)


def test_texts_that_are_cut_to_one_token_name_the_limit(lm):
    for method in (TaskNegation(max_tokens=1), DExperts(max_tokens=1)):
        with pytest.raises(SetupError, match="^no harmful texts .* 3 were cut to method.max_tokens=1, so raise it"):
            fit(method, lm)


def test_entries_that_are_no_texts(lm):
    with pytest.raises(SetupError, match="pairs.prompt: expected texts, got None as number 1; leave it out"):
        fit(CAA(), lm, pairs=PAIRS._replace(prompt=[None] * 8))
    with pytest.raises(SetupError, match="background: expected texts, got 7 as number 2"):
        fit(PSA(), lm, background=["a", 7])
    with pytest.raises(SetupError, match="2 prompts and 1 texts do not belong together; give equally many"):
        fit(TaskNegation(), lm, harmful=Examples(["a", "b"], ["c"]))


@pytest.mark.parametrize(
    ("method", "told"),
    [
        (ITI(boundary="false"), "method.boundary='false': expected true or false"),
        (SADI(boundary="abc"), "method.boundary='abc': expected true or false"),
        (ITI(seed=1.5), "method.seed=1.5: expected a whole number"),
        (Gate(inner=CAA(), skip_first=math.nan), "method.skip_first=nan: expected a whole number"),
        (CAA(skip_first="1"), "method.skip_first='1': expected a whole number"),
        (CAA(norm="3"), "method.norm='3': expected a number"),
        (CAA(layer=True), "method.layer=True: expected a number"),
        (ActivationScaling(sparsity=math.nan), "method.sparsity=nan: expected a number"),
        (SecurityVector(kl_weight=math.nan), "method.kl_weight=nan: expected a number"),
        (SelfDebias(epsilon=1.0), "method.epsilon=1.0: expected a factor above 0 and below 1"),
    ],
)
def test_options_of_a_wrong_type(method, told, lm):
    with pytest.raises(SetupError, match=told):
        method.check(lm.model)


@pytest.mark.parametrize(
    "method", [AcT(), AurA(), ITI(head_fraction=1), ITIC(), LinEAS(steps=2)], ids=lambda one: one.name
)
def test_an_artefact_of_a_deeper_model_of_the_same_width(method, lm):
    shallow = tiny_lm().model
    artefact = fit(method, lm)
    del shallow.model.layers[2:]
    shallow.config.num_hidden_layers = 2
    with pytest.raises(SetupError, match=rf"{method.name}: layers\.[2-4]\..* has 2 blocks \(0-1\); fit it again"):
        with method.apply(shallow, artefact, 1.0):
            pass


def test_broken_weights_are_named_as_the_cause():
    broken = tiny_lm(seed=3)
    next(one for one in broken.model.model.layers[0].parameters()).fill_(math.nan)
    with pytest.raises(SetupError, match="residual stream is not finite"):
        fit(AcT(), broken)
    with pytest.raises(SetupError, match="after 0 steps of lora; check that the model's weights are whole"):
        fit(LoRA(), broken)


@pytest.mark.parametrize(
    "method",
    [SelfDebias(), WordFilter(), SADI(), TaskNegation(), DINM(), EigenShift(), LinEAS(), ARGRE(), ITI()],
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
