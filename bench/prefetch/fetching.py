"""The parts that a command needs: its model, the scorers, the data of suites, and the data that methods learn from."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bench.config.compose import plain
from bench.files.digests import file_sha256
from bench.hub import manifest
from bench.run.cell import Cell
from bench.run.session import Session
from bench.scorers.base import Fetched
from methods.errors import SetupError

VERSION = 1  # of the manifest


class Step(NamedTuple):
    """One part, and the function that fetches it."""

    label: str
    work: Callable[[], object]


class Failed(NamedTuple):
    """A part that could not be fetched, and why."""

    label: str
    why: str


def steps(configs: Sequence[Any]) -> list[Step]:
    """Return the parts of all cells, each once. Raises SetupError for settings that a class refuses."""
    session = Session()
    found: dict[str, Step] = {}
    for cfg in configs:
        cell = Cell(cfg, session)
        for key, step in _of_cell(cell, plain(cfg)):
            found.setdefault(key, step)
    return list(found.values())


def _of_cell(cell: Cell, settings: dict[str, Any]) -> Iterator[tuple[str, Step]]:
    """Yield the parts of a cell, each with a key made from its settings."""

    def key(*parts: object) -> str:
        return json.dumps(parts, sort_keys=True, default=str)

    runtime, model = settings["runtime"], settings["model"]
    yield key("model", model), Step(f"model {model['name']}", cell.model.fetch_weights)
    for name, scorer in cell.parts.scorers.items():
        if isinstance(scorer, Fetched):
            yield key("scorer", name, settings["scorer"][name], runtime), Step(f"scorer {name}", scorer.fetch)
    for name, suite in cell.parts.suites.items():
        for split in ("dev", "test") if name in cell.parts.tuning.suites else ("test",):
            of_split = f"suite {name}" + (" (dev)" if split == "dev" else "")
            yield key(of_split, settings["suite"][name], runtime), Step(of_split, partial(suite.identity, split))
    for field, source in cell.parts.fit_sources.items():
        given = settings["part_data"] if "." in field else settings.get(field)
        yield key(field, given, runtime), Step(f"{field} to learn from", source.identity)


def fetch(todo: Sequence[Step], tell: Callable[[int, Step], None]) -> tuple[list[manifest.Entry], list[Failed]]:
    """Fetch every part, also if another one fails. tell: called before each part, with its number."""
    failed = []
    with manifest.noting() as noted:
        for number, step in enumerate(todo):
            tell(number, step)
            try:
                step.work()
            except SetupError as error:
                failed.append(Failed(step.label, str(error)))
    return sorted(noted.values(), key=lambda one: (one.what, one.file)), failed


def as_json(entries: Sequence[manifest.Entry], arguments: Sequence[str]) -> dict[str, Any]:
    """Return the manifest: the arguments, and each file with its source, commit, size and sha256."""
    files = [
        {
            "what": one.what,
            "file": one.file,
            "source": one.source,
            "commit": one.commit,
            "bytes": size(one.path),
            "sha256": file_sha256(one.path.resolve()),
        }
        for one in entries
    ]
    total = sum(int(str(one["bytes"])) for one in files)
    return {"version": VERSION, "arguments": list(arguments), "bytes": total, "files": files}


def size(path: Path) -> int:
    """Return the size of a file in bytes."""
    return path.stat().st_size
