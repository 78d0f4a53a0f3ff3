"""Every method on every architecture of tests/architectures.py, and our sampling and likelihood on each.

`python -m tests.methods.test_architectures` prints what came of each pair as a Markdown table.
"""

import contextlib
import functools
import hashlib
from pathlib import Path
from typing import get_args

import pytest
import torch

from bench.model.log_likelihood import log_likelihood
from bench.model.sampling import prefill, sample
from methods import layout, layout_search
from methods.base import INFO, FitData
from methods.errors import SetupError
from methods.intervention import edited
from tests.architectures import CONFIGS, lm_of, model_of
from tests.methods.test_contract import DATA, NAMES, PROMPTS
from tests.methods.yaml_files import load
from tests.tiny import CORPUS

QUICK = {
    "infer_aligner": ["method.open_at=-9"],  # with every gate open, whatever the three prompts are
    "instruction": ["method.layer=-1"],  # a block that sees it: the sliding windows here are a few tokens long
    "activation_scaling": ["method.steps=1"],
    "lineas": ["method.steps=1"],
    "probe_rows": ["method.min_steps=1", "method.epochs=1"],
    "stack": ["method.parts.first.min_steps=1", "method.parts.first.epochs=1"],
    "security_vector": ["method.vector_epochs=1", "method.rank=2"],
    "word_filter": [f"method.words={Path(__file__).parent / 'words.txt'}"],  # words that the tiny tokenizer has whole
}
SMALL = {
    "examples": DATA["examples"]._replace(
        prompt=DATA["examples"].prompt[:4], completion=DATA["examples"].completion[:4]
    ),
    "background": DATA["background"][:4],
}
NORMED = {"gemma2", "gemma3", "gemma3_multimodal", "olmo2", "olmo3"}
EXPERTS = {"mixtral", "qwen3_moe", "qwen3_moe_mixed"}
WINDOWS = {"mistral", "gemma2", "gemma3", "gemma3_multimodal", "phi3", "olmo3"}
REFUSED = {
    **{("aura", name): "one for each expert" for name in EXPERTS},
    **{("sasa", name): "sliding window" for name in WINDOWS},
    ("sadi", "falcon"): "none of 8 heads has a larger mean in desired",  # by chance: these weights are random
}  # method and architecture: what is said


@functools.cache
def method_of(name):
    return load(name, *QUICK.get(name, []))


@functools.cache
def shared(architecture):
    """One model for the methods of an architecture: each has to leave it as it was, which is looked at."""
    return lm_of(architecture)


def digest(model):
    whole = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        whole.update(name.encode() + tensor.numpy().tobytes())
    return whole.hexdigest()


def logits(lm):
    return prefill(lm, [lm.encode(prompt) for prompt in PROMPTS])[1]


def attempt(name, architecture):
    """Fit and apply a method, checking what it promises; "ran", or why it was refused."""
    method, lm = method_of(name), shared(architecture)
    before, base = digest(lm.model), logits(lm)
    try:
        method.check(lm.model)
        artefact = method.fit(lm.model, lm.tokenizer, FitData(**(DATA | SMALL)))
    except SetupError as error:
        return str(error)
    assert digest(lm.model) == before, "fit left the model changed"
    strength = method.strengths[-1] if method.strengths else 1.0
    with method.apply(lm.model, artefact, 0.0):
        assert torch.equal(logits(lm), base), "strength 0 is not the base model"
    with lm.steered(method, artefact, strength) as steered:
        assert torch.equal(logits(steered), base) == (name == "unsteered"), "the logits do not follow the strength"
    assert digest(lm.model) == before, "apply left the model changed"
    assert torch.equal(logits(lm), base)
    return "ran"


@pytest.mark.every(10)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_method_runs_and_leaves_no_trace(architecture):
    for name in NAMES:
        told, refused = attempt(name, architecture), REFUSED.get((name, architecture))
        assert refused in told if refused else told == "ran", f"{name}: {told}"


@pytest.mark.parametrize("architecture", CONFIGS)
def test_greedy_texts_are_those_of_generate(architecture):
    lm = shared(architecture)
    ours = sample(lm, PROMPTS, num_samples=1, max_new_tokens=12, temperature=0)
    for prompt, (text,) in zip(PROMPTS, ours, strict=True):
        ids = torch.tensor([lm.encode(prompt)])
        new = lm.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
        )[0, ids.shape[1] :]
        assert text == lm.tokenizer.decode(new, skip_special_tokens=True)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_likelihoods_are_those_of_a_plain_forward(architecture):
    compare_likelihoods(shared(architecture), PROMPTS)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_so_are_those_of_contexts_that_begin_alike(architecture):
    """For longer than a sliding window is; the beginning is read once."""
    compare_likelihoods(shared(architecture), [f"{CORPUS}{prompt}" for prompt in PROMPTS])


def compare_likelihoods(lm, prompts):
    ends = [" the old tree and bread", " hate", " love and the river sings"]
    found = log_likelihood(lm, prompts, ends)
    for request, ours in zip(lm.encode_pairs(prompts, ends), found, strict=True):
        ids = torch.tensor([request.context + request.continuation])
        with torch.no_grad():
            probabilities = lm.model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1)
        said = len(request.continuation)
        wanted = probabilities[-said - 1 : -1].gather(-1, ids[0, -said:, None]).sum()
        assert abs(ours.logprob - float(wanted)) < 1e-4


@pytest.mark.parametrize("architecture", CONFIGS)
def test_detox_records_that_a_norm_follows_the_mlp(architecture):
    lm, method = shared(architecture), method_of("detox")
    artefact = method.fit(lm.model, lm.tokenizer, FitData(**DATA))
    assert (INFO + "mlp_output_is_normed" in artefact) == (architecture in NORMED)


def test_a_model_that_is_steered_by_position_can_be_looked_at():
    """As the second method of a stack finds it."""
    lm, caa = lm_of("gpt_neox"), method_of("caa")
    assert caa.scope == "generation"
    with caa.apply(lm.model, caa.fit(lm.model, lm.tokenizer, FitData(**DATA)), 2.0):
        assert not layout.mlp_output_is_normed(lm.model)
        assert layout_search.order_of(lm.model, layout.of(lm.model)) == "groups"
        method_of("detox").fit(lm.model, lm.tokenizer, FitData(**DATA))


@pytest.mark.parametrize("architecture", sorted(EXPERTS))
def test_every_expert_is_edited(architecture):
    """DeTox at 1: no expert of an edited block writes along the directions. Probe rows: rows of all experts move."""
    lm, detox, rows = shared(architecture), method_of("detox"), method_of("probe_rows")
    artefact = detox.fit(lm.model, lm.tokenizer, FitData(**DATA))
    with detox.apply(lm.model, artefact, 1.0):
        for key, directions in artefact.items():
            if not key.startswith(INFO):
                parts = layout.stream_rows(lm.model, int(key.split(".")[1]), "down").parts
                assert all((part.read() @ directions.T).abs().max() < 1e-5 for part in parts)
    artefact = rows.fit(lm.model, lm.tokenizer, FitData(**DATA))
    every = torch.tensor([[1, row] for row in range(60)])  # every row of the three experts of block 1
    gates = layout.stream_rows(lm.model, 1, "gate")
    old, up = gates.read().clone(), layout.stream_rows(lm.model, 1, "up").read().clone()
    with rows.apply(lm.model, artefact | {"rows": every}, 2.0):
        torch.testing.assert_close(gates.read()[:60] - old[:60], (2 * artefact["probe"]).expand(60, -1))
        assert torch.equal(gates.read()[60:], old[60:])
        assert torch.equal(layout.stream_rows(lm.model, 1, "up").read(), up)


@pytest.mark.parametrize("architecture", sorted(EXPERTS))
def test_a_security_vector_covers_the_experts(architecture):
    """They have a vector of their own, which learns, and are fine-tuned while it is on."""
    lm, method = shared(architecture), method_of("security_vector")
    parameters = dict(lm.model.named_parameters())
    artefact = method.fit(lm.model, lm.tokenizer, FitData(**(DATA | SMALL)))
    assert all(parameters[name] is one for name, one in lm.model.named_parameters()), "peft put others in their place"
    learnt = [t for key, t in artefact.items() if key.startswith("adapter.") and ".experts." in key and "lora_B" in key]
    assert len(learnt) == 2 * sum("down_proj" in name and one.dim() == 3 for name, one in parameters.items())
    assert all(one.any() for one in learnt)
    assert all(artefact[f"change.{name}"].any() for name in parameters if ".experts." in name)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_rows_of_k_and_v_give_what_the_cache_holds(architecture):
    """Of the first token, which no rotation has turned; keys only where no norm stands behind them."""
    lm = shared(architecture)
    own, block, seen = layout.of(lm.model), layout.blocks(lm.model)[0], {}
    module = block.get_submodule(own.k[0])
    with lm_hook(module, lambda given, _: seen.update(given=given[0, 0])):
        rows = lm.start(torch.tensor([1]))
        lm.read(rows, torch.tensor([[5]]), torch.ones(1, 1, dtype=torch.bool))
    for kind, held in (("k", rows.cache.layers[0].keys[0, :, 0]), ("v", rows.cache.layers[0].values[0, :, 0])):
        if kind == "k" and any(
            "norm" in name for name, _ in block.get_submodule(own.k[0].rpartition(".")[0]).named_children()
        ):
            continue
        bias = block.get_submodule(getattr(own, kind)[0]).bias
        part = layout.stream_rows(lm.model, 0, kind).parts[0].rows
        found = seen["given"] @ layout.stream_rows(lm.model, 0, kind).read().T
        found = (found if bias is None else found + (bias if part is None else bias[part])).view(-1, held.shape[-1])
        copies = len(held) // len(found)  # Falcon keeps keys and values once a query head
        torch.testing.assert_close(held, found.repeat_interleave(copies, 0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_forward_and_name_agree_on_the_order_of_a_fused_matrix(architecture):
    """Without weights only the name tells it."""
    model = shared(architecture).model
    own = layout.of(model)
    assert (own.fused is not None) == (own.q == own.k == own.v)
    if own.fused is not None and architecture != "falcon_multi_query":  # with one key head both orders are one
        assert layout_search.order_of(model, own) == own.fused


@pytest.mark.every(2)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_model_without_weights_has_the_same_matrices(architecture):
    """As a cell is checked before anything is loaded."""
    real = shared(architecture).model
    with torch.device("meta"):
        made = type(real)(CONFIGS[architecture]())
    assert layout.of(made) == layout.of(real)
    for kind in get_args(layout.Kind):
        if getattr(layout.of(real), layout.ROLES[kind]):
            assert layout.stream_rows(made, 1, kind).read().shape == layout.stream_rows(real, 1, kind).read().shape
    for name in NAMES:
        refused = REFUSED.get((name, architecture)) if name != "sadi" else None  # which needs data to find none
        with pytest.raises(SetupError, match=refused) if refused else contextlib.nullcontext():
            method_of(name).check(made)


@pytest.mark.parametrize("kind", ["q", "k"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_rows_of_a_head_turn_the_attention_of_that_head_alone(architecture, kind):
    if architecture in ("olmo2", "olmo3"):
        pytest.skip("a norm over all heads of q and of k stands behind them, so one head moves the others")
    model = model_of(architecture, attention="eager")
    heads = model.config.get_text_config().num_attention_heads

    def attention():
        with torch.no_grad():
            ids = torch.tensor([[5, 80, 33, 7]])
            return model(input_ids=ids, output_attentions=True, use_cache=False).attentions[0][0]

    matrices, before = layout.stream_rows(model, 0, kind), attention()  # (H, T, T)
    count = len(matrices.read()) // (layout.stream_rows(model, 0, "o").read().shape[0] // heads)
    for head, own in enumerate(torch.arange(len(matrices.read())).chunk(count)):
        weight, new = matrices.read().clone(), {}
        weight[own] += torch.randn(len(own), weight.shape[1], generator=torch.Generator().manual_seed(0))
        matrices.put(new, weight)
        with edited(new):
            moved = (attention() - before).abs().amax((1, 2)) > 1e-6
        group = heads // count
        assert moved.nonzero()[:, 0].tolist() == list(range(head * group, (head + 1) * group))


@pytest.mark.parametrize("architecture", ["llama", "phi3", "mixtral", "qwen3_moe", "qwen3_moe_mixed"])
def test_gate_up_and_value_compute_what_the_mlp_does(architecture):
    """value(act(gate x) * up x), for each expert by itself."""
    model = shared(architecture).model
    x, mlp = torch.randn(3, layout.width(model)), layout.blocks(model)[1].mlp
    parts = zip(*(layout.stream_rows(model, 1, kind).parts for kind in ("gate", "up", "down")), strict=True)
    for expert, (gate, up, value) in enumerate(parts):
        wanted = (torch.nn.functional.silu(x @ gate.read().T) * (x @ up.read().T)) @ value.read()
        with torch.no_grad():
            chosen = torch.full((3, 1), expert)
            got = mlp(x) if value.expert is None else mlp.experts(x, chosen, torch.ones(3, 1))
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@contextlib.contextmanager
def lm_hook(module, look):
    handle = module.register_forward_hook(lambda _module, given, output: look(given[0], output))
    try:
        yield
    finally:
        handle.remove()


def table():
    """Architecture by method as Markdown: "ran", or in which footnote it is told why not."""
    lines, notes = [f"| | {' | '.join(NAMES)} |", "|---" * (len(NAMES) + 1) + "|"], []
    for architecture in CONFIGS:
        cells = []
        for name in NAMES:
            told = attempt(name, architecture)
            if told != "ran":
                notes.append(f"{len(notes) + 1}. {architecture}, {name}: {told}")
            cells.append("ran" if told == "ran" else f"refused ({len(notes)})")
        lines.append(f"| {architecture} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *notes])


if __name__ == "__main__":
    print(table())
