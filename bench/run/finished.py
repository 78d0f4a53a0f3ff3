"""Commands whose results are all there, found again without composing a config or importing torch.

After a command without failures `note` keeps what it was and which records it has, in `runs/finished.json`. The same
command is known as long as nothing that has a say in its results is another: arguments, YAML files, code, versions,
threads, records. Where anything else has a say (a file, a folder, the hub, a GPU, a plug-in), nothing is noted, and the
command finds out in the usual way what it has to compute.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
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
VERSIONS = ("torch", "transformers", "lm_eval", "datasets", "hydra-core")
ELSEWHERE = {"path", "id", "judge", "checkpoint", "mirror"}
"""Options that name what lies outside of this project, its wheels and its results."""


def known(arguments: Sequence[str], multirun: bool) -> tuple[Path, int] | None:
    """The results folder of a command whose records are all whole, and how many cells it has; None for any other."""
    results = _results(arguments)
    try:
        noted = json.loads((results / "runs" / FILE).read_text(encoding="utf-8"))
        found = noted[_key(arguments, multirun)]
        cells, ids = int(found["cells"]), list(map(str, found["records"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    folder = results / "runs" / "records"
    whole = ids and all(ID.fullmatch(one) and record.read(folder / one) is not None for one in ids)
    return (results, cells) if whole else None


def note(arguments: Sequence[str], multirun: bool, configs: Sequence[Mapping[str, Any]]) -> None:
    """Keep that this command is finished, where nothing outside has a say in it. configs: of its cells, plain."""
    if plugins.installed(folders.folder()) or any(_elsewhere(config) for config in configs):
        return
    runs = Path(configs[0]["runtime"]["results"]) / "runs"
    if runs.parent.resolve() != _results(arguments).resolve():
        return
    found = {path.name: record.read(path) for path in sorted((runs / "records").iterdir()) if ID.fullmatch(path.name)}
    if any(one is None or not _from_wheels(one) for one in found.values()):
        return
    try:
        noted = json.loads((runs / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        noted = {}
    entry = {"cells": len(configs), "records": list(found)}
    atomic.write_whole(runs / FILE, json.dumps(noted | {_key(arguments, multirun): entry}, indent=1) + "\n")


def _from_wheels(one: Record) -> bool:
    """Whether all that was asked and learnt from came out of pinned wheels."""
    read = (*(one.sources or ()), *(one.data.all_sources if one.data else ()))
    return all(source.source.startswith("wheel ") for source in read)


def _results(arguments: Sequence[str]) -> Path:
    """The results folder, as the arguments name it, or the default one."""
    named = [one.removeprefix(RESULTS).strip("'\"") for one in arguments if one.startswith(RESULTS)]
    return Path(named[-1] if named else "results")


def _key(arguments: Sequence[str], multirun: bool) -> str:
    conf = folders.folder()
    yaml = {file.relative_to(conf).as_posix(): _sha256(file) for file in sorted(conf.rglob("*.yaml"))}
    code = {Path(file).name: _sha256(Path(file)) for file in sorted(unfinished.project_files())}
    machine = {"threads": os.environ.get("OMP_NUM_THREADS"), "cpus": sorted(os.sched_getaffinity(0))}
    versions = {name: version(name) for name in VERSIONS} | {"python": sys.version.split()[0]}
    cache = os.environ.get("STEERBENCH_CACHE")
    return digest([list(arguments), multirun, yaml, code, machine, versions, cache])


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _elsewhere(config: Mapping[str, Any]) -> bool:
    """Whether an option names what lies elsewhere, or another device than the CPU."""
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
