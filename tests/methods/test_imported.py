import json
import pickle
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.config.build import build
from bench.config.compose import compose
from bench.export import gguf as as_gguf
from bench.export import lm_eval as as_lm_eval
from bench.export.effect import Steered, measure
from bench.model.lm import LM
from bench.model.log_likelihood import log_likelihood
from bench.records import identity
from bench.selftest.__main__ import examine
from bench.selftest.subject import Subject
from methods import layout
from methods.ablation import Ablation
from methods.base import FitData, facts, save
from methods.caa import CAA
from methods.errors import SetupError
from methods.imported import Imported
from methods.intervention import record
from tests.architectures import CONFIGS, lm_of
from tests.methods.test_architectures import digest
from tests.methods.test_contract import PAIRS
from tests.tiny import tiny_lm

LAYER = 2
IDS = torch.tensor([[5, 90, 17, 3, 200, 41, 41, 8, 120, 33]])
AT_PROMPT = 4  # tokens of IDS that are the prompt


@pytest.fixture(scope="module")
def lm() -> LM:
    return tiny_lm()


def drawn(lm: LM, seed: int = 0) -> torch.Tensor:
    return torch.randn(layout.width(lm.model), generator=torch.Generator().manual_seed(seed))


def fit(method: Imported, lm: LM):
    return method.fit(lm.model, lm.tokenizer, FitData())


def logits(lm: LM, method, artefact, strength: float = 1.0) -> torch.Tensor:
    """(T, V) of a text whose first tokens are the prompt."""
    with lm.steered(method, artefact, strength) as steered:
        return steered.read(steered.start(torch.tensor([AT_PROMPT])), IDS, torch.ones_like(IDS, dtype=torch.bool))[0]


def caa_logits(lm: LM, vector: torch.Tensor, layer: int = LAYER, scope: str = "all", strength: float = 1.0):
    """Return the logits of a model that CAA steers with this vector at the same site."""
    return logits(lm, CAA(layer=layer, scope=scope), {f"layers.{layer}.direction": vector}, strength)


def repeng(lm: LM, path: Path, vectors: dict[int, torch.Tensor], hint: str | None = None, count: int | None = None):
    """A GGUF as repeng writes it: no metadata of ours."""
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", hint or lm.model.config.model_type)
    writer.add_uint32("controlvector.layer_count", len(vectors) if count is None else count)
    for layer, vector in vectors.items():
        writer.add_tensor(f"direction.{layer}", vector.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def steering_entry(vector: torch.Tensor, **other):
    return {"steering_vector": vector, "steering_coefficient": 1.0, "action": "add", "bias": None,
            "head_index": None} | other  # fmt: skip


def saved(path: Path, content) -> str:
    torch.save(content, path)
    return str(path)


# -- each format, against CAA at the same site --------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize("form", ["gguf", "lm_eval"])
def test_our_exports_come_back_bit_by_bit(tmp_path, architecture, form):
    lm, method = tiny_lm(architecture), CAA(layer=2, scope="all")
    artefact = method.fit(lm.model, lm.tokenizer, FitData(PAIRS))
    one = Steered(lm, method, artefact, 2.0, measure(lm, method, artefact, 2.0), "", None, "tiny")
    path = tmp_path / ("v.gguf" if form == "gguf" else "v.pt")
    (as_gguf if form == "gguf" else as_lm_eval).write(path, one)
    back = Imported(path=str(path))
    found = fit(back, lm)
    assert torch.equal(logits(lm, back, found), logits(lm, method, artefact, 2.0))
    assert not torch.equal(logits(lm, back, found), logits(lm, back, found, 0))
    told = facts(found)
    assert told["blocks"] == [2] and told["at_outputs"] == [1]
    assert told["lengths"] == [pytest.approx(2 * told_norm(artefact), rel=1e-5)]


def told_norm(artefact) -> float:
    return float(artefact["info.direction_norm"])


def test_our_gguf_names_operation_hook_layers_and_unit(tmp_path, lm):
    method = CAA(layer=LAYER, scope="all")
    artefact = method.fit(lm.model, lm.tokenizer, FitData(PAIRS))
    as_gguf.write(
        tmp_path / "v.gguf", Steered(lm, method, artefact, 1.0, measure(lm, method, artefact, 1.0), "", None, "t")
    )
    fields = gguf.GGUFReader(tmp_path / "v.gguf").fields
    own = {key.removeprefix("steerbench."): one.contents() for key, one in fields.items() if "steerbench." in key}
    assert "residual stream" in own.pop("unit")
    assert own == {"operation": "add", "hook": "block output", "positions": "all", "layers": [LAYER], "width": 36,
                   "blocks": 5}  # fmt: skip


def test_repeng_file_adds_at_the_output_of_each_block(tmp_path, lm):
    vectors = {layer: drawn(lm, layer) for layer in range(1, 5)}
    method = Imported(path=repeng(lm, tmp_path / "v.gguf", vectors))
    found = fit(method, lm)
    with record(lm.model, range(5)) as before, lm.steered(method, found, 0.5) as steered:
        with record(lm.model, range(5)) as after:
            logits(steered, method, {}, 0)
    for layer in range(1, 5):
        torch.testing.assert_close(after[layer] - before[layer], (0.5 * vectors[layer]).expand(1, 10, -1), atol=1e-5,
                                   rtol=1e-5)  # fmt: skip
    assert facts(found)["blocks"] == [1, 2, 3, 4]


def test_one_vector_off_by_one_is_noticed(tmp_path, lm):
    vector = drawn(lm)
    method = Imported(path=repeng(lm, tmp_path / "v.gguf", {LAYER: vector}))
    got = logits(lm, method, fit(method, lm), 1.5)
    assert torch.equal(got, caa_logits(lm, vector, strength=1.5))
    for other in (LAYER - 1, LAYER + 1):
        assert not torch.allclose(got, caa_logits(lm, vector, other, strength=1.5), atol=1e-2)


def test_caa_file_acts_after_the_prompt(tmp_path, lm):
    vector = drawn(lm)
    path = saved(tmp_path / f"vec_layer_{LAYER}_Llama-2-7b-hf.pt", vector)
    method = Imported(path=path, layer=LAYER)
    found, got = fit(method, lm), logits(lm, method, fit(method, lm), 2.0)
    assert torch.equal(got, caa_logits(lm, vector, scope="generation", strength=2.0))
    plain = logits(lm, method, found, 0)
    assert torch.equal(got[: AT_PROMPT - 1], plain[: AT_PROMPT - 1]) and not torch.equal(got[-1], plain[-1])
    everywhere = replace(method, scope="all")
    assert torch.equal(logits(lm, everywhere, fit(everywhere, lm)), caa_logits(lm, vector))


@pytest.mark.parametrize("scope", ["all", "prompt", "generation"])
@pytest.mark.parametrize("action", ["add", "clamp"])
def test_a_module_that_has_rows_and_tokens_on_one_axis(tmp_path, action, scope):
    """OPT's MLP: the row of a batch and the position in it are found all the same."""
    lm = tiny_lm("opt")
    entry = {"steering_vector": drawn(lm), "steering_coefficient": 3.0, "action": action}
    method = Imported(path=saved(tmp_path / "v.pt", {"decoder.layers.1.fc2": entry}), scope=scope)
    with lm.steered(method, fit(method, lm), 1.0) as steered:
        prompts = ["The quick brown fox", "A bird"]
        both = log_likelihood(steered, prompts, [" jumps over"] * 2)
        alone = [log_likelihood(steered, [one], [" jumps over"])[0] for one in prompts]
    assert [one.logprob for one in both] == [pytest.approx(one.logprob, abs=1e-3) for one in alone]
    assert both != log_likelihood(lm, prompts, [" jumps over"] * 2)


def test_refusal_direction_adds_at_the_input_of_its_block(tmp_path, lm):
    vector = drawn(lm)
    (tmp_path / "direction_metadata.json").write_text(json.dumps({"pos": -1, "layer": LAYER}))
    path = saved(tmp_path / "direction.pt", vector.double())
    method = Imported(path=path, layer=LAYER, operation="add")
    got = logits(lm, method, fit(method, lm), -1.0)
    assert torch.equal(got, caa_logits(lm, vector, LAYER - 1, strength=-1.0))  # the output of the block before it
    assert facts(fit(method, lm))["at_outputs"] == [0]


def test_refusal_direction_is_ablated_as_ours_is(tmp_path, lm):
    vector = drawn(lm)
    method = Imported(path=saved(tmp_path / "direction.pt", vector), layer=LAYER, operation="ablate")
    unit = vector / vector.norm()
    ours = {"directions": torch.stack([unit, unit]), "offset": torch.zeros(())}
    torch.testing.assert_close(logits(lm, method, fit(method, lm)), logits(lm, Ablation(), ours), atol=1e-5, rtol=1e-5)


def test_our_safetensors_say_what_they_are_by_options(tmp_path, lm):
    source = CAA(layer=LAYER)
    artefact = source.fit(lm.model, lm.tokenizer, FitData(PAIRS))
    save(artefact, tmp_path / "artefact.safetensors")
    method = Imported(path=str(tmp_path / "artefact.safetensors"), hook="output", operation="add", scope="generation")
    assert torch.equal(logits(lm, method, fit(method, lm), 2.0), logits(lm, source, artefact, 2.0))
    for lacking, message in (("hook", "set method.hook"), ("operation", "set method.operation"),
                             ("scope", "set method.scope=all, generation or prompt")):  # fmt: skip
        with pytest.raises(SetupError, match=message):
            replace(method, **{lacking: None}).check(lm.model)


@pytest.mark.parametrize("bias", [None, 3])
def test_clamp_sets_the_projection(tmp_path, lm, bias):
    """As lm-eval: less the bias, the component along the unit vector replaced by the coefficient, plus the bias."""
    vector, offset = drawn(lm), torch.zeros(36) if bias is None else drawn(lm, bias)
    entry = steering_entry(vector, action="clamp", steering_coefficient=2.5, bias=None if bias is None else offset)
    method = Imported(path=saved(tmp_path / "v.pt", {f"layers.{LAYER}": entry}))
    found, unit = fit(method, lm), vector / vector.norm()
    for strength in (1.0, 0.4):
        with record(lm.model, [LAYER]) as before, lm.steered(method, found, strength) as steered:
            with record(lm.model, [LAYER]) as after:
                logits(steered, method, {}, 0)
        hidden = before[LAYER][0] - offset
        clamped = hidden - (hidden @ unit)[:, None] * unit + 2.5 * unit + offset
        wanted = before[LAYER][0] + strength * (clamped - before[LAYER][0])
        torch.testing.assert_close(after[LAYER][0], wanted, atol=1e-4, rtol=1e-4)


def test_lm_eval_coefficients_and_modules_inside_blocks(tmp_path, lm):
    entries = {
        "layers.1.mlp": steering_entry(drawn(lm), steering_coefficient=-3),
        "layers.2": steering_entry(drawn(lm)),
    }
    method = Imported(path=saved(tmp_path / "v.pt", entries))
    found = fit(method, lm)
    assert torch.equal(found["add.output.all.layers.1.mlp"], -3 * drawn(lm))
    assert facts(found)["blocks"] == [-1, 2]
    assert not torch.equal(logits(lm, method, found), logits(lm, method, found, 0))


# -- what was read ------------------------------------------------------------------------------------------------


def written(lm, tmp_path, form) -> Imported:
    """A file of each format, which `auto` has to recognise."""
    if form == "gguf":
        return Imported(path=repeng(lm, tmp_path / "v.gguf", {1: drawn(lm), 2: torch.zeros(36), 3: 2 * drawn(lm),
                                                              4: drawn(lm)}))  # fmt: skip
    if form == "lm_eval":
        entries = {
            "layers.1.mlp": steering_entry(drawn(lm)),
            "layers.2": steering_entry(drawn(lm), action="clamp", steering_coefficient=2.5),
        }
        return Imported(path=saved(tmp_path / "v.pt", entries))
    if form == "caa":
        return Imported(path=saved(tmp_path / "vec_layer_2_x.pt", drawn(lm)), layer=2)
    if form == "refusal_direction":
        return Imported(path=saved(tmp_path / "direction.pt", drawn(lm)), layer=2, operation="ablate")
    save_file({"layers.2.direction": drawn(lm)}, tmp_path / "v.safetensors")
    return Imported(path=str(tmp_path / "v.safetensors"), hook="input", operation="add", scope="prompt")


READ_AS = {  # format -> facts: number of the format, of each operation, of the scope; blocks, at outputs
    "gguf": (1, [0, 0, 0], 0, [1, 3, 4], [1, 1, 1]),
    "lm_eval": (2, [0, 1], 0, [-1, 2], [1, 1]),
    "caa": (3, [0], 2, [2], [1]),
    "refusal_direction": (4, [2], 0, [2], [0]),
    "safetensors": (5, [0], 1, [2], [0]),
}
SAID = {
    "gguf": "imported: 'v.gguf' is read as gguf: add at the output of layers.1, add at the output of layers.3, add at "
    "the output of layers.4; tokens: all; length 5.83 to 11.7 in the file's unit",
    "caa": "imported: 'vec_layer_2_x.pt' is read as caa: add at the output of layers.2; tokens: generation; length "
    "5.83 in the file's unit",
    "refusal_direction": "imported: 'direction.pt' is read as refusal_direction: ablate at the input of layers.2; "
    "tokens: all; length 1 in the file's unit",
}


@pytest.mark.parametrize("form", READ_AS)
def test_the_record_says_as_what_a_file_was_read(tmp_path, lm, form, capsys):
    told = facts(fit(written(lm, tmp_path, form), lm))
    assert tuple(told[key] for key in ("format", "operations", "scope", "blocks", "at_outputs")) == READ_AS[form]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("imported: ") and f" is read as {form}: " in lines[0]
    assert SAID.get(form, lines[0]) == lines[0]


def test_a_file_of_many_vectors_is_still_told_on_one_line(tmp_path, lm, capsys):
    entries = {f"layers.{layer}{end}": steering_entry(drawn(lm)) for layer in range(3) for end in ("", ".mlp")}
    fit(Imported(path=saved(tmp_path / "v.pt", entries)), lm)
    (line,) = capsys.readouterr().err.splitlines()
    assert "add at the output of layers.1.mlp and 2 more; tokens: all" in line


@pytest.mark.parametrize(
    ("here", "warned"),
    [
        ("gpt2", True),
        ("meta-llama/Llama-2-7b-chat-hf", True),
        ("", False),
        ("meta-llama/Llama-2-7b-hf", False),
        ("/models/llama_2_7b_hf", False),
        ("/cache/models--meta-llama--Llama-2-7b-hf/snapshots/8a0442e8", False),
    ],
)
def test_a_caa_file_of_another_model_is_warned_of(tmp_path, here, warned, capsys):
    lm = tiny_lm()
    lm.model.config.name_or_path = here
    fit(Imported(path=saved(tmp_path / "vec_layer_2_Llama-2-7b-hf.pt", drawn(lm)), layer=2), lm)
    lines = capsys.readouterr().err.splitlines()[1:]
    assert (
        lines
        == [
            f"warning: 'vec_layer_2_Llama-2-7b-hf.pt' names the model 'Llama-2-7b-hf', and the model here is {here!r}; "
            "check that the vector was made with this model"
        ][:warned]
    )


@pytest.mark.parametrize(
    ("content", "named"),
    [({2: torch.ones(36), 3: torch.ones(36)}, "2, 3,"), ({"layers.2": torch.ones(36)}, "'layers.2',")],
)
def test_a_plain_mapping_from_layers_to_vectors_is_named(tmp_path, lm, content, named):
    """As the library steering-vectors has it: where and how the vectors are added stands nowhere."""
    method = Imported(path=saved(tmp_path / "v.pt", content))
    with pytest.raises(SetupError) as error:
        method.check(lm.model)
    for part in (f"it is a plain mapping to vectors, from {named}", "save them as layers.N.direction",
                 "safetensors.torch.save_file, and set method.hook, method.operation and method.scope"):  # fmt: skip
        assert part in str(error.value)


# -- promises of every method -------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_every_promise_is_kept(tmp_path, architecture):
    lm = tiny_lm(architecture)
    path = repeng(lm, tmp_path / "v.gguf", {1: drawn(lm)})
    cfg = compose(["method=imported", f"method.path={path}"]).method
    subject = Subject(lambda: build(cfg), lambda: tiny_lm(architecture), FitData(), options=list(cfg))
    faults = [(one.check, one.detail) for one in examine(subject) if one.outcome == "FAIL"]
    assert faults == []


@pytest.mark.parametrize("architecture", CONFIGS)
def test_it_runs_on_every_architecture(tmp_path, architecture):
    lm = lm_of(architecture)
    before = digest(lm.model)
    method = Imported(path=repeng(lm, tmp_path / "v.gguf", {1: drawn(lm)}))
    found = fit(method, lm)
    assert not torch.equal(logits(lm, method, found), logits(lm, method, found, 0))
    assert digest(lm.model) == before


def test_the_content_is_in_the_id_and_the_place_is_not(tmp_path, lm):
    one, copy = (repeng(lm, tmp_path / name, {1: drawn(lm)}) for name in ("a.gguf", "b.gguf"))
    other = repeng(lm, tmp_path / "c.gguf", {1: drawn(lm, 1)})
    ids = [identity.digest(identity.method_identity(Imported(path=path))) for path in (one, copy, other)]
    assert ids[0] == ids[1] != ids[2]
    assert str(tmp_path) not in json.dumps(identity.method_identity(Imported(path=one)))
    with pytest.raises(SetupError, match=r"method.path=nowhere.gguf: it cannot be read .*give a file"):
        identity.method_identity(Imported(path="nowhere.gguf"))


def test_apply_needs_no_file(tmp_path, lm):
    path = tmp_path / f"vec_layer_{LAYER}_x.pt"
    method = Imported(path=saved(path, drawn(lm)), layer=LAYER)
    found = fit(method, lm)
    wanted = logits(lm, method, found)
    path.unlink()
    assert torch.equal(logits(lm, method, found), wanted)


# -- what is refused ----------------------------------------------------------------------------------------------


class Pickled:
    """Anything that is no tensor."""


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("v.pt", "pickle", {}, "a pickle that holds more than tensors, and nothing in a pickle is ever run"),
        ("v.pt", "bare", {}, "a bare tensor does not say where it was read; set method.format=caa"),
        ("v.bin", "bare", {}, "set method.format; only the endings .gguf, .safetensors and .pt are known"),
        ("vec_layer_2_x.pt", "bare", {}, r"set method.layer=....* It seems to be 2\."),
        ("vec_layer_2_x.pt", "bare", {"layer": 3}, "method.layer=3, and the file says 2"),
        ("vec_layer_2_x.pt", "bare", {"layer": 2, "hook": "input"}, "method.hook=input, and the file says output"),
        ("vec_layer_9_x.pt", "bare", {"layer": 9}, "block 9 out of range: this model of type llama has 5 blocks"),
        ("vec_layer_2_x.pt", "wide", {"layer": 2}, r"has the shape \(37,\), and llama has the width 36"),
        ("vec_layer_2_x.pt", "nan", {"layer": 2}, "has entries that are not finite"),
        ("vec_layer_2_x.pt", "zeros", {"layer": 2}, "is all zeros"),
        ("vec_layer_2_x.pt", "integers", {"layer": 2}, "expected a vector of floats"),
        ("direction.pt", "bare", {"layer": 2}, "set method.operation=ablate or method.operation=add"),
        ("direction.pt", "bare", {"operation": "add"}, "set method.layer="),
        ("direction.pt", "bare", {"layer": 2, "operation": "ablate", "scope": "generation"}, "acts on every token"),
        ("v.pt", {"layers.9": {}}, {}, "layers.9 lacks one of lm-eval.s entries steering_vector"),
        ("v.pt", {"layers.9": steering_entry(torch.ones(36))}, {}, "LlamaModel has no module layers.9"),
        ("v.pt", {"layers.1": steering_entry(torch.ones(36), bias=torch.ones(36))}, {}, "a bias with the action add"),
        ("v.pt", {"layers.1": steering_entry(torch.ones(36), head_index=1)}, {}, "head_index, which is not supported"),
        ("v.pt", {"layers.1": steering_entry(torch.ones(36), action="swap")}, {}, "the action 'swap'"),
        ("v.pt", {"layers.1": steering_entry(torch.ones(36))}, {"operation": "clamp"}, "and the file says add"),
        ("v.pt", {"layers.1": steering_entry(torch.ones(36))}, {"layer": 2}, "the file holds vectors at layers.1"),
        ("v.gguf", "bare", {}, "is not a GGUF file"),
        ("v.safetensors", "bare", {}, "is not a safetensors file"),
        ("v.pt", "bare", {"format": "gguf2"}, "method.format='gguf2': allowed are auto, gguf"),
        ("v.pt", "bare", {"operation": "mul"}, "method.operation='mul': allowed are add, clamp, ablate"),
    ],
)
def test_what_cannot_be_told_or_does_not_fit(tmp_path, lm, name, content, options, message):
    made = {"bare": torch.ones(36), "wide": torch.ones(37), "nan": torch.full((36,), torch.nan),
            "zeros": torch.zeros(36), "integers": torch.ones(36, dtype=torch.long)}  # fmt: skip
    if isinstance(content, str) and content == "pickle":
        (tmp_path / name).write_bytes(pickle.dumps(Pickled()))
    else:
        torch.save(made[content] if isinstance(content, str) else content, tmp_path / name)
    with pytest.raises(SetupError, match=message):
        Imported(path=str(tmp_path / name), **options).check(lm.model)


def test_no_file(lm):
    with pytest.raises(SetupError, match="method.path has no value; set method.path=FILE"):
        Imported().check(lm.model)
    with pytest.raises(SetupError, match="there is no such file"):
        Imported(path="nowhere.gguf").check(lm.model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hint": "gpt2"}, "its model_hint is 'gpt2', and this model is a 'llama'"),
        ({"layers": range(1, 4)}, "it holds blocks 1 to 3, as of a model of 4 blocks, and this one has 5"),
        ({"layers": [5]}, "block 5 out of range"),
        ({"layers": [0]}, "direction.0, which llama.cpp refuses"),
        ({"count": 9}, "its layer_count is 9, and it holds 4 vectors"),
        ({"width": 30}, r"has the shape \(30,\), and llama has the width 36"),
        ({"value": np.nan}, "has entries that are not finite"),
        ({"value": 0.0}, "it holds no vector other than zeros"),
    ],
)
def test_a_gguf_of_another_model_is_refused(tmp_path, lm, change, message):
    vectors = {layer: torch.full((change.get("width", 36),), change.get("value", 1.0))
               for layer in change.get("layers", range(1, 5))}  # fmt: skip
    path = repeng(lm, tmp_path / "v.gguf", vectors, change.get("hint"), change.get("count"))
    with pytest.raises(SetupError, match=message):
        Imported(path=path).check(lm.model)


def test_our_gguf_of_a_deeper_model_is_refused(tmp_path):
    lm, other = tiny_lm(), tiny_lm()
    method = CAA(layer=LAYER, scope="all")
    artefact = method.fit(lm.model, lm.tokenizer, FitData(PAIRS))
    as_gguf.write(
        tmp_path / "v.gguf", Steered(lm, method, artefact, 1.0, measure(lm, method, artefact, 1.0), "", None, "t")
    )
    del layout.blocks(other.model)[-1]
    other.model.config.num_hidden_layers = 4
    layout.declare(other.model, None)
    with pytest.raises(SetupError, match="it says that the model has 5 blocks, and this one has 4"):
        Imported(path=str(tmp_path / "v.gguf")).check(other.model)


@pytest.mark.parametrize("name", ["directions", "layers.2.directions", "probe"])
def test_an_artefact_that_is_no_vector_is_refused(tmp_path, lm, name):
    save_file({name: torch.ones(2, 36)}, tmp_path / "artefact.safetensors")
    method = Imported(path=str(tmp_path / "artefact.safetensors"), hook="output", operation="add", scope="all")
    with pytest.raises(SetupError, match=f"are called layers.N.direction, and the file holds {name}"):
        method.check(lm.model)


def test_an_artefact_of_another_model_is_refused(tmp_path, lm):
    method = Imported(path=repeng(lm, tmp_path / "v.gguf", {1: drawn(lm)}))
    found = fit(method, lm)
    with pytest.raises(SetupError, match="was not fitted on this model, whose width is 28"):
        logits(tiny_lm("gpt2"), method, found)


@pytest.mark.parametrize(
    ("name", "message"),
    [("direction.1", "is not a GGUF file .*duplicated tensor"), ("direction.01", "expected direction.N of type F32")],
)
def test_a_vector_of_a_gguf_file_that_is_there_twice(tmp_path, lm, name, message):
    """llama.cpp would add both; whoever reads a file here finds one place for each vector."""
    path = Path(repeng(lm, tmp_path / "v.gguf", {1: drawn(lm), 3: drawn(lm)} if len(name) == 11 else {
        1: drawn(lm), 22: drawn(lm)}))  # fmt: skip
    wrong = b"direction.3" if len(name) == 11 else b"direction.22"
    path.write_bytes(path.read_bytes().replace(wrong, name.encode()))
    with pytest.raises(SetupError, match=message):
        Imported(path=str(path)).check(lm.model)


def test_a_part_of_a_refusal_direction_is_ablated_as_ours_is(tmp_path, lm):
    vector = drawn(lm)
    method = Imported(path=saved(tmp_path / "direction.pt", vector), layer=LAYER, operation="ablate")
    unit = vector / vector.norm()
    ours = {"directions": torch.stack([unit, unit]), "offset": torch.zeros(())}
    got, wanted = logits(lm, method, fit(method, lm), 0.4), logits(lm, Ablation(), ours, 0.4)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)
