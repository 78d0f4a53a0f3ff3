"""Configs of a sweep's cells are kept packed."""

import gc
import tracemalloc

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ReadonlyConfigError

from bench.config import folders
from bench.config.compose import compose, jobs
from bench.config.packed import UNPACKED, Configs, Packed, _unpacked, changeable
from bench.run import validate
from bench.run.cell import Cell
from bench.run.session import Session

SWEEP = ["method=random_direction", "strength=range(0.1,1.4,0.1)", "suite=[topic]", "runtime.threads=1"]


def test_what_is_unpacked_is_what_was_packed():
    cfg = compose(["method=caa", "strength=2", "suite=[rtp,fluency]", "scorer=[profanity_check,lexicon]"])
    found = Packed(cfg).cfg
    assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(cfg)
    assert found == cfg and OmegaConf.is_struct(found) == OmegaConf.is_struct(cfg)
    (same,) = Configs([cfg])[0:1]
    assert same == cfg


def test_numbers_as_keys_stay_numbers():
    cfg = compose(["method=caa", "strength=2", "runtime.max_memory={0:20GiB,cpu:10GiB}"])
    found = Packed(cfg).cfg
    assert found == cfg and list(found.runtime.max_memory) == [0, "cpu"]
    with pytest.raises(ReadonlyConfigError):
        found.strength = 3


def test_an_unpacked_config_cannot_be_changed_but_its_copy_can():
    packed = Packed(compose(["method=caa", "strength=2"]))
    with pytest.raises(ReadonlyConfigError):
        packed.cfg.strength = 3
    with pytest.raises(ReadonlyConfigError):
        packed.cfg.method.layer = 0.25
    own = changeable(packed.cfg)
    own.strength, own.method.layer = 3, 0.25
    assert packed.cfg.strength == 2 and own.strength == 3


def test_a_cell_of_a_sweep_needs_little_memory():
    asked = jobs(SWEEP, multirun=True)
    [Cell(cfg, Session()).names.fit_id for cfg in validate.validate_all(asked[:9])]  # what is kept for all cells
    session = Session()
    tracemalloc.start()
    try:
        configs = validate.validate_all(asked)
        cells = [Cell(cfg, session) for cfg in configs]
        kept = {cell.names.fit_id for cell in cells}
        assert len(cells) == len(asked) > UNPACKED and kept
        _unpacked.cache_clear()  # it holds UNPACKED of them, however many cells there are
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] / len(cells) < 50e3  # bytes; a config as it is has 150,000
    finally:
        tracemalloc.stop()


def test_a_damaged_file_of_another_choice_does_no_harm(tmp_path):
    """Somebody may be editing a YAML file while the jobs of a sweep check the classes of their configs."""
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("_target_: x.Mine\nlayer: [")
    (tmp_path / "method" / "other.yaml").write_text("_target_: y.Other\n")
    assert folders._targets((tmp_path,)) == {"y.Other"}
