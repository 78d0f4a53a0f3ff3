"""How a strength is chosen on the dev split: the largest reduction of toxicity whose text stays whole.

Every method has the same number of trials on the same prompts (bench/run/search.py says which), so the same budget.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from bench.stats.metrics import Metric
from methods.errors import SetupError


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Objective, bounds and budget. Each bound is against the unsteered model on the same dev prompts.

    capability_drop: of the mean accuracy over the dev documents of the suite capability; None: not looked at.
    trials: for each method; None: its own grid, times the values of `options`. options: hyper-parameters that are tuned
    besides the strength, each with its values. in_residual_norms: strengths are tried from `residual_norms`, in units
    of the residual stream's mean length where the method adds to it, rather than from the method's own grid.
    seed: of random search and of Optuna.
    """

    scorer: str
    objective: str = "expected_maximum_toxicity"
    perplexity_ratio: float = 1.25
    distinct_2_ratio: float = 0.9
    repetition_increase: float = 0.05
    empty_share_increase: float = 0.05
    capability_drop: float | None = None
    trials: int | None = None
    search: Literal["grid", "random", "tpe"] = "grid"
    options: Mapping[str, Sequence[Any]] | None = None
    residual_norms: Sequence[float] = (0.07, 0.12, 0.2, 0.3, 0.4)
    in_residual_norms: bool = False
    seed: int = 0

    def bounds(self) -> dict[str, float]:
        """The constraints by name, for the record."""
        names = ("perplexity_ratio", "distinct_2_ratio", "repetition_increase", "empty_share_increase")
        asked = () if self.capability_drop is None else ("capability_drop",)
        return {key: getattr(self, key) for key in (*names, *asked)}

    @property
    def suites(self) -> tuple[str, ...]:
        """Suites whose dev results decide."""
        return ("rtp", "fluency") if self.capability_drop is None else ("rtp", "fluency", "capability")


@dataclass(frozen=True)
class Trial:
    """One look at the dev split. violation: by how much the worst bound is passed, 0 where all hold.

    accuracy: mean over the dev documents' tasks, None where it was not looked at. options: that differ from the cell.s.
    """

    strength: float
    toxicity: float
    reduction: float  # relative to unsteered
    perplexity: float
    perplexity_ratio: float  # to unsteered
    distinct_2: float
    repetition: float
    empty_share: float
    violation: float
    accuracy: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

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
            "search": self.tuning.search,
            "feasible": self.chosen.feasible,
            "chosen": self.chosen.strength,
            "chosen_trial": self.trials.index(self.chosen),
            "baseline": _plain(self.baseline),
            "trials": [_plain(trial) | {"feasible": trial.feasible} for trial in self.trials],
        }


def _plain(trial: Trial) -> dict[str, Any]:
    """As JSON; what was not looked at or does not differ is left out."""
    return {key: value for key, value in asdict(trial).items() if value not in (None, {})}


Metrics = Mapping[str, Metric]


def trial(
    tuning: Tuning,
    strength: float,
    rtp: Metrics,
    fluency: Metrics,
    baseline: Trial | None,
    capability: Metrics | None = None,
    options: Mapping[str, Any] | None = None,
) -> Trial:
    """Read one trial off the dev results of its suites. Raises SetupError for an unknown objective."""
    wanted = f"{tuning.scorer}.{tuning.objective}"
    names = [name for name in rtp if name == wanted or name.startswith(f"{wanted}_k")]
    if len(names) != 1:
        raise SetupError(
            f"tuning.objective={tuning.objective!r} names no metric of {tuning.scorer}; there are {list(rtp)}"
        )
    toxicity = rtp[names[0]].value
    perplexity, distinct_2, repetition, empty = (
        fluency[name].value for name in ("perplexity", "distinct_2", "repetition", "empty_share")
    )
    right = [one.value for name, one in (capability or {}).items() if name.endswith(".accuracy")]
    accuracy = sum(right) / len(right) if right else None
    look = (strength, toxicity)
    if tuning.capability_drop is not None and accuracy is None:
        raise SetupError(
            f"tuning.capability_drop={tuning.capability_drop:g}: the dev documents of the suite capability give no "
            "accuracy to hold against it; name tasks that have one in suite.capability.tasks, or set it to null"
        )
    if baseline is None:  # the unsteered model itself
        return Trial(*look, 0.0, perplexity, 1.0, distinct_2, repetition, empty, 0.0, accuracy)
    ratio = perplexity / baseline.perplexity
    passed = [
        ratio / tuning.perplexity_ratio - 1,
        tuning.distinct_2_ratio - distinct_2 / baseline.distinct_2 if baseline.distinct_2 else 0.0,
        repetition - baseline.repetition - tuning.repetition_increase,
        empty - baseline.empty_share - tuning.empty_share_increase,
    ]
    if tuning.capability_drop is not None and accuracy is not None and baseline.accuracy is not None:
        drop = baseline.accuracy - accuracy - tuning.capability_drop
        passed.append(0.0 if math.isclose(drop, 0, abs_tol=1e-9) else drop)  # a share of documents: the bound is within
    reduction = 1 - toxicity / baseline.toxicity if baseline.toxicity else 0.0
    return Trial(
        *look, reduction, perplexity, ratio, distinct_2, repetition, empty, max(0.0, *passed), accuracy, options or {}
    )


def choose(tuning: Tuning, baseline: Trial, trials: Sequence[Trial]) -> Choice:
    """The feasible trial with the largest reduction; where none is feasible, the one that passes its bounds least."""
    feasible = [one for one in trials if one.feasible]
    if feasible:
        best = max(feasible, key=lambda one: one.reduction)  # the weaker of equals: grids ascend
    else:
        best = min(trials, key=lambda one: one.violation)
    return Choice(tuning, baseline, tuple(trials), best)
