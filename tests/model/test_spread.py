"""A model that accelerate spreads over the CPU and the disk gives the undivided one's numbers, or is not edited."""

import gc

import pytest
import torch
from accelerate import cpu_offload

from bench.model import devices
from bench.model.lm import LM, load_lm
from bench.model.log_likelihood import log_likelihood
from bench.model.sampling import sample
from bench.run.validate import validate
from methods import CAA, ActAdd, DeTox, FitData, Pairs, ProbeRows, layout, placement
from methods.base import Examples
from methods.errors import SetupError
from methods.finetune import Finetune
from methods.intervention import edited
from methods.training import changed
from tests.tiny import tiny_lm

PROMPTS = ["The quick brown", "People walk along the water and talk about", "A"]
ENDS = [" fox", " love and hate", " road"]
PAIRS = Pairs(PROMPTS * 2, [" love", " bread", " home", " work", " the dog", " river"], [" hate"] * 3 + [" old"] * 3)
VECTORS = {
    "caa": CAA(layer=2),
    "act_add": ActAdd(desired=" love", undesired=" hate", layer=3, pad=None, short_prompt="clip"),
}
LIMIT = {"cpu": "150KB"}  # of 300: some blocks are in memory, the others on the disk


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path, lm = tmp_path_factory.mktemp("model"), tiny_lm()
    lm.model.save_pretrained(path)
    lm.tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def whole(folder) -> LM:
    return load_lm(folder)


@pytest.fixture(params=["CPU and disk", "CPU alone, block by block"])
def spread(request, folder, tmp_path) -> LM:
    if request.param == "CPU and disk":
        return load_lm(folder, device="auto", max_memory=LIMIT, offload=tmp_path / "offload")
    lm = load_lm(folder)
    cpu_offload(lm.model, torch.device("cpu"))
    return lm


def numbers(lm: LM):
    return sample(lm, PROMPTS, 3, max_new_tokens=8), log_likelihood(lm, PROMPTS, ENDS)


def on_disk(lm: LM) -> list[str]:
    return [name for name, one in lm.model.named_parameters() if one.is_meta]


def test_the_unsteered_model_is_the_same_to_the_bit(whole, spread):
    assert on_disk(spread) and placement.input_device(spread.model).type == "cpu"
    assert numbers(spread) == numbers(whole)


@pytest.mark.parametrize("name", VECTORS)
def test_a_vector_is_fitted_and_added_to_the_same_bits(name, whole, spread):
    method = VECTORS[name]
    artefact = method.fit(whole.model, whole.tokenizer, FitData(pairs=PAIRS))
    found = method.fit(spread.model, spread.tokenizer, FitData(pairs=PAIRS))
    assert artefact.keys() == found.keys() and all(torch.equal(artefact[key], found[key]) for key in artefact)
    with whole.steered(method, artefact, 2.0) as one, spread.steered(method, found, 2.0) as other:
        steered = numbers(one)
        assert numbers(other) == steered
    assert steered != numbers(whole)


def test_weights_in_memory_are_edited_and_on_disk_refused(folder, whole, tmp_path):
    lm = load_lm(folder, device="auto", max_memory=LIMIT, offload=tmp_path)
    missing = on_disk(lm)
    assert not any(name.startswith("model.layers.0.") for name in missing)
    method = DeTox(rank=1, layer_start=0, layer_stop=1)
    artefact = method.fit(whole.model, whole.tokenizer, FitData(pairs=PAIRS))
    with whole.steered(method, artefact, 1.0) as one, lm.steered(method, artefact, 1.0) as other:
        edited_whole = numbers(one)
        assert numbers(other) == edited_whole
    assert edited_whole != numbers(whole) == numbers(lm)
    last = DeTox(rank=1, layer_start=4)
    artefact = last.fit(whole.model, whole.tokenizer, FitData(pairs=PAIRS))
    refused = r"model.layers.4.mlp.down_proj.weight is not in memory: .* runtime.max_memory"
    with pytest.raises(SetupError, match=refused), lm.steered(last, artefact, 1.0):
        pass
    with pytest.raises(SetupError, match=r"model.layers.1.mlp.\w+.weight is not in memory"):
        ProbeRows(layer=0).fit(lm.model, lm.tokenizer, FitData(pairs=PAIRS))
    assert numbers(lm) == numbers(whole)


def test_training_and_what_it_gave_are_refused_by_name(folder, whole, tmp_path):
    lm = load_lm(folder, device="auto", max_memory=LIMIT, offload=tmp_path)
    examples = Examples(PROMPTS, ENDS)
    with pytest.raises(SetupError, match=r"model.layers.1.\S+ is not in memory"):
        Finetune(epochs=1).fit(lm.model, lm.tokenizer, FitData(examples=examples))
    name = on_disk(lm)[0]
    change = {f"change.{name}": torch.ones_like(dict(whole.model.named_parameters())[name])}
    with pytest.raises(SetupError, match=f"{name} is not in memory"), changed(lm.model, change, 1.0, "finetune"):
        pass
    parameter = dict(lm.model.named_parameters())[name]
    refused = pytest.raises(SetupError, match="a weight of shape .* is not in memory")
    with refused, edited({parameter: torch.zeros(parameter.shape)}):
        pass


def test_a_model_without_weights_still_shows_its_shapes():
    """Methods are held against one before anything is loaded."""
    with torch.device("meta"):
        model = type(tiny_lm().model)(tiny_lm().model.config)
    assert layout.value_matrix(model, 0).read().is_meta


def test_what_went_to_the_disk_is_gone_with_the_model(folder, tmp_path):
    lm = load_lm(folder, device="auto", max_memory=LIMIT, offload=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    del lm
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_auto_without_limits_is_the_plain_model(folder, whole):
    lm = load_lm(folder, device="auto")
    assert lm.identity == whole.identity and numbers(lm) == numbers(whole)


def test_a_vector_is_moved_once_for_all_forwards(whole, monkeypatch):
    method, moved = VECTORS["caa"], []
    artefact = method.fit(whole.model, whole.tokenizer, FitData(pairs=PAIRS))
    real = torch.Tensor.to

    def noted(tensor, *args, **kwargs):
        result = real(tensor, *args, **kwargs)
        if tensor.shape == (36,) and result is not tensor:
            moved.append(1)
        return result

    low = whole.model.to(torch.bfloat16)
    try:
        with method.apply(low, artefact, 2.0), monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "to", noted)
            assert sample(LM(low, whole.tokenizer, {}), PROMPTS, 2, 6)
    finally:
        whole.model.to(torch.float32)
    assert len(moved) == 1


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "tpu", "", "CPU"])
def test_a_device_that_is_not_here_is_refused_first(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SetupError, match=f"device '{device}': there is no such device here; allowed are cpu, auto"):
        load_lm("a folder that is not there", device=device)


@pytest.mark.parametrize(
    ("limits", "device", "said"),
    [
        ({"cpu": "1GiB"}, "cpu", "only works with runtime.device=auto"),
        ("20GiB", "auto", "a mapping"),
        ({}, "auto", "a mapping"),
        ({7: "1GiB"}, "auto", "max_memory.7: there is no such device"),
        ({"disk": "1GiB"}, "auto", "max_memory.disk: there is no such device"),
        ({"cpu": "much"}, "auto", "max_memory.cpu=much: this is not a size"),
        ({"cpu": 5}, "auto", "max_memory.cpu=5: this is not a size"),
    ],
)
def test_limits_that_mean_nothing_are_refused(limits, device, said):
    with pytest.raises(SetupError, match=said):
        devices.check_max_memory(limits, device)


def test_limits_as_accelerate_wants_them():
    assert devices.max_memory({"0": "1GiB", 1: "2GiB", "cpu": "3GiB"}) == {0: "1GiB", 1: "2GiB", "cpu": "3GiB"}
    assert devices.max_memory(None) is None


def test_limits_come_from_the_command_line(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    given = ["method=caa", "strength=1", "runtime.device=auto", f"runtime.results={tmp_path}"]
    cfg = validate([*given, "runtime.max_memory={0: 20GiB, cpu: 60GiB}"])
    assert devices.max_memory(cfg.runtime.max_memory) == {0: "20GiB", "cpu": "60GiB"}
    with pytest.raises(SetupError, match="max_memory.cpu=much: this is not a size"):
        validate([*given, "runtime.max_memory={cpu: much}"])
