"""Builds the objects of a cell from its config. Nothing here loads a model or reads a text."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from bench.config.build import build
from bench.data.sources import Sources, cache_folder
from bench.fit_data.base import FitSource
from bench.model.decoding import Sampling
from bench.run.fit_sources import fit_sources
from bench.run.tuning import Tuning
from bench.scorers.base import Scorer
from bench.suites.base import Suite
from methods.base import Method
from methods.errors import SetupError

TAKEN = ("item", "group", "sample", "empty", "score", "keywords")
"""Names that a scorer cannot have, since they are those of columns beside its scores, or of a topic's list of words."""


@dataclass(frozen=True)
class Parts:
    """The objects that a config names; suites and scorers by their names in the config.

    fit_sources: by the fields of `methods.base.FitData` that the method needs, see `bench.run.fit_sources`.
    """

    cache: Path
    sampling: Sampling
    scorers: dict[str, Scorer]
    suites: dict[str, Suite[Any]]
    method: Method
    fit_sources: dict[str, FitSource]
    tuning: Tuning


def parts(cfg: DictConfig) -> Parts:
    """Build the parts. Raises SetupError if a class refuses its settings, or if a suite asks what a fit learns from."""
    cache = cache_folder(cfg.runtime.cache)
    sampling = build(cfg.sampling, seed=cfg.seed.sample, batch_size=cfg.runtime.batch_size)
    runtime = cfg.runtime
    sources = Sources(
        mirror=runtime.mirror, cache=cache, offline=runtime.offline, prefer=runtime.get("prefer", "wheel")
    )
    given: dict[str, Any] = {"sources": sources, "sampling": sampling, "runtime_device": cfg.runtime.device}
    scorers = {str(name): build(node, **given) for name, node in cfg.scorer.items()}
    _check_names(scorers)
    given |= {"scorers": list(scorers.values()), "scorer": scorers[cfg.pairs.scorer]}
    suites = {str(name): build(node, name=name, **given) for name, node in cfg.suite.items()}
    for name, suite in suites.items():
        if lacking := [verb for verb in ("ask", "score", "leak", "decoded") if not hasattr(suite, verb)]:
            raise SetupError(
                f"suite.{name}: {type(suite).__name__} has no {' and no '.join(lacking)}; a suite inherits from "
                "bench.suites.base.Suite, asks in `ask` and judges in `score`, which took the place of `run`"
            )
    method = build(cfg.method)
    sources_of_fit = fit_sources(cfg, method, given, scorers)
    for source in sources_of_fit.values():
        source.check()
        for suite in suites.values():
            if (why := suite.leak(source.learnt())) is not None:
                raise SetupError(f"{method.name} {why}")
    tuning = build(cfg.tuning, in_residual_norms=cfg.strength_unit == "residual_norm")
    if cfg.strength == "auto" and method.strengths:
        check_objective(tuning, suites)
    if method.discrete and cfg.strength not in ("auto", 0, *method.strengths):
        allowed = ", ".join(f"{one:g}" for one in method.strengths)
        raise SetupError(f"strength={cfg.strength}: {method.name} has only the strengths {allowed}; choose one of them")
    return Parts(cache, sampling, scorers, suites, method, sources_of_fit, tuning)


def check_objective(tuning: Tuning, suites: dict[str, Suite[Any]]) -> None:
    """Raise SetupError if the scorer of tuning does not judge the objective's suite."""
    judges = suites[tuning.objective.suite].judged_by()
    if (tuning.scorer is None) == (not judges) and (not judges or tuning.scorer in judges):
        return
    allowed = f"allowed are {', '.join(judges)}" if judges else "its metrics have no scorer, so set tuning.scorer=null"
    raise SetupError(f"tuning.scorer={tuning.scorer}: it does not judge the suite {tuning.objective.suite}; {allowed}")


def _check_names(scorers: Mapping[str, Scorer]) -> None:
    """Raise SetupError if two scorers share a name, or if a scorer has a name that stands for something else."""
    filed: dict[str, str] = {}
    for key, scorer in scorers.items():
        if scorer.name in TAKEN or "." in scorer.name:
            raise SetupError(
                f"scorer.{key}.name={scorer.name}: the name has a full stop, or is one that stands for something else "
                f"beside scores ({', '.join(TAKEN)}); choose another name"
            )
        if scorer.name in filed:
            raise SetupError(
                f"scorer.{filed[scorer.name]} and scorer.{key} file their scores under one name, {scorer.name}; set "
                f"scorer.{key}.name={key}"
            )
        filed[scorer.name] = key
