"""The folders of YAML files: their groups, and the classes that they name."""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from bench.config import plugins
from methods.errors import SetupError

NAMED = "hydra.searchpath"
"""The override by which a command line names folders of YAML files; the config keeps them under FOLDERS."""
FOLDERS = "searchpath"
LAUNCHER = "launcher"
"""The folder of presets for launchers, which are not part of a cell (`bench.config.launch_arguments`)."""
SPECIAL = re.compile(r"_\w+_")
"""Keys of the form that Hydra reserves for itself; only `_target_` is supported here."""


def folder() -> Path:
    """Return the conf folder, which is inside an installed package, or beside the package in a checkout."""
    installed = Path(__file__).parents[1] / "conf"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "conf"


def folders(named: Sequence[str] = ()) -> list[Path]:
    """Return the conf folders: this project's, then those of plug-ins (bench/config/plugins.py), then the user's."""
    return [folder(), *(plugin.conf for plugin in plugins.installed(folder(), tuple(named)))]


def groups(named: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return each group of conf/ with its choices, including those of plug-ins and of the user's own folders."""
    return {
        group.name: sorted(file.stem for one in folders(named) for file in (one / group.name).glob("*.yaml"))
        for group in sorted(folder().iterdir())
        if group.is_dir() and not group.name.startswith("_") and group.name != LAUNCHER
    }


def targets(named: Sequence[str] = ()) -> frozenset[str]:
    """Return the paths of classes that may be built: each `_target_` in the YAML files of conf folders, verbatim."""
    return _targets(tuple(folders(named)))


@functools.lru_cache(maxsize=8)
def _targets(places: tuple[Path, ...]) -> frozenset[str]:
    files = [file for place in places for file in place.rglob("*.yaml")]
    nodes = (node for file in files for node in _mappings(_read(file)))
    return frozenset(str(node["_target_"]) for node in nodes if "_target_" in node)


def _read(file: Path) -> Any:
    """Return what a YAML file holds; None for a damaged one, which a command that chooses it reports."""
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None


def _mappings(value: Any) -> Iterator[Mapping[Any, Any]]:
    """Yield every mapping in plain values, at any depth, including the outermost."""
    if isinstance(value, Mapping):
        yield value
    if isinstance(value, Mapping | list):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from _mappings(one)


def check_targets(settings: Any, allowed: frozenset[str]) -> None:
    """Raise SetupError if the settings name, at any depth, a class that is not in `allowed` (`targets`).

    Nothing is imported for this.
    """
    for node in _mappings(settings):
        for key, value in node.items():
            if not isinstance(key, str) or not SPECIAL.fullmatch(key):
                continue
            if key != "_target_" or not isinstance(value, str) or value not in allowed:
                raise SetupError(
                    f"{key}: {value} is refused: only classes that a YAML file of conf/, or of an installed plug-in, "
                    "names with _target_ can be built; install yours as a plug-in"
                )


@functools.cache
def defaults() -> dict[str, Any]:
    """Return the default choice of each group: one name, a list if a group allows several, or None."""
    listed: Any = OmegaConf.load(folder() / "config.yaml")
    entries = [entry for entry in listed["defaults"] if isinstance(entry, DictConfig)]
    return {str(key): value for entry in entries for key, value in entry.items()}


@functools.cache
def top_keys() -> tuple[str, ...]:
    """Return the keys of a whole config: groups, and options of every cell."""
    listed: Any = OmegaConf.load(folder() / "config.yaml")
    return tuple(dict.fromkeys([*groups(), *(str(key) for key in listed if key != "defaults")]))
