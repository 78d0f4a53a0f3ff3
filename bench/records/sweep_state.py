"""The state of each cell of a sweep, which can be read while the sweep runs or after it stopped (`bench.status`).

A sweep is a folder `runs/sweeps/<time>-<process>`: `sweep.json` holds the command and the cells, `<n>.json` the state
of cell n. The process that works on cell n holds `<n>.lock` (`bench.files.locks`), so a cell whose process died differs
from one that is being computed. The process of the command holds `sweep.lock`. Before cell n begins, a job may compute
what cell n and others need (unsteered results of the dev split, contrast pairs, a fit); `<n>-ahead.json` and
`<n>-ahead.lock` then show the state of this job in the same way. At its end the job removes `<n>-ahead.json`.
"""

import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from bench.files import atomic, locks
from bench.records import schema
from methods.errors import SetupError

FOLDER = "sweeps"
KEPT = 20  # finished or stopped sweeps; of older ones nothing is told any more
State = Literal["known", "waiting", "running", "stopped", "done", "failed", "unknown"]
"""The state of a cell. known: its results were stored before the sweep began.

stopped: its process ended in the middle; the same command, run again, continues the cell. unknown: the file of its
state cannot be read, or does not tell whether its process lives.
"""
Ahead = Literal["shared", "fits"]
"""What a job computes before any cell begins (`bench.run.job.Stage`)."""
NAME = re.compile(r"\d{8}-\d{6}-\d+")
OWN_LOCK = "sweep.lock"
NO_LOCK = "it was begun, but whether its process lives cannot be found out from here"
TIME = schema.is_a((int, float), "a time", lambda seconds: 0 <= seconds < 1e11)
ASKED = schema.fields(
    {
        "command": schema.each(schema.TEXT),
        "launcher": schema.maybe(schema.TEXT),
        "began": TIME,
        "cells": schema.each(schema.fields({"label": schema.TEXT, "known": schema.FLAG})),
    }
)
"""What a sweep.json has to be."""
STATE = schema.fields(
    {"state": schema.is_a(str, "a state", lambda word: word in get_args(State))},
    host=schema.maybe(schema.TEXT),
    pid=schema.maybe(schema.COUNT),
    since=schema.maybe(TIME),
    until=schema.maybe(TIME),
    message=schema.maybe(schema.TEXT),
    ahead=schema.maybe(schema.is_a(str, "a kind of work", lambda word: word in get_args(Ahead))),
)
"""The schema of the files `<n>.json` and `<n>-ahead.json`, in which a process writes the state of cell n."""


@dataclass(frozen=True)
class CellState:
    """A cell of a sweep. since, until: when it began and when it ended, in seconds since 1970.

    ahead: what the process computes, or computed when it died, if the cell itself has not begun.
    """

    label: str
    state: State
    host: str | None = None
    pid: int | None = None
    since: float | None = None
    until: float | None = None
    message: str | None = None
    ahead: Ahead | None = None


@dataclass(frozen=True)
class Sweep:
    """The present state of a sweep. command: what was typed. launcher: Hydra's launcher; None: one process.

    goes_on: whether the process of the command lives; None if that cannot be found out.
    """

    folder: Path
    command: list[str]
    launcher: str | None
    began: float
    cells: list[CellState]
    goes_on: bool | None

    def count(self, *states: State) -> int:
        """Count the cells in any of these states."""
        return sum(one.state in states for one in self.cells)

    @property
    def seconds_left(self) -> float | None:
        """The estimated seconds to the end, from the finished cells; None if no cell is finished or none is running."""
        took = [one.until - one.since for one in self.cells if one.state == "done" if one.until and one.since]
        running = [one for one in self.cells if one.state == "running" and not one.ahead]
        if not took or not running:
            return None
        mean, now = sum(took) / len(took), time.time()
        rest = sum(max(0.0, mean - (now - (one.since or now))) for one in running)
        to_begin = sum(one.state in ("waiting", "stopped") or one.ahead is not None for one in self.cells)
        return (rest + mean * to_begin) / len(running)


class Log:
    """The files in which the processes of one sweep log what they do; if writing fails, they go on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._since: float | None = None

    @classmethod
    def begin(
        cls,
        runs: Path,
        command: Sequence[str],
        labels: Sequence[tuple[str, bool]],
        launcher: str | None,
        failed: Sequence[tuple[str, str]] = (),
    ) -> "Log":
        """Begin a new sweep. labels: the name of each cell, and whether its results are stored.

        failed: the names of further cells, which cannot run, each with the reason.
        """
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        log = cls(runs / FOLDER / name)
        asked: dict[str, Any] = {"command": list(command), "launcher": launcher, "began": time.time()}
        cells = [*labels, *((label, False) for label, _ in failed)]
        asked["cells"] = [{"label": label, "known": known} for label, known in cells]
        with suppress(OSError):
            _forget(runs / FOLDER)
            atomic.write_whole(log.folder / "sweep.json", json.dumps(asked, indent=1) + "\n")
        for number, (_, message) in enumerate(failed, len(labels)):
            log.ended(number, message)
        return log

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Let readers see that the process of the command lives, while the block runs."""
        with _held(self.folder / OWN_LOCK, "this sweep"):
            yield

    @contextmanager
    def working(self, number: int) -> Iterator[None]:
        """Log that this process works on the cell, while the block runs."""
        self._since = time.time()
        self._write(number, "running")
        with _held(self.folder / f"{number}.lock", f"cell {number}"):
            yield

    @contextmanager
    def working_ahead(self, number: int, ahead: Ahead) -> Iterator[None]:
        """Log, while the block runs, that this process computes what the cell and others need."""
        name = f"{number}-ahead"
        with _held(self.folder / f"{name}.lock", f"what cell {number} needs"):
            self._write(name, "running", since=time.time(), ahead=ahead)
            yield
            with suppress(OSError):
                (self.folder / f"{name}.json").unlink()

    def ended(self, number: int, message: str | None = None) -> None:
        """Log that the cell has its results or, with a message, why it failed."""
        self._write(number, "done" if message is None else "failed", until=time.time(), message=message)

    def _write(self, name: int | str, state: State, **more: Any) -> None:
        about = {"state": state, "host": platform.node(), "pid": os.getpid(), "since": self._since, **more}
        with suppress(OSError):
            atomic.write_whole(self.folder / f"{name}.json", json.dumps(about) + "\n")


@contextmanager
def _held(path: Path, what: str) -> Iterator[None]:
    """Hold a lock while the block runs; the block runs without it if it cannot be had, as on a full disk."""
    stack = ExitStack()
    with suppress(OSError, SetupError):
        stack.enter_context(locks.alone(path, what))
    try:
        yield
    finally:
        with suppress(OSError):
            stack.close()


def folders(runs: Path) -> list[Path]:
    """Return the folders of all sweeps in a results folder, the newest first."""
    found = [file.parent for file in (runs / FOLDER).glob("*/sweep.json")]
    return sorted((one for one in found if NAME.fullmatch(one.name)), key=lambda one: one.name, reverse=True)


def read(folder: Path) -> Sweep | None:
    """Read the present state of a sweep; None if its file is damaged."""
    asked = _checked(folder / "sweep.json", ASKED)
    if asked is None:
        return None
    cells = [_cell(folder, number, one["label"], one["known"]) for number, one in enumerate(asked["cells"])]
    alive = locks.is_held(folder / OWN_LOCK)
    return Sweep(folder, asked["command"], asked["launcher"], asked["began"], cells, alive)


def _cell(folder: Path, number: int, label: str, known: bool) -> CellState:
    """Read the state of one cell from its log."""
    for name in (f"{number}", f"{number}-ahead"):
        about = _checked(path := folder / f"{name}.json", STATE)
        if about is None and not os.path.lexists(path):
            continue
        if about is None:
            return CellState(label, "unknown", message=f"its file {path.name} cannot be read")
        if about["state"] == "running" and not (held := locks.is_held(folder / f"{name}.lock")):
            about |= {"state": "stopped"} if held is False else {"state": "unknown", "message": NO_LOCK}
        own = ("state", "host", "pid", "since", "until", "message", "ahead")
        return CellState(label, **{key: about[key] for key in own if key in about})
    return CellState(label, "known" if known else "waiting")


def _checked(path: Path, check: schema.Check) -> dict[str, Any] | None:
    """Return what the file holds; None if it cannot be read, or the check finds something wrong."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        wrong = schema.unusual(found, "") or check(found, "")
    except (OSError, ValueError, RecursionError):
        return None
    return None if wrong else found


def as_json(sweep: Sweep) -> dict[str, Any]:
    """A sweep as plain values."""
    return asdict(sweep) | {"folder": str(sweep.folder)}


def _forget(place: Path) -> None:
    """Remove the oldest sweeps, except those that a process still works on."""
    for folder in folders(place.parent)[KEPT:]:
        if all(locks.is_held(lock) is False for lock in folder.glob("*.lock")):
            shutil.rmtree(folder, ignore_errors=True)
