"""Turn a command line into configs with known keys, before anything heavy is loaded; all errors are told at once.

Hydra refuses an unknown key unless it is written with `+`. Here `+` does not help: only keys that the YAML files list
are allowed, at every depth. The same holds for the choices of each group and the classes that a `_target_` names.
"""

import copy
import functools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from bench.config import item_limit, keys
from bench.config.command_line import parse, product, quoted, typed, without_added
from bench.config.experiment import IN_A_FILE, KEYS, Experiment, taken_out
from bench.config.folders import FOLDERS, NAMED, check_targets, defaults, folder, folders, groups, targets, top_keys
from bench.config.values import near, shown
from bench.console.escape import HIDDEN
from methods.errors import SetupError

LISTS = ("suite", "scorer")
"""The groups of which a cell may have several choices."""


def compose(overrides: Sequence[str]) -> DictConfig:
    """Compose one config. Raises SetupError with one clear message for whatever Hydra, or a rule here, refuses.

    This function checks the keys of the config; `validate` checks its values. If the command line leaves out a suite or
    scorer, as suite=[rtp] does, an experiment's settings of that suite or scorer are left out too.
    """
    return cell(overrides)[0]


def cell(overrides: Sequence[str]) -> tuple[DictConfig, Experiment]:
    """Return the config as `compose` does, and what the experiment's YAML says about the experiment as a whole."""
    cfg, experiment, reference, added, named = _compared(overrides)
    if problems := keys.unknown_keys(cfg, reference(), added):
        raise SetupError("\n".join(problems))
    if named:
        with open_dict(cfg):
            cfg[FOLDERS] = list(named)
    item_limit.cut(cfg)
    return cfg, experiment


class _Compared(NamedTuple):
    """A config whose keys are not checked yet. reference: makes the config with the allowed keys (`_reference`).

    added: the places at which choices were added. named: the folders that a user names.
    """

    cfg: DictConfig
    experiment: Experiment
    reference: Callable[[], DictConfig]
    added: list[str]
    named: tuple[str, ...]


def _compared(overrides: Sequence[str]) -> _Compared:
    """Compose a config whose keys are not checked yet, with what the check needs."""
    parsed = parse(overrides)
    named = _named(parsed)
    available = groups(named)
    problems = [problem for one in parsed for problem in _refused(one, available)]
    chosen = [one.key_or_group for one in parsed if not one.is_add() and one.package is None]
    problems += [f"{key} is chosen twice; name it once" for key in available if chosen.count(key) > 1]
    problems += [problem for one in parsed for problem in _wrong_defaults(one, available, named)]
    if problems:
        raise SetupError("\n".join(problems))
    settable = [one for one in parsed if one.key_or_group != NAMED]
    cfg, choices = _composed([str(one.input_line) for one in settable if _chooses(one, available)], named)
    for one in settable:
        if not _chooses(one, available):
            _set(cfg, one)
    experiment = taken_out(cfg)
    check_targets(OmegaConf.to_container(cfg), targets(named))
    with open_dict(cfg):
        for group in LISTS:
            held: Any = cfg._get_node(group)
            for name in list(held) if isinstance(held, DictConfig) else ():
                if name in available[group] and not keys.is_built(held._get_node(name)):
                    del held[name]
    lists = {group: list(cfg[group]) for group in LISTS if isinstance(cfg._get_node(group), DictConfig)}
    lists = {group: [name for name in names if name in available[group]] for group, names in lists.items()}
    kept = [one for one in parsed if one.key_or_group in available and one.key_or_group not in ("experiment", *lists)]
    own = tuple(str(one.input_line) for one in kept if not _is_added(one))
    mine = {one.key_or_group for one in kept if one.package is None}
    theirs = tuple((key, str(value)) for key, value in choices.items() if key not in (*mine, "experiment"))
    theirs += tuple((group, f"[{','.join(names)}]") for group, names in lists.items())
    added = [str(one.package) for one in parsed if _is_added(one)]
    return _Compared(cfg, experiment, lambda: _reference(own, theirs, named, tuple(folders(named))), added, named)


def _is_added(one: Override) -> bool:
    """Return whether an override puts a choice at a new place, or replaces an experiment's choice for a part."""
    if one.package is None:
        return False
    return one.is_add() or one.is_force_add() or one.package.startswith("part_data.")


def _chooses(one: Override, available: Mapping[str, Sequence[str]]) -> bool:
    """Return whether Hydra has to read an override, such as a choice; it need not if the override only sets a value."""
    return one.key_or_group in available or one.package is not None or one.is_sweep_override()


def _set(cfg: DictConfig, one: Override) -> None:
    """Set a value as Hydra does with `++`; whether it may be set is checked against the YAML files afterwards."""
    try:
        OmegaConf.update(cfg, one.key_or_group, one.value(), merge=True, force_add=True)
    except OmegaConfBaseException as error:
        raise SetupError(f"Error merging override {one.input_line}; --help all lists what can be set") from error
    except SLIPS as error:
        raise SetupError(f"{one.input_line}: Hydra cannot read this ({type(error).__name__}: {error})") from error


def _composed(own: Sequence[str], named: tuple[str, ...]) -> tuple[DictConfig, dict[str, Any]]:
    """Return the config that Hydra composes from choices, and the choice of each group; its errors become SetupError.

    Composing takes a tenth of a second, and cells of a sweep often differ only in values, so the same choices of the
    same files are composed once and copied.
    """
    files = (file for place in folders(named) for file in place.rglob("*.yaml"))
    stamps = tuple((str(file), stat.st_mtime_ns, stat.st_size) for file in files for stat in (file.stat(),))
    cfg, choices = _composed_once(tuple(own), named, stamps)
    return copy.deepcopy(cfg), dict(choices)


SLIPS = (AssertionError, ValueError, TypeError, AttributeError, RecursionError)
"""Errors that Hydra and OmegaConf raise by accident, besides their own."""


@functools.lru_cache(maxsize=64)
def _composed_once(
    own: tuple[str, ...], named: tuple[str, ...], stamps: tuple[tuple[str, int, int], ...]
) -> tuple[DictConfig, dict[str, Any]]:
    """Compose without a copy. stamps: the times of the YAML files, which may be edited while a notebook is open."""
    del stamps
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(folder()), version_base="1.3"):
            cfg = hydra_compose("config", overrides=[*_search_path(named), *own], return_hydra_config=True)
        choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
    except (HydraException, OmegaConfBaseException) as error:
        raise SetupError(
            f"{(str(error).splitlines() or [type(error).__name__])[0].rstrip('.')}; --help all lists what can be set"
        ) from error
    except SLIPS as error:
        raise SetupError(f"{' '.join(own)}: Hydra cannot read this ({type(error).__name__}: {error})") from error
    with open_dict(cfg):
        del cfg["hydra"]
    assert isinstance(choices, dict)
    return cfg, {str(key): value for key, value in choices.items() if not str(key).startswith("hydra/")}


@functools.lru_cache(maxsize=64)
def _reference(
    own: tuple[str, ...], theirs: tuple[tuple[str, str], ...], named: tuple[str, ...], read: tuple[Path, ...]
) -> DictConfig:
    """Compose the same choices without an experiment and without set values: the keys of this config are allowed.

    own: choices of the command line. theirs: choices of the experiment or by default, by group. read: the folders of
    YAML files.
    """
    del read
    cfg, usual = _composed(own, named)
    usual |= {group: f"[{','.join(listed)}]" for group, listed in defaults().items() if isinstance(listed, ListConfig)}
    more: list[str] = []
    for nested in (False, True):  # a place inside a choice exists only after the choice
        due = [(key, value) for key, value in theirs if key in usual and ("@" in key) <= nested and value != "None"]
        due = [(key, value) for key, value in due if str(usual[key]) != value]
        if due:
            more += [f"{key}={value}" for key, value in due]
            cfg, found = _composed([*own, *more], named)
            usual |= found | dict(due)
    return cfg


def _wrong_defaults(one: Override, available: Mapping[str, Sequence[str]], named: tuple[str, ...]) -> Iterator[str]:
    """Yield errors in the `defaults` of a plug-in's or user's YAML file that an override chooses."""
    key = one.key_or_group
    if key not in available or one.is_sweep_override():
        return
    value = one.value()
    for choice in value if isinstance(value, list) else [value]:
        for file in [place / key / f"{choice}.yaml" for place in folders(named)[1:]]:
            if file.is_file():
                yield from (f"{key}={choice}: {problem}" for problem in _wrong_entries(file, key, available))


def _wrong_entries(file: Path, group: str, available: Mapping[str, Sequence[str]]) -> Iterator[str]:
    listed = OmegaConf.to_container(OmegaConf.load(file))
    entries = listed.get("defaults", []) if isinstance(listed, dict) else []
    for entry in entries if isinstance(entries, list) else [entries]:
        pairs = entry.items() if isinstance(entry, dict) else [(group, entry)]
        for name, chosen in pairs:
            words = str(name).split()
            of = words[-1].partition("@")[0].lstrip("/")
            if not isinstance(entry, dict) and str(entry).startswith("/"):
                of, _, chosen = str(entry).lstrip("/").partition("/")
            if entry == "_self_":
                continue
            if of not in available:
                yield f"its defaults name the group {of}{near(of, list(available))} Allowed: {', '.join(available)}"
                continue
            for given in chosen if isinstance(chosen, list) else [] if chosen is None else [chosen]:
                stem = str(given).partition("@")[0]
                if stem not in available[of]:
                    hint = near(stem, available[of])
                    yield (f"its defaults name {of}={stem}: there is no such {of}{hint} "
                           f"Allowed: {', '.join(available[of])}")  # fmt: skip


def _named(parsed: Sequence[Override]) -> tuple[str, ...]:
    """Return the folders of YAML files that a command line names. Raises SetupError for one that does not exist."""
    given = [one.value() for one in parsed if one.key_or_group == NAMED]
    found = []
    for place in given[-1] if given and isinstance(given[-1], list) else given[-1:]:
        if not str(place or "").strip():
            raise SetupError(f"{NAMED}= has no value; write {NAMED}=[FOLDER], laid out as conf/ is, or leave it out")
        path = Path(str(place).removeprefix("file://"))
        if not path.is_dir():
            raise SetupError(f"{NAMED}={place}: no such folder; write {NAMED}=[FOLDER], laid out as conf/ is")
        found.append(str(path.resolve()))
    return tuple(dict.fromkeys(found))


def _search_path(named: Sequence[str] = ()) -> list[str]:
    """Return the override that makes Hydra look into the plug-ins' folders too, after this project's."""
    places = [QuotedString(f"file://{one}", Quote.single).with_quotes() for one in folders(named)[1:]]
    return [f"{NAMED}=[{','.join(places)}]"] if places else []


EMPTY = re.compile(r"\+*tuning\.constraints=\{\s*\}")


def _refused(one: Override, available: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield what is wrong with an override that chooses, deletes, or sets an option of Hydra itself."""
    key, line = one.key_or_group, one.input_line
    if EMPTY.fullmatch(str(line)):
        yield f"{line}: an empty mapping takes no bound away; set each to null, as in tuning.constraints.NAME=null"
    elif one.is_delete():
        yield (
            f"{line}: ~ (deleting a key) is not supported; choose another value, list what you want as in suite=[rtp], "
            "or set null"
        )
    elif key.partition(".")[0].partition("/")[0] == "hydra" and key != NAMED:
        yield f"unknown key {key}. Of Hydra's own options {NAMED}=[FOLDER] alone is known here; leave it out"
    elif (first := key.partition(".")[0]) in KEYS:
        yield f"{line}: {first} {IN_A_FILE}"
    elif first not in top_keys() and key != NAMED:
        yield f"unknown key {key}{near(first, top_keys())} Allowed: {', '.join(top_keys())}"
    elif key in available and not one.is_sweep_override():
        allowed, value = available[key], one.value()
        given = value if isinstance(value, list) else [value]
        unknown = [choice for choice in given if choice not in allowed]
        for choice in unknown:
            hint = near(str(choice), allowed)
            more = ". Any other model of the hub: model=hub model.id=ORG/NAME model.revision=COMMIT"
            told = f"there is no such {key}{hint} Allowed: {', '.join(allowed)}{more if key == 'model' else ''}"
            yield f"{key}={shown(choice)}: {told}"
        listed = isinstance(defaults()[key], ListConfig)
        if not unknown and (not given or (isinstance(value, list) and not listed)):
            usual = list(defaults()[key])[:1] if listed else []  # works as it is, unlike one that needs a file
            names = ",".join(map(str, given or usual or allowed[:1]))
            wanted = (
                f"the list is empty; name at least one, for example {key}=[{names}]"
                if listed
                else f"expected one choice, {key}={names.partition(',')[0]}"
            )
            yield f"{line}: {wanted}. Allowed: {', '.join(allowed)}"


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Return the settings as plain values with interpolations resolved; a missing value is "???"."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


def jobs(arguments: Sequence[str], multirun: bool) -> list[list[str]]:
    """Return the overrides of each cell that a command line asks for, including the `sweep` lines of an experiment.

    With sweep=null those lines are left out. A line of add=[...] is one more line of the sweep, and its settings take
    precedence over the rest of the command line. Raises SetupError for a sweep without `-m`, and for more than one
    experiment.
    """
    settings, added = without_added(arguments)
    own = parse(settings)
    without_sweep = any(map(_is_without_sweep, own))
    own = [one for one in own if not _is_without_sweep(one)]
    available = groups(_named(own))
    expanded = [_expanded(one, available) for one in own]
    for one in own:
        twice = [other for other in own if other.get_key_element() == one.get_key_element()]
        if len(twice) > 1 and any(map(Override.is_sweep_override, twice)):
            told = " and ".join(str(other.input_line) for other in twice)
            raise SetupError(f"{told}: {one.key_or_group} is swept and set once more; name all its values in one list")
    if any(o.key_or_group == "experiment" and o.is_sweep_override() for o in own):
        raise SetupError(
            "experiment=a,b is refused: each experiment has its own sweep; run one experiment after the other"
        )
    if any(o.is_sweep_override() for o in own) and not multirun:
        first = next(o for o in own if o.is_sweep_override())
        swept = first.input_line
        key, _, words = str(swept).partition("=")
        if key in LISTS and re.fullmatch(r"\w+(,\w+)+", words):
            raise SetupError(f"{swept}: write {key}=[{words}] for all of them in one cell, or add -m for a cell each")
        told = f"{swept!r} is a sweep over several values; add -m: python -m bench -m {' '.join(map(typed, arguments))}"
        shell = None if re.search(r"=\w+\s*\(", str(swept)) else quoted(str(swept))
        raise SetupError(f"{told}. Where the comma is part of the value: {shell}" if shell else told)
    own, lines = expanded, list[str]()
    if not without_sweep and any(o.key_or_group == "experiment" for o in own):
        lines = list(
            _compared(next(product(own))).experiment.sweep
        )  # a line chooses a method; its keys are checked then
    result = []
    for line in lines or [""]:
        mine = {o.get_key_element() for o in own}  # what the command line says goes before the experiment's line
        theirs = [_expanded(o, available) for o in _parse_line(line) if o.get_key_element() not in mine]
        result += list(product([*theirs, *own]))
    for line in added:
        theirs = [_expanded(o, available) for o in _parse_line(line)]
        taken = {o.get_key_element() for o in theirs}
        result += list(product([*theirs, *(o for o in own if o.get_key_element() not in taken)]))
    return [list(job) for job in dict.fromkeys(map(tuple, result))]


def _is_without_sweep(one: Override) -> bool:
    """Return whether an override says that the lines of an experiment's sweep are left out."""
    return one.key_or_group == "sweep" and one.value() is None and not one.is_delete()


def _expanded(one: Override, available: Mapping[str, Sequence[str]]) -> Override:
    """Return the override with a glob(...) replaced by the list of its choices; any other override is unchanged.

    Raises SetupError for a glob that fits no choice or belongs to an option, and for an interval(...).
    """
    value, key = one.value(), one.key_or_group
    if isinstance(value, IntervalSweep):
        raise SetupError(
            f"{one.input_line!r} names no values, since only optimisers draw from an interval; list values, as in "
            f"-m {key}=VALUE,VALUE; strength=auto chooses a strength by itself"
        )
    if not isinstance(value, Glob):
        return one
    if key not in available:
        raise SetupError(
            f"{one.input_line!r} names no values; list them, as in -m {key}=a,b; glob(...) chooses files of a group"
        )
    names = value.filter(list(available[key]))
    if not names:
        excluded = Glob(include=value.include).filter(list(available[key]))
        why = "exclude takes all of them away, so none is left" if excluded else f"no {key} is named like that"
        raise SetupError(f"{one.input_line}: {why}. Allowed: {', '.join(available[key])}")
    listed = isinstance(defaults()[key], ListConfig)
    return parse([f"{one.get_key_element()}={','.join(f'[{name}]' if listed else name for name in names)}"])[0]


def _parse_line(line: str) -> list[Override]:
    """Parse the overrides in a line of a sweep, separated by blanks outside quotes.

    Raises SetupError for an override that a line must not hold.
    """
    found = parse(re.findall(r"""(?:"[^"]*"|'[^']*'|\S)+""", line))
    for one in found:
        if one.key_or_group in ("experiment", NAMED):
            raise SetupError(
                f"{one.input_line} in a line of a sweep: it concerns the whole command, not single cells; remove it "
                "from the line"
            )
    return found


def as_yaml(cells: Sequence[DictConfig], resolved: bool = True) -> str:
    """Return the configs as YAML, with interpolations resolved or as they are written.

    The YAML is in ASCII if a text in it is invisible or cannot be printed.
    """
    text = "---\n".join(OmegaConf.to_yaml(cfg, resolve=resolved) for cfg in cells)
    encoding = sys.stdout.encoding or "utf-8"
    if not HIDDEN.search(text.replace("\n", "")) and text.encode(encoding, "replace").decode(encoding) == text:
        return text
    return "---\n".join(yaml.safe_dump(OmegaConf.to_container(cfg, resolve=resolved), sort_keys=False) for cfg in cells)
