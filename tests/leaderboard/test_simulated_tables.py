"""How often a whole table is wrong where the truth is known: false positives, families of tests, coverage.

`python -m tests.leaderboard.test_simulated_tables 1000` prints the rates of that many tables a design with their Monte
Carlo error, which results/published/simulated_tables.csv holds.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pandas as pd
import pytest

from bench.leaderboard.frame import tables
from bench.records.fields import ControlFacts, Decoding, Info, MethodFacts, ModelFacts, Scorers, Seeds
from bench.records.names import CONTROL_FAMILY
from bench.records.record import Record
from bench.records.table import Result
from bench.stats import metrics
from bench.stats.significance import ALPHA

K = 5
METRIC = f"judge.expected_maximum_toxicity_k{K}"
HEADLINE = f"rtp.{METRIC}"
METHODS = ("caa", "detox", "probe_rows", "prompt")


@dataclass(frozen=True)
class Design:
    """A kind of table. shifts: of each method, on the scale of the logit; 0 does nothing.

    prompts: of the table. fits: of each method. controls: fits of the random direction, or of each method's own control
    if they have `own` ones. scatter: of the fits' shifts.
    together: the share of the noise of a text that all rows have in common. zeros: the share of texts that score
    exactly 0. more: texts of a prompt that the unsteered model has beyond K. heavy: whether most scores are near 0 and
    a few near 1. few: whether a fifth of all fits, also of controls, lower toxicity, and the others do nothing.
    """

    shifts: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    prompts: int = 40
    fits: int = 1
    controls: int = 3
    own: bool = False
    scatter: float = 0.0
    together: float = 0.0
    zeros: float = 0.0
    more: int = 0
    heavy: bool = False
    few: bool = False


DESIGNS = {
    "null": Design(),
    "null, 200 prompts": Design(prompts=200),
    "null, correlated": Design(together=0.7),
    "null, half zeros": Design(zeros=0.5),
    "one effect": Design((-1.0, 0.0, 0.0, 0.0)),
    "one effect, half zeros": Design((-1.0, 0.0, 0.0, 0.0), zeros=0.5),
    "null, 3 fits": Design(fits=3, scatter=0.3),
    "null, 5 fits": Design(fits=5, scatter=0.3),
    "null, 2 fits, 120 prompts": Design(fits=2, scatter=0.3, prompts=120),
    "one effect, 2 fits": Design((-1.0, 0.0, 0.0, 0.0), fits=2, scatter=0.3),
    "null, 1 fit, scattered": Design(prompts=120, scatter=0.2),
    "null, 1 fit, scattered, 1 control": Design(prompts=120, scatter=0.2, controls=1),
    "null, 1 fit, scattered, own controls": Design(prompts=120, scatter=0.2, own=True),
    "null, 1 fit, scattered, 2 own controls": Design(prompts=120, scatter=0.2, controls=2, own=True),
    "null, 1 fit, a fifth of fits act, own controls": Design(prompts=120, few=True, own=True),
    "null, 1 fit, a fifth of fits act, 10 own controls": Design(prompts=120, few=True, controls=10, own=True),
    "null, 25 unsteered texts": Design(more=20),
    "null, 25 unsteered texts, heavy tails": Design(prompts=120, more=20, heavy=True),
    "null, 25 unsteered texts, half zeros": Design(more=20, zeros=0.5),
    "one effect, 25 unsteered texts, correlated": Design((-1.0, 0.0, 0.0, 0.0), prompts=170, together=0.3, more=20),
    "one effect, 5 fits, 200 prompts": Design((-1.0, 0.0, 0.0, 0.0), prompts=200, fits=5, scatter=0.3),
}


def maxima(generator: np.random.Generator, design: Design, level: np.ndarray, shared: np.ndarray, shift: float):
    """Expected maximum of each prompt's K texts; level (N,), shared (N, K)."""
    return texts(generator, design, level, shared, shift).max(axis=1)


def texts(generator: np.random.Generator, design: Design, level: np.ndarray, shared: np.ndarray, shift: float):
    """Scores of the texts, as many as are shared."""
    own = generator.standard_normal(shared.shape)
    noise = np.sqrt(design.together) * shared + np.sqrt(1 - design.together) * own
    if design.heavy:
        return np.clip(0.002 * np.exp(0.5 * (level[:, None] + 1.2 + shift) + 1.8 * noise), 0, 1)
    scores = 1 / (1 + np.exp(-(level[:, None] + shift + 1.2 * noise)))
    scores[generator.random(scores.shape) < design.zeros] = 0.0
    return scores


def unsteered(generator: np.random.Generator, design: Design, level: np.ndarray, shared: np.ndarray) -> Result:
    """The unsteered model, with the metric of its first K texts too where it has more."""
    every = np.hstack([shared, generator.standard_normal((len(shared), design.more))])
    scores = texts(generator, design, level, every, 0.0)
    found = result("unsteered", np.array([metrics.expected_maximum(one, K) for one in scores]), None, 0)
    first = found.items.assign(metric=METRIC + metrics.FIRST, value=scores[:, :K].max(axis=1))
    return found if not design.more else found._replace(items=pd.concat([found.items, first], ignore_index=True))


def levels(generator: np.random.Generator, n: int) -> np.ndarray:
    return generator.normal(-1.2, 1.0, n)


def truth(design: Design, shift: float) -> float:
    """The expected maximum over prompts, and over fits."""
    generator = np.random.default_rng(0)
    level = levels(generator, 100_000)
    shifts = shift + design.scatter * generator.standard_normal(len(level))
    return float(maxima(generator, design, level + shifts, np.zeros((len(level), K)), 0.0).mean())


@cache
def names(prompts: int) -> pd.DataFrame:
    """The metric and the item of each value; all tables share them."""
    return pd.DataFrame({"metric": METRIC, "item": [f"item{i:04d}" for i in range(prompts)]})


def result(method: str, values: np.ndarray, fit: int | None, number: int) -> Result:
    items = names(len(values)).assign(value=values, weight=1.0)
    family = {"unsteered": "none", "prompt": "prompt"}.get(method, "activation")
    record = Record(
        id=f"{number:012x}", suite="rtp", split="test", comparison="one", model=ModelFacts(name="tiny"),
        method=MethodFacts(name=method, family=family, version=1, parameters={}, strength=float(family != "none")),
        fit_id=None if fit is None else f"{method} {fit}", seed=Seeds(fit=fit, sample=0), data=None, fit=None,
        cost=None, tuning=None, scorers=Scorers(report=("judge",)), sampling=Decoding(temperature=1.0, seed=0),
        metrics={METRIC: metrics.metric(items, higher_is_better=False)},
        info=Info(k=K, prompts=len(values), scorers=("judge",)), sources=(),
    )  # fmt: skip
    return Result(record, items)


def simulated(design: Design, seed: int) -> pd.DataFrame:
    """A table of this design, by method."""
    generator = np.random.default_rng(seed)
    level, shared = levels(generator, design.prompts), generator.standard_normal((design.prompts, K))
    found = [unsteered(generator, design, level, shared)]
    for method, shift in (("random_direction", 0.0), *zip(METHODS, design.shifts, strict=True)):
        for fit in range({"prompt": 1, "random_direction": design.controls}.get(method, design.fits)):
            values = maxima(generator, design, level, shared, shift + drawn(generator, design))
            found.append(result(method, values, None if method == "prompt" else fit, len(found)))
        for fit in range(design.controls if design.own and method not in ("random_direction", "prompt") else 0):
            values = maxima(generator, design, level, shared, drawn(generator, design))
            found.append(control_of(result(method, values, fit, len(found))))
    (table,) = tables(found)
    return table.frame.set_index("method")


def drawn(generator: np.random.Generator, design: Design) -> float:
    """Draw by how much one fit differs from its method's shift, on the scale of the logit."""
    if design.few:
        return -1.0 if generator.random() < 0.2 else 0.0
    return design.scatter * generator.standard_normal()


def control_of(found: Result) -> Result:
    """The same result as one of a control of its method."""
    made = ControlFacts(how="flipped pairs", of_strength=found.record.method.strength)
    method = replace(found.record.method, family=CONTROL_FAMILY, control=made)
    return found._replace(record=replace(found.record, method=method))


def rates(design: Design, count: int) -> pd.DataFrame:
    """Each rate over so many tables, with its Monte Carlo error."""
    null = [method for method, shift in zip(METHODS, design.shifts, strict=True) if shift == 0]
    if design.fits > 1 and "prompt" in null:
        null.remove("prompt")  # its one fit has a shift of its own, so it does something
    base = truth(replace(design, scatter=0.0), 0.0)
    true = {method: truth(design, shift) - base for method, shift in zip(METHODS, design.shifts, strict=True)}
    true_null = truth(design, 0.0) - base  # scattered fits do something on the whole, by the curve of the logit
    seen: dict[str, list[float]] = {}

    def note(name: str, values: Sequence[bool]) -> None:
        seen.setdefault(name, []).append(float(np.mean(values)))

    for seed in range(count):
        found = simulated(design, seed)
        p, holm, control = (found.loc[null, name] for name in (f"{HEADLINE}.p", f"{HEADLINE}.p_holm", "vs_control_p"))
        if not design.few and (design.scatter == 0 or (design.fits > 1 and abs(true_null) < 0.002)):
            note("false positive, one row", list(p < ALPHA))
            note("false positive, table", [bool((holm < ALPHA).any())])
        note("false difference to control, one row", list(control < ALPHA))
        note("false difference to control, table", [bool((found.loc[null, "vs_control_p_holm"] < ALPHA).any())])
        told = [method for method in METHODS if method != "prompt" or design.fits == 1]
        wanted = np.array([true[method] for method in told])
        if (not design.scatter and not design.few) or design.fits > 1:  # a single scattered fit does something
            same = null if design.scatter else [*null, "unsteered"]  # scattered fits do something on the whole
            letters = [set(found.loc[method, "group"]) for method in same]
            note("false letter, table", [any(not (a & b) for a in letters for b in letters)])
            ends = found.loc[told, [f"{HEADLINE}.delta_low", f"{HEADLINE}.delta_high"]].to_numpy(float)
            note("coverage of the change", list((ends[:, 0] <= wanted) & (wanted <= ends[:, 1])))
        ends = found.loc[told, ["vs_control_low", "vs_control_high"]].to_numpy(float)
        wanted = wanted - true_null
        if not design.few and not np.isnan(ends).all():  # a fit and a control have no interval
            note("coverage of the change to control", list((ends[:, 0] <= wanted) & (wanted <= ends[:, 1])))
        effects = [method for method, shift in zip(METHODS, design.shifts, strict=True) if shift]
        if effects:
            note("power after Holm", list(found.loc[effects, f"{HEADLINE}.p_holm"] < ALPHA))
    return pd.DataFrame({
        name: {"rate": np.mean(values), "error": np.std(values) / np.sqrt(count)} for name, values in seen.items()
    }).T  # fmt: skip


STATED = {
    ("null, 1 fit, a fifth of fits act, own controls", "false difference to control, table"): 0.12,
    ("null, 25 unsteered texts, heavy tails", "coverage of the change"): 0.91,
}
"""Rates that miss their level where an assumption does not hold, as results/published/README.md says."""


@pytest.mark.slow
@pytest.mark.parametrize("name", DESIGNS)
def test_a_table_is_wrong_as_seldom_as_it_says(name):
    found = rates(DESIGNS[name], 200)
    for rate, (value, error) in found[["rate", "error"]].iterrows():
        slack = 3 * max(error, 0.005)
        if rate.startswith("false"):
            assert value <= STATED.get((name, rate), ALPHA) + slack, f"{rate}: {value:.3f}"
        elif rate.startswith("coverage"):
            assert value >= STATED.get((name, rate), 1 - ALPHA) - slack, f"{rate}: {value:.3f}"


def test_the_simulated_table_is_what_a_table_is():
    found = simulated(Design((-6.0, 0.0, 0.0, 0.0)), 1)
    assert found["rank"].notna().sum() == len(METHODS) and found.loc["caa", "rank"] == 1
    assert found.loc["caa", "verdict"] == "better" and found.loc["caa", "vs_control_p_holm"] < ALPHA
    assert found.loc["caa", f"{HEADLINE}.delta"] < -0.2
    base = set(found.loc["unsteered", "group"])
    assert not set(found.loc["caa", "group"]) & base and all(base & set(found.loc[one, "group"]) for one in METHODS[1:])
    assert pd.isna(found.loc["random_direction", "group"])


def main(count: int) -> None:
    """Print the rates of every design as CSV."""
    print("design,rate,value,error,tables")
    for name, design in DESIGNS.items():
        for rate, row in rates(design, count).iterrows():
            print(f'"{name}","{rate}",{row["rate"]:.4f},{row["error"]:.4f},{count}', flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
