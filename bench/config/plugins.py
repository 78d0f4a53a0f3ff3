"""Packages that bring methods, suites, scorers, models and more of their own, as Python plus YAML.

Such a package has a conf/ folder laid out as this project's, and names itself in its pyproject.toml:

    [project.entry-points.steerbench]
    mine = "my_package"

Then my_package/conf is read; if the value names a module, as "my_package.steering", the conf/ beside the module's file
is read. Nothing of the package is imported before a cell needs its classes.
"""

import functools
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from bench.config import old_spellings
from bench.console.command import nearest
from bench.console.escape import visible
from bench.records.provenance import PLUGINS
from methods.errors import SetupError

PACKAGE = {"suite": "suite.{}", "scorer": "scorer.{}", "experiment": "_global_"}  # what `# @package` has to say


class Plugin(NamedTuple):
    """A package that brings YAML files. owner: name and version of the distribution. conf: its folder of YAML files."""

    owner: str
    conf: Path


def installed(own: Path, named: tuple[str, ...] = ()) -> tuple[Plugin, ...]:
    """Return the plug-ins that can be used; print a line on stderr for each one that cannot, once per process.

    own: this project's conf folder, whose groups are the allowed groups. named: folders that a user names for this run,
    which are read like plug-ins.

    Raises:
        SetupError: two packages have a file for the same choice, so one file would silently not be read; or a folder
            in `named` is not laid out as conf/ is.
    """
    found = _installed(own, tuple(sys.path))
    if not named:
        return found
    mine = [Plugin("named for this run", old_spellings.folder(Path(place))) for place in named]
    for plugin in mine:
        _check(plugin.conf, own)
    _check_clashes([Plugin("steerbench", own), *found, *mine])
    return (*found, *mine)


@functools.lru_cache(maxsize=1)
def _installed(own: Path, path: tuple[str, ...]) -> tuple[Plugin, ...]:
    """Find the plug-ins. `path` is sys.path, which decides which packages are found."""
    del path
    found: dict[Path, Plugin] = {}
    for entry in sorted(entry_points(group=PLUGINS), key=_owner):
        try:
            conf = old_spellings.folder(conf_folder(entry.value))
            _check(conf, own)
        except SetupError as error:
            print(visible(f"warning: plug-in {_owner(entry)} is left out: {error}"), file=sys.stderr)
        else:
            found.setdefault(conf, Plugin(_owner(entry), conf))
    _check_clashes([Plugin("steerbench", own), *found.values()])
    return tuple(found.values())


def _owner(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.name


def conf_folder(name: str) -> Path:
    """Return the conf folder in a package, or beside a module of a package. Raises SetupError if there is none."""
    spec = _spec(name)
    if spec is None:
        raise SetupError(f"its entry point names {name}, but no such package can be found")
    if spec.submodule_search_locations is not None:
        places = [Path(place) for place in spec.submodule_search_locations]
    elif "." in name and spec.origin:
        places = [Path(spec.origin).parent]
    else:
        raise SetupError(f"its entry point names {name}, a module outside a package; name a package that holds conf/")
    for place in places:
        if (place / "conf").is_dir():
            return (place / "conf").resolve()
    raise SetupError(f"there is no folder {places[0] / 'conf'}; does the package include its YAML files as data?")


def _spec(name: str) -> ModuleSpec | None:
    """Find a module without running it or the packages around it."""
    top, *rest = name.split(".")
    if not all(part.isidentifier() for part in (top, *rest)):
        return None
    spec = find_spec(top)
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations))  # a full name wants its parent loaded
    return spec


def _check(conf: Path, own: Path) -> None:
    """Raise SetupError for files that Hydra would not read, or would take for something else."""
    groups = sorted(group.name for group in own.iterdir() if group.is_dir())
    for file in sorted(conf.rglob("*.yaml")):
        group = file.relative_to(conf).parts[0]
        if group not in groups:
            near = nearest(group, groups)
            hint = f"did you mean conf/{near}? " if near else ""
            raise SetupError(f"{file} is in no group of steerbench; {hint}Groups: {', '.join(groups)}")
        try:
            text, loaded = file.read_text(encoding="utf-8"), OmegaConf.load(file)
        except (YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
            raise SetupError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
        if not isinstance(loaded, DictConfig):
            raise SetupError(f"{file} holds no `key: value` lines")
        if "hydra" in loaded and group != "launcher" and "# @package _global_" in map(str.rstrip, text.splitlines()):
            raise SetupError(
                f"{file} sets options of Hydra itself, which only a command line or a launcher's preset can; remove "
                "hydra: there. The cells of an experiment are the lines of its `sweep:`"
            )
        if group in PACKAGE:
            header = f"# @package {PACKAGE[group].format(file.stem)}"
            if header not in map(str.rstrip, text.splitlines()):
                raise SetupError(f"{file} lacks the line {header}, which tells Hydra where the settings belong; add it")


def _check_clashes(plugins: Sequence[Plugin]) -> None:
    """Raise SetupError for a choice that two packages have."""
    first: dict[Path, Plugin] = {}
    for plugin in plugins:
        for file in sorted(plugin.conf.rglob("*.yaml")):
            name = file.relative_to(plugin.conf)
            other = first.setdefault(name, plugin)
            if other is not plugin:
                raise SetupError(
                    f"{name.parent}={name.stem} is defined twice: in {other.conf / name} ({other.owner}) and in {file} "
                    f"({plugin.owner}); rename one of the files, or uninstall one of the packages"
                )
