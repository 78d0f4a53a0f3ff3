"""Choose a strength on the dev split: the one with the largest gain in an objective among the trials within the bounds.

Objective and bounds are data (conf/tuning): each names a suite and a metric of it. Every method has the same budget:
equally many trials, which bench/run/search.py proposes, on the same items.
"""

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from bench.records.fields import OLDEST_OBJECTIVE
from methods.errors import SetupError

Metrics = Mapping[str, Mapping[str, float]]
"""Values on the dev split, by suite and metric."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The metric that tuning makes as small or as large as the bounds allow.

    metric: a metric of the suite, without the name of a scorer (see `Tuning.scorer`); a suffix for the number of texts
    (_k3) may be left out. gain: "relative" is a share of the unsteered value, "difference" is in the metric's unit.
    """

    suite: str
    metric: str
    direction: Literal["minimize", "maximize"]
    gain: Literal["relative", "difference"] = "relative"

    def gained(self, value: float, unsteered: float) -> float:
        """Return the gain: how much better a value is than that of the unsteered model.

        Raises SetupError for a gain relative to 0.
        """
        if self.gain == "difference":
            return unsteered - value if self.direction == "minimize" else value - unsteered
        if not unsteered and self.direction == "minimize":
            return 0.0
        if not unsteered:
            raise SetupError(
                f"tuning.objective: {self.metric} of the unsteered model is 0, so there is no gain relative to it; set "
                "tuning.objective.gain=difference"
            )
        if unsteered < 0:  # such as a log-probability
            return (unsteered - value if self.direction == "minimize" else value - unsteered) / -unsteered
        return 1 - value / unsteered if self.direction == "minimize" else value / unsteered - 1


Compare = Literal["ratio", "increase", "drop"]


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """A bound on a metric of a suite, relative to the unsteered model on the same items.

    metric: a name or, with *, a pattern; if it fits several metrics, their mean counts. compare: what is bounded, the
    "ratio" to the unsteered value, the "increase" over it, or the "drop" below it. at_most, at_least: the bound; if
    neither is set, the metric is not computed.
    """

    suite: str
    metric: str
    compare: Compare
    at_most: float | None = None
    at_least: float | None = None

    def __post_init__(self) -> None:
        """Raise SetupError for an unknown comparison, a wrong bound, two bounds, or at_least without compare=ratio."""
        mine = f"tuning.constraints: {self.suite}.{self.metric}"
        if self.compare not in get_args(Compare):
            raise SetupError(f"{mine} compare={self.compare!r}: allowed are {', '.join(get_args(Compare))}")
        for bound in (self.at_most, self.at_least):
            number = isinstance(bound, int | float) and not isinstance(bound, bool) and math.isfinite(bound)
            if bound is not None and not (number and (bound > 0 or self.compare != "ratio")):
                wanted = "a number above 0" if self.compare == "ratio" else "a number"
                raise SetupError(f"{mine} at_most or at_least is {bound!r}: expected {wanted}, or null for no bound")
        if self.at_least is not None and (self.at_most is not None or self.compare != "ratio"):
            raise SetupError(f"{mine} takes one bound: at_most, or at_least if compare=ratio")

    @property
    def bound(self) -> float | None:
        """The bound that is set, at_most or at_least."""
        return self.at_most if self.at_least is None else self.at_least

    def record(self) -> dict[str, Any]:
        """The constraint as plain JSON values, without the bound that is not set."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @property
    def name(self) -> str:
        """The name of the value in a record."""
        return self.metric.rpartition(".")[2]

    def value(self, metrics: Mapping[str, float]) -> float:
        """Return the constraint's value from the suite's metrics. Raises SetupError if no metric fits."""
        found = [value for name, value in metrics.items() if fnmatchcase(name, self.metric)]
        if not found:
            raise SetupError(
                f"tuning.constraints: the suite {self.suite} gives no {self.metric} on its dev split, so there is "
                f"nothing to bound; it gives {', '.join(metrics) or 'nothing'}. Name another metric, or set the bound "
                "to null"
            )
        return _finite(sum(found) / len(found) if len(found) > 1 else found[0], f"{self.suite}.{self.metric}")

    def check_unsteered(self, name: str, unsteered: float) -> None:
        """Raise SetupError if the unsteered value cannot be a denominator, such as 0. name: the constraint's name."""
        if self.compare == "ratio" and (unsteered < 0 or (unsteered == 0 and self.at_most is not None)):
            raise SetupError(
                f"tuning.constraints.{name}: {self.suite}.{self.metric} of the unsteered model is {unsteered:g}, so "
                "ratios to it do not exist; set compare=increase or drop"
            )

    def passed(self, value: float, unsteered: float) -> float:
        """Return by how much a value violates the bound; 0 or negative if it keeps the bound."""
        assert self.bound is not None
        if self.compare == "increase":
            return value - unsteered - self.bound
        if self.compare == "drop":
            over = unsteered - value - self.bound
            return 0.0 if math.isclose(over, 0, abs_tol=1e-9) else over  # shares of documents may equal the bound
        if self.at_least is None:
            return value / unsteered / self.bound - 1
        return self.bound - value / unsteered if unsteered else 0.0


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Objective, bounds and budget.

    scorer: the scorer by which the objective is measured; None if the metrics of the objective's suite have no scorer.
    trials: the number of trials for each method; None: as many as the method's own grid has strengths, times the
    combinations of `options`. options: hyper-parameters that are tuned besides the strength, each with its values.
    in_residual_norms: take the strengths from `residual_norms`, not from the method's own grid; their unit is the mean
    length of the residual stream at the places where the method adds to it. seed: the seed of random search and Optuna.
    """

    objective: Objective
    scorer: str | None = None
    constraints: Mapping[str, Constraint | None] = field(default_factory=dict)
    trials: int | None = None
    search: Literal["grid", "random", "tpe"] = "grid"
    options: Mapping[str, Sequence[Any]] | None = None
    residual_norms: Sequence[float] = (0.07, 0.12, 0.2, 0.3, 0.4)
    in_residual_norms: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise SetupError for a user's constraint with missing or unknown keys."""
        own: dict[str, Constraint | None] = {}
        for name, one in self.constraints.items():
            try:
                own[name] = Constraint(**one) if isinstance(one, Mapping) else one
                if isinstance(one, Mapping) and own[name].bound is None:  # type: ignore[union-attr]
                    raise TypeError
            except TypeError as error:
                raise SetupError(
                    f"tuning.constraints.{name}={one}: expected suite, metric, compare, and at_most or at_least"
                ) from error
        object.__setattr__(self, "constraints", own)

    @property
    def active(self) -> dict[str, Constraint]:
        """The constraints that have a bound, by name."""
        return {name: one for name, one in self.constraints.items() if one is not None and one.bound is not None}

    @property
    def suites(self) -> tuple[str, ...]:
        """The suites whose dev results decide."""
        return tuple(dict.fromkeys([self.objective.suite, *(one.suite for one in self.active.values())]))

    def value(self, metrics: Mapping[str, float]) -> float:
        """Return the objective's value from its suite's metrics. Raises SetupError unless exactly one metric fits."""
        wanted = f"{self.scorer}.{self.objective.metric}" if self.scorer else self.objective.metric
        names = [name for name in metrics if name == wanted or name.startswith(f"{wanted}_k")]
        if len(names) != 1:
            raise SetupError(
                f"tuning.objective: {wanted!r} names {'several metrics' if names else 'no metric'} of the suite "
                f"{self.objective.suite}; name one of {', '.join(names or metrics) or 'another suite'}"
            )
        return _finite(metrics[names[0]], names[0])


def check_search(tuning: Tuning) -> None:
    """Raise SetupError if the search needs a package that is not installed."""
    if tuning.search == "tpe" and importlib.util.find_spec("optuna") is None:
        raise SetupError(
            "tuning.search=tpe needs Optuna; run: pip install 'steerbench[tpe]', or set tuning.search=random"
        )


def _finite(value: float, name: str) -> float:
    """Return the value. Raises SetupError for NaN and infinity, by which nothing can be chosen."""
    if not math.isfinite(value):
        raise SetupError(
            f"tuning: {name} is {value} on the dev split, so no strength can be chosen by it; lower "
            "method.strengths, or tune by another objective or bound"
        )
    return value


@dataclass(frozen=True)
class Trial:
    """One trial on the dev split.

    value: the objective's value. gain: its gain over the unsteered model. values: the value of each constraint's
    metric, by the constraint's name. violation: by how much the bound that is violated most is passed; 0 if all bounds
    are kept. options: the hyper-parameters that differ from the cell's.
    """

    strength: float
    value: float
    gain: float
    values: Mapping[str, float]
    ratios: Mapping[str, float]
    violation: float
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def feasible(self) -> bool:
        """True if every constraint holds at this strength, by its point estimate on the dev split."""
        return self.violation == 0


@dataclass(frozen=True)
class Choice:
    """The chosen trial with every trial; `chosen.feasible` is False if no trial is within the bounds."""

    tuning: Tuning
    baseline: Trial
    trials: tuple[Trial, ...]
    chosen: Trial

    def record(self) -> dict[str, Any]:
        """The tuning as plain JSON values."""
        objective = self.tuning.objective
        more = {"suite": objective.suite, "direction": objective.direction, "gain": objective.gain}
        return {
            "scorer": self.tuning.scorer,
            "objective": objective.metric,
            **({} if more == OLDEST_OBJECTIVE else more),
            "split": "dev",
            "constraints": {name: one.bound for name, one in self.tuning.active.items()},
            "bounds": {name: one.record() for name, one in self.tuning.active.items()},
            "search": self.tuning.search,
            "feasible": self.chosen.feasible,
            "chosen": self.chosen.strength,
            "chosen_trial": self.trials.index(self.chosen),
            "baseline": self._plain(self.baseline),
            "trials": [self._plain(trial) | {"feasible": trial.feasible} for trial in self.trials],
        }

    def _plain(self, trial: Trial) -> dict[str, Any]:
        """Return a trial as JSON: each constraint's value by its metric's name, and ratios that have an upper bound."""
        looked: dict[str, float] = {}
        active = self.tuning.active
        for name, one in active.items():
            alone = [other.name for other in active.values()].count(one.name) == 1
            called = one.name if alone else name
            looked[called] = trial.values[name]
            if name in trial.ratios:
                looked[f"{called}_ratio"] = trial.ratios[name]
        own = {"strength": trial.strength, "value": trial.value, "gain": trial.gain}
        if self.tuning.objective.suite == OLDEST_OBJECTIVE["suite"]:  # the names in records of all versions
            own = {"strength": trial.strength, "toxicity": trial.value, "reduction": trial.gain}
        options = {"options": dict(trial.options)} if trial.options else {}
        return own | looked | {"violation": trial.violation} | options


def trial(
    tuning: Tuning,
    strength: float,
    metrics: Metrics,
    baseline: Trial | None = None,
    options: Mapping[str, Any] | None = None,
) -> Trial:
    """Make one trial from the dev results of its suites.

    baseline: the trial of the unsteered model; None if this is that trial. Raises SetupError if no metric fits the
    objective or a constraint.
    """
    value = tuning.value(metrics[tuning.objective.suite])
    values = {name: one.value(metrics[one.suite]) for name, one in tuning.active.items()}
    upper = [name for name, one in tuning.active.items() if one.compare == "ratio" and one.at_most is not None]
    if baseline is None:
        for name, one in tuning.active.items():
            one.check_unsteered(name, values[name])
        return Trial(strength, value, 0.0, values, dict.fromkeys(upper, 1.0), 0.0)
    ratios = {name: values[name] / baseline.values[name] for name in upper}
    passed = [one.passed(values[name], baseline.values[name]) for name, one in tuning.active.items()]
    gain = tuning.objective.gained(value, baseline.value)
    return Trial(strength, value, gain, values, ratios, max(0.0, *passed, 0.0), options or {})


def choose(tuning: Tuning, baseline: Trial, trials: Sequence[Trial]) -> Choice:
    """Choose the feasible trial with the largest gain; if none is feasible, the one that violates its bounds least."""
    feasible = [one for one in trials if one.feasible]
    if feasible:
        best = max(feasible, key=lambda one: one.gain)  # of equals the first, which is the weakest of a grid
    else:
        best = min(trials, key=lambda one: one.violation)
    return Choice(tuning, baseline, tuple(trials), best)
