"""The sources of the texts that a method learns from, built from a config, also those of single parts of a stack."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from bench.config.build import build
from bench.config.keys import PAIRS
from bench.config.values import near
from bench.fit_data.base import FitSource
from bench.fit_data.flipped import Flipped
from bench.fit_data.subset import Subset
from bench.run import control
from bench.scorers.base import Scorer
from methods.base import FitData, Method
from methods.errors import SetupError


def fit_sources(
    cfg: DictConfig, method: Method, given: Mapping[str, Any], scorers: Mapping[str, Scorer]
) -> dict[str, FitSource]:
    """Return the source of each field of FitData that the method needs; a source of only one part has "part.field".

    given: what a source may take from the run. Raises SetupError if `part_data` names a part that the method does not
    have, or a field that the part does not read.
    """
    own = part_data(cfg, method)
    nodes = {field: cfg[field] for field in sorted(shared(method, own))} | own
    return {name: _source(cfg, name, node, method, given, scorers) for name, node in nodes.items()}


def part_data(cfg: DictConfig, method: Method) -> dict[str, DictConfig]:
    """Return the nodes of `part_data` by "part.field"; none for a method without parts."""
    found = {}
    for part, fields in cfg.part_data.items() if method.part_needs else ():
        needs = method.part_needs.get(part)
        if needs is None:
            known = list(method.part_needs)
            raise SetupError(
                f"part_data.{part}: no part of {method.name}{near(part, known)} Its parts: {', '.join(known)}"
            )
        for field, node in fields.items():
            if field not in needs:
                told = f"it learns from {', '.join(sorted(needs)) or 'nothing'}"
                raise SetupError(f"part_data.{part}.{field}: {method.name}'s part {part} reads no {field}; {told}")
            found[f"{part}.{field}"] = node
    return found


def shared(method: Method, own: Mapping[str, Any]) -> set[str]:
    """Return the fields that the method reads; for a stack, those that a part reads and has no data of its own for."""
    parts = method.part_needs
    return {
        field
        for field in method.needs
        if not parts or any(field in needs and f"{part}.{field}" not in own for part, needs in parts.items())
    }


def _source(
    cfg: DictConfig,
    name: str,
    node: DictConfig,
    method: Method,
    given: Mapping[str, Any],
    scorers: Mapping[str, Scorer],
) -> FitSource:
    """Build one source; for pairs, apply the options for a subset and for swapped labels."""
    if name.rpartition(".")[2] != "pairs":
        return build(node, **given)  # type: ignore[no-any-return]
    if node.scorer not in scorers:
        raise SetupError(f"part_data.{name}.scorer={node.scorer}: allowed are {', '.join(scorers)}")
    source: FitSource = build(node, tuple(PAIRS), **{**given, "scorer": scorers[node.scorer]})
    if (count := node.get("subset")) is not None:
        source = Subset(source, int(count), int(node.get("subset_seed", cfg.seed.fit)))
    flip = float(node.get("flip", 0))
    if cfg.control is not None and control.how(method) == "flipped pairs":
        if flip:
            raise SetupError(
                f"{name}.flip={flip:g}: a control swaps the labels of half of the pairs by itself; leave out one of "
                f"control={cfg.control} and {name}.flip"
            )
        return Flipped(source, control.FLIP, int(cfg.control))
    if flip:
        source = Flipped(source, flip, int(node.get("flip_seed", cfg.seed.fit)))
    return source


def filled(texts: Mapping[str, Any]) -> FitData:
    """The training data, put together from what each source gave."""
    of_parts: dict[str, dict[str, Any]] = {}
    for name, found in texts.items():
        part, _, field = name.rpartition(".")
        of_parts.setdefault(part, {})[field] = found
    own = of_parts.pop("", {})
    return FitData(**own, parts={part: FitData(**fields) for part, fields in of_parts.items()} or None)
