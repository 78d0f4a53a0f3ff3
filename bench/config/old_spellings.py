"""Names of the version before this one, which still work, with a notice: the group `data` and moved classes.

No other module knows these names. The next version deletes this file and its two calls, in command_line.py and
plugins.py.
"""

import atexit
import functools
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from bench.console.escape import visible
from methods.errors import SetupError

OF_THE_RUN = {"mirror": None, "offline": False}
"""Options that every choice of data had, with their defaults; now of the group runtime."""
TUNING = {
    "objective": "objective.metric",
    "perplexity_ratio": "constraints.perplexity_ratio.at_most",
    "distinct_2_ratio": "constraints.distinct_2_ratio.at_least",
    "repetition_increase": "constraints.repetition_increase.at_most",
    "empty_share_increase": "constraints.empty_share_increase.at_most",
    "capability_drop": "constraints.capability_drop.at_most",
}
"""Options of tuning that held a metric of the suite rtp, or a bound."""
CLASSES = {
    "bench.data.ab.ABPairs": "bench.fit_data.caa_pairs.ABPairs",
    "bench.data.background.WikiSentences": "bench.fit_data.background.WikiSentences",
    "bench.data.contrast.OnPolicy": "bench.fit_data.on_policy_pairs.OnPolicy",
    **{
        f"bench.data.examples.{name}": f"bench.fit_data.fine_tuning.{name}"
        for name in ("HumanToxic", "Mixture", "OnPolicyToxic", "TaskAnswers")
    },
    **{
        f"bench.data.files.{name}": f"bench.fit_data.jsonl.{name}"
        for name in ("ExamplesFile", "PairsFile", "TextsFile")
    },
    "bench.sampling.Sampling": "bench.model.decoding.Sampling",
}
LAST = "the next version will refuse the old spelling"
POINTS_AT = re.compile(r"(\$\{(?:oc\.select:)?)(data\.\w+)")
"""A key in an interpolation."""
WHOLE = "# @package _global_"
"""Head of a file that sets keys of a whole config."""
MAY_BE_OLD = re.compile(rf"\b(data|{'|'.join(TUNING)})\b|{'|'.join(map(re.escape, CLASSES))}")


def arguments(given: Sequence[str]) -> list[str]:
    """Return the arguments with today's names; print a line on stderr for each old name, once per process.

    Raises SetupError if an option is given under both of its names, with different values.
    """
    own = dict(_halves(argument) for argument in given if _argument(argument) == argument)
    result = []
    for argument in given:
        today = _argument(argument)
        key, value = _halves(today)
        if today != argument and own.get(key, value) != value:
            raise SetupError(f"{argument} and {key}={own[key]} set the same option, whose new name is {key}; give one")
        if today != argument:
            _tell(f"{_shorter(argument, today)}; {LAST}")
        if today == argument or key not in own:
            result.append(today)
    return result


def _halves(argument: str) -> tuple[str, str]:
    key, _, value = argument.partition("=")
    return key.lstrip("+~"), value


def _shorter(old: str, new: str) -> str:
    """Describe the change from an old argument to the new one, without the value if it stays."""
    (key, value), (named, now) = _halves(old), _halves(new)
    return f"{key} is now {named}" if value == now and key != "data" else f"{key}={value} is now {named}={now}"


def _argument(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if not equals or (key.lstrip("+") == "tuning.objective" and value.startswith("{")):
        return argument
    bare = key.lstrip("+~")
    if bare == "data":
        value = re.sub(r"(?<![\w-])pairs(?![\w-])", "file", value)
    if "_target_" in argument:
        value = re.sub(r"[\w.]+", lambda found: CLASSES.get(found[0], found[0]), value)
    return f"{key[: len(key) - len(bare)]}{_key(bare)}={_text(value)}"


def _key(key: str) -> str:
    """Return today's name of an option or a group, by its name in either version."""
    group, dot, name = key.partition(".")
    if group == "tuning" and name in TUNING:
        return f"tuning.{TUNING[name]}"
    if group != "data":
        return key
    return f"runtime.{name}" if name in OF_THE_RUN else f"pairs{dot}{name}"


def _text(text: str) -> str:
    return POINTS_AT.sub(lambda found: found[1] + _key(found[2]), text)


@functools.cache
def _tell(what: str) -> None:
    print(visible(f"notice: {what}"), file=sys.stderr)


# -- YAML files --------------------------------------------------------------------------------------------------------


def folder(conf: Path) -> Path:
    """Return a plug-in's conf folder or, if its files hold old names, a copy with today's names.

    Prints a line on stderr for each change. Raises SetupError if a file sets an option under both of its names, with
    different values.
    """
    try:
        files = {file.relative_to(conf): file.read_text(encoding="utf-8") for file in sorted(conf.rglob("*.yaml"))}
    except (OSError, ValueError):  # reported by whoever reads it next
        return conf
    if not any(file.parts[0] == "data" or MAY_BE_OLD.search(text) for file, text in files.items()):
        return conf
    return _copy(conf, tuple(files.items()))


@functools.cache
def _copy(conf: Path, files: tuple[tuple[Path, str], ...]) -> Path:
    today: dict[Path, str] = {}
    for file, text in files:
        renamed = Path("pairs", *file.parts[1:]) if file.parts[0] == "data" else file
        if renamed in dict(files) and renamed != file:
            raise SetupError(f"{conf / file} and {conf / renamed}: conf/data is now conf/pairs; keep one of the files")
        today[renamed] = _file(conf / file, file.parts[0], text)
        if renamed != file:
            _tell(f"{conf / file}: conf/data is now conf/pairs; {LAST}")
    if today == dict(files):
        return conf
    place = Path(tempfile.mkdtemp(prefix="steerbench-conf-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    for file, text in today.items():
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_text(text, encoding="utf-8")
    return place


def _file(path: Path, group: str, text: str) -> str:
    """Return the text of a YAML file with today's names; unchanged if it has no old name."""
    try:
        loaded = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, OSError, ValueError):  # reported by whoever reads it next
        return text
    if not isinstance(loaded, DictConfig):
        return text
    head = [line for line in text.splitlines() if line.startswith("#")]
    before: Any = OmegaConf.to_container(loaded)
    told = [f"{old} is now {new}" for old, new in CLASSES.items() if f"_target_: {old}\n" in OmegaConf.to_yaml(loaded)]
    moved = _everywhere(before)
    settings = _settings(moved, group, WHOLE in map(str.rstrip, head), path)
    if _everywhere(before, classes={}) != before or settings != moved:
        told.insert(0, "data is now pairs, data=pairs pairs=file, data.mirror runtime.mirror, data.offline likewise")
    tuned = before if group == "tuning" else before.get("tuning") if isinstance(before.get("tuning"), dict) else {}
    if isinstance(tuned, dict) and (
        old := [name for name in tuned if name in TUNING and not isinstance(tuned[name], dict)]
    ):
        told += [f"tuning.{name} is now tuning.{TUNING[name]}" for name in old]
    if settings == before:
        return text
    if told:
        _tell(f"{path}: {', '.join(told)}; {LAST}")
    head = [re.sub(r"^# @package data\b", "# @package pairs", line) for line in head]
    return "\n".join([*head, OmegaConf.to_yaml(OmegaConf.create(settings))])


def _everywhere(value: Any, classes: Mapping[str, str] = CLASSES) -> Any:
    """Return plain values with today's names of classes, and of keys in interpolations."""
    if isinstance(value, dict):
        named = {key: classes.get(one, one) if key == "_target_" else one for key, one in value.items()}
        return {key: _everywhere(one, classes) for key, one in named.items()}
    if isinstance(value, list):
        return [_everywhere(one, classes) for one in value]
    return _text(value) if isinstance(value, str) else value


def _settings(settings: dict[Any, Any], group: str, whole: bool, path: Path) -> dict[Any, Any]:
    """Return a file's settings with today's keys. whole: it sets keys of a whole config, as an experiment does."""
    today = dict(settings)
    if isinstance(listed := today.get("defaults"), list):
        today["defaults"] = [_entry(one, group) for one in listed]
    if whole:
        if isinstance(lines := today.get("sweep"), list):
            today["sweep"] = [_line(one) if isinstance(one, str) else one for one in lines]
        if isinstance(figures := today.get("published"), list):
            today["published"] = [
                figure | {"options": _keys(figure["options"])}
                if isinstance(figure, dict) and "options" in figure
                else figure
                for figure in figures
            ]
        if "asks" in today:
            today["asks"] = _keys(today["asks"])
        if "data" in today:
            _pour(today, today.pop("data"), path)
        if isinstance(tuned := today.get("tuning"), dict):
            today["tuning"] = _tuning(tuned)
    elif group == "tuning":
        today = _tuning(today)
    elif group == "data":
        for name, default in OF_THE_RUN.items():
            if today.pop(name, default) != default:
                raise SetupError(f"{path}: {name} is now an option of runtime; set runtime.{name}=... in the command")
    return today


def _tuning(settings: dict[Any, Any]) -> dict[Any, Any]:
    """Return the options of tuning, with old ones moved to their places of today."""
    today: dict[Any, Any] = {}
    for name, value in settings.items():
        *above, last = TUNING.get(name, name).split(".") if not isinstance(value, dict) else [name]
        node = today
        for key in above:
            node = node.setdefault(key, {})
        node[last] = value
    return today


def _line(line: str) -> str:
    return re.sub(r"\S+", lambda word: _argument(word[0]), line)


def _keys(options: Any) -> Any:
    return {_key(str(key)): value for key, value in options.items()} if isinstance(options, dict) else options


def _entry(entry: Any, group: str) -> Any:
    """Return an entry of a file's `defaults` with today's names."""
    if isinstance(entry, dict):
        return dict(_default(str(name), chosen) for name, chosen in entry.items())
    if entry == "pairs" and group == "data":
        return "file"
    return {"/data/pairs": "/pairs/file"}.get(entry, re.sub(r"^/data/", "/pairs/", str(entry)))


def _default(name: str, chosen: Any) -> tuple[str, Any]:
    of = re.fullmatch(r"(.*?)(/?)data(@.*)?", name)
    if of is None or of[1] not in ("", "override ", "optional ", "optional override "):
        return name, chosen
    return f"{of[1]}{of[2]}pairs{of[3] or ''}", "file" if chosen == "pairs" else chosen


def _pour(today: dict[Any, Any], data: Any, path: Path) -> None:
    """Move a file's settings of `data` to their keys of today. Raises SetupError if such a key has another value."""
    if not isinstance(data, dict):
        today["pairs"] = data
        return
    for name, value in data.items():
        place = today.setdefault("runtime" if name in OF_THE_RUN else "pairs", {})
        if not isinstance(place, dict) or place.get(name, value) != value:
            raise SetupError(f"{path}: data.{name} is now {_key(f'data.{name}')}; set only the latter")
        place[name] = value
