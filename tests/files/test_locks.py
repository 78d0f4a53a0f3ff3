"""One process works and the others wait; a lock outlives no process."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from bench.files import locks
from methods.errors import SetupError

HOLD = """
import sys, time
from pathlib import Path
from bench.files import locks
with locks.alone(Path(sys.argv[1]), "a fit"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds a lock; gives the lock and the process."""
    path = tmp_path / "locks" / "fit.lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield path, process
    process.kill()
    process.wait()


def count(path, number, done):
    """Read, wait and write a number, which loses counts unless it is done alone."""
    for _ in range(number):
        with locks.alone(path / "n.lock", "counting"):
            value = int((path / "n").read_text())
            time.sleep(0.001)
            (path / "n").write_text(str(value + 1))
    done.put(True)


def test_four_processes_count_without_losing_one(tmp_path):
    (tmp_path / "n").write_text("0")
    context = multiprocessing.get_context("fork")
    done = context.Queue()
    workers = [context.Process(target=count, args=(tmp_path, 20, done)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert (tmp_path / "n").read_text() == "80"


def test_who_waits_is_told_for_whom_and_not_for_ever(other, capsys, monkeypatch):
    path, process = other
    monkeypatch.setattr(locks, "TOLD_AFTER_SECONDS", 0.1)
    with pytest.raises(
        SetupError, match=f"another process has been computing a fit for too long .*process {process.pid}"
    ):
        with locks.alone(path, "a fit", longest=0.3):
            pytest.fail("two processes are inside")
    assert f"process {process.pid}" in capsys.readouterr().err


def test_a_killed_process_leaves_no_lock(other):
    path, process = other
    assert locks.is_held(path) and locks.try_to_hold(path) is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not locks.is_held(path)
    with locks.alone(path, "a fit", longest=1.0):
        found = locks.holder(path)
        assert found is not None and found.pid == os.getpid()


@pytest.mark.parametrize("text", ["", "no json", "[1]", "{}"])
def test_a_lock_file_that_says_nothing_is_no_obstacle(text, tmp_path):
    path = tmp_path / "fit.lock"
    path.write_text(text)
    assert locks.holder(path) is None and not locks.is_held(path)
    with locks.alone(path, "a fit"):
        assert locks.is_held(path)


def test_without_locks_everybody_works(tmp_path, monkeypatch):
    def none(*_, **__):
        raise OSError(locks.NO_LOCKS[0], "no locks here")

    monkeypatch.setattr(locks.FileLock, "acquire", none)
    with locks.alone(tmp_path / "a.lock", "a fit"), locks.alone(tmp_path / "a.lock", "a fit"):
        pass


def test_a_lock_is_seen_without_the_right_to_write(other, monkeypatch):
    path, process = other
    real = os.open

    def read_only(name, flags, *rest, **more):
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, "Read-only file system", str(name))
        return real(name, flags, *rest, **more)

    monkeypatch.setattr(os, "open", read_only)
    assert locks.is_held(path) is True
    process.kill()
    process.wait()
    assert locks.is_held(path) is False and locks.is_held(path.with_name("none.lock")) is False


def test_what_cannot_be_found_out_is_not_called_free(other, monkeypatch):
    path, _ = other

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    assert locks.is_held(path) is None
