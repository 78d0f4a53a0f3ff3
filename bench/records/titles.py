"""The titles of methods, read from the source of their classes, so that no method and no torch is imported."""

import ast
import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from bench.records.fields import MethodFacts
from bench.records.names import CONTROL
from bench.records.provenance import PLUGINS

ATTACK = "attack"  # the family of a plug-in's attack
MARK = "title: ClassVar"  # files of plug-ins without it are not parsed


class Titled(NamedTuple):
    """title: the name in the config where the class has none. cite: an arXiv id, or "". attack: it is no defence."""

    title: str
    cite: str = ""
    attack: bool = False


def of_method(method: MethodFacts) -> Titled:
    """Title, paper and kind of the method of a record; of a control those of the method that it belongs to."""
    name = method.name.removesuffix(CONTROL) if method.control else method.name
    found = by_name(name, method.class_path)
    return found._replace(attack=found.attack or method.family == ATTACK)


def by_name(name: str, class_path: str | None = None) -> Titled:
    """The same by the method's name. class_path: of a plug-in's method, which may have the name of one of ours."""
    told = _class(class_path) if class_path else _ours().get(name, {})
    title, cite = told.get("title"), told.get("cite")
    return Titled(
        title if isinstance(title, str) and title else name,
        cite if isinstance(cite, str) else "",
        told.get("attack") is True,
    )


def title(method: str) -> str:
    """The title of a method or of its control; its own name where no installed package has a title for it."""
    name = method.removesuffix(CONTROL)
    return titles().get(name, name) + (CONTROL if name != method else "")


def called(methods: Iterable[str]) -> dict[str, str]:
    """Name -> title of each of these methods; a title that two of them have would not tell them apart."""
    found = {name: title(name) for name in methods}
    of = Counter(found.values())
    return {name: one if of[one] == 1 else name for name, one in found.items()}


@functools.cache
def titles() -> dict[str, str]:
    """Name -> title of each method of this project and of the plug-ins, where it has one."""
    packages = sorted({entry.value.partition(".")[0] for entry in entry_points(group=PLUGINS)})
    texts = (path.read_text(encoding="utf-8", errors="replace") for package in packages for path in sources(package))
    theirs = {name: one for text in texts if MARK in text for name, one in in_source(text)}
    ours = {name: str(one["title"]) for name, one in _ours().items() if one.get("title")}
    return theirs | ours


def sources(package: str) -> list[Path]:
    """The Python files of a package or a single module, without importing it; none if it is not installed."""
    file = _file(package)
    if file is None:
        return []
    return sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]


def in_source(text: str) -> Iterator[tuple[str, str]]:
    """Name and title of each class that states both as plain strings."""
    for one in _classes(text).values():
        name, its_title = one.get("name"), one.get("title")
        if isinstance(name, str) and isinstance(its_title, str) and name and its_title:
            yield name, its_title


@functools.cache
def _ours() -> dict[str, dict[str, object]]:
    """The class variables of each method of this project, by its name."""
    folder = _folder("methods")
    classes = [one for path in sorted(folder.glob("*.py")) for one in _in_file(path).values()] if folder else []
    return {str(one["name"]): one for one in classes if one.get("name")}


@functools.cache
def _class(path: str) -> dict[str, object]:
    """The class variables of `package.module.Class`; empty where the package is not installed or has no such class."""
    module, _, name = path.rpartition(".")
    package, *inside = module.split(".")
    folder = _folder(package)
    if folder is None or not inside:
        file = folder / "__init__.py" if folder else _file(package)
    else:
        file = folder.joinpath(*inside[:-1], f"{inside[-1]}.py")
        file = file if file.is_file() else folder.joinpath(*inside, "__init__.py")
    return _in_file(file).get(name, {}) if file and file.is_file() else {}


def _folder(package: str) -> Path | None:
    """Where a package is; None for a module of one file and for what is not installed. Nothing is imported."""
    file = _file(package)
    return file.parent if file and file.name == "__init__.py" else None


def _file(package: str) -> Path | None:
    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin else None


def _in_file(path: Path) -> dict[str, dict[str, object]]:
    try:
        return _classes(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _classes(text: str) -> dict[str, dict[str, object]]:
    """Class -> its variables that have a plain value; no class where Python cannot read the text."""
    try:
        tree = ast.parse(text)
    except (ValueError, SyntaxError):
        return {}
    return {node.name: _constants(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def _constants(node: ast.ClassDef) -> dict[str, object]:
    found: dict[str, object] = {}
    for line in node.body:
        targets = (
            [line.target] if isinstance(line, ast.AnnAssign) else line.targets if isinstance(line, ast.Assign) else []
        )
        value = getattr(line, "value", None)
        if isinstance(value, ast.Constant):
            found |= {one.id: value.value for one in targets if isinstance(one, ast.Name)}
    return found
