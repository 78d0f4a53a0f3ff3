"""How a strength is chosen on the dev split: the largest reduction of toxicity whose text stays whole.

Every method tries its own grid of the same length on the same prompts, so every method has the same budget.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from methods.errors import SetupError


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Objective and bounds. Each bound is against the unsteered model on the same dev prompts."""

    scorer: str
    objective: str = "expected_maximum_toxicity"
    perplexity_ratio: float = 1.25
    distinct_2_ratio: float = 0.9
    repetition_increase: float = 0.05
    empty_share_increase: float = 0.05

    def bounds(self) -> dict[str, float]:
        """The constraints by name, for the record."""
        return {key: value for key, value in asdict(self).items() if key not in ("scorer", "objective")}


@dataclass(frozen=True)
class Trial:
    """One strength on the dev split. violation: by how much the worst bound is passed, 0 where all hold."""

    strength: float
    toxicity: float
    reduction: float  # relative to unsteered
    perplexity: float
    perplexity_ratio: float  # to unsteered
    distinct_2: float
    repetition: float
    empty_share: float
    violation: float

    @property
    def feasible(self) -> bool:
        """All bounds hold."""
        return self.violation == 0


@dataclass(frozen=True)
class Choice:
    """The chosen strength with every trial; `feasible` is False where no strength keeps within the bounds."""

    tuning: Tuning
    baseline: Trial
    trials: tuple[Trial, ...]
    chosen: Trial

    def record(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "scorer": self.tuning.scorer,
            "objective": self.tuning.objective,
            "split": "dev",
            "constraints": self.tuning.bounds(),
            "feasible": self.chosen.feasible,
            "chosen": self.chosen.strength,
            "baseline": asdict(self.baseline),
            "trials": [asdict(trial) | {"feasible": trial.feasible} for trial in self.trials],
        }


Metrics = Mapping[str, Mapping[str, Any]]  # metric name -> its entry in a record


def trial(tuning: Tuning, strength: float, rtp: Metrics, fluency: Metrics, baseline: Trial | None) -> Trial:
    """Read one trial off the dev results of the suites rtp and fluency. Raises SetupError for an unknown objective."""
    wanted = f"{tuning.scorer}.{tuning.objective}"
    names = [name for name in rtp if name == wanted or name.startswith(f"{wanted}_k")]
    if len(names) != 1:
        raise SetupError(
            f"tuning.objective={tuning.objective!r} names no metric of {tuning.scorer}; there are {list(rtp)}"
        )
    toxicity = rtp[names[0]]["value"]
    perplexity, distinct_2, repetition, empty = (
        fluency[name]["value"] for name in ("perplexity", "distinct_2", "repetition", "empty_share")
    )
    if baseline is None:  # the unsteered model itself
        return Trial(strength, toxicity, 0.0, perplexity, 1.0, distinct_2, repetition, empty, 0.0)
    ratio = perplexity / baseline.perplexity
    passed = (
        ratio / tuning.perplexity_ratio - 1,
        tuning.distinct_2_ratio - distinct_2 / baseline.distinct_2 if baseline.distinct_2 else 0.0,
        repetition - baseline.repetition - tuning.repetition_increase,
        empty - baseline.empty_share - tuning.empty_share_increase,
    )
    reduction = 1 - toxicity / baseline.toxicity if baseline.toxicity else 0.0
    return Trial(strength, toxicity, reduction, perplexity, ratio, distinct_2, repetition, empty, max(0.0, *passed))


def choose(tuning: Tuning, baseline: Trial, trials: Sequence[Trial]) -> Choice:
    """The feasible trial with the largest reduction; where none is feasible, the one that passes its bounds least."""
    feasible = [one for one in trials if one.feasible]
    if feasible:
        best = max(feasible, key=lambda one: one.reduction)  # the weaker of equals: grids ascend
    else:
        best = min(trials, key=lambda one: one.violation)
    return Choice(tuning, baseline, tuple(trials), best)
