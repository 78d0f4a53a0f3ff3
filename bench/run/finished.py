"""Cached commands: a command whose results are all stored is recognised without composing its config.

After a command without failures `note` writes a key of the command and the ids of its records to `runs/finished.json`.
The command is recognised as long as nothing that its results depend on has changed: arguments, YAML files, code,
versions, threads, records. If results depend on anything else (a file, a folder, the hub, a GPU, a plug-in), nothing is
noted, and the command finds out in the usual way what it has to compute.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.config import folders, plugins
from bench.files import atomic
from bench.records import record, unfinished
from bench.records.identity import ID, digest
from bench.records.record import Record

FILE = "finished.json"
RESULTS = "runtime.results="
ANEW = ("runtime.overwrite", "runtime.dry_run")
"""Options with which a command does something even if all its results are stored."""
VERSIONS = ("torch", "transformers", "lm_eval", "datasets", "hydra-core")
READ = re.compile(r"oc\.env:\s*(\w+)")
"""An environment variable that a YAML file reads."""
THREADS = re.compile(r"\w*NUM_THREADS$|OMP_|MKL_|KMP_|HF_|STEERBENCH_")
"""Environment variables by which libraries are told how many threads to use, and where they find data."""
ELSEWHERE = {"path", "id", "judge", "checkpoint", "mirror"}
"""Options that name something outside this project, its wheels and its results."""


def known(arguments: Sequence[str], multirun: bool) -> tuple[Path, int] | None:
    """Return the results folder and the number of cells of a command whose records are all whole; None for others."""
    if _depends(arguments):
        return None
    results = _results(arguments)
    try:
        found = _noted(results / "runs")[key(arguments, multirun)]
        cells, ids = int(found["cells"]), list(map(str, found["records"]))
    except (KeyError, ValueError, TypeError):
        return None
    folder = results / "runs" / "records"
    whole = ids and all(ID.fullmatch(one) and record.read(folder / one) is not None for one in ids)
    return (results, cells) if whole else None


def note(arguments: Sequence[str], named: str, configs: Iterable[Mapping[str, Any]]) -> None:
    """Note that this command is finished, unless its results depend on anything outside this project.

    named: the command's `key`, made before the command ran, since libraries set environment variables while it runs.
    configs: the configs of the command's cells, as plain mappings.
    """
    if _depends(arguments) or plugins.installed(folders.folder()):
        return
    cells, results = 0, ""
    for config in configs:
        if _elsewhere(config) or config["runtime"].get("overwrite") == "always":
            return
        cells, results = cells + 1, results or config["runtime"]["results"]
    runs = Path(results) / "runs"
    if runs.parent.resolve() != _results(arguments).resolve():
        return
    found = {path.name: record.read(path) for path in sorted((runs / "records").iterdir()) if ID.fullmatch(path.name)}
    if any(one is None or not _from_wheels(one) for one in found.values()):
        return
    entry = {"cells": cells, "records": list(found)}
    noted = _noted(runs) | {named: entry}
    atomic.write_whole(runs / FILE, json.dumps(noted, indent=1) + "\n")


def _noted(runs: Path) -> dict[str, Any]:
    """Return the finished commands of a results folder; none if the file is missing or cannot be read."""
    try:
        noted = json.loads((runs / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _depends(arguments: Sequence[str]) -> bool:
    """Return whether an argument keeps the command from being recognised by its key.

    Such arguments hold an interpolation, whose value is not known here, name folders of YAML files, or ask to compute
    stored results again or to compute nothing.
    """
    return any("${" in one or one.lstrip("+").startswith((folders.NAMED, *ANEW)) for one in arguments)


def _from_wheels(one: Record) -> bool:
    """Return whether all texts that were asked or learnt from came from pinned wheels."""
    read = (*(one.sources or ()), *(one.data.all_sources if one.data else ()))
    return all(source.source.startswith("wheel ") for source in read)


def _results(arguments: Sequence[str]) -> Path:
    """The results folder, as the arguments name it, or the default one."""
    named = [one.removeprefix(RESULTS).strip("'\"") for one in arguments if one.startswith(RESULTS)]
    return Path(named[-1] if named else "results")


def key(arguments: Sequence[str], multirun: bool) -> str:
    """A hash of a command and of everything that its results depend on."""
    conf = folders.folder()
    yaml = {file.relative_to(conf).as_posix(): _sha256(file) for file in sorted(conf.rglob("*.yaml"))}
    code = [_sha256(Path(file)) for file in sorted(unfinished.project_files())]
    read = {name for file in conf.rglob("*.yaml") for name in READ.findall(file.read_text(encoding="utf-8"))}
    environment = {name: value for name, value in os.environ.items() if name in read or THREADS.match(name)}
    versions = {name: version(name) for name in VERSIONS} | {"python": sys.version.split()[0]}
    return digest([list(arguments), multirun, yaml, code, environment, sorted(os.sched_getaffinity(0)), versions])


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _elsewhere(config: Mapping[str, Any]) -> bool:
    """Return whether an option names something outside this project, or a device other than the CPU."""
    return any(
        (name in ELSEWHERE and value is not None) or (name == "device" and value != "cpu")
        for name, value in _options(config)
    )


def _options(config: Any) -> Iterator[tuple[str, Any]]:
    """Every option of a config, at any depth."""
    for name, value in config.items() if isinstance(config, Mapping) else enumerate(config):
        if isinstance(value, Mapping | list):
            yield from _options(value)
        else:
            yield str(name), value
