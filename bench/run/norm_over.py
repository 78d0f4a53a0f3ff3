"""Vectors of equal length: each keeps its direction and gets the mean length over several sets of pairs.

A multiplier then means the same for every behaviour, as in the authors' code of CAA (arXiv 2312.06681;
normalize_vectors.py of nrimsky/CAA). Each vector is fitted by itself first and stored as any other fit, so neither the
order of the cells nor the process changes a length. `bench.records.names.told_norm_over` is what results state about
it.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from methods.errors import SetupError

if TYPE_CHECKING:
    from methods.base import Artefact


def apart(cfg: DictConfig) -> list[DictConfig]:
    """The settings of each fit whose length counts, the cell's own among them; none where `pairs.norm_over` is null.

    Raises SetupError for an option that the pairs do not have, and for values without that of the cell itself.
    """
    over = cfg.pairs.get("norm_over")
    if not over:
        return []
    for name, values in over.items():
        if name not in cfg.pairs or not isinstance(cfg.pairs[name], str | int | float):
            raise SetupError(f"pairs.norm_over.{name}: no option with a value; see python -m bench --help pairs")
        if cfg.pairs[name] not in values:
            raise SetupError(
                f"pairs.norm_over.{name}={list(values)}: pairs.{name}={cfg.pairs[name]} is not in the list; add it"
            )
    each = itertools.product(*over.values())
    return [_with(cfg, {**dict(zip(over, values, strict=True)), "norm_over": None}) for values in each]


def of_parts(cfg: DictConfig) -> Iterator[str]:
    """What is wrong with data of the parts of a stack, whose vectors are not rescaled."""
    for part, fields in cfg.part_data.items():
        if "pairs" in fields and fields.pairs.get("norm_over"):
            yield f"part_data.{part}.pairs.norm_over: only a method by itself has it; set it to null"


def alone(cfg: DictConfig) -> DictConfig:
    """The settings of the fit whose vector is rescaled."""
    return _with(cfg, {"norm_over": None})


def _with(cfg: DictConfig, options: dict[str, object]) -> DictConfig:
    """The same settings with other options of the pairs."""
    other = cfg.copy()
    other.pairs = OmegaConf.merge(cfg.pairs, options)
    return other


def check(own: "Artefact", facts: Mapping[str, Any]) -> None:
    """Raises SetupError for an artefact that is not just vectors of the length that its facts tell.

    Matrices, unit directions or thresholds beside a vector would not steer more by being longer, or not in proportion.
    """
    from bench.run import control

    told = facts.get("direction_norm")
    length = math.hypot(*(told if isinstance(told, list) else [told or 0.0]))
    if not math.isclose(control.size(own), length, rel_tol=1e-3):
        raise SetupError(
            "pairs.norm_over: what this method learns is not just a vector that has a length of its own; set "
            "pairs.norm_over=null, choose another method or, where it has the option, set method.norm=null"
        )


def scale(own: "Artefact", every: Sequence["Artefact"]) -> float:
    """The mean length of all vectors, divided by that of this one (in an artefact of several, their joint length).

    Raises SetupError for an artefact without a vector.
    """
    from bench.run import control

    length = control.size(own)
    if not length:
        raise SetupError(
            "pairs.norm_over: the artefact holds no vector that has a length; set it to null, or choose another method"
        )
    return math.fsum(map(control.size, every)) / len(every) / length


def scaled(artefact: "Artefact", by: float) -> "Artefact":
    """The artefact with its vectors, and the facts that are their lengths, so many times as long."""
    from bench.run import control

    long = {name for name in artefact if control.is_vectors(name, artefact[name]) or name == "info.direction_norm"}
    return {name: one * by if name in long else one for name, one in artefact.items()}
