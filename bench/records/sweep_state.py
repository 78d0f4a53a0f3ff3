"""The state of each cell of a sweep, which can be read while the sweep runs or after it stopped (`bench.status`).

A sweep is a folder `runs/sweeps/<time>-<process>`: `sweep.json` holds the command and the cells, `<n>.json` the state
of cell n. The process that works on cell n holds `<n>.lock` (`bench.files.locks`), so a cell whose process died differs
from one that is being computed.
"""

import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from bench.files import atomic, locks

FOLDER = "sweeps"
KEPT = 20  # finished or stopped sweeps; of older ones nothing is told any more
State = Literal["known", "waiting", "running", "stopped", "done", "failed"]
"""known: its results were there before. stopped: its process ended in the middle; the same command goes on."""
NAME = re.compile(r"\d{8}-\d{6}-\d+")


@dataclass(frozen=True)
class CellState:
    """A cell of a sweep. since, until: when it began and when it ended, in seconds since 1970."""

    label: str
    state: State
    host: str | None = None
    pid: int | None = None
    since: float | None = None
    until: float | None = None
    message: str | None = None


@dataclass(frozen=True)
class Sweep:
    """The present state of a sweep. command: what was typed. launcher: Hydra's launcher; None: one process."""

    folder: Path
    command: list[str]
    launcher: str | None
    began: float
    cells: list[CellState]

    def count(self, *states: State) -> int:
        """Count the cells in any of these states."""
        return sum(one.state in states for one in self.cells)

    @property
    def seconds_left(self) -> float | None:
        """The estimated seconds to the end, from the finished cells; None if no cell is finished or none is running."""
        took = [one.until - one.since for one in self.cells if one.state == "done" if one.until and one.since]
        running = [one for one in self.cells if one.state == "running"]
        if not took or not running:
            return None
        mean, now = sum(took) / len(took), time.time()
        rest = sum(max(0.0, mean - (now - (one.since or now))) for one in running)
        return (rest + mean * self.count("waiting", "stopped")) / len(running)


class Log:
    """The files in which the processes of one sweep log what they do; if writing fails, they go on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def begin(
        cls, runs: Path, command: Sequence[str], labels: Sequence[tuple[str, bool]], launcher: str | None
    ) -> "Log":
        """Begin a new sweep. labels: the name of each cell, and whether its results are stored."""
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        log = cls(runs / FOLDER / name)
        asked: dict[str, Any] = {"command": list(command), "launcher": launcher, "began": time.time()}
        asked["cells"] = [{"label": label, "known": known} for label, known in labels]
        with suppress(OSError):
            _forget(runs / FOLDER)
            atomic.write_whole(log.folder / "sweep.json", json.dumps(asked, indent=1) + "\n")
        return log

    @contextmanager
    def working(self, number: int) -> Iterator[None]:
        """Log that this process works on the cell, while the block runs."""
        self._since = time.time()
        self._write(number, "running")
        with locks.alone(self.folder / f"{number}.lock", f"cell {number}"):
            yield

    def ended(self, number: int, message: str | None = None) -> None:
        """Log that the cell has its results or, with a message, why it failed."""
        self._write(number, "done" if message is None else "failed", until=time.time(), message=message)

    def _write(self, number: int, state: State, **more: Any) -> None:
        about = {"state": state, "host": platform.node(), "pid": os.getpid(), "since": self._since, **more}
        with suppress(OSError):
            atomic.write_whole(self.folder / f"{number}.json", json.dumps(about) + "\n")


def folders(runs: Path) -> list[Path]:
    """Return the folders of all sweeps in a results folder, the newest first."""
    place = runs / FOLDER
    found = [one for one in place.iterdir() if NAME.fullmatch(one.name)] if place.is_dir() else []
    return sorted((one for one in found if (one / "sweep.json").exists()), key=lambda one: one.name, reverse=True)


def read(folder: Path) -> Sweep | None:
    """Read the present state of a sweep; None if its file is damaged."""
    try:
        asked = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        cells = [_cell(folder, number, one) for number, one in enumerate(asked["cells"])]
        launcher = asked["launcher"]
        return Sweep(folder, list(map(str, asked["command"])), launcher and str(launcher), float(asked["began"]), cells)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _cell(folder: Path, number: int, asked: dict[str, Any]) -> CellState:
    """Read the state of one cell from its log."""
    label = str(asked["label"])
    path = folder / f"{number}.json"
    if not path.exists():
        return CellState(label, "known" if asked["known"] else "waiting")
    about = json.loads(path.read_text(encoding="utf-8"))
    state = about.pop("state")
    if state == "running" and not locks.is_held(folder / f"{number}.lock"):
        state = "stopped"
    return CellState(label, state, **about)


def as_json(sweep: Sweep) -> dict[str, Any]:
    """A sweep as plain values."""
    return asdict(sweep) | {"folder": str(sweep.folder)}


def _forget(place: Path) -> None:
    """Remove the oldest sweeps, except those that a process still works on."""
    for folder in folders(place.parent)[KEPT:]:
        if not any(locks.is_held(lock) for lock in folder.glob("*.lock")):
            shutil.rmtree(folder, ignore_errors=True)
