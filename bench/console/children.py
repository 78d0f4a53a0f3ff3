"""Work done in forked processes, for commands that only read records and draw figures.

These commands run no threads, which a forked process would lack.

A child works on a copy of its parent's memory, and sends back its result. If the work fails in the child, the parent
does it again and reports the error.
"""

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from bench.console import stopping

Made = TypeVar("Made")


class Later(Generic[Made]):
    """A result that a child process is making; `result` waits for it."""

    def __init__(self, work: Callable[[], Made], fork: bool) -> None:
        self._found = list[Made]()
        self.end: Connection | None = None
        if not fork:
            self._found.append(work())
            return
        self._work: Callable[[], Made] | None = work
        context = multiprocessing.get_context("fork")
        try:
            self.end, other = context.Pipe(duplex=False)
        except OSError:  # too many open files
            self._found.append(work())
            return
        self._child = context.Process(target=_send, args=(work, other, self.end), daemon=True)
        try:
            with stopping.held():  # during a fork the exception of a signal is raised where Python ignores it
                self._child.start()
        except OSError:  # too many processes, or too little memory for one more
            self.end.close()
            self.end = None
            self._found.append(work())
        finally:
            other.close()

    def result(self) -> Made:
        """Return what the work made."""
        if not self._found and self.end is not None:
            with suppress(EOFError, OSError):  # the child failed
                self._found.append(self.end.recv())
            self._child.join()
            self.end.close()
            self.end = None
            if not self._found and self._work is not None:
                self._found.append(self._work())
            self._work = None  # it may hold a figure
        return self._found[0]


class Children:
    """Runs work in at most `processes` children at a time; with 0, and on systems other than Linux, in this process.

    macOS can fork too, but its libraries may crash in a child.
    """

    def __init__(self, processes: int) -> None:
        self.processes = processes if sys.platform == "linux" else 0
        self._running: list[Later[Any]] = []

    def start(self, work: Callable[[], Made]) -> Later[Made]:
        """Begin the work; if too many children run, wait first until one has ended."""
        while self._running and len(self._running) >= self.processes:
            self._running.remove(ended := first_of(self._running))
            ended.result()
        begun = Later(work, fork=self.processes > 0)
        if self.processes:
            self._running.append(begun)
        return begun


def first_of(running: Sequence[Later[Any]]) -> Later[Any]:
    """Wait until one of these results is there, and return it."""
    there = [one for one in running if one.end is None]
    ready = [] if there else connection.wait([one.end for one in running if one.end is not None])
    return there[0] if there else next(one for one in running if one.end in ready)


def spare() -> int:
    """Return how many child processes help a command: one for each CPU, four at most; none if there is one CPU."""
    cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    return min(cpus, 4) if cpus > 1 else 0


def _send(work: Callable[[], Any], end: Connection, others: Connection) -> None:
    """Do the work in a child and send its result; if it fails in whatever way, end without one.

    others: the parent's end. If the child kept it open, it would wait for ever to send to a parent that was killed.
    """
    others.close()
    try:
        end.send(work())
    except Exception:  # the parent does it again and reports the error
        raise SystemExit(1) from None
    end.close()
