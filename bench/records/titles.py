"""What methods are called in print, read off their source: importing a method would import torch."""

import ast
import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from bench.records.names import CONTROL
from bench.records.provenance import PLUGINS

MARK = "title: ClassVar"  # files without it are not parsed


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
    packages = ["methods", *sorted({entry.value.partition(".")[0] for entry in entry_points(group=PLUGINS)})]
    found: dict[str, str] = {}
    for package in packages:
        for path in sources(package):
            text = path.read_text(encoding="utf-8", errors="replace")
            if MARK in text:
                found = dict(in_source(text)) | found  # the first package wins
    return found


def sources(package: str) -> list[Path]:
    """The Python files of a package or of a single module, which is not imported; none where it is not there."""
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if spec and not folders and spec.origin:
        return [Path(spec.origin)]
    return sorted(path for folder in folders for path in Path(folder).rglob("*.py"))


def in_source(text: str) -> Iterator[tuple[str, str]]:
    """Name and title of each class that states both as plain strings."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            own = {
                one.target.id: one.value.value
                for one in node.body
                if isinstance(one, ast.AnnAssign)
                and isinstance(one.target, ast.Name)
                and isinstance(one.value, ast.Constant)
                and isinstance(one.value.value, str)
            }
            if own.get("name") and own.get("title"):
                yield own["name"], own["title"]
