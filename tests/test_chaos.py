"""Sweeps whose processes are killed again and again end with the results of one that nobody disturbed.

`python -m tests.test_chaos 50 10` kills a process of a sweep 50 times and sends another one SIGTERM 10 times, prints
what happened, and compares the results.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.run.test_smoke import arguments, contents, make_world, world  # noqa: F401

ASKED = ("method=unsteered,caa,random_direction", "strength=1,2,3", "runtime.threads=1")
WORKERS = ("launcher=joblib", "hydra.launcher.n_jobs=2")
LONGEST_SECONDS = 3600.0


def command(root: Path, results: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "bench", *arguments(root, results, *ASKED, "suite.rtp.k=5", *more)]


def run(argv: list[str], log: Path) -> "subprocess.Popen[bytes]":
    with log.open("ab") as out:
        return subprocess.Popen(argv, stdout=out, stderr=out, env=os.environ | {"OMP_NUM_THREADS": "1"})


def victims(launcher: int) -> list[psutil.Process]:
    """The process that launches, and those that work for it."""
    try:
        own = psutil.Process(launcher)
        return [own, *own.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def disturbed(root: Path, results: Path, log: Path, kills: int, terms: int, seed: int = 0) -> Counter[str]:
    """Run a sweep, kill and end its processes, and give the same command until it succeeds; what happened."""
    chance, told, began = random.Random(seed), Counter[str](), time.monotonic()
    signals = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
    chance.shuffle(signals)
    while time.monotonic() - began < LONGEST_SECONDS:
        process = run(command(root, results, *WORKERS), log)
        told["commands"] += 1
        while process.poll() is None:
            time.sleep(chance.uniform(2.0, 15.0))
            there = victims(process.pid)
            if signals and there:
                one, number = chance.choice(there[1:] or there), signals.pop()
                try:
                    one.send_signal(number)
                    told[
                        f"{signal.Signals(number).name} of {'the launcher' if one.pid == process.pid else 'a worker'}"
                    ] += 1
                except psutil.NoSuchProcess:
                    signals.append(number)
        for child in victims(process.pid)[1:]:
            child.kill()
        told[f"exit code {process.returncode}"] += 1
        if process.returncode == 0:
            return told
    raise TimeoutError(f"{dict(told)} after {LONGEST_SECONDS:.0f} s")


def compared(root: Path, place: Path, kills: int, terms: int) -> Counter[str]:
    """A quiet sweep and a disturbed one. Raises AssertionError where a byte differs."""
    quiet = run(command(root, place / "quiet"), place / "quiet.log")
    assert quiet.wait() == 0, (place / "quiet.log").read_text()[-2000:]
    told = disturbed(root, place / "disturbed", place / "disturbed.log", kills, terms)
    assert contents(place / "quiet") == contents(place / "disturbed")
    return told


@pytest.mark.slow
def test_a_disturbed_sweep_has_the_results_of_a_quiet_one(world, tmp_path):  # noqa: F811
    told = compared(world, tmp_path, kills=6, terms=2)
    assert told["exit code 0"] == 1 and sum(told[one] for one in told if one.startswith("SIG")) >= 4


@pytest.mark.slow
def test_eight_processes_on_one_folder(world, tmp_path):  # noqa: F811
    """The same and other cells at once: no failure, and what they share is computed once."""
    quiet = run(command(world, tmp_path / "quiet"), tmp_path / "quiet.log")
    assert quiet.wait() == 0
    several = [run(command(world, tmp_path / "many"), tmp_path / f"{number}.log") for number in range(8)]
    assert [one.wait() for one in several] == [0] * 8
    assert contents(tmp_path / "quiet") == contents(tmp_path / "many")


def main(kills: int, terms: int) -> None:
    root = make_world(Path(tempfile.mkdtemp()))
    print(dict(compared(root, Path(tempfile.mkdtemp()), kills, terms)))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
