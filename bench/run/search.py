"""The strengths and options that tuning tries on the dev split: from a grid, at random, or by Optuna.

Every method gets the same number of trials. Optuna's sampler is called directly, because Hydra's Optuna sweeper needs
optuna below 3.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from bench.run.tuning import Trial, Tuning, check_search
from methods.base import Method
from methods.errors import SetupError

DIGITS = 4  # significant digits of a drawn strength: no method needs more, and names of cells stay short


@dataclass(frozen=True)
class Point:
    """One trial: a strength, and the options that differ from the config's."""

    strength: float
    options: Mapping[str, Any] = field(default_factory=dict)


def space(tuning: Tuning, method: Method) -> tuple[list[float], dict[str, list[Any]]]:
    """Return the strengths and the values of options among which a method is tuned.

    `tuning.options` that the method does not have are left out; a method with none of them tries only strengths.
    """
    strengths = tuning.residual_norms if tuning.in_residual_norms else method.strengths
    own = {one.name for one in fields(method)}  # type: ignore[arg-type]
    return [float(one) for one in strengths], {k: list(v) for k, v in (tuning.options or {}).items() if k in own}


def budget(tuning: Tuning, method: Method) -> int:
    """Return the number of trials; fewer than asked for only if the method has no more to try.

    Raises:
        SetupError: `trials` cannot be shared out evenly over a grid.
    """
    strengths, options = space(tuning, method)
    combinations = math.prod(map(len, options.values()))
    most = len(strengths) * combinations
    if tuning.trials is None:
        return most
    if method.discrete:
        return min(tuning.trials, most)
    if tuning.search == "grid" and tuning.trials % combinations:
        raise SetupError(
            f"tuning.trials={tuning.trials} on a grid: {method.name} has {combinations} combinations of "
            f"{', '.join(options)}, so give a multiple of {combinations}, or set tuning.search=random"
        )
    return tuning.trials


def points(tuning: Tuning, method: Method, history: Sequence[Trial]) -> Iterator[Point]:
    """Yield the points to try. `history`: the trials so far, to which the caller adds; Optuna's sampler learns from it.

    Raises:
        SetupError: as `budget`, and for tpe if Optuna is not installed.
    """
    trials = budget(tuning, method)
    search = {"grid": _grid, "random": _random, "tpe": _tpe}[tuning.search]
    yield from search(tuning, method, trials, history)


def _grid(tuning: Tuning, method: Method, trials: int, history: Sequence[Trial]) -> Iterator[Point]:
    """Return every combination of options at every strength of the grid, or at as many evenly spaced ones as asked."""
    del history
    strengths, options = space(tuning, method)
    combinations = [dict(zip(options, one, strict=True)) for one in itertools.product(*options.values())]
    each = max(1, trials // len(combinations))
    if each != len(strengths):
        strengths = _every(strengths, each) if method.discrete else _between(strengths, each)
    return iter([Point(strength, chosen) for chosen in combinations for strength in strengths][:trials])


def _every(values: list[float], count: int) -> list[float]:
    """Pick `count` of the values, spread over all of them."""
    return [values[i] for i in np.unique(np.linspace(0, len(values) - 1, count).round().astype(int))]


def _between(values: list[float], count: int) -> list[float]:
    """Return `count` values from the least to the largest, at equal ratios if all are positive, else at equal steps."""
    if count == 1:
        return [values[len(values) // 2]]
    steps = np.geomspace if min(values) > 0 else np.linspace
    return [_rounded(one) for one in steps(min(values), max(values), count)]


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _random(tuning: Tuning, method: Method, trials: int, history: Sequence[Trial]) -> Iterator[Point]:
    """Draw strengths uniformly between the ends of the grid, on a log scale if all are positive, and options uniformly.

    The underlying draws are the same for every method, so none is luckier than another.
    """
    del history
    generator, named = np.random.default_rng([tuning.seed, trials]), list(tuning.options or {})
    strengths, options = space(tuning, method)
    low, high = min(strengths), max(strengths)
    for _ in range(trials):
        share, *others = generator.random(1 + len(named))
        if method.discrete:
            strength = strengths[int(share * len(strengths))]
        else:
            strength = _rounded(low * (high / low) ** share if low > 0 else low + (high - low) * share)
        of_option = dict(zip(named, others, strict=True))
        yield Point(strength, {name: one[int(of_option[name] * len(one))] for name, one in options.items()})


def _tpe(tuning: Tuning, method: Method, trials: int, history: Sequence[Trial]) -> Iterator[Point]:
    """Ask Optuna's tree-structured Parzen estimator (Bergstra et al. 2011), with the bounds as its constraints."""
    check_search(tuning)
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    strengths, options = space(tuning, method)
    sampler = optuna.samplers.TPESampler(
        seed=tuning.seed,
        n_startup_trials=max(2, trials // 3),
        constraints_func=lambda one: [one.user_attrs["violation"]],
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    low, high = min(strengths), max(strengths)
    for number in range(trials):
        asked = study.ask()
        if method.discrete:
            strength = asked.suggest_categorical("strength", strengths)
        else:
            strength = _rounded(asked.suggest_float("strength", low, high, log=low > 0))
        chosen = {name: values[asked.suggest_categorical(name, range(len(values)))] for name, values in options.items()}
        yield Point(strength, chosen)
        found = history[number]
        asked.set_user_attr("violation", found.violation)
        study.tell(asked, found.gain)
