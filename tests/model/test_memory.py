"""How many rows a batch has by free memory, and what happens where memory runs out all the same."""

import math
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest
import torch
from lm_eval.api.instance import Instance
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from bench.model import devices, kv_cache, memory, sampling
from bench.model.decoding import Sampling
from bench.model.lm import LM, Request
from bench.model.lm_eval_adapter import SteeredLM
from bench.model.log_likelihood import likelihoods, limits_of
from bench.model.next_tokens import next_token_logits
from bench.model.sampling import continuations, prefill
from bench.records import unfinished
from methods import layout
from methods.base import Demand, FitData
from methods.dexperts import DExperts
from methods.errors import SetupError
from methods.sasa import SASA
from methods.self_debias import SelfDebias
from tests import architectures, tiny
from tests.tiny import tiny_lm, tiny_tokenizer

PROMPTS = ["The quick brown", "People walk along the water and talk about", "A", "the old tree near the river", ""]
SETTINGS = Sampling(max_new_tokens=6, seed=3)
SIZES = {  # width, MLP width, blocks, heads, key heads, vocabulary
    "narrow": (32, 64, 2, 4, 2, 300),
    "deep": (32, 96, 12, 4, 4, 300),
    "words": (64, 128, 3, 8, 2, 20_000),
    "wide": (256, 1024, 4, 8, 8, 2_000),
}


def lm_of_size(name: str) -> LM:
    width, mlp, blocks, heads, groups, words = SIZES[name]
    config = LlamaConfig(
        vocab_size=words, hidden_size=width, intermediate_size=mlp, num_hidden_layers=blocks,
        num_attention_heads=heads, num_key_value_heads=groups, bos_token_id=1, eos_token_id=2,
        max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(0)
    return LM(LlamaForCausalLM(config).eval().requires_grad_(False), tiny_tokenizer(), {"size": name})


@contextmanager
def batches_of(lm: LM):
    """The rows of each forward of several tokens or one, in order."""
    rows: list[tuple[int, int]] = []
    handle = lm.model.register_forward_pre_hook(
        lambda _module, _args, kwargs: rows.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    try:
        yield rows
    finally:
        handle.remove()


@contextmanager
def full_above(lm: LM, rows: int, error: type[Exception] | str = "card", from_forward: int = 0):
    """Inside the block a forward of more rows runs out of memory, the first `from_forward` ones left aside."""
    made = []

    def raising(_module, _args, kwargs):
        made.append(len(kwargs["input_ids"]))
        if made[-1] > rows and len(made) > from_forward:
            if error == "card":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")

    handle = lm.model.register_forward_pre_hook(raising, with_kwargs=True)
    try:
        yield made
    finally:
        handle.remove()


def free(monkeypatch, amount: float) -> None:
    monkeypatch.setattr(devices, "free_bytes", lambda device: int(amount / devices.USED["cpu"]))


# -- the estimate ------------------------------------------------------------------------------------------------------


EVERY = architectures.CONFIGS | {name: (lambda config=config: config) for name, config in tiny.CONFIGS.items()}


@torch.inference_mode()
def test_bytes_of_a_column_are_those_of_the_cache():
    wrong = {}
    for name in EVERY:
        lm = architectures.lm_of(name) if name in architectures.CONFIGS else tiny_lm(name)
        rows, _ = prefill(lm, [[1, 5, 6, 7]])
        held = sum(one.keys.nbytes + one.values.nbytes for one in rows.cache.layers)
        expected = 4 * memory.cache_bytes(lm.model.config, lm.model.dtype.itemsize)
        if held != expected:
            wrong[name] = (held, expected)
    assert wrong == {}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cache_and_logits_of_a_batch_are_what_is_estimated(name, dtype):
    lm = lm_of_size(name)
    lm.model.to(dtype)
    prompts = [[1, *range(5, 5 + length)] for length in (9, 30)]
    rows, logits = prefill(lm, prompts)
    rows.select(torch.tensor([0, 0, 0, 1, 1]), 40)
    logits = logits[torch.tensor([0, 0, 0, 1, 1])]
    found = memory.estimate(lm.model, 5, 2, 31, 40)
    assert found.cache == sum(part.nbytes for layer in rows.cache.layers for part in layer.buffers)
    assert found.logits == 2 * logits.nbytes  # of a step, and of the one before until it is read


def peak(work) -> int:
    """Most bytes that torch held at a time for what `work` allocates, as its profiler saw each of its tensors."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    moves = [one for one in seen.profiler.kineto_results.events() if one.name() == "[memory]"]
    held = most = 0
    for one in sorted(moves, key=lambda move: move.start_ns()):
        held += one.nbytes()
        most = max(most, held)
    return most


@pytest.mark.every(3)
@pytest.mark.parametrize("prompts", [2, 16])
@pytest.mark.parametrize("name", SIZES)
def test_the_peak_of_a_batch_is_a_third_to_all_of_the_estimate(name, prompts):
    lm, settings = lm_of_size(name), Sampling(max_new_tokens=8)
    asked = [[1, *range(5, 55 + number)] for number in range(prompts)]
    units = [sampling._Unit(i, k) for i in range(prompts) for k in range(32 // prompts)]
    work = lambda: sampling._decode(lm, [str(i) for i in range(prompts)], asked, units, settings, {})  # noqa: E731
    work()
    found, expected = peak(work), memory.estimate(lm.model, 32, prompts, max(map(len, asked)), 8).total
    assert expected / 3 < found < expected, (found, expected)


def decoding_method(kind: str, lm: LM):
    """A method that steers at decoding time, with an artefact that suits the model."""
    if kind == "sasa":
        one = torch.tensor(1.0)
        return SASA(), {"direction": torch.ones(layout.width(lm.model)), "midpoint": one, "deviation": one}
    if kind == "dexperts":
        unchanged = {f"anti_expert.change.{name}": torch.zeros_like(one) for name, one in lm.model.named_parameters()}
        return DExperts(), unchanged
    method = SelfDebias(unwanted=["hate", "lazy dogs"])
    return method, method.fit(lm.model, lm.tokenizer, FitData())


@pytest.mark.every(3)
@pytest.mark.parametrize("name", ["deep", "words"])
@pytest.mark.parametrize("kind", ["self_debias", "dexperts", "sasa"])
def test_the_peak_of_a_steered_batch_is_within_the_estimate(kind, name):
    lm, settings = lm_of_size(name), Sampling(max_new_tokens=4)
    lm.model.to(torch.bfloat16)
    asked = [[1, *range(5, 55 + number)] for number in range(8)]
    units = [sampling._Unit(i, k) for i in range(8) for k in range(3)]
    with lm.steered(*decoding_method(kind, lm), 1.0) as steered:
        work = lambda: sampling._decode(steered, [str(i) for i in range(8)], asked, units, settings, {})  # noqa: E731
        work()
        found = peak(work)
    demands = Demand(), steered.steering.demand
    plain, expected = (memory.estimate(lm.model, 24, 8, 57, 4, one).total for one in demands)
    assert expected / 4 < found < expected, (found, expected)
    assert name == "words" or found > 1.3 * plain  # of which logits are most, and drawing from them


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SIZES)
def test_the_peak_on_a_card_is_within_the_estimate(name, dtype):
    lm = lm_of_size(name)
    lm.model.to("cuda", dtype)
    lm = replace(lm, sampling=Sampling(max_new_tokens=64, batch_size=512))
    asked = [[1, *(5 + i % 200 for i in range(200 + number))] for number in range(512)]
    units = [sampling._Unit(i, 0) for i in range(512)]
    sampling._decode(lm, ["a"] * 512, asked[:4], units[:4], lm.sampling, {})
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    sampling._decode(lm, [str(i) for i in range(512)], asked, units, lm.sampling, {})
    found, expected = torch.cuda.max_memory_allocated() - before, memory.estimate(lm.model, 512, 512, 712, 64).total
    assert expected / 4 < found < expected, (found, expected)


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_with_enough_memory_batches_have_the_batch_size(capsys):
    lm = tiny_lm()
    with batches_of(lm) as rows:
        continuations(lm, PROMPTS, 4, replace(SETTINGS, batch_size=12))
    assert [count for count, width in rows if width == 1][0] == 12
    assert capsys.readouterr().err == ""


def test_long_prompts_get_fewer_rows_and_the_same_texts(monkeypatch, capsys):
    lm, settings = tiny_lm(), replace(SETTINGS, batch_size=16)
    prompts = ["A", *(" ".join([one] * 3) for one in PROMPTS[:2])]
    whole = continuations(lm, prompts, 16, settings)
    tokens = [len(lm.encode(prompt)) for prompt in prompts]
    limit = memory.estimate(lm.model, 16, 1, min(tokens), 6).total
    free(monkeypatch, limit)
    with batches_of(lm) as rows:
        assert continuations(lm, prompts, 16, settings) == whole
    begun = [count for (_, before), (count, width) in zip(rows, rows[1:], strict=False) if before > 1 and width == 1]
    assert begun[0] == 16 and len(begun) > 3 and max(begun[1:]) in (2, 4, 8)
    told = capsys.readouterr().err
    assert told.count("memory:") == 1 and "batches have fewer rows than runtime.batch_size=16" in told
    continuations(lm, prompts, 16, settings)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["self_debias", "dexperts", "sasa"])
def test_steering_that_reads_more_gets_fewer_rows(kind, monkeypatch):
    lm, settings = lm_of_size("deep"), replace(SETTINGS, batch_size=16)
    requests = [Request(lm.encode(one), [5, 6, 7]) for one in PROMPTS]
    with lm.steered(*decoding_method(kind, lm), 1.0) as steered:
        whole = continuations(steered, PROMPTS[:1], 16, settings)
        free(monkeypatch, memory.estimate(lm.model, 16, 1, len(lm.encode(PROMPTS[0])), 6).total)
        with batches_of(lm) as rows:
            assert continuations(steered, PROMPTS[:1], 16, settings) == whole
        assert max(count for count, width in rows if width == 1) < 16 or kind == "sasa"  # which tries a few at a time
        free(monkeypatch, 30_000_000)
        assert 1 < limits_of(steered).columns
        fresh = replace(lm, memory=memory.Memory())
        assert limits_of(steered).columns < limits_of(fresh).columns
        assert len(likelihoods(steered, requests)) == len(PROMPTS)


def test_a_large_batch_is_told_before_it_is_computed(monkeypatch, capsys):
    monkeypatch.setattr("bench.model.batches.WORTH_TELLING", 1)
    lm = tiny_lm()
    continuations(lm, PROMPTS, 2, SETTINGS)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("memory: 10 rows take ") and "KV cache" in line and "GiB that may be used" in line


def test_a_resumed_run_takes_what_was_kept_whatever_is_free_now(tmp_path, monkeypatch):
    """Batches were planned by another amount of memory, so other rows begin them."""
    lm, settings = tiny_lm(), replace(SETTINGS, batch_size=8)
    whole = continuations(lm, PROMPTS, 4, settings)
    real, done = sampling._decode, []

    def stops(*args):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(len(args[3]))
        real(*args)

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt), unfinished.keeping(tmp_path):
        patch.setattr(sampling, "_decode", stops)
        free(patch, memory.estimate(lm.model, 4, 1, 12, 6).total)
        continuations(lm, PROMPTS, 4, settings)
    assert done == [4, 4] and list(tmp_path.rglob("*.json"))
    computed = []
    monkeypatch.setattr(sampling, "_decode", lambda *args: (computed.append(len(args[3])), real(*args)))
    with unfinished.keeping(tmp_path):
        assert continuations(lm, PROMPTS, 4, settings) == whole
    assert computed == [8, 4]


def test_few_shot_contexts_share_a_batch_despite_a_long_one():
    """Eight examples are 1,000 tokens and more; a bound of 8,192 columns left 5 rows."""
    lm = replace(tiny_lm(), sampling=Sampling(batch_size=64))
    asked = {"until": ["@"], "max_gen_toks": 40}
    contexts = [f"{'bread and love ' * 9}{number}" for number in range(64)]
    requests = [Instance("generate_until", {}, (text, asked), number) for number, text in enumerate(contexts)]
    with batches_of(lm) as rows:
        SteeredLM(lm).generate_until(requests)
    assert rows[0][0] == 64


def test_bounds_of_likelihoods_are_halved_where_memory_is_scarce(monkeypatch, capsys):
    lm = tiny_lm()
    whole, requests = limits_of(lm), [Request(lm.encode(one), [5, 6, 7]) for one in PROMPTS]
    expected = likelihoods(lm, requests)
    free(monkeypatch, 300_000)
    found = limits_of(lm)
    assert found.columns < whole.columns and math.log2(whole.columns / found.columns) == lm.memory.halvings
    assert [one.logprob for one in likelihoods(lm, requests)] == pytest.approx([one.logprob for one in expected])
    assert capsys.readouterr().err.count("likelihoods are read in batches of") == 1


def test_a_container_has_what_its_control_group_leaves(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "CGROUP", tmp_path)
    plain = devices.free_bytes(torch.device("cpu"))
    assert plain > 0
    (tmp_path / "memory.max").write_text("9000\n")
    (tmp_path / "memory.current").write_text("8000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500\n")
    assert devices.free_bytes(torch.device("cpu")) == 1500
    (tmp_path / "memory.max").write_text("max\n")
    assert devices.free_bytes(torch.device("cpu")) > 10**6


# -- out of memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", ["card", "CPU"])
def test_out_of_memory_halves_the_batch_and_texts_stay(error, capsys):
    lm, settings = tiny_lm(), replace(SETTINGS, batch_size=16)
    whole = continuations(lm, PROMPTS, 8, settings)
    with full_above(lm, 5, error) as forwards:
        assert continuations(lm, PROMPTS, 8, settings) == whole
    assert capsys.readouterr().err.count("it ran out") == 1
    failed = [rows for rows in forwards if rows > 5]
    assert failed == [16, 8], "later batches begin with what the first one came down to"


@pytest.mark.slow
def test_texts_that_were_finished_are_kept_where_memory_runs_out(monkeypatch):
    lm, settings = tiny_lm(), replace(SETTINGS, max_new_tokens=30, batch_size=64)
    whole = continuations(lm, PROMPTS, 12, settings)
    ended = [one.ended for row in whole for one in row]
    assert 0 < sum(ended) < 60
    real, asked = sampling._decode, []
    monkeypatch.setattr(sampling, "_decode", lambda *args: (asked.append(list(args[3])), real(*args)))
    with full_above(lm, 10, from_forward=20):
        assert continuations(lm, PROMPTS, 12, settings) == whole
    assert len(asked[0]) == 60 and sum(map(len, asked[1:3])) < 60


def test_one_row_that_does_not_fit_says_what_to_do():
    lm = tiny_lm()
    with (
        full_above(lm, 0),
        pytest.raises(SetupError, match="single text .* model.dtype=bfloat16.* runtime.device=auto"),
    ):
        continuations(lm, PROMPTS, 2, SETTINGS)


def test_another_error_is_not_taken_for_a_lack_of_memory():
    lm = tiny_lm()

    def broken(_module, _args):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    handle = lm.model.model.layers[0].register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        continuations(lm, PROMPTS, 2, SETTINGS)
    handle.remove()


@pytest.mark.slow
def test_likelihoods_go_on_in_halves_down_to_one():
    lm = tiny_lm()
    requests = [Request(lm.encode(one), list(end)) for one in PROMPTS for end in ([5, 6, 7], [8, 9], [10], [11, 12])]
    expected = likelihoods(lm, requests)
    for rows in (4, 1):
        lm = replace(lm, memory=memory.Memory())
        with full_above(lm, rows) as forwards:
            found = likelihoods(lm, requests)
        assert max(forwards) > rows
        assert [one.logprob for one in found] == pytest.approx([one.logprob for one in expected], abs=1e-5)
        assert [(one.greedy, one.tokens) for one in found] == [(one.greedy, one.tokens) for one in expected]


def test_distributions_and_answers_go_on_in_halves():
    lm = tiny_lm()
    requests = [Request(lm.encode(one), [5, 6, 7]) for one in PROMPTS]
    expected = {number: logits for number, logits in next_token_logits(lm, requests)}
    asked = {"until": ["fox"], "max_gen_toks": 6, "do_sample": True, "temperature": 0.9}
    instances = [Instance("generate_until", {}, (one, asked), number) for number, one in enumerate(PROMPTS)]
    answers = SteeredLM(lm).generate_until(instances)
    with full_above(lm, 2):
        found = {number: logits for number, logits in next_token_logits(lm, requests)}
        assert SteeredLM(replace(lm, memory=memory.Memory())).generate_until(instances) == answers
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[number], expected[number], atol=1e-4) for number in expected)


# -- waits for the device ----------------------------------------------------------------------------------------------


def test_a_step_waits_for_the_device_as_often_for_any_rows(monkeypatch):
    """Each `tolist`, `item` and `bool` of a tensor is a wait: two a step are ours, and transformers asks its mask."""
    counts = []

    def noted(real, waits):
        return lambda one: (waits.append(1), real(one))[1]

    for samples in (2, 40):
        lm, waits = tiny_lm(), []
        with monkeypatch.context() as patch:
            for name in ("tolist", "item", "__bool__", "__int__", "__float__"):
                patch.setattr(torch.Tensor, name, noted(getattr(torch.Tensor, name), waits))
            settings = Sampling(max_new_tokens=10, temperature=0)
            continuations(lm, PROMPTS[:1], samples, settings)
        counts.append(len(waits))
    assert counts[0] == counts[1] <= 3 * 10 + 3


def test_rows_are_taken_over_on_the_device_of_each_block():
    """Of a model on several devices the numbers of rows are on that of its input; torch's meta stands for another."""
    layer = kv_cache.RoomyLayer()
    states = torch.zeros(3, 2, 4, 5, device="meta")
    layer.update(states, states)
    layer.select(torch.tensor([2, 0]), 3)
    assert layer.keys.device.type == "meta" and layer.keys.shape == (2, 2, 4, 5)
