"""One thread a test process: tiny models gain nothing from more, and `pytest -n auto` runs one process a core."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
