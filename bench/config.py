"""From a command line to validated configs, before anything heavy is loaded; all errors at once.

Hydra refuses an unknown key unless it is written with `+`; here `+` is no way round: the keys that the YAML files list
are the allowed ones, at every depth. So are the choices of each group, and the classes that a `_target_` names.
"""

import difflib
import functools
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from bench import models, plugins
from methods.errors import SetupError

NAMED = "hydra.searchpath"
"""The override by which a command line names folders of YAML files; the config keeps them under FOLDERS."""
FOLDERS = "searchpath"
SPECIAL = re.compile(r"_\w+_")
"""Keys of the kind that Hydra gives a meaning of its own, of which only `_target_` is known here."""


def folder() -> Path:
    """The conf folder: inside an installed package, or beside it in a checkout."""
    installed = Path(__file__).parent / "conf"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "conf"


def folders(named: Sequence[str] = ()) -> list[Path]:
    """The conf folders: this project's first, those of installed plug-ins (bench/plugins.py), those a user named."""
    return [folder(), *(plugin.conf for plugin in plugins.installed(folder(), tuple(named)))]


def groups(named: Sequence[str] = ()) -> dict[str, list[str]]:
    """Each group of conf/ with its choices, those of plug-ins and of the user's own folders included."""
    return {
        group.name: sorted(file.stem for one in folders(named) for file in (one / group.name).glob("*.yaml"))
        for group in sorted(folder().iterdir())
        if group.is_dir() and not group.name.startswith("_")
    }


def targets(named: Sequence[str] = ()) -> frozenset[str]:
    """The classes that may be built: each `_target_` that a YAML file of the conf folders names, as it stands there."""
    return _targets(tuple(folders(named)))


@functools.lru_cache(maxsize=8)
def _targets(places: tuple[Path, ...]) -> frozenset[str]:
    files = [file for place in places for file in place.rglob("*.yaml")]
    nodes = (node for file in files for node in _mappings(yaml.safe_load(file.read_text(encoding="utf-8"))))
    return frozenset(str(node["_target_"]) for node in nodes if "_target_" in node)


def _mappings(value: Any) -> Iterator[Mapping[Any, Any]]:
    """Every mapping in plain values, itself included."""
    if isinstance(value, Mapping):
        yield value
    if isinstance(value, Mapping | list):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _mappings(one)


def check_targets(settings: Any, allowed: frozenset[str]) -> None:
    """Raises SetupError for settings that name a class which is not in `allowed` (`targets`), at any depth.

    Nothing is imported to find out.
    """
    for node in _mappings(settings):
        for key, value in node.items():
            if not isinstance(key, str) or not SPECIAL.fullmatch(key):
                continue
            if key != "_target_" or not isinstance(value, str) or value not in allowed:
                raise SetupError(
                    f"{key}: {value} is refused: only classes that a YAML file of conf/, or of an installed plug-in, "
                    "names with _target_ are ever built, and nothing else of Hydra's kind; install yours as a plug-in"
                )


def compose(overrides: Sequence[str]) -> DictConfig:
    """One config. Raises SetupError with one clear message for whatever Hydra, or a rule here, refuses.

    What an experiment sets of a suite that the command line leaves out, suite=[rtp], is left out with it.
    """
    parsed = _parse(overrides)
    named = _named(parsed)
    available = groups(named)
    problems = [problem for one in parsed for problem in _refused(one, available)]
    chosen = [one.key_or_group for one in parsed if not one.is_add() and one.package is None]
    problems += [f"{key} is chosen twice; name it once" for key in available if chosen.count(key) > 1]
    if problems:
        raise SetupError("\n".join(problems))
    own = [str(one.input_line) for one in parsed if one.key_or_group != NAMED]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(folder()), version_base="1.3"):
            cfg = hydra_compose("config", overrides=[*_search_path(named), *own])
    except (HydraException, OmegaConfBaseException) as error:
        raise SetupError(_explain(error, overrides)) from error
    with open_dict(cfg):
        for name in [name for name, node in cfg.suite.items() if "_target_" not in node]:
            del cfg.suite[name]
        cfg.pop(FOLDERS, None)
        if named:
            cfg[FOLDERS] = list(named)
    check_targets(OmegaConf.to_container(cfg), targets(named))
    return cfg


def _named(parsed: Sequence[Override]) -> tuple[str, ...]:
    """The folders of YAML files that a command line names. Raises SetupError for what is no folder."""
    given = [one.value() for one in parsed if one.key_or_group == NAMED]
    found = []
    for place in given[-1] if given and isinstance(given[-1], list) else given[-1:]:
        path = Path(str(place).removeprefix("file://"))
        if not path.is_dir():
            raise SetupError(f"{NAMED}={place}: no such folder; write {NAMED}=[FOLDER], laid out as conf/ is")
        found.append(str(path.resolve()))
    return tuple(dict.fromkeys(found))


def _search_path(named: Sequence[str] = ()) -> list[str]:
    """The override that makes Hydra look into the plug-ins' folders too, after this project's."""
    quoted = ["'file://" + str(one).replace("'", "\\'") + "'" for one in folders(named)[1:]]
    return [f"{NAMED}=[{','.join(quoted)}]"] if quoted else []


def _refused(one: Override, available: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """What is wrong with an override that chooses, takes away, or speaks to Hydra itself."""
    key, line = one.key_or_group, one.input_line
    if one.is_delete():
        yield f"{line}: nothing is taken away here; choose another, list what you want as in suite=[rtp], or set null"
    elif key.partition(".")[0].partition("/")[0] == "hydra" and key != NAMED:
        yield f"unknown key {key}. Of Hydra's own options {NAMED}=[FOLDER] alone is known here"
    elif key in available and not one.is_sweep_override():
        allowed, value = available[key], one.value()
        given = value if isinstance(value, list) else [value]
        unknown = [choice for choice in given if choice not in allowed]
        for choice in unknown:
            shown, near = "null" if choice is None else choice, _near(str(choice), allowed)
            yield f"{key}={shown}: there is no such {key}{near} Allowed: {', '.join(allowed)}"
        listed = isinstance(_defaults()[key], ListConfig)
        if not unknown and (not given or (isinstance(value, list) and not listed)):
            names = ",".join(map(str, given or allowed[:1]))
            wanted = f"a list is wanted, {key}=[{names}]" if listed else f"one choice is wanted, {key}={given[0]}"
            yield f"{line}: {wanted}. Allowed: {', '.join(allowed)}"


@functools.cache
def _defaults() -> dict[str, Any]:
    """The choice of each group where the command line makes none: a list where there may be several, or None."""
    listed: Any = OmegaConf.load(folder() / "config.yaml")
    entries = [entry for entry in listed["defaults"] if isinstance(entry, DictConfig)]
    return {str(key): value for entry in entries for key, value in entry.items()}


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The settings as plain values, interpolations resolved; what has no value is "???"."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


def jobs(arguments: Sequence[str], multirun: bool) -> list[list[str]]:
    """The overrides of each cell that a command line asks for, an experiment's `sweep` lines included.

    Raises SetupError for a sweep without `-m`, and for more than one experiment.
    """
    own = _parse(arguments)
    if any(o.key_or_group == "experiment" and o.is_sweep_override() for o in own):
        raise SetupError(
            "experiment=a,b is refused: each experiment brings a sweep of its own; run one after the other"
        )
    if any(o.is_sweep_override() for o in own) and not multirun:
        swept = next(o.input_line for o in own if o.is_sweep_override())
        raise SetupError(f"{swept!r} is a sweep over several values; add -m: python -m bench -m {' '.join(arguments)}")
    for one in own:
        if isinstance(one.value(), Glob | IntervalSweep):
            raise SetupError(f"{one.input_line!r} names no values; list them: -m {one.key_or_group}=a,b")
    lines = compose(next(_product(own))).sweep
    result = []
    for line in lines or [""]:
        mine = {o.get_key_element() for o in own}  # what the command line says goes before the experiment's line
        theirs = [o for o in _parse(str(line).split()) if o.get_key_element() not in mine]
        result += list(_product([*theirs, *own]))
    return [list(job) for job in dict.fromkeys(map(tuple, result))]


def _parse(arguments: Sequence[str]) -> list[Override]:
    try:
        return list(OverridesParser.create().parse_overrides(list(arguments)))
    except HydraException as error:
        first = str(error).splitlines()[0]
        raise SetupError(f"{first}; write key=value, for example method=caa suite.rtp.k=5; see --help") from error


def _product(overrides: Sequence[Override]) -> Iterator[list[str]]:
    """Every combination of the swept values, as override strings."""
    choices = []
    for one in overrides:
        if one.is_sweep_override():
            choices.append([f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()])
        else:
            assert one.input_line is not None
            choices.append([one.input_line])
    for combination in itertools.product(*choices):
        yield list(combination)


def validate(overrides: Sequence[str]) -> DictConfig:
    """The config of one cell. Raises SetupError that lists everything wrong with it."""
    cfg = compose(overrides)
    problems = list(_unknown(overrides))
    for path in sorted(OmegaConf.missing_keys(cfg)):
        asked = f" ({cfg.asks[path]})" if path in cfg.asks else ""
        problems.append(f"{path} has no value; set {path}=...{asked}")
    if not problems:
        problems = [problem for check in CHECKS for problem in check(cfg)]
    if problems:
        raise SetupError("\n".join(problems))
    return cfg


def _unknown(overrides: Sequence[str]) -> Iterator[str]:
    """Keys that no YAML file lists: those of the config that the same choices without any `+key` do not have."""
    added = [one for one in _parse(overrides) if one.is_add() or one.is_force_add()]
    if not added:
        return
    reference = compose([one.input_line for one in _parse(overrides) if one not in added and one.input_line])
    for one in added:
        key = one.key_or_group
        if one.package is not None:  # another choice of a group, where the YAML has a mapping for any number of them
            parts = OmegaConf.select(reference, one.package.rpartition(".")[0] or key, default=None)
            if not isinstance(parts, DictConfig) or one.package.count(".") < 2 or "_target_" in parts:
                yield unknown_key(one.package, reference)
        elif OmegaConf.select(reference, key, default=None) is None and key not in _paths(reference):
            yield unknown_key(key, reference)


def _paths(cfg: DictConfig, prefix: str = "") -> list[str]:
    """Dotted names of everything in a config."""
    names = []
    for key in map(str, cfg):
        names.append(f"{prefix}{key}")
        node = cfg._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
            names += _paths(node, f"{prefix}{key}.")
    return names


def unknown_key(key: str, reference: DictConfig) -> str:
    """What is wrong with a key that nobody lists, with its neighbours and the nearest name."""
    parent, _, last = key.rpartition(".")
    while parent and not isinstance(OmegaConf.select(reference, parent, default=None), DictConfig):
        parent, _, last = parent.rpartition(".")
    node = OmegaConf.select(reference, parent) if parent else reference
    allowed = sorted(str(name) for name in node if name != "_target_")
    prefix = f"{parent}." if parent else ""
    hint = _near(f"{prefix}{last}", [prefix + name for name in allowed])
    return f"unknown key {key}{hint} Allowed {'under ' + parent if parent else 'here'}: {', '.join(allowed)}"


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's refusal in our words: what, got, allowed, next step."""
    parsed = _parse(overrides)
    top = [*groups(), *(key for key in OmegaConf.load(folder() / "config.yaml") if key != "defaults")]
    for one in parsed:
        first, dot, _ = one.key_or_group.partition(".")
        if first not in top and one.key_or_group != NAMED:
            return f"unknown key {one.key_or_group}{_near(first, top)} Allowed: {', '.join(map(str, top))}"
        if dot and one.key_or_group in str(error):
            return unknown_key(
                one.key_or_group, compose([o.input_line for o in parsed if o is not one and o.input_line])
            )
    return str(error).splitlines()[0]


def _near(name: str, allowed: Sequence[object]) -> str:
    """The nearest allowed name as a question, between what is wrong and what is allowed."""
    known, plain = [str(one) for one in allowed], name.rpartition("/")[2].strip().lower().removesuffix(".yaml")
    near = difflib.get_close_matches(name, known, 1) or difflib.get_close_matches(plain, known, 1)
    return f"; did you mean {near[0]}?" if near else "."


# -- checks of values: each yields a problem as one line ----------------------------------------------------------


def _sampling(cfg: DictConfig) -> Iterator[str]:
    from bench.sampling import Sampling

    try:
        Sampling(**cfg.sampling, seed=cfg.seed.sample, batch_size=cfg.runtime.batch_size)
    except SetupError as error:
        yield str(error)
    except TypeError as error:
        yield f"sampling: {error}; numbers are expected"


def _strength(cfg: DictConfig) -> Iterator[str]:
    if cfg.strength != "auto" and not isinstance(cfg.strength, int | float):
        yield f"strength={cfg.strength}: a number in the method's unit, or auto"
    if cfg.strength_unit not in ("method", "residual_norm"):
        yield f"strength_unit={cfg.strength_unit}: allowed are method, residual_norm"


def _tuning(cfg: DictConfig) -> Iterator[str]:
    from bench.search import SEARCHES

    node = cfg.tuning
    if node.search not in SEARCHES:
        yield f"tuning.search={node.search}: allowed are {', '.join(SEARCHES)}"
    if node.trials is not None and (not isinstance(node.trials, int) or node.trials < 1):
        yield f"tuning.trials={node.trials}: a whole number above 0, or null for each method's own grid"
    if node.options and node.trials is None:
        yield ("tuning.options needs tuning.trials=NUMBER: a method that has the option and one that has not are given "
               "the same number of trials")  # fmt: skip
    for name, values in (node.options or {}).items():
        if not isinstance(values, ListConfig) or not values:
            yield f"tuning.options.{name}={values}: a list of the values to try, such as [0.3, 0.45, 0.6]"
    if cfg.strength != "auto" or not cfg.method.get("strengths"):
        return
    wanted = ["rtp", "fluency"] + ([] if node.capability_drop is None else ["capability"])
    if not set(wanted) <= set(cfg.suite):
        yield (f"strength=auto is chosen by the suites {' and '.join(wanted)}; add them to suite=[...], or set "
               "strength=NUMBER")  # fmt: skip


def _scorers(cfg: DictConfig) -> Iterator[str]:
    for key in ("data.scorer", "tuning.scorer"):
        name = OmegaConf.select(cfg, key)
        if name not in cfg.scorer:
            yield f"{key}={name} is not among the scorers in use ({', '.join(cfg.scorer)}); add it to scorer=[...]"


def _model(cfg: DictConfig) -> Iterator[str]:
    try:
        models.check(cfg.model)
    except SetupError as error:
        yield str(error)
    if cfg.model.dtype not in ("float32", "bfloat16", "float16"):
        yield f"model.dtype={cfg.model.dtype}: allowed are float32, bfloat16, float16"
    if cfg.model.bos not in ("tokenizer", "prepend", "none"):
        yield f"model.bos={cfg.model.bos}: allowed are tokenizer, prepend, none"


def _counts(cfg: DictConfig) -> Iterator[str]:
    """Numbers of things are whole and positive."""
    for suite, node in cfg.suite.items():
        for key in ("k", "prompts", "dev_k", "dev_prompts"):
            value = node.get(key)
            if value is not None and (not isinstance(value, int) or value < 1):
                yield f"suite.{suite}.{key}={value}: a whole number above 0"


def _threads(cfg: DictConfig) -> Iterator[str]:
    threads = cfg.runtime.threads
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        yield f"runtime.threads={threads}: a whole number above 0, or null for as many as torch finds"


def _results(cfg: DictConfig) -> Iterator[str]:
    """The results folder can be written, tried where it, or the nearest folder above it, is."""
    folder = Path(cfg.runtime.results).absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield f"runtime.results={cfg.runtime.results}: {existing} cannot be written; choose another folder"


CHECKS = (_sampling, _strength, _tuning, _scorers, _model, _counts, _threads, _results)
