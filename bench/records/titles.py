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
    """A method's title, or its name in the config without one; cite: an arXiv id, or ""; attack: whether it attacks."""

    title: str
    cite: str = ""
    attack: bool = False


def of_method(method: MethodFacts) -> Titled:
    """Return the title, paper and kind of a record's method; for a control, those of the method that it belongs to."""
    name = method.name.removesuffix(CONTROL) if method.control else method.name
    found = by_name(name, method.class_path)
    return found._replace(attack=found.attack or method.family == ATTACK)


def by_name(name: str, class_path: str | None = None) -> Titled:
    """Return what `of_method` does, by name. class_path: of a plug-in's method, whose name one of ours may share."""
    told = _class(class_path) if class_path else _ours(name)
    title, cite = told.get("title"), told.get("cite")
    return Titled(
        title if isinstance(title, str) and title else name,
        cite if isinstance(cite, str) else "",
        told.get("attack") is True,
    )


def title(method: str) -> str:
    """Return the title of a method or of its control; the name itself if no installed package has a title for it."""
    name = method.removesuffix(CONTROL)
    return str(_ours(name).get("title") or theirs().get(name, name)) + (CONTROL if name != method else "")


def called(methods: Iterable[str]) -> dict[str, str]:
    """Map the name of each of these methods to its title; to the name itself if two of them share the title."""
    found = {name: title(name) for name in methods}
    of = Counter(found.values())
    return {name: one if of[one] == 1 else name for name, one in found.items()}


def with_names(methods: Iterable[str]) -> dict[str, str]:
    """Map each of these names to the method's title, with the name in brackets if they differ in more than capitals.

    A title that ends in brackets takes the name into them: "DeTox (ProFS; detox)". A control's text ends in " control".
    """
    return {name: _with_name(name.removesuffix(CONTROL)) + name[len(name.removesuffix(CONTROL)) :] for name in methods}


def _with_name(method: str) -> str:
    its_title = title(method)
    if its_title.lower() == method.lower():
        return its_title
    return f"{its_title[:-1]}; {method})" if its_title.endswith(")") else f"{its_title} ({method})"


@functools.cache
def theirs() -> dict[str, str]:
    """Map names to titles, for each method of the plug-ins that has a title."""
    packages = sorted({entry.value.partition(".")[0] for entry in entry_points(group=PLUGINS)})
    texts = (path.read_text(encoding="utf-8", errors="replace") for package in packages for path in sources(package))
    return {name: one for text in texts if MARK in text for name, one in in_source(text)}


def sources(package: str) -> list[Path]:
    """Find the Python files of a package or a single module, without importing it; none if it is not installed."""
    file = _file(package)
    if file is None:
        return []
    return sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]


def in_source(text: str) -> Iterator[tuple[str, str]]:
    """Yield name and title of each class that states both as plain strings."""
    for one in _classes(text).values():
        name, its_title = one.get("name"), one.get("title")
        if isinstance(name, str) and isinstance(its_title, str) and name and its_title:
            yield name, its_title


@functools.cache
def _ours(name: str) -> dict[str, object]:
    """Return the class variables of a method of this project; empty if there is no method with this name."""
    said = f'"{name}"'  # only files that say the name are parsed, since parsing all of them takes .15 s
    classes = (one for text in _texts() if said in text for one in _classes(text).values())
    return next((one for one in classes if one.get("name") == name), {})


@functools.cache
def _texts() -> list[str]:
    """Return the sources of this project's methods."""
    folder = _folder("methods")
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py"))] if folder else []


@functools.cache
def _class(path: str) -> dict[str, object]:
    """Return the class variables of `package.module.Class`; empty if the package or the class is missing."""
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
    """Find the folder of a package without importing it; None for a module of one file, and if it is not installed."""
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
    """Map each class to its variables with plain values; empty if the text is not valid Python."""
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
