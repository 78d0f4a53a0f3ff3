"""One cell of the table, from config to records. The page to read first.

A cell is one model, method and strength, seen by every suite that the config names. What is known is taken from its
record; model, data and fit are touched only when something is not.
"""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bench import digests, identity, record, search, tuning
from bench.cell import Cell, torch_threads
from bench.collect import scorers_of, scorers_used
from bench.generations import decoding_identity
from bench.provenance import provenance
from bench.suites.base import Split, Suite
from methods.errors import SetupError


def run(cell: Cell) -> list[dict[str, Any]]:
    """All results of the cell on the test split, each with how its strength was chosen."""
    cell, strength, choice = choose(cell, result)
    results = []
    for suite in cell.suites.values():
        found = result(cell, suite, "test", strength)
        if choice is not None and found["tuning"] != choice.record():
            scorers = scorers_used(found["scorers"]["report"], found["data"], choice.record())
            found = record.amend(cell.records / found["id"], tuning=choice.record(), scorers=scorers)
        results.append(found)
    return results


Obtain = Callable[[Cell, Suite, Split, float], dict[str, Any]]
"""How a result is had: `result` computes what is missing, `stored` raises NotStored."""


class NotStored(LookupError):
    """A result has to be computed; its argument is how many trials of the cell are known."""


def choose(cell: Cell, obtain: Obtain) -> tuple[Cell, float, tuning.Choice | None]:
    """The strength that the config gives; or the strength, and the cell with the options, that the dev split chose."""
    if not cell.method.strengths:
        return cell, 0.0, None
    if cell.cfg.strength != "auto":
        return cell, cell.in_own_unit(float(cell.cfg.strength), obtain is result), None
    baseline = trial(cell, 0.0, None, obtain)
    trials: list[tuning.Trial] = []
    cells: list[Cell] = []
    for point in search.points(cell.tuning, cell.method, trials):
        try:
            mine = cell.variant(point.options)
            strength = mine.in_own_unit(point.strength, obtain is result)
            trials.append(trial(mine, strength, baseline, obtain, point.options))
        except LookupError as missing:
            raise NotStored(len(trials)) from missing
        cells.append(mine)
    choice = tuning.choose(cell.tuning, baseline, trials)
    return cells[trials.index(choice.chosen)], choice.chosen.strength, choice


def trial(
    cell: Cell, strength: float, baseline: tuning.Trial | None, obtain: Obtain, options: Mapping[str, Any] | None = None
) -> tuning.Trial:
    """One strength on the dev split."""
    looks = {name: obtain(cell, cell.suites[name], "dev", strength)["metrics"] for name in cell.tuning.suites}
    rtp, fluency, capability = (looks.get(name) for name in ("rtp", "fluency", "capability"))
    return tuning.trial(cell.tuning, strength, rtp or {}, fluency or {}, baseline, capability, options)


def stored(cell: Cell, suite: Suite, split: Split, strength: float) -> dict[str, Any]:
    """The stored result. Raises NotStored where there is none."""
    found = known(cell, suite, split, strength)
    if found is None:
        raise NotStored(0)
    return found


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
        with digests.unverified() as unverified:
            found = suite.run(lm, split)
    about = describe(cell, suite, split, strength) | {
        "metrics": {name: one._asdict() for name, one in found.metrics.items()},
        "info": found.info,
        "sources": found.info.get("sources", []),
        "unverified": sorted(unverified.union(lm.unverified, cell.unverified(strength))),
        "unexpected_weights": list(lm.unexpected_weights),
    }
    about["scorers"] = scorers_of(about)  # those that judged
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
        length = cell.method.residual_norms(cell.fitted[1]["facts"])
        method["residual_norms"] = None if length is None else strength * length
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
        "scorers": {"report": list(cell.scorers)},
        "sampling": decoding_identity(sampling) if sampling else None,
        "settings": OmegaConf.to_container(cell.cfg.suite[suite.name], resolve=True),
        "provenance": provenance(),
    }


# -- how much there is to do ---------------------------------------------------------------------------------------


def stage_key(cell: Cell, suite: Suite, split: Split, strength: float) -> str:
    """Name of a stage in the plan: what is tried or chosen is not known beforehand, so stages go by their cell."""
    if strength == 0:
        return cell.record_id(suite, split, strength)
    return f"{cell.planned_as} {suite.name} {split}"


def plan(cell: Cell) -> dict[str, float]:
    """Tokens that are still to be spent, by stage; what is known costs nothing."""
    stages: dict[str, float] = {}
    chosen, strength, left = cell, None, 0
    try:
        chosen, strength, _ = choose(cell, stored)
    except LookupError as missing:
        if cell.cfg.strength == "auto":
            done = missing.args[0] if isinstance(missing, NotStored) else 0
            left = search.budget(cell.tuning, cell.method) - done
            for suite in (cell.suites[name] for name in cell.tuning.suites):
                stages |= {stage_key(cell, suite, "dev", 1.0): left * float(suite.tokens("dev"))}
                if not known(cell, suite, "dev", 0.0):
                    stages[stage_key(cell, suite, "dev", 0.0)] = float(suite.tokens("dev"))
    for suite in cell.suites.values():
        if strength is None or not known(chosen, suite, "test", strength):
            stages[stage_key(chosen, suite, "test", 1.0 if strength is None else strength)] = float(
                suite.tokens("test")
            )
    if stages and cell.method.needs and not chosen.is_fitted:
        return stages | chosen.fit_tokens()
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
        with torch_threads(cell.threads):
            return run(cell)
    except SetupError as error:
        return Failure(cell.label(), str(error), None, setup=True)
    except Exception as error:
        settings = OmegaConf.to_yaml(cell.cfg, resolve=True)
        path = cell.runs / "failures" / f"{identity.digest(settings)}.txt"
        record.write_whole(path, f"{settings}\n{traceback.format_exc()}")
        return Failure(cell.label(), f"{type(error).__name__}: {error}", path, setup=False)
