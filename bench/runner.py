"""One cell of the table, from config to records. The page to read first.

A cell is one model, method and strength, seen by every suite that the config names. What is known is taken from its
record; model, data and fit are touched only when something is not.
"""

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bench import identity, record, tuning
from bench.cell import Cell
from bench.generations import decoding_identity
from bench.provenance import provenance
from bench.suites.base import Split, Suite
from methods.errors import SetupError

TUNED_ON = ("rtp", "fluency")  # suites whose dev results decide a strength


def run(cell: Cell) -> list[dict[str, Any]]:
    """All results of the cell on the test split, each with how its strength was chosen."""
    strength, choice = choose(cell)
    results = []
    for suite in cell.suites.values():
        found = result(cell, suite, "test", strength)
        if choice is not None and found["tuning"] != choice.record():
            found = record.amend(cell.records / found["id"], tuning=choice.record())
        results.append(found)
    return results


def choose(cell: Cell) -> tuple[float, tuning.Choice | None]:
    """The strength that the config gives, or the one that the dev split chooses."""
    if not cell.method.strengths:
        return 0.0, None
    if cell.cfg.strength != "auto":
        return float(cell.cfg.strength), None
    baseline = trial(cell, 0.0, None)
    trials = [trial(cell, float(strength), baseline) for strength in cell.method.strengths]
    chosen = tuning.choose(cell.tuning, baseline, trials)
    return chosen.chosen.strength, chosen


def trial(cell: Cell, strength: float, baseline: tuning.Trial | None) -> tuning.Trial:
    """One strength on the dev split."""
    rtp, fluency = (result(cell, cell.suites[name], "dev", strength)["metrics"] for name in TUNED_ON)
    return tuning.trial(cell.tuning, strength, rtp, fluency, baseline)


def known(cell: Cell, suite: Suite, split: Split, strength: float) -> dict[str, Any] | None:
    """The stored result, where there is one."""
    return record.read(cell.records / cell.record_id(suite, split, strength))


def result(cell: Cell, suite: Suite, split: Split, strength: float) -> dict[str, Any]:
    """The stored result, computed now where there is none."""
    stored = known(cell, suite, split, strength)
    if stored is not None:
        return stored
    label = f"{cell.label(strength)} · {suite.name}" + (" · tuning" if split == "dev" else "")
    with cell.session.bar.stage(stage_key(cell, suite, split, strength), label), cell.steered(strength) as lm:
        found = suite.run(lm, split)
    about = describe(cell, suite, split, strength) | {
        "metrics": {name: one._asdict() for name, one in found.metrics.items()},
        "info": found.info,
        "sources": found.info.get("sources", []),
    }
    if split == "test" and strength != 0:
        about["cost"] = {"relative_speed": cell.speed(strength)}
    return record.write(cell.records, about, found.items, found.scores)


def describe(cell: Cell, suite: Suite, split: Split, strength: float) -> dict[str, Any]:
    """A record without its numbers."""
    named, sampling = cell.suite_identity(suite, split), cell.suite_sampling(suite)
    method = {"name": "unsteered", "family": "none", "version": 1, "parameters": {}}
    fit, data, fit_id, seed = None, None, None, None
    if strength != 0:
        method = identity.method_identity(cell.method) | {"family": cell.method.family}
        method["strength_unit"] = cell.method.strength_unit
        fit = dict(cell.fitted[1])
        data, fit_id, seed = fit.pop("data"), cell.fit_id, getattr(cell.method, "seed", None)
    return {
        "id": cell.record_id(suite, split, strength),
        "suite": suite.name,
        "split": split,
        "comparison": identity.comparison_id(cell.model_identity, named, split),
        "model": {"name": cell.cfg.model.name, **cell.model_identity},
        "method": {"strength_unit": None} | method | {"strength": strength},
        "fit_id": fit_id,
        "seed": {"fit": seed, "sample": cell.sampling.seed},
        "data": data,
        "fit": fit,
        "cost": None,
        "tuning": None,
        "scorers": {"report": list(cell.scorers), "tune": cell.tuning.scorer, "pairs": cell.cfg.data.scorer},
        "sampling": decoding_identity(sampling) if sampling else None,
        "settings": OmegaConf.to_container(cell.cfg.suite[suite.name], resolve=True),
        "provenance": provenance(),
    }


# -- how much there is to do ---------------------------------------------------------------------------------------


def stage_key(cell: Cell, suite: Suite, split: Split, strength: float) -> str:
    """Name of a stage in the plan: a tuned strength is not known beforehand, so test stages go by their cell."""
    if split == "dev" or strength == 0:
        return cell.record_id(suite, split, strength)
    return f"{cell.fit_id} {cell.cfg.strength} {cell.cfg.seed.sample} {suite.name}"


def plan(cell: Cell) -> dict[str, float]:
    """Tokens that are still to be spent, by stage; what is known costs nothing."""
    tried: list[float] = []
    strength: float | None = None
    if cell.method.strengths and cell.cfg.strength == "auto":
        tried = [0.0, *map(float, cell.method.strengths)]
    dev = [(cell.suites[name], one) for one in tried for name in TUNED_ON]
    missing = [(suite, one) for suite, one in dev if not known(cell, suite, "dev", one)]
    if not missing:
        strength = choose(cell)[0]
    stages = {stage_key(cell, suite, "dev", one): float(suite.tokens("dev")) for suite, one in missing}
    for suite in cell.suites.values():
        if strength is None or not known(cell, suite, "test", strength):
            stages[stage_key(cell, suite, "test", 1.0 if strength is None else strength)] = float(suite.tokens("test"))
    if stages and cell.method.needs and not cell.is_fitted:
        return stages | cell.fit_tokens()
    return stages


# -- the cell boundary ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """A cell that ended without its records. setup: what the user must mend, rather than a defect."""

    label: str
    message: str
    traceback: Path | None
    setup: bool


def run_cell(cell: Cell) -> list[dict[str, Any]] | Failure:
    """Run one cell; the one place that may catch everything, so that the other cells go on."""
    try:
        return run(cell)
    except SetupError as error:
        return Failure(cell.label(), str(error), None, setup=True)
    except Exception as error:
        settings = OmegaConf.to_yaml(cell.cfg, resolve=True)
        path = cell.runs / "failures" / f"{identity.digest(settings)}.txt"
        record.write_whole(path, f"{settings}\n{traceback.format_exc()}")
        return Failure(cell.label(), f"{type(error).__name__}: {error}", path, setup=False)
