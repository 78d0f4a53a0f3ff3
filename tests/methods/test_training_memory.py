from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from methods.activation_scaling import ActivationScaling
from methods.base import Examples, FitData, Pairs
from methods.dexperts import DExperts
from methods.dinm import DINM
from methods.dpo import DPO
from methods.finetune import Finetune
from methods.kl_then_steer import KLThenSteer
from methods.lineas import LinEAS
from methods.lora import LoRA
from methods.recompute import recomputed
from methods.security_vector import SecurityVector
from methods.task_negation import TaskNegation
from methods.tokens import Text
from methods.training import Recipe, completion_loss, train, trainable
from methods.training_memory import training_memory
from tests.architectures import CONFIGS, model_of
from tests.tiny import tiny_lm

SIZES = {
    "llama": LlamaConfig(
        vocab_size=1000, hidden_size=128, intermediate_size=344, num_hidden_layers=6, num_attention_heads=4
    ),
    "gpt2": GPT2Config(vocab_size=500, n_embd=192, n_layer=4, n_head=4, bos_token_id=1, eos_token_id=2),
}
WIDE = LlamaConfig(
    vocab_size=16000, hidden_size=768, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=12
)


def most_bytes(work) -> int:
    """The most that was allocated at once on the CPU while `work` ran, beyond what was there."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    events = [one for one in watched.profiler.kineto_results.events() if one.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda one: one.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.every(8)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_what_is_foretold_is_what_is_measured(size, dtype, optimizer, checkpointing):
    """One token learnt: what is held, to a twentieth. A whole batch: never too little, at most twice as much."""
    model = AutoModelForCausalLM.from_config(SIZES[size]).to(dtype).eval()
    weights = list(model.parameters())
    for rows, tokens in ((1, 2), (4, 64)):
        recipe = Recipe(1e-4, 2, rows, 0, optimizer, checkpointing)
        with trainable(weights):
            memory = training_memory(model, weights, optimizer, [(rows, tokens)], gradient_checkpointing=checkpointing)
            texts = [Text(list(range(tokens)), 1)] * rows
            measured = most_bytes(lambda r=recipe, t=texts: train(model, weights, t, r, stage="x"))
        if tokens == 2:
            assert measured == pytest.approx(memory.held - memory.weights + memory.step, rel=0.05)
        else:
            assert 1 <= (memory.peak - memory.weights) / measured <= 2


def test_bytes_a_weight():
    """Of a matrix: weight, master, gradient, moments."""
    model = AutoModelForCausalLM.from_config(SIZES["llama"])
    weights = list(model.parameters())
    count = sum(one.numel() for one in weights)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype).requires_grad_(True)
        for optimizer in ("adamw", "adafactor"):
            memory = training_memory(model, weights, optimizer, [(1, 2)])
            found[dtype, optimizer] = round((memory.held - sum(one.nbytes for one in model.buffers())) / count, 1)
    assert found[torch.float32, "adamw"] == found[torch.bfloat16, "adamw"] == 16
    assert found[torch.float32, "adafactor"] == found[torch.bfloat16, "adafactor"] == pytest.approx(8, abs=0.1)


@pytest.mark.slow
def test_the_7b_setting_of_security_vectors_fits_80_gb():
    """The arithmetic of conf/method/security_vector.yaml, on a model without memory; its LoRA adds 0.1 GB."""
    config = LlamaConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
    with FakeTensorMode():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        memory = training_memory(model, list(model.parameters()), "adafactor", [(8, 128)])
    assert memory.held / 1e9 == pytest.approx(53.9, abs=0.1)
    assert memory.activations / 1e9 == pytest.approx(6.6, abs=0.1)
    assert memory.peak < 80e9 < 16 * memory.weights / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_whole_fit_makes_no_further_copy_of_the_weights(dtype):
    """On the CPU the saved weights and the change lie in the same memory, and are counted."""
    lm = replace(tiny_lm(), model=AutoModelForCausalLM.from_config(SIZES["llama"]).to(dtype).eval())
    data, found = FitData(examples=Examples(["a"], [" b"])), {}
    method = Finetune(batch_size=1)
    measured = most_bytes(lambda: found.update(method.fit(lm.model, lm.tokenizer, data)))
    assert measured <= int(found["info.foretold_memory_bytes"]) <= 1.3 * measured


TRAINING = {
    "finetune": Finetune(max_tokens=12), "task_negation": TaskNegation(max_tokens=12),
    "dexperts": DExperts(max_tokens=12), "security_vector": SecurityVector(max_tokens=12, vector_epochs=1),
    "lora": LoRA(max_tokens=12), "dpo": DPO(max_tokens=12), "dinm": DINM(max_tokens=12, layer=0),
    "kl_then_steer": KLThenSteer(max_tokens=12, epochs=1, batch_size=8),
}  # fmt: skip


@pytest.mark.every(2)
@pytest.mark.parametrize("name", TRAINING)
def test_a_fit_is_foretold_without_weights(name):
    """Eight texts, cut to as many tokens as a method reads at most; on "meta" attention keeps its weights as well."""
    lm, method, texts = tiny_lm(), TRAINING[name], Examples(["The old tree "] * 8, ["near the river" * 3] * 8)
    pairs = Pairs(texts.prompt, texts.completion, ["and the lazy dog" * 3] * 8)
    data = FitData(pairs, texts, texts, ["People walk along the water and talk about love"] * 8)
    facts = method.fit(lm.model, lm.tokenizer, data)
    told = next(int(one) for key, one in facts.items() if key.endswith("foretold_memory_bytes"))
    wanted = [one.requires_grad for one in lm.model.parameters()]
    here, without = method.training(lm.model), method.training(tiny_lm().model.to("meta"))
    assert told == here.peak - here.weights + here.host
    assert without.held == here.held and 1 <= without.activations / here.activations < 1.4
    assert [one.requires_grad for one in lm.model.parameters()] == wanted and not hasattr(lm.model, "peft_config")


@pytest.mark.parametrize("method", [ActivationScaling(max_tokens=12), LinEAS(max_tokens=12)], ids=str)
def test_scalars_take_the_activations_of_their_texts(method):
    """Without weights as with them."""
    model = tiny_lm().model.to("meta")
    found, less = method.training(model), replace(method, batch_size=method.batch_size // 2).training(model)
    assert found.activations == pytest.approx(2 * less.activations, rel=1e-4)  # the loss is one number
    assert found.moments < found.activations and found.weights == less.weights


def test_a_fit_says_what_memory_it_takes(capsys):
    lm = tiny_lm()
    data = FitData(examples=Examples(["The"], [" old"]), harmful=Examples(["A"], [" tree"]), background=["The river."])
    artefact = SecurityVector(vector_epochs=1).fit(lm.model, lm.tokenizer, data)
    vector, whole = capsys.readouterr().err.splitlines()
    assert vector.startswith("security_vector, stage 1 (LoRA): about ") and "moments" in vector
    assert whole.startswith("security_vector, stage 2: about ") and "gradients 0.278 MB" in whole
    assert artefact["info.foretold_memory_bytes"] > artefact["info.foretold_vector_memory_bytes"] / 4 > 0


@pytest.mark.parametrize("architecture", CONFIGS)
def test_recomputing_gives_equal_gradients_and_leaves_no_trace(architecture):
    model = model_of(architecture)
    weights = [one.requires_grad_(True) for one in model.parameters()]
    texts = [Text([5, 6, 7, 8, 9, 10, 11, 12, 13], 3), Text([14, 15, 16, 17], 1)]

    def gradients():
        return torch.autograd.grad(completion_loss(model, texts), weights, allow_unused=True)

    usual, ran = gradients(), []
    for block in (one for one in model.modules() if type(one).__name__.endswith(("Layer", "Block"))):
        block.register_forward_pre_hook(lambda *_: ran.append(1))
    with recomputed(model):
        again = gradients()
    assert not any("forward" in vars(module) for module in model.modules()) and not model.training
    for one, other in zip(usual, again, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def test_recomputing_keeps_less():
    model = AutoModelForCausalLM.from_config(SIZES["llama"]).eval()
    texts = [Text(list(range(64)), 63)] * 4

    def step():
        completion_loss(model, texts).backward()
        model.zero_grad()

    usual = most_bytes(step)
    with recomputed(model):
        assert most_bytes(step) < 0.6 * usual


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [*SIZES, "wide"])
def test_what_is_foretold_is_what_a_gpu_measures(size, dtype, optimizer, checkpointing):
    model = AutoModelForCausalLM.from_config({**SIZES, "wide": WIDE}[size]).to(dtype).eval().cuda()
    weights = list(model.parameters())
    recipe = Recipe(1e-4, 2, 8, 0, optimizer, checkpointing)
    with trainable(weights):
        memory = training_memory(model, weights, optimizer, [(8, 128)], gradient_checkpointing=checkpointing)
        for _ in range(2):  # the first takes the workspaces of cuBLAS, 64 MiB on a Hopper card, which stay
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated() - memory.weights
            train(model, weights, [Text(list(range(128)), 1)] * 8, recipe, stage="x")
    found = torch.cuda.max_memory_allocated() - before
    assert memory.peak / 2 <= found <= memory.peak * 1.1, (found, memory)
