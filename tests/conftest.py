"""One thread a test process: tiny models gain nothing from more, and `pytest -n auto` runs one process a core."""

import functools
import gc
import os
import pickle
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # where a test asks for more threads, they do not spin
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def read_once() -> None:
    """Let each text in YAML be parsed once: every config is composed of the same files, which took a tenth of all time.

    Whoever reads it gets new objects, and an error is told as before.
    """
    load, safe_load = OmegaConf.load, yaml.safe_load
    loaded: dict[str, bytes] = {}
    safely: dict[str, bytes] = {}

    def of_omegaconf(file: Any) -> Any:
        path = Path(file) if isinstance(file, str | Path) else None
        text = path.read_text(encoding="utf-8") if path else file.read()
        if text not in loaded:
            if path is None:
                file.seek(0)
            loaded[text] = pickle.dumps(load(file))
        return pickle.loads(loaded[text])

    def of_yaml(stream: Any) -> Any:
        if not isinstance(stream, str):
            return safe_load(stream)
        if stream not in safely:
            safely[stream] = pickle.dumps(safe_load(stream))
        return pickle.loads(safely[stream])

    OmegaConf.load, yaml.safe_load = staticmethod(of_omegaconf), of_yaml


read_once()


def pytest_collection_finish() -> None:
    """What is imported stays: statsmodels collects garbage in every call, a tenth of a second with torch loaded.

    Python looks for garbage after every 700 new objects, which took a tenth of all time: configs are made of cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    if compose := sys.modules.get("bench.config.compose"):  # the times of the files are part of the key
        for name in ("_composed_once", "_reference"):
            setattr(compose, name, functools.lru_cache(maxsize=1000)(getattr(compose, name).__wrapped__))
    if cost := sys.modules.get("bench.run.cost"):
        cost.ROUNDS, cost.ROWS, cost.NEW_TOKENS = 1, 4, 1  # how fast a cell samples; tests/run/test_cost.py has more


@pytest.hookimpl(tryfirst=True)  # before the tests that are marked slow are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test marked `every(n)` each n-th case is run by default, and all of them with the slow tests."""
    seen: Counter[str] = Counter()
    for item in items:
        thinned = item.get_closest_marker("every")
        if thinned is not None:
            name = item.nodeid.partition("[")[0]
            if seen[name] % thinned.args[0]:
                item.add_marker(pytest.mark.slow)
            seen[name] += 1
