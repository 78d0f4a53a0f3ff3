import pytest
import torch
from safetensors.torch import save_file

from methods.base import FitData, Pairs, artefact_bytes, facts, load, required_pairs, save
from methods.errors import SetupError

ALIGNMENT = 64  # bytes, of torch's own allocator


def test_an_artefact_loads_as_it_was_saved(tmp_path):
    """Safetensors maps a file: a row of 28 floats behind a header lay at address 24 mod 64 and multiplied otherwise."""
    torch.manual_seed(0)
    artefact = {f"layers.{i}.directions": torch.randn(2, 27 + i) for i in range(6)} | {"info.norm": torch.tensor(2.5)}
    save(artefact, tmp_path / "a.safetensors")
    loaded = load(tmp_path / "a.safetensors")
    assert loaded.keys() == artefact.keys()
    for key, tensor in artefact.items():
        assert torch.equal(loaded[key], tensor)
        assert loaded[key].data_ptr() % ALIGNMENT == 0, key


def test_nothing_learned_is_an_artefact_too(tmp_path):
    save({}, tmp_path / "none.safetensors")
    assert load(tmp_path / "none.safetensors") == {}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_an_artefact_that_is_not_finite_is_not_saved(tmp_path, bad):
    with pytest.raises(ValueError, match="artefact layers.3.direction has entries that are not finite"):
        save({"layers.3.direction": torch.tensor([1.0, bad])}, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_pickle_is_not_read(tmp_path):
    torch.save({"layers.3.direction": torch.ones(4)}, tmp_path / "artefact.safetensors")
    with pytest.raises(SetupError, match=r"artefact.safetensors is not a safetensors file .* delete it and fit again"):
        load(tmp_path / "artefact.safetensors")


def test_a_stored_nan_is_found(tmp_path):
    save_file({"layers.3.direction": torch.tensor([1.0, torch.nan])}, tmp_path / "artefact.safetensors")
    with pytest.raises(SetupError, match="layers.3.direction has entries that are not finite; delete it"):
        load(tmp_path / "artefact.safetensors")


def test_facts_are_small_and_do_not_count_as_size():
    artefact = {
        "layers.0.direction": torch.zeros(10),
        "rows": torch.zeros(3, 2, dtype=torch.int64),
        "info.norm": torch.tensor(2.5),
        "info.ratio": torch.tensor([0.5, 1.0]),
        "info.top_tokens": torch.zeros(10, 10),  # as many as DeTox removes from the papers' large models
        "info.too_long": torch.zeros(129),
    }
    assert artefact_bytes(artefact) == 10 * 4 + 6 * 8
    assert facts(artefact) == {"norm": 2.5, "ratio": [0.5, 1.0], "top_tokens": [[0.0] * 10] * 10}


def test_required_pairs():
    pairs = Pairs(["a", "d"], ["b", "e"], ["c", "f"])
    assert required_pairs(FitData(pairs), "caa") is pairs
    one = Pairs(*(column[:1] for column in pairs))
    for few, count in ((None, "none"), (Pairs([], [], []), "none"), (one, "1")):
        message = rf"caa learns from contrast pairs and got {count}; give at least 2: set pairs=file pairs\.path"
        with pytest.raises(SetupError, match=message):
            required_pairs(FitData(few), "caa")
