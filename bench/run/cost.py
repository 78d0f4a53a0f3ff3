"""What a method costs: memory while it is fitted, and speed while it steers."""

import ctypes
import gc
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import psutil
import torch

from bench.model.lm import LM
from bench.model.sampling import continuations
from bench.records import unfinished
from bench.records.fields import Cost
from methods.base import Artefact, Method
from methods.progress import listening

ROUNDS = 6  # the median lies between the lowest and the highest of six with a probability of 1 - 2 / 2^6, 97%
ROWS, NEW_TOKENS = 32, 4  # a short burst: enough for a ratio, about five seconds on two cores
PROMPTS = ("The weather today is", "In the morning the baker", "My neighbour told me that", "On the way to school")


@dataclass
class Peak:
    """The peak memory in bytes, less what was in use when the measurement began; filled in at the end."""

    bytes: int = 0


@contextmanager
def peak_memory(device: torch.device, interval_seconds: float = 0.01) -> Iterator[Peak]:
    """Measure the peak memory of the block above its start: the device's on CUDA, else the resident set, by polling.

    On a CPU, freed memory is first returned to the system if the C library can do so, since its reuse would not be
    seen. The allocator may still keep some of it, so the number is a lower bound.
    """
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - before
        return
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    process, stop = psutil.Process(), threading.Event()
    before = process.memory_info().rss

    def poll() -> None:
        while not stop.wait(interval_seconds):
            peak.bytes = max(peak.bytes, process.memory_info().rss - before)

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def relative_speed(lm: LM, method: Method, artefact: Artefact, strength: float) -> Cost:
    """Return the ratio of steered to unsteered sampling speed: its median, least and largest value over rounds.

    Each round times a run of the unsteered model and then one of the steered model.
    """
    burst = replace(lm.sampling, max_new_tokens=NEW_TOKENS)

    def seconds(one: LM, prompts: Sequence[str]) -> float:
        start = time.perf_counter()
        continuations(one, prompts, ROWS // len(prompts), burst)
        return time.perf_counter() - start

    ratios = []
    with listening(None), unfinished.keeping(None):  # what is timed has to be computed
        seconds(lm, PROMPTS)  # warm up
        for _ in range(ROUNDS):
            base = seconds(lm, PROMPTS)
            with lm.steered(method, artefact, strength) as steered:
                ratios.append(base / seconds(steered, PROMPTS))
    low, high = min(ratios), max(ratios)
    return Cost(relative_speed=statistics.median(ratios), relative_speed_low=low, relative_speed_high=high)
