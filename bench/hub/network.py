"""Runs without network: nothing that a library asks of the hub by itself leaves this machine."""

import os
import sys


def forbid() -> None:
    """Make every library of the hub use only its cache, for the rest of the process and in those that it starts.

    This project itself only reads fetched files; this function also stops look-ups by libraries.
    """
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[name] = "1"
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True
    if "datasets" in sys.modules:  # it has a copy
        import datasets

        datasets.config.HF_HUB_OFFLINE = datasets.config.HF_DATASETS_OFFLINE = True
