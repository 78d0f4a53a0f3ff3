"""The session of a process: what its cells share, and the number of threads that each of them computes with."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.console.progress import Bar
from bench.model.lm import LM


@dataclass
class Session:
    """What the cells of one process share: loaded models, training data, the progress bar.

    threads: the CPU threads of torch before any cell was made. models: only the model that was asked for last, so that
    the weights of two models are never in memory at once. written: how many results were computed. began, made: see
    `bench.files.overwrite`. damaged: records that are damaged and are kept as they are, each with what is wrong.
    """

    bar: Bar = field(default_factory=lambda: Bar({}))
    threads: int = field(default_factory=torch.get_num_threads)
    models: dict[str, LM] = field(default_factory=dict)
    fit_data: dict[str, tuple[Any, dict[str, Any]]] = field(default_factory=dict)
    written: int = 0
    began: float = field(default_factory=time.time)
    made: set[str] = field(default_factory=set)
    damaged: dict[Path, str] = field(default_factory=dict)


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Let torch use this number of CPU threads inside the block, and the former number after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
