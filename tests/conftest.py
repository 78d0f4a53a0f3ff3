"""One thread a test process: tiny models gain nothing from more, and `pytest -n auto` runs one process a core."""

import gc
import os
import sys
from collections import Counter

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_finish() -> None:
    """What is imported stays: statsmodels collects garbage in every call, a tenth of a second with torch loaded.

    Python looks for garbage after every 700 new objects, which took a tenth of all time: configs are made of cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    if cost := sys.modules.get("bench.run.cost"):
        cost.ROUNDS = 1  # of six that time how fast a cell samples; tests/run/test_cost.py has all of them


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
