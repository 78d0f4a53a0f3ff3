"""What one job of a launched sweep does, in a process of its own: some cells, one after the other.

A job returns what failed and raises nothing, since a launcher ends the whole sweep at the first error.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

from bench.console import stopping
from bench.console.progress import Bar
from bench.files import locks
from bench.hub import network
from bench.records import sweep_state, unfinished
from bench.records.sweep_state import Log
from bench.run import cell_config, runner
from bench.run.cell import Cell
from bench.run.runner import Failure
from bench.run.session import Session, torch_threads

Stage = Literal["shared", "fits", "cells"]
"""What is done for each cell: what cells share (unsteered dev results, pairs), its fit, or all of it."""
REQUEUE = signal.SIGUSR2
"""The signal by which Slurm, as submitit asks it to, says that time is nearly over or that another job goes first."""

LOOK_SECONDS = 1.0  # between two checks that the launcher is still there


@dataclass(frozen=True)
class Job:
    """Some cells that one process runs.

    numbers: the places of the cells in the sweep. log: the sweep's folder, which has their configs (`cell_config`).
    gpus: names of the GPUs from which each process of one machine takes one; empty if the launcher assigns them.
    """

    stage: Stage
    log: str
    numbers: list[int]
    gpus: list[str]

    def override(self) -> str:
        """Return the job as one argument that Hydra reads and keeps in the job's `.hydra/overrides.yaml`."""
        gpus, numbers = ",".join(map(_quoted, self.gpus)), ",".join(map(str, self.numbers))
        return f"+job={{stage:{self.stage},log:{_quoted(self.log)},numbers:[{numbers}],gpus:[{gpus}]}}"

    def without(self, ended: Container[int]) -> "Job":
        """The job without these cells."""
        return replace(self, numbers=[number for number in self.numbers if number not in ended])

    @classmethod
    def read(cls, node: Any) -> "Job":
        """The job that `override` wrote."""
        assert node.stage in get_args(Stage)
        return cls(node.stage, str(node.log), list(node.numbers), list(map(str, node.gpus)))


def _quoted(text: str) -> str:
    return str(QuotedString(text, Quote.single).with_quotes())


def run(cfg: DictConfig) -> list[dict[str, Any]]:
    """Do the job in `cfg.job`; returns the cells that failed, each as its number and the arguments of a `Failure`."""
    job = Job.read(cfg.job)
    with _signals(Path(job.log).parents[1]):
        _choose_gpu(job.gpus)
        return [
            vars(one) | {"traceback": one.traceback and str(one.traceback), "number": number}
            for number, one in work(job).items()
        ]


def work(job: Job) -> dict[int, Failure]:
    """Run the cells of the job; returns those that failed, by their numbers."""
    session, log, failures = _session(), Log(Path(job.log)), dict[int, Failure]()
    sweep = sweep_state.read(log.folder)
    session.began = sweep.began if sweep is not None else session.began
    labels = {number: sweep.cells[number].label if sweep is not None else f"cell {number}" for number in job.numbers}
    configs = {number: _config(log.folder, number, labels[number]) for number in job.numbers}
    if all(cfg.runtime.offline for cfg in configs.values() if not isinstance(cfg, Failure)):
        network.forbid()
    prepared = {
        number: cfg if isinstance(cfg, Failure) else runner.prepare(cfg, session) for number, cfg in configs.items()
    }
    planned = [one[1] for one in prepared.values() if not isinstance(one, Failure)]
    session.bar = Bar({key: tokens for stages in planned for key, tokens in stages.items()})
    for number in job.numbers:
        one = prepared.pop(number)  # a cell that has ended is given up, with its fit and its variants
        found: Failure | object
        if job.stage != "cells":
            with log.working_ahead(number, job.stage):
                found = one if isinstance(one, Failure) else _ahead(one[0], job.stage)
        else:
            with log.working(number):
                found = one if isinstance(one, Failure) else runner.run_cell(one[0])
                log.ended(number, found.message if isinstance(found, Failure) else None)
        if isinstance(found, Failure):
            failures[number] = found
    return failures


def _config(folder: Path, number: int, label: str) -> DictConfig | Failure:
    """Return the config of the cell of this number, or why it cannot be run here."""
    return runner.bounded(OmegaConf.create(), label, lambda: cell_config.read(folder, number))


def _ahead(cell: Cell, stage: Stage) -> Failure | None:
    """Compute what several cells need, so that no cell waits for another."""

    def shared() -> None:
        with torch_threads(cell.threads):
            if cell.cfg.strength == "auto" and cell.cfg.control is None:
                for name in cell.parts.tuning.suites:
                    runner.result(cell, cell.parts.suites[name], "dev", 0.0)
            cell.fit.data()

    def fit() -> None:
        with torch_threads(cell.threads):
            _ = cell.fit.fitted

    work: dict[Stage, Callable[[], None]] = {"shared": shared, "fits": fit}
    return runner.bounded(cell.cfg, cell.label(), work[stage])


_sessions: list[Session] = []


def _session() -> Session:
    """Return the session of this process, so that a process that runs several jobs keeps the model it has loaded."""
    if not _sessions:
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        _sessions.append(Session())
        _end_with_launcher()
    return _sessions[0]


def _end_with_launcher() -> None:
    """End this worker process cleanly when its parent is gone; a worker of joblib would wait for more jobs instead."""
    launcher = multiprocessing.parent_process()
    if launcher is None or launcher.pid is None:
        return

    def watch() -> None:
        while os.getppid() == launcher.pid:
            time.sleep(LOOK_SECONDS)
        while True:  # joblib goes on after the first SIGTERM
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(stopping.GRACE_SECONDS + 1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _signals(runs: Path) -> Iterator[None]:
    """Let a signal end the work in the block cleanly; after a signal to requeue, ask the launcher for another turn."""
    again = signal.getsignal(REQUEUE)
    more = (REQUEUE,) if callable(again) and again is not signal.default_int_handler else ()

    def farewell(number: int | None) -> None:
        if multiprocessing.parent_process() is not None:
            return  # the launcher of this worker says it for all
        by = f" by {stopping.name_of(number)}" if number else ""
        print(f"stopped{by}; {unfinished.told(runs, _sessions[0].written if _sessions else 0)}", flush=True)

    try:
        with stopping.orderly(farewell, more):
            before = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # joblib's workers start without it
            yield
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    except stopping.Stopped as stopped:
        farewell(stopped.number)
        if stopped.number == REQUEUE and callable(again):
            again(stopped.number, None)  # submitit's handler asks Slurm to requeue, then exits
        raise SystemExit(stopping.exit_code(stopped.number)) from None


_gpu: list[Any] = []
"""The lock of the GPU that this process has, which it keeps to its end."""


def _choose_gpu(names: Sequence[str]) -> None:
    """Take a GPU that no other process of this machine has taken; if all are taken, share one of them."""
    if not names or _gpu:
        return
    from bench.data.sources import default_cache

    for name in names:
        lock = locks.try_to_hold(default_cache() / "locks" / f"gpu-{name}.lock")
        if lock is not None:
            _gpu.append(lock)
            os.environ["CUDA_VISIBLE_DEVICES"] = name
            return
    os.environ["CUDA_VISIBLE_DEVICES"] = names[os.getpid() % len(names)]
