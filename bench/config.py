"""From a command line to validated configs, before anything heavy is loaded; all errors at once.

Hydra refuses an unknown key unless it is written with `+`; here `+` is no way round: the keys that the YAML files list
are the allowed ones, at every depth. So are the choices of each group, and the classes that a `_target_` names.
"""

import functools
import itertools
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from bench import config_checks, plugins
from bench.escape import HIDDEN
from bench.values import mistakes, near, shown
from methods.errors import SetupError

NAMED = "hydra.searchpath"
"""The override by which a command line names folders of YAML files; the config keeps them under FOLDERS."""
FOLDERS = "searchpath"
MOST = 10_000  # values that one argument sweeps over
LONGEST = 500  # letters of an argument that is shown whole
SPECIAL = re.compile(r"_\w+_")
"""Keys of the kind that Hydra gives a meaning of its own, of which only `_target_` is known here."""
UNREADABLE = (HydraException, ValueError, TypeError, AttributeError, RecursionError)
"""Errors by which Hydra's parser refuses an argument."""
WRITE = "write key=value, for example method=caa suite.rtp.k=5; see --help"
FLAGS = {
    ("--cfg", "-c"): "--cfg job behind python -m bench prints the config of every cell and runs nothing",
    ("--resolve",): "it belongs to --cfg job, which resolves anyway; leave it out",
    ("--package", "-p"): "a part of a config is not printed; --cfg job prints all of it",
    ("--info", "-i"): "--help lists every option here, and --cfg job prints the config of every cell",
    ("--hydra-help",): "Hydra's own options are not known here; --help lists those that are",
    ("--version",): "the version is told by python -m pip show steerbench",
    ("--run", "-r"): "a command runs anyway; leave it out",
    ("--experimental-rerun",): "the same command again computes what is missing; leave it out",
    ("--config-name", "-cn"): f"a config of your own is an experiment: {NAMED}=[FOLDER] experiment=NAME",
    ("--config-path", "-cp", "--config-dir", "-cd"): f"write {NAMED}=[FOLDER], laid out as conf/ is",
    ("--shell-completion", "-sc"): "there is none here; --help lists every option",
}
"""Options of Hydra's own launcher, by their names, and what there is in their place."""


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

    Its keys are known; whether its values are sound, `validate` says. What an experiment sets of a suite or scorer that
    the command line leaves out, suite=[rtp], is left out with it.
    """
    cfg, reference, added, named = _compared(overrides)
    if problems := config_checks.unknown_keys(cfg, reference(), added):
        raise SetupError("\n".join(problems))
    if named:
        with open_dict(cfg):
            cfg[FOLDERS] = list(named)
    return cfg


def _compared(overrides: Sequence[str]) -> tuple[DictConfig, Callable[[], DictConfig], list[str], tuple[str, ...]]:
    """A config, what makes its reference (`_reference`), where choices were added, the folders that a user names."""
    parsed = _parse(overrides)
    named = _named(parsed)
    available = groups(named)
    problems = [problem for one in parsed for problem in _refused(one, available)]
    chosen = [one.key_or_group for one in parsed if not one.is_add() and one.package is None]
    problems += [f"{key} is chosen twice; name it once" for key in available if chosen.count(key) > 1]
    problems += [problem for one in parsed for problem in _wrong_defaults(one, available, named)]
    if problems:
        raise SetupError("\n".join(problems))
    cfg, choices = _composed(_forced(parsed, available), named)
    check_targets(OmegaConf.to_container(cfg), targets(named))
    with open_dict(cfg):
        for group in ("suite", "scorer"):
            held: Any = cfg._get_node(group)
            for name in list(held) if isinstance(held, DictConfig) else ():
                if name in available[group] and not config_checks.is_built(held._get_node(name)):
                    del held[name]
    lists = {group: list(cfg[group]) for group in ("suite", "scorer") if isinstance(cfg._get_node(group), DictConfig)}
    lists = {group: [name for name in names if name in available[group]] for group, names in lists.items()}
    kept = [one for one in parsed if one.key_or_group in available and one.key_or_group not in ("experiment", *lists)]
    own = tuple(str(one.input_line) for one in kept if one.package is None or not (one.is_add() or one.is_force_add()))
    mine = {one.key_or_group for one in kept if one.package is None}
    theirs = tuple((key, str(value)) for key, value in choices.items() if key not in (*mine, "experiment"))
    theirs += tuple((group, f"[{','.join(names)}]") for group, names in lists.items())
    added = [str(one.package) for one in parsed if one.is_add() or one.is_force_add() if one.package is not None]
    return cfg, lambda: _reference(own, theirs, named, tuple(folders(named))), added, named


def _forced(parsed: Sequence[Override], available: Mapping[str, Sequence[str]]) -> list[str]:
    """The overrides for Hydra, each value with `++`: what may be set is compared with the YAML files afterwards."""
    lines = [(one, str(one.input_line)) for one in parsed if one.key_or_group != NAMED]
    choice = {id(one) for one, _ in lines if one.key_or_group in available or one.package is not None}
    return [line if id(one) in choice else f"++{line.lstrip('+')}" for one, line in lines]


def _composed(own: Sequence[str], named: tuple[str, ...]) -> tuple[DictConfig, dict[str, Any]]:
    """What Hydra makes of overrides, and the choice of each group. Raises SetupError in our words."""
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(folder()), version_base="1.3"):
            cfg = hydra_compose("config", overrides=[*_search_path(named), *own], return_hydra_config=True)
        choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
    except (HydraException, OmegaConfBaseException) as error:
        raise SetupError(
            f"{(str(error).splitlines() or [type(error).__name__])[0].rstrip('.')}; --help lists what can be set"
        ) from error
    except (AssertionError, ValueError, TypeError, AttributeError, RecursionError) as error:  # Hydra's own slips
        raise SetupError(f"{' '.join(own)}: Hydra cannot read this ({type(error).__name__}: {error})") from error
    with open_dict(cfg):
        del cfg["hydra"]
    assert isinstance(choices, dict)
    return cfg, {str(key): value for key, value in choices.items() if not str(key).startswith("hydra/")}


@functools.lru_cache(maxsize=64)
def _reference(
    own: tuple[str, ...], theirs: tuple[tuple[str, str], ...], named: tuple[str, ...], read: tuple[Path, ...]
) -> DictConfig:
    """The config of the same choices without an experiment and without any value: its keys are the allowed ones.

    own: choices of the command line. theirs: of the experiment or by default, by group. read: the folders of YAML.
    """
    del read
    cfg, usual = _composed(own, named)
    usual |= {group: f"[{','.join(listed)}]" for group, listed in _defaults().items() if isinstance(listed, ListConfig)}
    more: list[str] = []
    for nested in (False, True):  # the places inside a choice are there once it is chosen
        due = [(key, value) for key, value in theirs if key in usual and ("@" in key) <= nested and value != "None"]
        due = [(key, value) for key, value in due if str(usual[key]) != value]
        if due:
            more += [f"{key}={value}" for key, value in due]
            cfg, found = _composed([*own, *more], named)
            usual |= found | dict(due)
    return cfg


def _wrong_defaults(one: Override, available: Mapping[str, Sequence[str]], named: tuple[str, ...]) -> Iterator[str]:
    """What is wrong with the `defaults` of a YAML file that an override chooses, of a plug-in or of a user."""
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
        yield f"unknown key {key}. Of Hydra's own options {NAMED}=[FOLDER] alone is known here; leave it out"
    elif key.partition(".")[0] not in _top() and key != NAMED:
        first = key.partition(".")[0]
        yield f"unknown key {key}{near(first, _top())} Allowed: {', '.join(_top())}"
    elif key in available and not one.is_sweep_override():
        allowed, value = available[key], one.value()
        given = value if isinstance(value, list) else [value]
        unknown = [choice for choice in given if choice not in allowed]
        for choice in unknown:
            hint = near(str(choice), allowed)
            yield f"{key}={shown(choice)}: there is no such {key}{hint} Allowed: {', '.join(allowed)}"
        listed = isinstance(_defaults()[key], ListConfig)
        if not unknown and (not given or (isinstance(value, list) and not listed)):
            names = ",".join(map(str, given or allowed[:1]))
            wanted = (
                f"a list is wanted, {key}=[{names}]"
                if listed
                else f"one choice is wanted, {key}={names.partition(',')[0]}"
            )
            yield f"{line}: {wanted}. Allowed: {', '.join(allowed)}"


@functools.cache
def _defaults() -> dict[str, Any]:
    """The choice of each group where the command line makes none: a list where there may be several, or None."""
    listed: Any = OmegaConf.load(folder() / "config.yaml")
    entries = [entry for entry in listed["defaults"] if isinstance(entry, DictConfig)]
    return {str(key): value for entry in entries for key, value in entry.items()}


@functools.cache
def _top() -> tuple[str, ...]:
    """The keys of a whole config: groups, and options of every cell."""
    listed: Any = OmegaConf.load(folder() / "config.yaml")
    return (*groups(), *(str(key) for key in listed if key != "defaults"))


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
    for one in own:
        if isinstance(one.value(), Glob | IntervalSweep):
            raise SetupError(f"{one.input_line!r} names no values; list them: -m {one.key_or_group}=a,b")
    if any(o.key_or_group == "experiment" and o.is_sweep_override() for o in own):
        raise SetupError(
            "experiment=a,b is refused: each experiment brings a sweep of its own; run one after the other"
        )
    if any(o.is_sweep_override() for o in own) and not multirun:
        swept = next(o.input_line for o in own if o.is_sweep_override())
        told = (
            f"{swept!r} is a sweep over several values; add -m: python -m bench -m {' '.join(map(_typed, arguments))}"
        )
        quoted = None if re.search(r"=\w+\s*\(", str(swept)) else _quoted(str(swept))
        raise SetupError(f"{told}. Where the comma is part of the value: {quoted}" if quoted else told)
    lines = _sweep(_compared(next(_product(own)))[0])  # each line chooses a method, whose keys are then checked
    result = []
    for line in lines or [""]:
        mine = {o.get_key_element() for o in own}  # what the command line says goes before the experiment's line
        theirs = [o for o in _parse_line(line) if o.get_key_element() not in mine]
        result += list(_product([*theirs, *own]))
    return [list(job) for job in dict.fromkeys(map(tuple, result))]


def _sweep(cfg: DictConfig) -> list[str]:
    """The lines of an experiment's sweep. Raises SetupError for what is no list of text."""
    try:
        lines: Any = OmegaConf.to_container(OmegaConf.create({"lines": cfg.sweep}), resolve=True)
    except OmegaConfBaseException as error:
        raise SetupError(f"sweep does not resolve: {str(error).splitlines()[0]}") from error
    if wrong := [told for _, told in mistakes("sweep", lines["lines"], Sequence[str])]:
        raise SetupError("\n".join(f"{told}, such as 'method=caa strength=1,2'" for told in wrong))
    return list(lines["lines"])


def _parse_line(line: str) -> list[Override]:
    """The overrides of a line of a sweep. Raises SetupError for one that a line cannot hold."""
    found = _parse(line.split())
    for one in found:
        if one.key_or_group in ("experiment", NAMED):
            raise SetupError(
                f"{one.input_line} in a line of a sweep: an experiment's own file says what it is; remove it"
            )
        if isinstance(one.value(), Glob | IntervalSweep):
            raise SetupError(
                f"{one.input_line!r} in a line of a sweep names no values; list them: {one.key_or_group}=a,b"
            )
    return found


def _parse(arguments: Sequence[str]) -> list[Override]:
    """Raises SetupError for each argument that is no override, with the way to write it where there is one."""
    found, problems, left = list[Override](), list[str](), list(arguments)
    while left:
        argument = left.pop(0)
        if argument.startswith("-"):
            word = bool(left) and bool(left[0]) and not left[0].startswith("-") and "=" not in left[0]
            problems.append(_no_flag(argument, left.pop(0) if word else ""))
        elif argument.lstrip("+~").startswith(("=", "@")):
            problems.append(f"{_told(argument)}: there is no key before the equals sign; {WRITE}")
        else:
            try:
                found += OverridesParser.create().parse_overrides([argument])
                found[-1].value()  # what a word such as range(...) comes to
            except UNREADABLE:
                problems.append(_unreadable(argument))
    if problems:
        raise SetupError("\n".join(problems))
    return found


def _no_flag(flag: str, word: str) -> str:
    """What to do instead of an argument that begins with a dash; word: what follows it and may belong to it."""
    told = f"{_told(flag)}{f' {_told(word)}' if word else ''}"
    name, _, value = flag.partition("=")
    value = value or word or "VALUE"
    if instead := next((text for names, text in FLAGS.items() if name in names), None):
        return f"{told}: {instead}"
    plain = name.lstrip("-")
    if plain.partition(".")[0] in _top():
        return f"{told}: a key has no dash before it; write {_typed(f'{plain}={value}')}"
    hint = near(name, ["--multirun", "--help", "--cfg"])
    return f"{told}: there is no such option{f'; {WRITE}' if hint == '.' else hint}"


def _unreadable(argument: str) -> str:
    """What is wrong with an argument that Hydra cannot read."""
    key, equals, value = argument.partition("=")
    told, key = _told(argument), key.lstrip("+~")
    if not argument.strip():
        return f"{argument!r}: an argument is empty, as a variable of the shell without a value is; leave it out"
    if any("\ud800" <= one <= "\udfff" for one in argument):
        return f"{told}: it has bytes that are no UTF-8; give the file another name"
    if not equals and key.partition(".")[0] in _top():
        return f"{told}: it has no value; {WRITE}"
    several = re.split(r"[,\s]+(?=[+~]*[\w./@]+=)", argument)
    if len(several) > 1 and all(re.split(r"[=./@]", one.lstrip("+~"))[0] in _top() for one in several):
        return f"{told}: these are several arguments, with blanks between: {' '.join(map(_typed, several))}"
    if key in groups():
        names = "[NAME,NAME]" if isinstance(_defaults()[key], ListConfig) else "NAME"
        return f"{told}: cannot be read; write {key}={names}, of the names that --help lists"
    if quoted := _quoted(argument):
        quoted = quoted if len(quoted) <= LONGEST else f"'{_told(key)}=\"...\"', in both kinds of quotes"
        return f"{told}: the value has characters that need quotes of their own; write {quoted}"
    if value.startswith(("[", "{")):
        return f'{told}: cannot be read; texts with characters of that kind are in quotes, as in key=["a=b",c]'
    return f"{told}: cannot be read; {WRITE}"


def _told(argument: str) -> str:
    """An argument in one line of a message, cut where it is long."""
    return shown(argument).replace("\n", "\\n")


def _typed(argument: str) -> str:
    """An argument as it is typed in a shell; what cannot be seen is escaped, for bash and zsh."""
    if not HIDDEN.search(argument):
        return shlex.quote(argument)
    escaped = argument.replace("\\", "\\\\").replace("'", "\\'")
    return f"$'{HIDDEN.sub(_escape, escaped)}'"


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


ITEM = re.compile(r"""\s*("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^,]*?)\s*(?:,|$)""", re.DOTALL)


def _quoted(argument: str) -> str | None:
    """The argument with its value, or items of its list that need them, in quotes that Hydra and a shell understand."""
    key, equals, value = argument.partition("=")
    if not equals or not value.strip() or (value[0] == "{" and value[-1] == "}"):
        return None
    if len(value) > 2 and value[0] == "[" and value[-1] == "]":
        items = [one for one in ITEM.findall(value[1:-1]) if one]
        if any(one.count(left) != one.count(right) for one in items for left, right in ("[]", "{}")):
            return None  # lists in lists
        text = "[" + ",".join(one if _is_read(f"key={one}") else _in_quotes(one) for one in items) + "]"
    else:
        text = _in_quotes(value)
    line = f"{key}={text}"
    return _typed(line) if _is_read(line) else None


def _is_read(argument: str) -> bool:
    """Whether Hydra reads this argument, and as one value."""
    try:
        (found,) = OverridesParser.create().parse_overrides([argument])
    except UNREADABLE:
        return False
    return not found.is_sweep_override()


def _in_quotes(text: str) -> str:
    """A text in Hydra's quotes; those that it has around it are not part of it."""
    bare = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    return QuotedString(bare, Quote.double).with_quotes()


def _product(overrides: Sequence[Override]) -> Iterator[list[str]]:
    """Every combination of the swept values, as override strings."""
    choices = []
    for one in overrides:
        if one.is_sweep_override():
            values = list(itertools.islice(one.sweep_string_iterator(), MOST + 1))
            if len(values) > MOST:
                raise SetupError(f"{one.input_line!r} sweeps over more than {MOST} values; name fewer")
            choices.append([f"{one.get_key_element()}={value}" for value in values])
        else:
            assert one.input_line is not None
            choices.append([one.input_line])
    for combination in itertools.product(*choices):
        yield list(combination)


def without_cfg(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments without `--cfg job`, and whether it was among them. Raises SetupError for another word than job."""
    left, asked, rest = list[str](), False, iter(arguments)
    for argument in rest:
        name, equals, word = argument.partition("=")
        if name not in ("--cfg", "-c"):
            left.append(argument)
            continue
        word = word if equals else next(rest, "")
        if word != "job":
            got = f"{name}={_told(word)}" if equals else f"{name} {_told(word)}" if word and "=" not in word else name
            raise SetupError(f"{got}: write {name} job, which prints the config of every cell and runs nothing")
        asked = True
    return [one for one in left if not (asked and one == "--resolve")], asked


def as_yaml(cells: Sequence[DictConfig]) -> str:
    """The configs as YAML, interpolations resolved; in ASCII where a text in them cannot be seen, or not be printed."""
    text = "---\n".join(OmegaConf.to_yaml(cfg, resolve=True) for cfg in cells)
    encoding = sys.stdout.encoding or "utf-8"
    if not HIDDEN.search(text.replace("\n", "")) and text.encode(encoding, "replace").decode(encoding) == text:
        return text
    return "---\n".join(yaml.safe_dump(plain(cfg), sort_keys=False) for cfg in cells)


def validate(overrides: Sequence[str]) -> DictConfig:
    """The config of one cell. Raises SetupError that lists everything wrong with it."""
    cfg = compose(overrides)
    if problems := config_checks.problems(cfg):
        raise SetupError("\n".join(problems))
    return cfg


def validate_all(jobs: Sequence[Sequence[str]]) -> list[DictConfig]:
    """The config of each cell of one command. Raises SetupError as `validate`, and for what no cell of them has."""
    cells = [validate(job) for job in jobs]
    if problems := list(dict.fromkeys(config_checks.of_command(cells))):
        raise SetupError("\n".join(problems))
    return cells
