"""Time several functions in turn in one process, so that whatever slows the machine slows all of them alike."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from scipy.stats import t

from bench.records import unfinished
from methods.progress import advance, listening

Work = Callable[[], object]
Inside = Callable[[], AbstractContextManager[object]]


class Compared(NamedTuple):
    """The times of a function and of another one, timed in turn, in seconds (medians over the rounds).

    ratio: how many times as fast the first function is as the other, the median over the rounds. low, high: the 95%
    interval of the ratio, by the t distribution of its logarithm; None after a single round.
    """

    seconds: float
    other_seconds: float
    ratio: float
    low: float | None
    high: float | None


def in_turns(
    works: Mapping[str, Work], rounds: int, tokens: float = 1.0, inside: Mapping[str, Inside] | None = None
) -> dict[str, list[float]]:
    """Return the seconds that each function takes in each round; every second round runs them in reverse order.

    tokens: what each function counts in the progress bar. inside: the context in which a function is called; entering
    and leaving it is not timed.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        for name in list(works)[:: -1 if number % 2 else 1]:
            around = (inside or {}).get(name, nullcontext)
            with around(), listening(None), unfinished.keeping(None):  # what is timed has to be computed
                start = time.perf_counter()
                works[name]()
                taken[name].append(time.perf_counter() - start)
            advance(tokens)
    return taken


def compared(ours: list[float], other: list[float]) -> Compared:
    """Compare the seconds of a function in each round with those of another one."""
    logs = [math.log(b / a) for a, b in zip(ours, other, strict=True)]
    middle = statistics.median(logs)
    low = high = None
    if len(logs) > 1:
        half = float(t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / math.sqrt(len(logs))
        mean = statistics.fmean(logs)
        low, high = math.exp(mean - half), math.exp(mean + half)
    return Compared(statistics.median(ours), statistics.median(other), math.exp(middle), low, high)
