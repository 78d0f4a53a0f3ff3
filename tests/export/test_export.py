"""Each export is loaded with the foreign library itself, and compared with a model steered here and now."""

import contextlib
import copy
import io
import json
from dataclasses import dataclass
from typing import ClassVar

import gguf
import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.hf_steered import SteeredModel
from peft import PeftModel
from safetensors.torch import load_file, save
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, OPTConfig, Qwen2Config

from bench.export import bias, checkpoint, lm_eval, peft
from bench.export.__main__ import FORMATS, check_holds, main
from bench.export.effect import TEXTS, Steered, largest_difference, measure
from bench.export.effect import logits as measured_logits
from bench.files import digests
from bench.model.lm import LM, load_lm
from bench.model.lm_eval_adapter import SteeredLM
from methods import layout
from methods.act_add import ActAdd
from methods.base import FitData, Steering
from methods.caa import CAA
from methods.detox import DeTox
from methods.dinm import DINM
from methods.dpo import DPO
from methods.eigenshift import EigenShift
from methods.errors import SetupError
from methods.finetune import Finetune
from methods.gate import Gate
from methods.infer_aligner import InferAligner
from methods.intervention import Hook, adding, hooked, record
from methods.kl_then_steer import KLThenSteer
from methods.lora import LoRA
from methods.probe_rows import ProbeRows
from methods.prompt import Prompt
from methods.random_direction import RandomDirection
from methods.stack import Stack
from methods.task_negation import TaskNegation
from methods.unsteered import Unsteered
from tests import tiny
from tests.methods.test_contract import DATA, PAIRS
from tests.tiny import tiny_lm, tiny_model, tiny_tokenizer

IDS = torch.tensor([[5, 90, 17, 3, 200, 41, 41, 8, 120, 33], [7, 7, 60, 299, 14, 18, 2, 9, 11, 100]])
STRENGTH = 2.0


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folders with models and a file of neutral pairs."""
    root = tmp_path_factory.mktemp("world")
    for architecture in tiny.CONFIGS:
        model = tiny_model(architecture)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # fresh models have zeros there, which would hide a bias that is lost
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
        model.save_pretrained(root / architecture)
        tiny_tokenizer().save_pretrained(root / architecture)
    rows = [{"prompt": p, "desired": d, "undesired": u} for p, d, u in zip(*PAIRS, strict=True)]
    (root / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def export(world, architecture, *more) -> int:
    return main(
        ["model=local", f"model.path={world / architecture}", "model.bos=prepend", "pairs=file",
         f"pairs.path={world / 'pairs.jsonl'}", "runtime.offline=true", f"runtime.results={world / 'results'}",
         f"runtime.cache={world / 'cache'}", "scorer=[profanity_check]", *more]
    )  # fmt: skip


def steered_logits(lm: LM, method, strength=STRENGTH) -> torch.Tensor:
    """(B, T, V) of the method fitted and applied on a model that no export has seen."""
    artefact = method.fit(lm.model, lm.tokenizer, FitData(**{name: DATA[name] for name in method.needs}))
    with torch.no_grad(), method.apply(lm.model, artefact, strength):
        return lm.model(input_ids=IDS, use_cache=False).logits


def plain_logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def fresh(world, architecture) -> LM:
    return load_lm(str(world / architecture), bos="prepend")


def steered(lm: LM, method, strength=STRENGTH, location="") -> Steered:
    artefact = method.fit(lm.model, lm.tokenizer, FitData(**{name: DATA[name] for name in method.needs}))
    effect = measure(lm, method, artefact, strength)
    return Steered(lm, method, artefact, strength, effect, location, None, "tiny")


# -- what a method is measured to do ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Planted:
    """A method that does what a test says: `enter(model)` returns a context manager."""

    enter: object
    steering: Steering = Steering()
    name: ClassVar[str] = "planted"
    scope: ClassVar[None] = None
    needs: ClassVar[frozenset[str]] = frozenset()
    strengths: ClassVar[tuple[float, ...]] = (1,)

    def fit(self, model, tokenizer, data):
        return {}

    @contextlib.contextmanager
    def apply(self, model, artefact, strength):
        with self.enter(model):
            yield self.steering


def hooks(*wanted):
    """Planted: functions at (layer, site)."""
    return Planted(lambda model: hooked(Hook(layout.blocks(model)[i], site, f) for i, site, f in wanted))


def found(method, architecture="llama"):
    return measure(tiny_lm(architecture), method, {}, 1.0)


def drawn(lm_width=36, seed=0):
    return torch.randn(lm_width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("architecture", list(tiny.CONFIGS))
def test_vectors_are_bit_equal_at_the_block_that_writes_them(architecture):
    width = layout.width(tiny_lm(architecture).model)
    one, two, three = (drawn(width, seed) for seed in range(3))
    method = hooks(
        (2, "input", adding(one, "all")), (0, "output", adding(two, "all")), (2, "output", adding(three, "all"))
    )
    effect = found(method, architecture)
    assert effect.beyond is None and effect.weights == {} and sorted(effect.vectors) == [0, 1, 2]
    assert torch.equal(effect.vectors[1], one) and torch.equal(effect.vectors[0], two)
    assert torch.equal(effect.vectors[2], three)


def test_two_vectors_between_the_same_blocks_are_summed():
    one, two = drawn(seed=1), drawn(seed=2)
    effect = found(hooks((2, "input", adding(one, "all")), (1, "output", adding(two, "all"))))
    assert list(effect.vectors) == [1] and torch.equal(effect.vectors[1], one + two)


def shifted(hidden):
    return hidden + torch.arange(1, hidden.shape[1] + 1)[:, None] * 0.1


def projected(hidden):
    unit = drawn() / drawn().norm()
    return hidden - (hidden @ unit)[..., None] * unit


def inner(model):
    return hooked([Hook(layout.blocks(model)[1].mlp, "output", adding(drawn(), "all"))])


BEYOND = {
    "after the prompt": (hooks((1, "output", adding(drawn(), "generation"))), "only from the end of the prompt on"),
    "boundary": (hooks((1, "output", adding(drawn(), "generation", boundary=True))), "only from the end of the prompt"),
    "prompt": (hooks((1, "output", adding(drawn(), "prompt"))), "only in the prompt"),
    "not from the cache": (
        hooks((1, "output", lambda h: h + drawn() if h.shape[1] > 1 else h)), "only at some positions"
    ),
    "another at each": (hooks((1, "output", shifted)), "another vector at each position"),
    "projection": (hooks((1, "output", projected)), "depends on what is there"),
    "affine": (hooks((1, "output", lambda h: 1.01 * h + drawn())), "depends on what is there"),
    "before block 0": (hooks((0, "input", adding(drawn(), "all"))), "where no block has written yet"),
    "inside a block": (Planted(inner), "does more to the model"),
    "prefix": (Planted(lambda model: contextlib.nullcontext(), Steering(prefix="Well. ")), "text before every prompt"),
    "decoding": (
        Planted(lambda model: contextlib.nullcontext(), Steering(next_logits=lambda x: x)), "while a text is decoded"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BEYOND))
def test_what_no_file_can_hold_is_refused_with_its_reason(case):
    method, reason = BEYOND[case]
    effect = found(method)
    assert effect.beyond is not None and reason in effect.beyond
    for name in FORMATS:
        with pytest.raises(SetupError, match=reason):
            check_holds(effect, name, "planted at strength 1")


def prompt_ends(lm, method, layer):
    """The output of a block at the end of each prompt that an export is measured on, along the method's detector."""
    artefact = method.fit(lm.model, lm.tokenizer, FitData(PAIRS))
    ids = [lm.encode(prompt) for prompt, _ in TEXTS]
    with torch.no_grad(), record(lm.model, [layer]) as seen:
        streams = [(lm.model(torch.tensor([one])), seen[layer][0, -1].clone())[1] for one in ids]
    return artefact, [float(one @ artefact[f"layers.{layer}.detector"]) for one in streams]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_gate_that_is_open_on_one_text_is_said_to_be(sign):
    """Whichever text it is shut on, the first or the second."""
    lm, method = tiny_lm(), InferAligner(first_layer=1, last_layer=1)
    artefact, ends = prompt_ends(lm, method, 1)
    mean = sum(ends) / 2
    assert abs(ends[0] - ends[1]) > 1e-3
    artefact |= {"layers.1.bias": torch.tensor(sign * mean), "layers.1.detector": sign * artefact["layers.1.detector"]}
    effect = measure(lm, method, artefact, 0.2)
    assert effect.beyond is not None
    assert effect.beyond.endswith("it acts on 1 of the 2 texts tried, and what is exported acts on every text")


def cast_gate(lm):
    method = Gate(inner=CAA(layer=2), condition_layer=1)
    return method, method.fit(lm.model, lm.tokenizer, FitData(**{name: DATA[name] for name in method.needs}))


def test_a_gate_around_a_method_that_is_shut_on_one_text():
    lm = tiny_lm()
    method, artefact = cast_gate(lm)

    def beyond(threshold: float) -> str | None:
        one = artefact | {"threshold": torch.tensor(threshold), "above": torch.tensor(1.0)}
        return measure(lm, method, one, 1.0).beyond

    low, high = 0.0, 1.0  # below: open on both texts; above: shut on both
    found = {beyond(low), beyond(high)}
    for _ in range(12):
        middle = (low + high) / 2
        (low, high) = (middle, high) if beyond(middle) == beyond(low) else (low, middle)
        found.add(beyond(middle))
        if len(found) == 3:
            break
    told = " ".join(sorted(str(one) for one in found))
    assert len(found) == 3, told
    for part in (
        "acts on 1 of the 2 texts tried",
        "only from the end of the prompt",
        "its gate was shut on the 2 texts",
    ):
        assert part in told


@pytest.mark.parametrize("case", ["infer_aligner", "gate"])
def test_a_gate_that_is_shut_on_all_texts_is_still_a_gate(case):
    """Nothing is seen to change, and yet the model is not left as it is: other texts may open the gate."""
    lm = tiny_lm()
    if case == "gate":
        method, artefact = cast_gate(lm)
        artefact |= {"threshold": torch.tensor(2.0), "above": torch.tensor(1.0)}
    else:
        method = InferAligner(first_layer=1, last_layer=2)
        artefact = method.fit(lm.model, lm.tokenizer, FitData(PAIRS))
        artefact |= {f"layers.{layer}.bias": torch.tensor(1e9) for layer in (1, 2)}
    effect = measure(lm, method, artefact, 0.2)
    assert effect.weights == {} and effect.vectors == {}
    for name in FORMATS:
        with pytest.raises(SetupError, match="its gate was shut on the 2 texts tried, and no file can hold a gate"):
            check_holds(effect, name, case)


def test_measuring_leaves_no_trace():
    lm = tiny_lm("llama")
    before = plain_logits(lm.model)
    steered(lm, CAA(scope="all"))
    assert torch.equal(before, plain_logits(lm.model))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())


def test_weights_and_vectors_together_need_a_bias_export(world):
    lm = fresh(world, "llama")
    detox = DeTox()
    artefact = detox.fit(lm.model, lm.tokenizer, FitData(pairs=PAIRS))

    @contextlib.contextmanager
    def both(model):
        with (
            detox.apply(model, artefact, 1.0),
            hooked([Hook(layout.blocks(model)[2], "output", adding(drawn(), "all"))]),
        ):
            yield

    effect = measure(lm, Planted(both), {}, 1.0)
    assert len(effect.weights) == 3 and list(effect.vectors) == [2] and effect.beyond is None
    assert [name for name in FORMATS if FORMATS[name].takes(effect)] == ["bias"]
    check_holds(effect, "bias", "planted at strength 1")
    folder = world / "both"
    bias.write(folder, Steered(lm, Planted(both), {}, 1.0, effect, "", None, "tiny"))
    with both(lm.model):
        wanted = plain_logits(lm.model)
    torch.testing.assert_close(plain_logits(AutoModelForCausalLM.from_pretrained(folder)), wanted)


# -- round trips --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_checkpoint_gives_the_same_bits_in_plain_transformers(world, architecture):
    output = world / f"checkpoint-{architecture}"
    assert export(world, architecture, "method=detox", "strength=1", "format=checkpoint", f"output={output}") == 0
    wanted = steered_logits(fresh(world, architecture), DeTox(), 1.0)
    model = AutoModelForCausalLM.from_pretrained(output)
    assert torch.equal(plain_logits(model), wanted)
    assert not torch.equal(wanted, plain_logits(fresh(world, architecture).model))
    text = "The quick brown fox"
    assert AutoTokenizer.from_pretrained(output)(text).input_ids == tiny_tokenizer()(text).input_ids
    facts = json.loads((output / "export.json").read_text())
    assert facts["largest_logit_difference"] == 0 and facts["method"]["name"] == "detox" and facts["strength"] == 1
    readme = (output / "README.md").read_text()
    assert "from_pretrained" in readme and "licence" in readme and str(world) not in readme + json.dumps(facts)


def test_a_second_edit_on_an_exported_checkpoint_is_a_stack(world):
    """How methods/stack.py says that two behaviours are stacked; here both edits learn from the same pairs."""
    first, second, lm = DeTox(), ProbeRows(min_steps=50), fresh(world, "llama")
    both = Stack(parts={"first": first, "second": second}, at={"first": 1.0, "second": 2.0})
    learnt = both.fit(lm.model, lm.tokenizer, FitData(PAIRS))
    with both.apply(lm.model, learnt, 1.0):
        wanted = plain_logits(lm.model)
    checkpoint.write(world / "first", steered(lm, first, 1.0))
    edited = load_lm(str(world / "first"), bos="prepend")
    artefact = second.fit(edited.model, edited.tokenizer, FitData(PAIRS))
    assert torch.equal(learnt["second.probe"], artefact["probe"])
    with second.apply(edited.model, artefact, 2.0):
        assert torch.equal(plain_logits(edited.model), wanted)


def test_fine_tuned_weights_are_a_checkpoint_and_no_adapter(world):
    lm = fresh(world, "gpt2")  # tied embeddings
    one = steered(lm, Finetune(learning_rate=0.01), 1.0, str(world / "gpt2"))
    with one.on():
        wanted = plain_logits(lm.model)
    assert checkpoint.write(world / "finetuned", one) == 0
    assert torch.equal(plain_logits(AutoModelForCausalLM.from_pretrained(world / "finetuned")), wanted)
    with pytest.raises(SetupError, match=r"also changes \d+ other parameters .*format=checkpoint"):
        peft.write(world / "adapter", one)


@pytest.mark.every(4)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("method", "rank"),
    [(DeTox(), 2), (DeTox(rank=3), 3), (ProbeRows(min_steps=50), 1), (EigenShift(share=0.09), 3),
     (LoRA(rank=4, alpha=8, learning_rate=1e-2), 4), (DPO(rank=5, alpha=5, learning_rate=1e-2), 5)],
)  # fmt: skip
def test_peft_adapter_of_the_edits_own_rank(world, architecture, method, rank):
    location, output = str(world / architecture), world / f"peft-{architecture}-{rank}"
    difference = peft.write(output, steered(fresh(world, architecture), method, 0.6, location))
    base = AutoModelForCausalLM.from_pretrained(location)
    unsteered = plain_logits(base)
    got = plain_logits(PeftModel.from_pretrained(base, output))
    wanted = steered_logits(fresh(world, architecture), method, 0.6)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert largest_difference([wanted], [unsteered]) > 0.01 and difference < 1e-4
    assert json.loads((output / "adapter_config.json").read_text())["r"] == rank


@pytest.mark.parametrize(
    "method", [TaskNegation(learning_rate=1e-3), DINM(learning_rate=1e-2), EigenShift(share=0.3)], ids=str
)
def test_edited_weights_are_a_checkpoint(world, method):
    lm = fresh(world, "gpt2")
    one, unsteered = steered(lm, method, 0.5, str(world / "gpt2")), plain_logits(lm.model)
    with one.on():
        wanted = plain_logits(lm.model)
    assert checkpoint.write(world / method.name, one) == 0 and not torch.equal(wanted, unsteered)
    assert torch.equal(plain_logits(AutoModelForCausalLM.from_pretrained(world / method.name)), wanted)


def test_an_adapter_with_a_vector_is_a_checkpoint_with_a_bias(world):
    """KL-then-steer: no format of weights alone, nor of vectors alone, holds it."""
    method = KLThenSteer(rank=2, learning_rate=1e-2, epochs=1)
    one = steered(fresh(world, "gpt2"), method, 0.3, str(world / "gpt2"))
    assert one.effect.beyond is None and len(one.effect.vectors) == 1 and len(one.effect.weights) > 4
    with pytest.raises(SetupError, match=r"use format=bias$"):
        check_holds(one.effect, "peft", "kl_then_steer")
    bias.write(world / "kts", one)
    wanted = steered_logits(fresh(world, "gpt2"), method, 0.3)
    got = plain_logits(AutoModelForCausalLM.from_pretrained(world / "kts"))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)


def test_peft_from_the_command_line(world):
    output = world / "peft"
    assert export(world, "llama", "method=detox", "strength=1", "format=peft", f"output={output}") == 0
    assert "PeftModel.from_pretrained" in (output / "README.md").read_text() and (output / "export.json").is_file()


def test_low_rank_finds_a_planted_rank_below_rounding():
    generator = torch.Generator().manual_seed(3)
    before = torch.randn(40, 70, generator=generator)
    planted = torch.randn(40, 3, generator=generator) @ torch.randn(3, 70, generator=generator) * 1e-3
    one = peft.low_rank(before, before + planted)
    assert one.up.shape == (40, 3) and one.down.shape == (3, 70)
    torch.testing.assert_close(one.up @ one.down, planted, rtol=0, atol=1e-6)


def test_a_change_of_full_rank_is_no_adapter():
    lm = tiny_lm("llama")
    matrix = layout.value_matrix(lm.model, 1)
    name = next(name for name, p in lm.model.named_parameters() if p is matrix.parameter)
    noise = torch.randn(matrix.parameter.shape, generator=torch.Generator().manual_seed(0))
    module = lm.model.get_submodule(name.removesuffix(".weight"))
    with pytest.raises(SetupError, match="matrix of rank 36.*format=checkpoint"):
        peft._change(name, module, matrix.parameter + noise, "planted")


@pytest.mark.parametrize("architecture", list(tiny.CONFIGS))
def test_bias_checkpoint_in_plain_transformers(world, architecture):
    output, lm, method = world / f"bias-{architecture}", fresh(world, architecture), CAA(scope="all")
    assert bias.write(output, steered(lm, method)) < 1e-4
    wanted = steered_logits(lm, method)
    torch.testing.assert_close(plain_logits(AutoModelForCausalLM.from_pretrained(output)), wanted, rtol=1e-4, atol=1e-4)
    assert largest_difference([wanted], [plain_logits(lm.model)]) > 0.01
    if architecture == "llama":
        layer = layout.layer_index(lm.model, method.layer)
        biases = {n: t for n, t in load_file(output / "model.safetensors").items() if n.endswith("bias")}
        assert len(biases) == 3 * len(layout.blocks(lm.model))
        assert [name for name, tensor in biases.items() if tensor.any()] == [f"model.layers.{layer}.mlp.down_proj.bias"]


@pytest.mark.parametrize("config", [MistralConfig, Qwen2Config])
def test_no_room_for_a_bias_names_other_formats(config):
    model = AutoModelForCausalLM.from_config(
        config(vocab_size=300, hidden_size=16, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
               num_key_value_heads=2)
    )  # fmt: skip
    with pytest.raises(SetupError, match=f"{model.config.model_type} has no bias in mlp.down_proj.*format=gguf"):
        bias.new_biases(model, {1: torch.zeros(16)})


def test_a_block_that_ends_with_a_norm_is_not_exported(world, tmp_path, capsys):
    config = copy.deepcopy(tiny.CONFIGS["opt"])
    assert isinstance(config, OPTConfig)
    config.do_layer_norm_before = False  # as OPT-350m: the norm comes after the MLP has written
    AutoModelForCausalLM.from_config(config).save_pretrained(world / "opt-350m")
    tiny_tokenizer().save_pretrained(world / "opt-350m")
    output = tmp_path / "out"
    settings = ["method=caa", "method.scope=all", "strength=2", "format=bias", f"output={output}"]
    assert export(world, "opt-350m", *settings) == 2
    assert "does not give the steered model's logits" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt"])
def test_lm_eval_steered_model_says_the_same_as_ours(world, architecture):
    output, lm, method = world / f"{architecture}.pt", fresh(world, architecture), CAA(scope="all")
    one = steered(lm, method)
    lm_eval.write(output, one)
    content = torch.load(output, weights_only=True)
    assert len(content) == 1
    theirs = SteeredModel(str(world / architecture), str(output), device="cpu", dtype="float32", batch_size=2)
    asked = [("The quick brown fox", " jumps over"), ("People walk along", " the water and talk"), ("We", " talk")]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(asked)]
    with one.on() as ours:
        wanted = [score for score, _ in SteeredLM(ours).loglikelihood(requests)]
    got = [score for score, _ in theirs.loglikelihood(requests, disable_tqdm=True)]
    base = [score for score, _ in SteeredLM(lm).loglikelihood(requests)]
    assert got == pytest.approx(wanted, abs=1e-4)
    assert max(abs(one - other) for one, other in zip(base, wanted, strict=True)) > 0.01


def test_lm_eval_from_the_command_line(world):
    output = world / "v.pt"
    settings = ["method=caa", "method.scope=all", "strength=2", "format=lm_eval", f"output={output}"]
    assert export(world, "llama", *settings) == 0
    facts = json.loads((world / "v.pt.json").read_text())
    assert "--model steered" in facts["use"] and "steer_path=v.pt" in facts["use"]


def llama_cpp_buffer(path, depth) -> dict[int, torch.Tensor]:
    """What llama.cpp adds at the output of each layer: its loader's and its adapter's arithmetic, step by step."""
    data = np.zeros(0, dtype=np.float32)
    for tensor in gguf.GGUFReader(path).tensors:
        number = int(tensor.name.removeprefix("direction."))
        assert number > 0 and tensor.tensor_type == gguf.GGMLQuantizationType.F32 and tensor.data.ndim == 1
        width = len(tensor.data)
        data = np.concatenate([data, np.zeros(max(0, width * number - len(data)), dtype=np.float32)])
        data[width * (number - 1) : width * number] += tensor.data  # common_control_vector_load_one
    return {il: torch.tensor(data[width * (il - 1) : width * il]) for il in range(1, depth)}  # llama_adapter_cvec


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_gguf_is_read_as_llama_cpp_reads_it(world, architecture):
    output = world / f"{architecture}.gguf"
    settings = ["method=caa", "method.scope=all", "strength=2", "format=gguf", f"output={output}"]
    assert export(world, architecture, *settings) == 0
    lm, method = fresh(world, architecture), CAA(scope="all")
    blocks = layout.blocks(lm.model)
    reader = gguf.GGUFReader(output)
    text = {name: bytes(field.parts[-1]).decode() for name, field in reader.fields.items() if name[0] != "G" and
            field.types == [gguf.GGUFValueType.STRING]}  # fmt: skip
    assert text["general.architecture"] == "controlvector" and text["controlvector.model_hint"] == architecture
    assert int(reader.fields["controlvector.layer_count"].parts[-1][0]) == len(reader.tensors) == len(blocks) - 1
    added = llama_cpp_buffer(output, len(blocks))
    with hooked(Hook(blocks[il], "output", adding(vector, "all")) for il, vector in added.items()):
        got = plain_logits(lm.model)
    wanted = steered_logits(lm, method)
    assert torch.equal(got, wanted) and not torch.equal(got, plain_logits(lm.model))
    assert json.loads((world / f"{architecture}.gguf.json").read_text())["method"]["parameters"]["scope"] == "all"


def test_what_is_imported_can_be_exported_again(world):
    """From a GGUF of ours to a file of lm-eval's, by the command line; the fit is known by the file's content."""
    first, second = world / "calm.gguf", world / "again.pt"
    caa = ["method=caa", "method.scope=all", "strength=2", "format=gguf"]
    assert export(world, "llama", *caa, f"output={first}") == 0
    again = ["method=imported", f"method.path={first}", "strength=1", "format=lm_eval"]
    assert export(world, "llama", *again, f"output={second}") == 0
    ((name, entry),) = torch.load(second, weights_only=True).items()
    assert name == "layers.2" and torch.equal(entry["steering_vector"], llama_cpp_buffer(first, 5)[2])
    facts = json.loads((world / "again.pt.json").read_text())
    assert facts["method"]["parameters"]["path"] == {"sha256": digests.sha256(first)}


def test_gguf_has_no_block_0(world, tmp_path, capsys):
    settings = ["method=caa", "method.scope=all", "method.layer=0", "strength=2", "format=gguf"]
    assert export(world, "llama", *settings, f"output={tmp_path / 'v.gguf'}") == 2
    assert "begins at block 1" in capsys.readouterr().err and not list(tmp_path.iterdir())


# -- the command line -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["method=caa", "strength=2", "format=guff"], "no such format; did you mean gguf? Allowed: checkpoint"),
        (["method=caa", "strength=2"], "format is missing: add format=NAME. Allowed: checkpoint"),
        (["method=caa", "format=gguf"], "strength=auto: an export needs a number other than 0"),
        (["method=caa", "strength=0", "format=gguf"], "strength=0: an export needs a number other than 0"),
        (["method=caa", "strength=2", "format=gguf", "overwrite=yes"], "overwrite=yes: allowed are true, false"),
        (["-m", "method=caa", "strength=1,2", "format=gguf"], "leave out -m"),
        (["method=caa", "strength=1,2", "format=gguf"], "this names 2 cells"),
        (["method=caa", "strength=2", "format=gguf", "output=v.bin"], "a name that ends in .gguf"),
        (["method=caa", "strength=2", "format=gguf"], "method.scope=generation acts on some tokens, and what is "
         "exported acts on every token; set method.scope=all"),
        (["method=caa", "method.scope=all", "strength=2", "format=peft"], "adds a vector at the output of block 2; use "
         "format=bias or format=lm_eval or format=gguf"),
        (["method=detox", "strength=1", "format=lm_eval"], "edits 3 weights; use format=checkpoint or format=peft"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_says_why(world, capsys, settings, message):
    before = sorted(path for path in world.iterdir())
    assert export(world, "llama", *settings) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said
    assert sorted(path for path in world.iterdir() if path.name != "results") == [
        p for p in before if p.name != "results"
    ]


def test_a_spoilt_artefact_is_set_aside_and_fitted_again(world, tmp_path, capsys):
    settings = ["method=caa", "method.scope=all", "strength=2", "format=gguf", f"runtime.results={tmp_path}"]
    assert export(world, "llama", *settings) == 0
    (path,) = tmp_path.glob("runs/artefacts/[!.]*/artefact.safetensors")
    good = {name: tensor.clone() for name, tensor in load_file(path).items()}
    facts = {name: tensor for name, tensor in good.items() if name.startswith("info.")}
    ((key, vector),) = ((name, tensor) for name, tensor in good.items() if name not in facts)
    pickled = io.BytesIO()
    torch.save(good, pickled)
    spoilt = {
        f"{key} has entries that are not finite": save({key: vector * torch.nan}),
        "is not a safetensors file": pickled.getvalue(),
        "does not hold the tensors that its fit.json lists": save({key: vector[:32].clone(), **facts}),
        f"an artefact with layers.9.direction and without {key} was not": save({"layers.9.direction": vector, **facts}),
    }
    for message, content in spoilt.items():
        path.unlink()
        path.write_bytes(content)
        path.with_name(digests.SEAL).unlink()  # as an older version left it; of a sealed one the digest tells
        assert export(world, "llama", *settings, "overwrite=true") == 0
        said = capsys.readouterr().err
        assert message in said and "and made again" in said and "Traceback" not in said
        assert all(torch.equal(good[name], tensor) for name, tensor in load_file(path).items())


REAL = {
    "caa": (CAA(), "only from the end of the prompt on.*set method.scope=all"),
    "random direction": (RandomDirection(), "end of the prompt on, and what is exported acts on every token$"),
    "act_add": (ActAdd(), "only at the first tokens of a text, and what is exported acts on every token$"),
    "prompt": (Prompt(prompts=["Well."], strengths=(1,)), "puts a text before every prompt"),
    "unsteered": (Unsteered(), "leaves the model as it is"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(REAL))
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_our_own_methods_that_no_format_holds(case, architecture):
    method, reason = REAL[case]
    effect = steered(tiny_lm(architecture), method, 1.0).effect
    for name in FORMATS:
        with pytest.raises(SetupError, match=reason):
            check_holds(effect, name, case)


def test_only_an_export_is_replaced_and_only_if_asked(world, tmp_path, capsys):
    output = tmp_path / "out"
    settings = ["method=detox", "strength=1", "format=checkpoint", f"output={output}"]
    assert export(world, "llama", *settings) == 0
    first = (output / "model.safetensors").read_bytes()
    assert export(world, "llama", *settings, "strength=0.5") == 2
    assert "exists already; set overwrite=true" in capsys.readouterr().err
    assert (output / "model.safetensors").read_bytes() == first
    assert export(world, "llama", *settings, "strength=0.5", "overwrite=true") == 0
    assert (output / "model.safetensors").read_bytes() != first
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    elsewhere = [*settings[:-1], f"output={tmp_path / 'mine'}", "overwrite=true"]
    assert export(world, "llama", *elsewhere) == 2
    assert "is not a checkpoint export" in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out"]


def test_without_an_output_it_is_named_after_what_it_is(world, tmp_path):
    settings = ["method=caa", "method.scope=all", "strength=1.5", "format=gguf", f"runtime.results={tmp_path}"]
    assert export(world, "llama", *settings) == 0
    (path,) = (tmp_path / "exports").glob("*.gguf")
    assert path.name.startswith("local-caa-x1.5-")


def test_a_wrong_file_would_be_noticed(world):
    """The comparison after loading sees a vector that is a hundredth too long."""
    lm = fresh(world, "gpt2")
    one = steered(lm, CAA(scope="all"), location=str(world / "gpt2"))
    wrong = one.effect._replace(vectors={layer: 1.01 * vector for layer, vector in one.effect.vectors.items()})
    with pytest.raises(SetupError, match="they differ by"):
        bias.write(world / "wrong", Steered(lm, one.method, one.artefact, STRENGTH, wrong, "", None, "tiny"))


def test_logits_that_are_not_numbers_differ():
    numbers = [torch.ones(2), torch.tensor([1.0, torch.nan])]
    assert not largest_difference([torch.ones(2)] * 2, numbers) <= 1e9
    assert largest_difference([torch.ones(2)], [torch.tensor([1.5, 0.25])]) == 0.75
    assert len(measured_logits(tiny_model(), tiny_lm())) == 2


def test_help_has_every_format_and_what_it_holds(capsys):
    assert main(["--help"]) == 0 and main([]) == 0
    said = capsys.readouterr().out
    for name, one in FORMATS.items():
        assert name in said and one.loads in said
    assert "python -m bench.export method=... strength=... format=... [output=...]" in said


@pytest.mark.parametrize(("asked", "told"), [("prompt", "puts a text before"), ("dexperts", "changes the logits")])
def test_what_no_file_can_hold_is_refused_before_a_fit(asked, told, tmp_path, capsys):
    """Also before a strength is asked for, since no strength would help."""
    assert main([f"method={asked}", "format=peft", f"runtime.results={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert f"{asked} cannot be exported: it {told}" in " ".join(error.split()) and not list(tmp_path.iterdir())
