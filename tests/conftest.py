"""One thread a test process: tiny models gain nothing from more, and `pytest -n auto` runs one process a core."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_finish() -> None:
    """What is imported stays: statsmodels collects garbage in every call, a tenth of a second with torch loaded."""
    gc.collect()
    gc.freeze()
