"""A sweep through a Slurm that runs here: jobs are lost in the middle, and the same command completes the rest."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from bench.records import sweep_state
from tests.run.test_smoke import arguments, contents, world  # noqa: F401

ASKED = ("method=unsteered,caa,random_direction", "strength=1,2", "runtime.threads=1", "suite.rtp.k=5")
SLURM = (
    "launcher=slurm", "hydra.launcher.mem_gb=1", "hydra.launcher.timeout_min=30", "hydra.launcher.signal_delay_s=10",
)  # fmt: skip
LONGEST_SECONDS = 600.0


def missing() -> str | None:
    """Why no job can run here; None where it can."""
    if shutil.which("sbatch") is None:
        return "no Slurm is installed here"
    try:
        found = subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return "no Slurm answers here"
    return None if re.search("idle|mix", found.stdout) else "no Slurm with a free node answers here (SLURM_CONF)"


@pytest.fixture
def slurm():
    if reason := missing():
        pytest.skip(reason)


def begun(world: Path, results: Path, log: Path, *more: str) -> "subprocess.Popen[bytes]":  # noqa: F811
    argv = [sys.executable, "-m", "bench", *arguments(world, results, *ASKED, *more)]
    with log.open("ab") as out:
        return subprocess.Popen(argv, stdout=out, stderr=out, env=os.environ | {"OMP_NUM_THREADS": "1"})


def awaited(
    found: Callable[[], list[psutil.Process]], process: "subprocess.Popen[bytes]", log: Path
) -> list[psutil.Process]:
    """Look again and again until something is found, and return it; the process must still run."""
    end = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < end and process.poll() is None:
        if one := found():
            return one
        time.sleep(0.5)
    raise AssertionError(log.read_text()[-3000:])


def jobs(state: str) -> list[str]:
    """The ids of Slurm's jobs in this state."""
    told = subprocess.run(["squeue", "-h", "-r", "-t", state, "-o", "%i"], capture_output=True, text=True, check=True)
    return told.stdout.split()


def working(results: Path) -> list[psutil.Process]:
    """The processes that are at work at a cell."""
    newest = next(iter(sweep_state.folders(results / "runs")), None)
    sweep = newest and sweep_state.read(newest)
    pids = [one.pid for one in sweep.cells if one.state == "running" and one.pid and not one.ahead] if sweep else []
    return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_a_cancelled_job_and_a_killed_worker_are_made_up_for(world, tmp_path):  # noqa: F811
    quiet, log = begun(world, tmp_path / "quiet", tmp_path / "quiet.log"), tmp_path / "slurm.log"
    assert quiet.wait() == 0, (tmp_path / "quiet.log").read_text()[-2000:]
    process = begun(world, tmp_path / "jobs", log, *SLURM)
    first = awaited(lambda: working(tmp_path / "jobs"), process, log)[0]
    about = first.environ()
    subprocess.run(["scancel", f"{about['SLURM_ARRAY_JOB_ID']}_{about['SLURM_ARRAY_TASK_ID']}"], check=True)
    second = awaited(lambda: [one for one in working(tmp_path / "jobs") if one != first], process, log)[0]
    assert any("slurm" in one.name() for one in second.parents())
    second.kill()
    assert process.wait(LONGEST_SECONDS) == 1  # it is told, and the command does not wait for ever
    assert "2 of 6 cells failed" in log.read_text() and "a job ended before it could say how" in log.read_text()
    again = begun(world, tmp_path / "jobs", log, *SLURM)
    assert again.wait(LONGEST_SECONDS) == 0, log.read_text()[-3000:]
    assert contents(tmp_path / "jobs") == contents(tmp_path / "quiet")
    assert not jobs("R,PD")
