"""The keys that a config may hold: those in the YAML files, and names chosen by the user where a class allows them."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal, NamedTuple, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bench.config.experiment import KEYS
from bench.config.values import item, mapping, near
from methods.errors import SetupError

TARGET = "_target_"
UNRESOLVED = (OmegaConfBaseException, RecursionError, ValueError, TypeError, AttributeError)


class Node:
    """The type hint of a mapping whose `_target_` names the class that is built from it."""


class Nodes:
    """The type hint of the mapping of the suites or scorers in use, each a Node; their names are those in conf/."""


class ByField:
    """The type hint of a mapping from fields of `methods.base.FitData` to Nodes."""


class ByPart:
    """The type hint of a mapping from the names of a method's parts, which the user chooses, to ByFields."""


ENTRIES: dict[Any, Any] = {Nodes: Node, ByField: Node, ByPart: ByField}
"""The hint of the values of a mapping whose keys are names, by the mapping's hint."""
TEXT_OR_NULL = str | None
SETTINGS: dict[str, Any] = {
    "seed": {"fit": int, "sample": int},
    "strength": float | Literal["auto"],
    "strength_unit": Literal["method", "residual_norm"],
    "control": int | None,
    "limit": int | None,
    "runtime": {
        "results": str, "cache": TEXT_OR_NULL, "device": str, "threads": int | None, "batch_size": int,
        "max_memory": dict[str, str] | None, "mirror": TEXT_OR_NULL, "offline": bool, "cells_per_job": int,
        "dry_run": bool, "overwrite": Literal["damaged", "never", "always"],
        "prefer": Literal["wheel", "hub"],
    },
    "model": {
        "name": str, "wheel": TEXT_OR_NULL, "gguf": TEXT_OR_NULL, "sha256": TEXT_OR_NULL, "path": TEXT_OR_NULL,
        "id": TEXT_OR_NULL, "revision": TEXT_OR_NULL, "dtype": Literal["float32", "bfloat16", "float16"],
        "bos": Literal["tokenizer", "prepend", "none"], "chat": bool,
        "thinking": Literal["off", "strip", "judge"],
        "layout": dict[str, str | list[str] | None] | None,
    },
    "sampling": Node,
    "tuning": Node,
    "method": Node, "pairs": Node, "examples": Node, "harmful": Node, "background": Node,
    "labelled": Node, "part_data": ByPart,
    "suite": Nodes, "scorer": Nodes,
    "searchpath": Sequence[str], "cut": dict[str, dict[str, Any]],
}  # fmt: skip
OPTIONAL = {
    "cells_per_job", "dry_run", "flip", "flip_seed", "layout", "max_memory", "norm_over", "overwrite", "prefer",
    "subset", "subset_seed", "thinking",
}  # fmt: skip
"""Keys of SETTINGS and PAIRS that a YAML file may leave out, since plug-ins may have files from before these keys."""
PAIRS = {
    "scorer": str, "flip": float, "flip_seed": int, "subset": int | None, "subset_seed": int,
    "norm_over": dict[str, Sequence[str | float]] | None,
}  # fmt: skip
"""Options that every choice of pairs has and that the run uses itself, rather than the class of the pairs."""
INJECTED = {"sources", "scorers", "sampling", "batch_size", "in_residual_norms", "runtime_device"}
"""Parameters whose values a class gets from the run, not from a YAML file."""


class Fields(NamedTuple):
    """The keys that a mapping may hold. needed: keys that it must hold. own: whether the class is this project's."""

    hints: Mapping[str, Any]
    needed: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = {}
    own: bool = True
    more: bool = False  # any other key too


def fields_of(node: DictConfig, hint: Any, key: str) -> Fields:
    """Return the keys that a mapping with this hint may hold. Raises SetupError for a class that cannot be imported."""
    if isinstance(hint, dict):
        return Fields(hint, frozenset(hint) - OPTIONAL)
    if hint in ENTRIES:
        return Fields(dict.fromkeys(map(str, node), ENTRIES[hint]))
    if TARGET not in node:
        return Fields({}, more=True)
    from bench.config.build import class_of

    made = class_of(str(node[TARGET]))
    parameters = inspect.signature(made).parameters
    try:
        hints = get_type_hints(made if is_dataclass(made) else made.__init__)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):  # wrong hints in a plug-in
        hints = {}
    pairs = key == "pairs" or key.startswith("part_data.") and key.endswith(".pairs")
    found = {name: hints.get(name, Any) for name in parameters} | (PAIRS if pairs else {})
    return Fields(
        found,
        frozenset(set(PAIRS) - OPTIONAL if pairs else ()),
        {name: one.default for name, one in parameters.items()},
        made.__module__.partition(".")[0] in ("bench", "methods"),
        any(one.kind is one.VAR_KEYWORD for one in parameters.values()),
    )


def unknown_keys(cfg: DictConfig, reference: DictConfig, added: Sequence[str] = ()) -> list[str]:
    """Return an error for each key of a config that the reference lacks and that the user is not free to name.

    reference: a config with all allowed keys, made from the choices of groups that `cfg` has. added: the places at
    which a command line adds a choice of a group.
    """
    new = [path for path in _new(cfg, reference) if not ".".join(path).startswith(tuple(f"{one}." for one in added))]
    hints = SETTINGS if new or added else {}
    wrong = {place for place in added if not _is_open(cfg, place.split("."), hints)}
    wrong = wrong or {".".join(path) for path in new if not _is_open(cfg, path, hints)}
    return [_not_added(key) if key in added else unknown_key(key, reference) for key in sorted(wrong)]


def _not_added(place: str) -> str:
    """Return the message about a choice at a place that takes none."""
    return (
        f"unknown key {place}: no choice can be added there; write GROUP=CHOICE, or for the data of a part of a stack "
        "+GROUP@part_data.PART.GROUP=CHOICE"
    )


def is_built(node: Any) -> bool:
    """Return whether a suite's or scorer's node can be built, rather than only sets options of one that is left out."""
    return not isinstance(node, DictConfig) or not _is_mapping(node) or TARGET in node


def _new(cfg: DictConfig, reference: DictConfig, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name in cfg:
        path, mine = (*above, str(name)), cfg._get_node(name)
        theirs = reference._get_node(name) if name in reference._content else None  # type: ignore[operator]
        if theirs is None:
            yield path
        elif isinstance(mine, DictConfig) and _is_mapping(mine):
            if isinstance(theirs, DictConfig) and _is_mapping(theirs):
                yield from _new(mine, theirs, path)
            else:
                yield from ((*path, str(inner)) for inner in mine)


def _is_mapping(node: DictConfig) -> bool:
    return not (node._is_none() or node._is_missing() or node._is_interpolation())


def _is_open(cfg: DictConfig, path: Sequence[str], hints: Any) -> bool:
    """Return whether, by the hints of its class, the mapping that holds this path allows names chosen by the user."""
    node, hint = cfg, hints
    for place, part in enumerate(path[:-1]):
        if (free := mapping(hint)) is not None and not isinstance(hint, dict):
            hint = item(free)
        else:
            try:
                hint = fields_of(node, hint, ".".join(path[:place])).hints.get(part)
            except SetupError:  # reported elsewhere
                return False
        node = node._get_node(part)  # type: ignore[assignment]
        if not isinstance(node, DictConfig):
            return False
    return hint in (ByField, ByPart) or hint is not None and not isinstance(hint, dict) and mapping(hint) is not None


def unknown_key(key: str, reference: DictConfig) -> str:
    """Return the message about an unknown key, with the nearest name and the allowed ones."""
    parent, _, last = key.rpartition(".")
    while parent and not isinstance(_select(reference, parent), DictConfig):
        parent, _, last = parent.rpartition(".")
    node = _select(reference, parent) if parent else reference
    allowed = [str(name) for name in node if name != TARGET] + ([] if parent else [*KEYS])
    return listed(key, last, sorted(allowed), parent)


def listed(key: str, last: str, allowed: Sequence[str], parent: str) -> str:
    """Return the message about an unknown key; `last` is its name under `parent`, whose keys are `allowed`."""
    prefix = f"{parent}." if parent else ""
    hint = near(last, allowed, prefix)
    if last in allowed and f"{prefix}{last}" != key:
        hint = f"; {prefix}{last} is a value, which has no keys."
    return f"unknown key {key}{hint} Allowed {'under ' + parent if parent else 'here'}: {', '.join(allowed)}"


def _select(cfg: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(cfg, key, default=None)
    except UNRESOLVED:
        return None
