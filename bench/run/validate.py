"""Validation of a composed config: its YAML files define the allowed keys, and its classes the allowed values.

Types come from the hints of the class that a `_target_` names. For groups without a class (seed, runtime, model) they
come from a table.
"""

import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError

from bench.config import compose
from bench.config.build import build
from bench.config.keys import ENTRIES, INJECTED, SETTINGS, TARGET, UNRESOLVED, Fields, Node, fields_of, listed
from bench.config.packed import Configs
from bench.config.values import ANY, Range, expected, fits, item, mapping, mistakes, near, options, shown
from bench.model import checkpoint
from bench.model.decoding import Sampling
from bench.run import norm_over
from bench.run.tuning import check_search
from methods.errors import SetupError

COUNTS = (
    "batch_size", "cells_per_job", "count", "dev_documents", "dev_k", "dev_limit", "dev_prompts", "documents", "epochs",
    "k", "limit", "max_new_tokens", "max_tokens", "num_samples", "per_group", "prefix_words", "prompts", "rank",
    "threads", "trials", "window", "alpha", "learning_rate", "vector_learning_rate", "perplexity_ratio", "norm",
    "repetition_penalty", "subset", "top_k",
)  # fmt: skip
FROM_0 = (
    "skip", "skip_first", "fewshot", "min_steps", "vector_epochs", "kl_weight", "repetition_increase",
    "capability_drop", "empty_share_increase", "distinct_2_ratio",
)  # fmt: skip
SHARES = ("flip", "max_desired", "min_undesired", "min_toxicity")
RANGES: dict[str, Range] = {
    **dict.fromkeys(COUNTS, Range("above 0", lambda value: value > 0)),
    **dict.fromkeys(FROM_0, Range("from 0 on", lambda value: value >= 0)),
    **dict.fromkeys(SHARES, Range("from 0 to 1", lambda value: 0 <= value <= 1)),
    "strength": Range("in the method's unit", lambda _: True),
    "held_out": Range("from 0 to below 1", lambda value: 0 <= value < 1),
    "row_fraction": Range("above 0 and at most 1", lambda value: 0 < value <= 1),
    "skip_quarter": Range("from 1 to 4", lambda value: 1 <= value <= 4),
    **dict.fromkeys(
        ("seed", "document_seed", "control", "flip_seed", "subset_seed"),
        Range("from 0 to 4294967295", lambda value: 0 <= value < 2**32),
    ),
}
"""The allowed numbers, by the option's last name; they only apply to this project's own classes."""


# -- values ------------------------------------------------------------------------------------------------------------


WRITTEN = {"model.id": "ORG/NAME", "model.revision": "COMMIT", "model.path": "FOLDER"}
"""What to write for options that many users are asked for."""


def problems(cfg: DictConfig, asks: Mapping[str, str] | None = None) -> list[str]:
    """Return a line for everything that is wrong with a config: types, ranges, missing values, values that conflict.

    asks: the options that an experiment leaves to the user and that must not be null, each with the experiment's
    description of it. No model, data or text is read.
    """
    try:
        found = list(_walk(cfg, Fields(SETTINGS, frozenset(SETTINGS) - {"searchpath", "cut"})))
    except RecursionError:
        return ["an interpolation ${...} holds itself; give a value"]
    missing = {key for key, _ in found}
    found += [(key, _no_value(key)) for key in asks or {}
              if key not in missing and OmegaConf.select(cfg, key, default="") is None]  # fmt: skip
    bad = [key for key, _ in found]
    found = [one for one in found if not _told_elsewhere(cfg, one[0], bad)]  # each mistake is told once
    asked = {_no_value(key): words for key, words in (asks or {}).items()}
    told = [f"{message} ({asked[message]})" if message in asked else message for _, message in found]
    for check, reads in CHECKS.items():
        if not any(
            key == one or key.startswith(f"{one}.") or one.startswith(f"{key}.") for key in bad for one in reads
        ):
            told += check(cfg)
    return list(dict.fromkeys(told))


def _no_value(key: str) -> str:
    return f"{key} has no value; set {key}={WRITTEN.get(key, '...')}"


ITEM = re.compile(r"\[\d+\]$")
"""The end of the key of a list's item."""


def _told_elsewhere(cfg: DictConfig, key: str, bad: Sequence[str]) -> bool:
    """Return whether a value is wrong only because it is taken from another one in `bad`, which is reported instead.

    Of values that are taken from each other, the first is reported.
    """
    taken = _taken_from(cfg, key)
    others = [other for other in bad if other != key and ITEM.sub("", other) in taken]
    return any(bad.index(one) < bad.index(key) or key not in _taken_from(cfg, one) for one in others)


def _taken_from(cfg: DictConfig, key: str) -> set[str]:
    """Return all keys that a value is taken from, directly or not, such as seed.fit and seed for `${seed.fit}`."""
    found: set[str] = set()
    waiting = [key]
    while waiting:
        for one in _points_at(cfg, waiting.pop()):
            if one not in found:
                found.add(one)
                waiting.append(one)
    return found


def _points_at(cfg: DictConfig, key: str) -> list[str]:
    """Return the keys in a value's interpolations, such as `${seed.fit}`, and their parent keys."""
    key = ITEM.sub("", key)
    above, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, above, throw_on_resolution_failure=False) if re.fullmatch(r"[\w.]+", above) else cfg
    written = OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else {}
    text = str(written.get(name)) if isinstance(written, dict) else ""
    found: list[str] = []
    for dots, path in re.findall(r"\$\{(?:oc\.select:)?(\.*)([\w.]+)", text):
        base = ".".join(above.split(".")[: len(above.split(".")) + 1 - len(dots)]) if dots else ""
        found += itertools.accumulate((f"{base}.{path}" if base else path).split("."), "{}.{}".format)
    return found


def _walk(node: DictConfig, fields: Fields, above: str = "") -> Iterator[tuple[str, str]]:
    prefix = f"{above}." if above else ""
    for lacking in sorted(fields.needed - set(map(str, node))):
        yield prefix + lacking, f"{prefix}{lacking} is missing; its YAML file has to list it"
    for name in node:
        key = f"{prefix}{name!s}"
        if name == TARGET:
            continue
        if str(name) not in fields.hints and not fields.more:
            yield key, listed(key, str(name), sorted(set(fields.hints) - INJECTED), above)
            continue
        yield from _value(node, name, key, fields)


def _value(node: DictConfig, name: Any, key: str, fields: Fields) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with one value of a mapping, or below it."""
    hint = fields.hints.get(str(name), Any)
    if OmegaConf.is_missing(node, name):
        yield key, _no_value(key)
        return
    try:
        value = node[name]
        if isinstance(value, str) and value.startswith("~/"):
            yield key, f"{key}={shown(value)}: ~ is not expanded here; write the whole path, {Path(value).expanduser()}"
            return
        if isinstance(value, DictConfig) and hint is Node and TARGET not in value:
            yield key, f"{key} names no class by {TARGET}; its YAML file has to"
            return
        if isinstance(value, DictConfig) and (inside := _inside(value, hint, key)) is not None:
            yield from _walk(value, inside, key)
            return
        plain = OmegaConf.to_container(value, resolve=True) if isinstance(value, DictConfig | ListConfig) else value
    except InterpolationToMissingValueError:  # the missing value is an error at its own key
        return
    except SetupError as error:
        yield key, f"{key}: {error}"
        return
    except UNRESOLVED as error:
        content: Any = node._get_node(name)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        yield key, f"{key}={shown(str(content._value()))}: it does not resolve ({reason}); write the value itself"
        return
    if isinstance(hint, dict) or hint is Node or hint in ENTRIES:
        keys = f" of {', '.join(hint)}" if isinstance(hint, dict) else ""
        yield key, f"{key}={shown(plain)}: expected a mapping{keys}; set one of its keys as in {key}.KEY=..."
        return
    within = RANGES.get("seed" if key in ("seed.fit", "seed.sample") else str(name), ANY) if fields.own else ANY
    yield from mistakes(key, plain, hint, within)
    fixed = not key.startswith("method.")  # a method's prompts may be empty
    if plain == "" and fixed and fields.defaults.get(str(name)) != "" and str in options(hint):
        yield key, f"{key}='': the text is empty{'; null for none' if type(None) in options(hint) else ''}"
    default = fields.defaults.get(str(name))
    if plain == [] and fields.defaults and default not in ((), []):
        yield key, f"{key}=[]: the list is empty; {expected(hint)}"


def _inside(value: DictConfig, hint: Any, key: str) -> Fields | None:
    """Return what a mapping may hold if its values are checked one by one; None if its hint describes all of it."""
    if isinstance(hint, dict) or hint in ENTRIES:
        return fields_of(value, hint, key)
    if TARGET in value and fits({}, hint):
        return fields_of(value, Node, key)
    if hint is Node:
        return Fields({}, more=True)
    free = mapping(hint)
    if free is not None and any(isinstance(one, DictConfig) and TARGET in one for one in map(value._get_node, value)):
        return Fields(dict.fromkeys(map(str, value), item(free)))
    return None


# -- checks of values together: each yields lines of errors ------------------------------------------------------------


def _sampling(cfg: DictConfig) -> Iterator[str]:
    try:
        build(cfg.sampling, seed=cfg.seed.sample, batch_size=cfg.runtime.batch_size)
    except SetupError as error:
        yield str(error)


def _tuning(cfg: DictConfig) -> Iterator[str]:
    node = cfg.tuning
    if node.options and node.trials is None:
        yield ("tuning.options needs tuning.trials=NUMBER: a method that has the option and one that has not are given "
               "the same number of trials")  # fmt: skip
    for name, values in (node.options or {}).items():
        if not isinstance(values, ListConfig) or not values:
            yield f"tuning.options.{name}={shown(values)}: expected a list of the values to try, such as [0.3, 0.45]"
    if not node.residual_norms:
        yield "tuning.residual_norms=[]: the list is empty; expected numbers in brackets, such as [0.1, 0.2]"
    if cfg.strength != "auto" or not cfg.method.get("strengths"):
        return
    try:
        tuning = build(node)
    except SetupError as error:
        yield str(error)
        return
    try:
        check_search(tuning)
    except SetupError as error:
        yield str(error)
    if not set(tuning.suites) <= set(cfg.suite):
        yield (f"strength=auto, the default, needs the suites {' and '.join(tuning.suites)} to tune the strength; "
               "add them to suite=[...], or set strength=NUMBER")  # fmt: skip


def _scorers(cfg: DictConfig) -> Iterator[str]:
    for key in ("pairs.scorer", "tuning.scorer"):
        name = OmegaConf.select(cfg, key)
        if name is not None and name not in cfg.scorer:
            yield f"{key}={name} is not among the scorers in use ({', '.join(cfg.scorer)}); add it to scorer=[...]"


def _model(cfg: DictConfig) -> Iterator[str]:
    try:
        checkpoint.check(cfg.model)
    except SetupError as error:
        yield str(error)
    except (OSError, ValueError) as error:
        yield f"model: {error}; set model.path=FOLDER, or another model"


def _results(cfg: DictConfig) -> Iterator[str]:
    """Check that the results folder, or the nearest folder above it, can be written to; a dry run writes nothing."""
    folder = Path(cfg.runtime.results).absolute()
    if folder.is_symlink() and not folder.exists():
        yield f"runtime.results={shown(cfg.runtime.results)}: a link to nowhere; choose another folder"
    try:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
    except OSError as error:
        yield f"runtime.results={shown(cfg.runtime.results)}: {error.strerror}; choose another folder"
        return
    rights = os.X_OK if cfg.runtime.get("dry_run") is True else os.W_OK | os.X_OK
    if not existing.is_dir() or not os.access(existing, rights):
        yield f"runtime.results={cfg.runtime.results}: {existing} cannot be written; choose another folder"


def _devices(cfg: DictConfig) -> Iterator[str]:
    """Check that this machine has each device."""
    from bench.model import devices

    there = devices.available()
    named = {"runtime.device": cfg.runtime.device}
    named |= {f"scorer.{name}.device": node.get("device") or "cpu" for name, node in cfg.scorer.items()}
    for key, device in named.items():
        allowed = [*there, devices.AUTO] if key == "runtime.device" else there
        if device not in allowed:
            hint = near(str(device), allowed)
            yield f"{key}={shown(device)}: there is no such device here{hint} Allowed: {', '.join(allowed)}"
    try:
        limits = cfg.runtime.get("max_memory")
        plain = OmegaConf.to_container(limits) if OmegaConf.is_config(limits) else limits
        devices.check_max_memory(plain, str(cfg.runtime.device))
    except SetupError as error:
        yield str(error)


def _of_tasks(cfg: DictConfig) -> Iterator[str]:
    """Check that options with a value per task name only tasks of the suite, and that decoding has known options."""
    decoding = {name: hint for name, hint in get_type_hints(Sampling).items() if name not in ("seed", "batch_size")}
    for suite, node in cfg.suite.items():
        tasks = list(node.get("tasks") or ())
        for option in ("documents", "fewshot", "configs") if tasks else ():
            given = node.get(option)
            for name in map(str, given) if isinstance(given, DictConfig) else ():
                if name not in tasks:
                    yield (f"suite.{suite}.{option}.{name}: {name} is not among the tasks that are asked"
                           f"{near(name, tasks)} Allowed: {', '.join(tasks)}")  # fmt: skip
        given = node.get("decoding")
        for name in map(str, given) if isinstance(given, DictConfig) else ():
            key = f"suite.{suite}.decoding.{name}"
            if name not in decoding:
                yield listed(key, name, list(decoding), f"suite.{suite}.decoding")
            else:
                within = RANGES.get(name, ANY)
                yield from (told for _, told in mistakes(key, given[name], decoding[name], within))


def _parts(cfg: DictConfig) -> Iterator[str]:
    """Check that `method.at` gives a strength to each part of a stack, and to nothing else."""
    parts, at = (cfg.method.get(key) for key in ("parts", "at"))
    if isinstance(parts, DictConfig) and isinstance(at, DictConfig) and set(parts) != set(at):
        named, given = (", ".join(map(str, one)) for one in (parts, at))
        yield f"method.parts names {named} and method.at {given}; give every part a strength"


def _norm_over(cfg: DictConfig) -> Iterator[str]:
    yield from norm_over.of_parts(cfg)
    try:
        norm_over.apart(cfg)
    except SetupError as error:
        yield str(error)


CHECKS: dict[Callable[[DictConfig], Iterator[str]], tuple[str, ...]] = {
    _sampling: ("sampling", "seed", "runtime.batch_size"),
    _tuning: ("tuning", "strength", "method.strengths", "suite"),
    _scorers: ("pairs.scorer", "tuning.scorer", "scorer"),
    _model: ("model",),
    _results: ("runtime.results", "runtime.dry_run"),
    _devices: ("runtime.device", "runtime.max_memory", "scorer"),
    _of_tasks: ("suite",),
    _parts: ("method",),
    _norm_over: ("pairs", "part_data"),
}
"""The keys that each check reads; a check is left out if one of its keys is wrong already."""


def of_command(cells: Sequence[DictConfig]) -> Iterator[str]:
    """Yield what is wrong with the cells of one command together.

    All cells must have the same results folder, and agree in the other options of a whole command, such as
    `runtime.dry_run`. Each key of `tuning.options` has to be an option of at least one method of the command.
    """
    for key in ("results", "dry_run", "cells_per_job", "overwrite", "offline"):
        given = sorted({str(cfg.runtime.get(key)) for cfg in cells})
        if len(given) > 1:
            yield f"runtime.{key} has several values in one command ({', '.join(given)}); give one, or run two commands"
    methods = {str(cfg.method[TARGET]): cfg.method for cfg in cells}
    asked = {str(name): list(values) for cfg in cells for name, values in (cfg.tuning.options or {}).items()}
    having = {
        target: {str(name) for name in node if name not in (TARGET, "strengths")} for target, node in methods.items()
    }
    allowed = sorted(set().union(*having.values()))
    for name, values in asked.items():
        key = f"tuning.options.{name}"
        if name == "strengths":
            yield f"{key}: strengths are tuned anyway; set the range by method.strengths=[...], or leave this away"
        elif name not in allowed:
            hint = near(name, allowed)
            yield f"{key}: no method of this command has it{hint} Allowed: {', '.join(allowed) or 'none'}"
        for target, node in methods.items():
            if name in having[target] and name in allowed:
                fields = fields_of(node, Node, "method")
                within = RANGES.get(name, ANY) if fields.own else ANY
                plain = [OmegaConf.to_container(one) if OmegaConf.is_config(one) else one for one in values]
                yield from (told for _, told in mistakes(key, plain, Sequence[fields.hints[name]], within))  # type: ignore[name-defined]


def validate(overrides: Sequence[str]) -> DictConfig:
    """Return the config of one cell. Raises SetupError that lists everything wrong with it."""
    cfg, experiment = compose.cell(overrides)
    if wrong := problems(cfg, experiment.asks):
        raise SetupError("\n".join(wrong))
    return cfg


def validate_all(jobs: Sequence[Sequence[str]]) -> Configs:
    """Return the config of each cell of one command. Raises SetupError as `validate` does, and as `of_command` says."""

    def each() -> Iterator[DictConfig]:
        for number, job in enumerate(jobs, 1):
            try:
                yield validate(job)
            except SetupError as error:
                if len(jobs) == 1:
                    raise
                label = next((one for one in job if one.startswith("method=")), job[0])
                raise SetupError(f"{error} (in cell {number} of {len(jobs)}, {label})") from error

    cells = Configs(each())
    if wrong := list(dict.fromkeys(of_command(cells))):
        raise SetupError("\n".join(wrong))
    return cells
