"""Work in child processes: the results are those of one process, and a failure is the parent's."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from bench.console.children import Children, Later, spare


def test_children_send_back_what_they_made():
    me, children = os.getpid(), Children(2)
    begun = [children.start(lambda i=i: (i, os.getpid())) for i in range(5)]
    found = [one.result() for one in begun]
    assert [number for number, _ in found] == [*range(5)]
    assert me not in {process for _, process in found} and begun[0].result() == found[0]


def test_without_children_this_process_does_the_work():
    assert Children(0).start(os.getpid).result() == os.getpid()


def test_what_fails_in_a_child_fails_in_the_parent():
    def fails():
        raise ValueError(f"in {os.getpid()}")

    with pytest.raises(ValueError, match=f"in {os.getpid()}"):
        Later(fails, fork=True).result()


def test_a_child_that_is_killed_costs_nothing():
    me = os.getpid()
    assert Later(lambda: "done" if os.getpid() == me else os.kill(os.getpid(), 9), fork=True).result() == "done"


def test_a_result_that_cannot_be_sent_is_made_again():
    assert Later(lambda: lambda: 1, fork=True).result()() == 1


def test_where_no_process_can_be_forked_this_one_does_the_work(monkeypatch):
    def full():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", full)
    assert [Children(2).start(os.getpid).result() for _ in range(3)] == [os.getpid()] * 3


def test_a_signal_that_comes_during_a_fork_is_not_lost():
    """Its exception is raised in a hook of `os.fork`, where Python prints and ignores it."""
    sends = "os.register_at_fork(before=lambda: os.kill(os.getpid(), 15))"
    code = (
        "import os, sys; from bench.console import command, stopping; from bench.console.children import Children; "
        f"{sends}; stopping.begin(); "
        "sys.exit(command.run(lambda: Children(2).start(os.getpid).result() and None))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + 15 and "stopped by SIGTERM; nothing was written" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_child_ends_whose_parent_was_killed():
    """It would wait for ever to send what no one reads, if it held the end that its parent reads from."""
    code = (
        "import os, time; from bench.console.children import Later; one = Later(lambda: b'x' * 10**7, True); "
        "print(one._child.pid, flush=True); time.sleep(0.5); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, timeout=60)
    child, left = int(done.stdout), 100
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE and left:
        left -= 1
        time.sleep(0.1)
    assert left


def test_one_cpu_needs_no_child(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert spare() == 0
