"""Vectors of equal length: each keeps its direction and gets the mean length over several sets of pairs.

A multiplier then means the same for every behaviour, as in the authors' code of CAA (arXiv 2312.06681;
normalize_vectors.py of nrimsky/CAA). Each vector is fitted by itself first and stored as any other fit, so neither the
order of the cells nor the process changes a length. `bench.records.names.told_norm_over` is what results state about
it.
"""

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from methods.errors import SetupError

if TYPE_CHECKING:
    from methods.base import Artefact


def apart(cfg: DictConfig) -> list[DictConfig]:
    """The settings of each fit whose length counts, the cell's own among them; none where `pairs.norm_over` is null.

    Raises SetupError for an option that the pairs do not have, and for values without that of the cell itself.
    """
    over = cfg.pairs.get("norm_over")
    if over is None:
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


def alone(cfg: DictConfig) -> DictConfig:
    """The settings of the fit whose vector is rescaled."""
    return _with(cfg, {"norm_over": None})


def _with(cfg: DictConfig, options: dict[str, object]) -> DictConfig:
    """The same settings with other options of the pairs."""
    other = cfg.copy()
    other.pairs = OmegaConf.merge(cfg.pairs, options)
    return other


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
