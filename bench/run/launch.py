"""Cells handed to a launcher of Hydra: processes of this machine, or jobs of a cluster.

Every cell is composed and checked here, and Hydra's own launcher plug-in runs those that have something to compute, in
waves: what cells share, then each fit in a job, then the cells, then the controls, which need the strengths that tuning
chose. Results are files, so a job returns only what failed, and the same command goes on where a sweep was stopped. At
the end the results of each cell are looked for here.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from bench.config.hydra_launcher import Ready, launcher_of
from bench.console import stopping
from bench.console.command import console, of_system
from bench.console.escape import terminal
from bench.model import devices
from bench.records import sweep_state
from bench.records.sweep_state import CellState, Log
from bench.run import cell_config, job, told_apart
from bench.run.cell import Cell
from bench.run.job import Job, Stage
from bench.run.runner import Failure, bounded, is_full, plan, ready, stage_key
from bench.run.session import Session
from methods.errors import SetupError

TOLD_EVERY_SECONDS = 20.0


@dataclass(frozen=True)
class Asked:
    """A cell of the sweep. stages: the tokens that each stage has to compute; empty if all its results are stored."""

    number: int
    cell: Cell
    stages: dict[str, float]


def run(
    configs: Sequence[DictConfig], hydra: Sequence[str], command: Sequence[str], alone: Sequence[str] = ()
) -> list[Failure]:
    """Launch what has to be computed, and wait for it; returns the cells that failed.

    hydra: the launcher and its options. command: what was typed, for the log. alone: for each cell the command that
    runs only this cell.
    """
    check(configs, hydra)
    threads = _threads(configs)
    Path(configs[0].runtime.results).mkdir(parents=True, exist_ok=True)  # so that lg/../lg2 is one folder for all
    results = Path(configs[0].runtime.results).resolve()
    for line in hydra:
        if line.startswith("hydra.sweep.dir="):
            _make(line)
    cells, failures = ready(configs, Session(), alone)
    asked = [Asked(place, one, stages) for place, (one, stages) in enumerate(cells)]
    todo = [one for one in asked if one.stages]
    size = int(configs[0].runtime.cells_per_job)
    with launcher_of(hydra, _settings(threads), job.run, results / "runs" / "launched") as launcher:
        if not todo:
            return failures
        names = told_apart.labels([one.cell for one in asked])
        labels = list(zip(names, [not one.stages for one in asked], strict=True))
        unable = [(one.label, one.message) for one in failures]
        log = Log.begin(results / "runs", command, labels, launcher.name, unable)
        gpus = _gpus(configs) if launcher.shares_a_machine else []
        failed = dict[int, Failure]()
        with log.going_on(), _watching(log):
            for one in todo:
                cell_config.write(log.folder, one.number, one.cell.cfg)
            for stage, wave in waves(todo):
                numbers, together = [one.number for one in wave], size if stage == "cells" else 1
                chunks = [numbers[i : i + together] for i in range(0, len(numbers), together)]
                made = [Job(stage, str(log.folder), chunk, gpus) for chunk in chunks]
                told = f"{launcher.name}: {len(made)} jobs, {WAVES[stage]}"
                console.print(terminal(told.replace("1 jobs", "1 job")))
                found = _launched(launcher, made, log)
                failed |= found if stage == "cells" else {}  # a cell computes what it lacks, or fails itself
        failed |= _lacking([one for one in todo if one.number not in failed])
        _log_failed(failed, log)
    own = {one.number: one.cell.command for one in todo}
    return failures + [replace(one, alone=own[number]) for number, one in failed.items()]


def _lacking(ended: Sequence[Asked]) -> dict[int, Failure]:
    """Return the cells whose jobs told no failure, but whose results are not stored under the ids that were asked."""
    failed = dict[int, Failure]()
    for one in ended:
        cell = one.cell
        if cell.cfg.runtime.device == devices.AUTO:  # it may stand for another device on the machine of a job
            continue
        found = bounded(cell.cfg, cell.label(), partial(plan, cell))
        if isinstance(found, Failure):
            failed[one.number] = found
        elif found:
            failed[one.number] = Failure(cell.label(), NOT_STORED, None, setup=False)
    return failed


NOT_STORED = (
    "its job ended without an error, but not all its results are stored: the machine of the job may see other files or "
    "have other versions than this one, or results were deleted; run the command again"
)


def _log_failed(failed: Mapping[int, Failure], log: Log) -> None:
    """Log the failures that no job has logged; a job that goes on logs its own end."""
    sweep = sweep_state.read(log.folder)
    for number, one in failed.items():
        if sweep is not None and ((found := sweep.cells[number]).ahead or found.state not in ("failed", "running")):
            log.ended(number, one.message)


def _make(sweep_dir: str) -> None:
    """Make the folder that hydra.sweep.dir names, if it names no other settings. Raises SetupError if it cannot."""
    place = sweep_dir.partition("=")[2].strip("'\"")
    try:
        if "${" not in place:
            Path(place).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"{sweep_dir}: {of_system(error)}; choose another folder") from error


def check(configs: Sequence[DictConfig], hydra: Sequence[str]) -> None:
    """Raises SetupError for a launcher that could not launch these cells."""
    with launcher_of(hydra, _settings(_threads(configs)), job.run, Path(configs[0].runtime.results) / "runs"):
        pass


def _settings(threads: int | None) -> list[str]:
    return [f"runtime.threads={threads}"] if threads else []


WAVES: dict[Stage, str] = {"shared": "what cells share", "fits": "a fit each", "cells": "cells"}


def waves(todo: Sequence[Asked]) -> Iterator[tuple[Stage, list[Asked]]]:
    """Yield the cells in waves whose jobs need not wait for each other; a single cell is a single job."""
    if len(todo) > 1:
        yield from (("shared", wave) for wave in [_first_with(todo, _shared)] if wave)
        yield from (("fits", wave) for wave in [_first_with(todo, _fit)] if wave)
    for controls in (False, True):
        wave = [one for one in todo if (one.cell.cfg.control is not None) == controls]
        if wave:
            yield "cells", wave


def _first_with(todo: Sequence[Asked], work: Any) -> list[Asked]:
    """Return the first cells that together do all the work that at least two cells need."""
    keys = {one.number: work(one) for one in todo}
    every = [key for found in keys.values() for key in found]
    seen, wave = set[str](), list[Asked]()
    for one in todo:
        new = {key for key in keys[one.number] if every.count(key) > 1} - seen
        if new:
            wave.append(one)
            seen |= new
    return wave


def _shared(one: Asked) -> set[str]:
    """Return the work of a cell that other cells may need too: unsteered dev results and training data."""
    cell = one.cell
    if not cell.method.strengths:
        return set()
    found = set(cell.fit.source_stages())
    if cell.cfg.strength == "auto" and cell.cfg.control is None:
        found |= {stage_key(cell, cell.parts.suites[name], "dev", 0.0) for name in cell.parts.tuning.suites}
    return {key for key in found if one.stages.get(key)}


def _fit(one: Asked) -> set[str]:
    """Return the fit that a cell needs; none for a control, whose fit may depend on what its method chose."""
    needed = one.cell.method.strengths and one.cell.cfg.control is None and not one.cell.fit.store.is_stored
    return {one.cell.names.fit_id} if needed else set()


def _launched(launcher: Ready, jobs: Sequence[Job], log: Log) -> dict[int, Failure]:
    """Run these jobs; returns the cells that failed, by their numbers.

    A job that only prepares others may fail, since the others then do its work.

    If one process dies and thereby ends the others, the remaining cells are launched again. Cells that were being
    computed when the process died are launched last. When a launch has finished no cell, each cell that is left is
    launched by itself, so that only the one that ends its process fails.
    """
    failures, in_vain = dict[int, Failure](), 0
    while True:
        try:
            returned = launcher.launch([[one.override()] for one in jobs])
            return failures | dict(_read(failure) for one in returned for failure in one)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # each launcher has errors of its own
            stopping.check()
            lost, setup = _reason(error), isinstance(error, SetupError) or is_full(error)
        launcher.settle()
        if jobs[0].stage != "cells":
            console.print(terminal(f"warning: {lost}"))
            return {}
        cells = _states(log, jobs)
        failures |= {
            number: Failure(one.label, one.message or "", None, setup=False)  # the log alone tells of it
            for number, one in cells.items() if one.state == "failed"
        }  # fmt: skip
        ended = {*failures, *(number for number, one in cells.items() if one.state == "done")}
        left = [one for one in (job.without(ended) for job in jobs) if one.numbers]
        if not left:
            return failures
        in_vain = in_vain + 1 if _cells(left) == _cells(jobs) else 0
        if launcher.loses_all and in_vain == 1 and _cells(left) > 1:
            console.print(
                terminal(f"warning: {lost}; the {_cells(left)} cells that are left go on one after the other")
            )
            for alone in [replace(job, numbers=[number]) for job in left for number in job.numbers]:
                failures |= _launched(launcher, [alone], log)
            return failures
        if not launcher.loses_all or in_vain == 2:
            several = "; several jobs returned nothing, and this is told of one" if len(left) > 1 else ""
            more = "; other jobs may still be at work, `steerbench status` tells" if launcher.leaves_others else ""
            lost += several + more
            return failures | {n: Failure(cells[n].label, lost, None, setup) for job in left for n in job.numbers}
        what = "cell that is left goes" if _cells(left) == 1 else f"{_cells(left)} cells that are left go"
        console.print(terminal(f"warning: {lost}; the {what} on in new processes"))
        stopped = {number for number, one in cells.items() if one.state == "stopped"}
        jobs = sorted(left, key=lambda job: bool(stopped & set(job.numbers)))


def _read(returned: dict[str, Any]) -> tuple[int, Failure]:
    """Return the number of a failed cell, and its failure, as a job returns them."""
    about = {key: value for key, value in returned.items() if key != "number"}
    return int(returned["number"]), Failure(**about | {"traceback": about["traceback"] and Path(about["traceback"])})


def _states(log: Log, jobs: Sequence[Job]) -> dict[int, CellState]:
    """Return the states of the jobs' cells, by number, from the log; "waiting" if the log cannot be read."""
    sweep = sweep_state.read(log.folder)
    return {
        number: sweep.cells[number] if sweep is not None else CellState(f"cell {number}", "waiting")
        for job in jobs for number in job.numbers
    }  # fmt: skip


def _cells(jobs: Sequence[Job]) -> int:
    return sum(len(one.numbers) for one in jobs)


def _reason(error: BaseException) -> str:
    """Return a line that says why a job has returned nothing."""
    if isinstance(error, SetupError):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return f"a job ended before it could say how ({of_system(error)})"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason was given"]
    return f"a job ended before it could say how ({type(error).__name__}: {' '.join(lines[:2])[:300]})"


@contextmanager
def _watching(log: Log) -> Iterator[None]:
    """Print the sweep's progress now and then from a thread, while the block runs."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(TOLD_EVERY_SECONDS):
            found = sweep_state.read(log.folder)
            if found is not None:
                console.print(terminal(progress(found)))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(1.0)


def progress(found: sweep_state.Sweep) -> str:
    """A line about the progress of a running sweep."""
    done = found.count("done", "known")
    parts = [f"{done} of {len(found.cells)} cells done", f"{found.count('running')} running"]
    parts += [f"{found.count('failed')} failed"] if found.count("failed") else []
    left = found.seconds_left
    parts += [f"{(time.time() - found.began) / 60:.1f} min", *([f"about {left / 60:.0f} min left"] if left else [])]
    return ", ".join(parts)


def _threads(configs: Sequence[DictConfig]) -> int | None:
    """Return the threads of torch in each job; None on a GPU. Raises SetupError on the CPU if runtime.threads is null.

    The number is part of a result's id, and the default of a worker could differ from that of this process.
    """
    on_cpu = [cfg for cfg in configs if str(cfg.runtime.device) == "cpu"]
    if any(cfg.runtime.threads is None for cfg in on_cpu):
        raise SetupError(
            "a launcher needs runtime.threads=NUMBER: the number is part of a result's name, and without it each job "
            "would use all cores of its machine; set runtime.threads=1 where several jobs share a machine"
        )
    return max((int(cfg.runtime.threads) for cfg in on_cpu), default=None)


def _gpus(configs: Sequence[DictConfig]) -> list[str]:
    """Return the GPUs from which jobs of one machine choose; none if the config names one, or there is only one."""
    import os

    import torch

    if any(str(cfg.runtime.device) != "cuda" for cfg in configs):
        return []
    visible = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    visible = visible or [str(number) for number in range(torch.cuda.device_count())]
    return visible if len(visible) > 1 else []
