"""Vectors of equal length: each keeps its direction and gets the mean length over several sets of pairs.

A multiplier then means the same for every behaviour, as in the authors' code of CAA (arXiv 2312.06681;
normalize_vectors.py of nrimsky/CAA). Each vector is first fitted by itself and stored like any other fit, so a length
depends neither on the order of the cells nor on the process. `bench.records.names.told_norm_over` gives what results
state about it.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from bench.config.packed import changeable
from methods.errors import SetupError

if TYPE_CHECKING:
    from methods.base import Artefact


def apart(cfg: DictConfig) -> list[DictConfig]:
    """Return the settings of each fit whose length counts, including the cell's own; none if `pairs.norm_over` is null.

    Raises SetupError if `norm_over` names an option that the pairs lack, or leaves out the value of the cell itself.
    """
    over = cfg.pairs.get("norm_over")
    if not over:
        return []
    for name, values in over.items():
        if name not in cfg.pairs or not isinstance(cfg.pairs[name], str | int | float):
            raise SetupError(
                f"pairs.norm_over.{name}: the pairs have no such option with a text or a number; see "
                "python -m bench --help pairs"
            )
        if cfg.pairs[name] not in values:
            raise SetupError(
                f"pairs.norm_over.{name}={list(values)}: pairs.{name}={cfg.pairs[name]} is not in the list; add it"
            )
    each = itertools.product(*over.values())
    return [_with(cfg, {**dict(zip(over, values, strict=True)), "norm_over": None}) for values in each]


def of_parts(cfg: DictConfig) -> Iterator[str]:
    """Yield an error for each part of a stack whose data set norm_over: vectors of parts are not rescaled."""
    for part, fields in cfg.part_data.items():
        if "pairs" in fields and fields.pairs.get("norm_over"):
            yield f"part_data.{part}.pairs.norm_over: only a method by itself has it; set it to null"


def alone(cfg: DictConfig) -> DictConfig:
    """The settings of the fit whose vector is rescaled."""
    return _with(cfg, {"norm_over": None})


def _with(cfg: DictConfig, options: dict[str, object]) -> DictConfig:
    """Return the settings with these options of the pairs changed."""
    other = changeable(cfg)
    other.pairs = OmegaConf.merge(cfg.pairs, options)
    return other


def check(own: "Artefact", facts: Mapping[str, Any]) -> None:
    """Raise SetupError unless the artefact is nothing but vectors whose joint length its facts state.

    Only vectors can be rescaled: if matrices, unit directions or thresholds were multiplied by a number, steering would
    not grow in proportion, or not at all.
    """
    from bench.run import control

    told = facts.get("direction_norm")
    length = math.hypot(*(told if isinstance(told, list) else [told or 0.0]))
    if not math.isclose(control.size(own), length, rel_tol=1e-3):
        raise SetupError(
            "pairs.norm_over: this method learns more than vectors, or its vectors have a fixed length; set "
            "pairs.norm_over=null, choose another method or, if the method has the option, set method.norm=null"
        )


def scale(own: "Artefact", every: Sequence["Artefact"]) -> float:
    """Return the mean length over `every` artefact, divided by the length of `own`; the length is that of all vectors.

    Raises SetupError for an artefact without a vector.
    """
    from bench.run import control

    length = control.size(own)
    if not length:
        raise SetupError(
            "pairs.norm_over: the artefact holds no vector, or only zeros; set pairs.norm_over=null, or choose another "
            "method"
        )
    return math.fsum(map(control.size, every)) / len(every) / length


def scaled(artefact: "Artefact", by: float) -> "Artefact":
    """Return the artefact with its vectors, and the facts that state their lengths, multiplied by `by`."""
    from bench.run import control

    long = {name for name in artefact if control.is_vectors(name, artefact[name]) or name == "info.direction_norm"}
    return {name: one * by if name in long else one for name, one in artefact.items()}
