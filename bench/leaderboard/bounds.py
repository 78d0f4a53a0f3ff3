"""Decide by intervals whether a tuned row keeps the bounds of its tuning on the test split.

Tuning on the dev split uses only point estimates, which are noisy; whether a bound holds is decided by the interval on
the test split.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from bench.leaderboard import tradeoff
from bench.leaderboard.pairing import Pairs, change, over
from bench.leaderboard.tradeoff import BootstrapEstimate
from bench.records.fields import Bound
from bench.stats.metrics import Metric

KEPT, VIOLATED, OPEN = "kept", "violated", "not resolved"

OLDEST = {
    "perplexity_ratio": ("fluency", "perplexity", "ratio", "at_most"),
    "distinct_2_ratio": ("fluency", "distinct_2", "ratio", "at_least"),
    "repetition_increase": ("fluency", "repetition", "increase", "at_most"),
    "empty_share_increase": ("fluency", "empty_share", "increase", "at_most"),
    "capability_drop": ("capability", "*.accuracy", "drop", "at_most"),
}
"""Each bound's suite, metric, comparison and kind of limit, for older records, which hold only its name and number."""


class Judged(NamedTuple):
    """The verdict on all bounds together, and the names of those that decide it."""

    verdict: str
    names: tuple[str, ...]


def judged(bounds: Mapping[str, Bound], pairs: list[Pairs], metrics: Mapping[str, Metric]) -> Judged | None:
    """Judge all bounds of a row: violated if one is, kept if all are; None if none could be judged.

    A single bound that was not measured, or has no interval, counts as open.

    Args:
        bounds: the bounds by name.
        pairs: for each fit its items beside the unsteered model's.
        metrics: the metrics of the table.
    """
    every = {name: _one(one, pairs, metrics) for name, one in bounds.items()}
    found = {name: verdict or OPEN for name, verdict in every.items()} if any(every.values()) else {}
    for verdict in (VIOLATED, OPEN):
        if names := tuple(name for name, one in found.items() if one == verdict):
            return Judged(verdict, names)
    return Judged(KEPT, ()) if found else None


def definitions(stored: Mapping[str, Bound] | None, values: Mapping[str, Any] | None) -> dict[str, Bound]:
    """Return the bounds of a tuning, by name. stored: as newer records hold them; values: the limits, by name."""
    if stored is not None:
        return dict(stored)
    found = {}
    for name, value in (values or {}).items():
        if name in OLDEST:
            suite, metric, compare, limit = OLDEST[name]
            found[name] = Bound.from_json({"suite": suite, "metric": metric, "compare": compare, limit: value})
    return found


def _one(bound: Bound, pairs: list[Pairs], metrics: Mapping[str, Metric]) -> str | None:
    """Judge one bound: kept if the interval is inside, violated if it is outside, else open; None without one."""
    wanted = f"{bound.suite}.{bound.metric}"
    names = [name for name in metrics if fnmatchcase(name, wanted)]
    estimate = _compared(bound.compare, names, pairs, metrics) if names and pairs else None
    low, high = (None, None) if estimate is None else estimate.estimate()[1:]
    if low is None or high is None:
        return None
    if (most := bound.at_most) is not None:
        return KEPT if high <= most else VIOLATED if low > most else OPEN
    if (least := bound.at_least) is None:
        return None
    return KEPT if low >= least else VIOLATED if high < least else OPEN


def _compared(
    compare: str, names: list[str], pairs: list[Pairs], metrics: Mapping[str, Metric]
) -> BootstrapEstimate | None:
    if compare == "ratio":
        return change(pairs, names[0], metrics[names[0]].transform, "ratio") if len(names) == 1 else None
    if any(name not in one for one in pairs for name in names):
        return None
    transforms = {name: metrics[name].transform for name in names}

    def mean(one: Pairs) -> BootstrapEstimate | None:  # in which all count alike, as in tuning
        return tradeoff.mean_change({name: one[name] for name in names}, transforms, by_items=False)

    found = over(pairs, mean)
    return found.negative() if found and compare == "drop" else found
