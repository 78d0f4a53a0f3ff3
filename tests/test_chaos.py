"""Sweeps whose processes are killed again and again end with the results of one that nobody disturbed.

`python -m tests.test_chaos 50 10 900 joblib` kills a process of a sweep 50 times and sends one SIGTERM 10 times, or as
often as it can in 900 s, prints what happened, and compares the results. With `slurm` the sweep's jobs run in the Slurm
that answers here.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench.records import sweep_state
from tests.run.test_smoke import arguments, contents, make_world, world  # noqa: F401
from tests.test_slurm import SLURM

ASKED = ("method=unsteered,caa,random_direction", "strength=1,2,3", "runtime.threads=1")
JOBLIB = ("launcher=joblib", "hydra.launcher.n_jobs=2")
LONGEST_SECONDS = 3600.0
EVERY_SECONDS = (1.0, 10.0)
LAUNCHERS = 0.25  # of the signals go to the process that launches
IDLE = 0.2  # of them are sent while no cell is being computed: while processes start, for example


def command(root: Path, results: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "bench", *arguments(root, results, *ASKED, "suite.rtp.k=5", *more)]


def run(argv: list[str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as out:
        return subprocess.Popen(argv, stdout=out, stderr=out, env=os.environ | {"OMP_NUM_THREADS": "1"})


def jobs() -> list[psutil.Process]:
    """The processes of Slurm's jobs, which are no children of the one that launches."""
    return [one for one in psutil.process_iter(["cmdline"]) if "submitit.core._submit" in (one.info["cmdline"] or [])]


def victims(launcher: int) -> list[psutil.Process]:
    """The process that launches, and those that work for it."""
    try:
        own = psutil.Process(launcher)
        workers = [one for one in own.children(recursive=True) if "resource_tracker" not in " ".join(one.cmdline())]
        return [own, *workers, *jobs()]
    except psutil.NoSuchProcess:
        return []


def at_work(results: Path) -> bool:
    """Return whether the newest sweep under `results` has a cell that is being computed."""
    newest = next(iter(sweep_state.folders(results / "runs")), None)
    sweep = newest and sweep_state.read(newest)
    return bool(sweep and sweep.count("running"))


def disturbed(
    root: Path,
    place: Path,
    kills: int,
    terms: int,
    seconds: float = LONGEST_SECONDS,
    workers: Sequence[str] = JOBLIB,
    seed: int = 0,
) -> Counter[str]:
    """Kill and end processes of sweeps, each repeated until it succeeds, as long as signals are left; what happened.

    place: gets the results folders of the sweeps, one after the other. Workers whose launcher was killed are left
    alone, so that the next command may meet them at work. seconds: after which no signal is sent any more.
    """
    chance, told, began = random.Random(seed), Counter[str](), time.monotonic()
    signals = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
    chance.shuffle(signals)
    while time.monotonic() - began < LONGEST_SECONDS:
        results = place / f"disturbed{told['exit code 0']}"
        process = run(command(root, results, *workers), place / "disturbed.log")
        told["commands"] += 1
        while process.poll() is None:
            time.sleep(chance.uniform(*EVERY_SECONDS))
            own, *others = victims(process.pid) or [None]
            if time.monotonic() - began > seconds:
                signals.clear()
            if not signals or own is None or not (chance.random() < IDLE or at_work(results)):
                continue
            one = own if not others or chance.random() < LAUNCHERS else chance.choice(others)
            whose = "the launcher" if one is own else "a worker"
            with suppress(psutil.NoSuchProcess):
                one.send_signal(signals[-1])
                told[f"{signal.Signals(signals.pop()).name} of {whose}"] += 1
        told[f"exit code {process.returncode}"] += 1
        if process.returncode == 0 and not signals:
            return told
    raise TimeoutError(f"{dict(told)}, {len(signals)} signals left after {LONGEST_SECONDS:.0f} s")


def compared(root: Path, place: Path, kills: int, terms: int, *more: Any) -> Counter[str]:
    """Run a quiet sweep and a `disturbed` one. Raises AssertionError where a byte differs."""
    quiet = run(command(root, place / "quiet"), place / "quiet.log")
    assert quiet.wait() == 0, (place / "quiet.log").read_text()[-2000:]
    told = disturbed(root, place, kills, terms, *more)
    for number in range(told["exit code 0"]):
        assert contents(place / "quiet") == contents(place / f"disturbed{number}")
    return told


@pytest.mark.slow
def test_a_disturbed_sweep_has_the_results_of_a_quiet_one(world, tmp_path):  # noqa: F811
    told = compared(world, tmp_path, kills=6, terms=2)
    assert told["exit code 0"] >= 1 and sum(told[one] for one in told if one.startswith("SIG")) >= 4


@pytest.mark.slow
def test_a_stopped_sweep_says_so_once(world, tmp_path):  # noqa: F811
    """The workers say nothing of their own, and no resource tracker warns of what they leave."""
    process = run(command(world, tmp_path / "stopped", *JOBLIB), tmp_path / "log")
    while not at_work(tmp_path / "stopped"):
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    time.sleep(2)  # a resource tracker ends after the others
    said = (tmp_path / "log").read_text()
    assert said.count("stopped by SIGTERM") == 1 and "resource_tracker" not in said, said


@pytest.mark.slow
def test_eight_processes_on_one_folder(world, tmp_path):  # noqa: F811
    """The same and other cells at once: no failure, and what they share is computed once."""
    quiet = run(command(world, tmp_path / "quiet"), tmp_path / "quiet.log")
    assert quiet.wait() == 0
    several = [run(command(world, tmp_path / "many"), tmp_path / f"{number}.log") for number in range(8)]
    assert [one.wait() for one in several] == [0] * 8
    assert contents(tmp_path / "quiet") == contents(tmp_path / "many")


def main(kills: str, terms: str, seconds: str, launcher: str) -> None:
    root, workers = make_world(Path(tempfile.mkdtemp())), {"joblib": JOBLIB, "slurm": SLURM}[launcher]
    print(dict(compared(root, Path(tempfile.mkdtemp()), int(kills), int(terms), float(seconds), workers)))


if __name__ == "__main__":
    main(*sys.argv[1:])
