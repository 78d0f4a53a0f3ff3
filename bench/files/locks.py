"""Locks by which one process does some work while others wait, on one machine or on several that share a folder.

A lock is on a file, held by the working process; the system releases it when the process ends, however it ends, so no
lock is ever stale. The file says who holds it. Locks are `filelock`'s (flock), which modern shared file systems
pass on to their server. On a file system without locks, every process does the work itself, which costs time and
changes no number.
"""

import errno
import fcntl
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from filelock import BaseFileLock, FileLock, Timeout

from bench.console.escape import visible
from methods.errors import SetupError

POLL_SECONDS = 0.2
TOLD_AFTER_SECONDS = 20.0
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
LONGEST_SECONDS = 24 * 3600.0
"""How long another process may hold the lock before waiting for it ends in an error."""


class Holder(NamedTuple):
    """The process that holds a lock, and since when, in seconds since 1970."""

    host: str
    pid: int
    since: float

    def __str__(self) -> str:
        minutes = max(0.0, time.time() - self.since) / 60
        return f"{self.host}, process {self.pid}, for {minutes:.0f} min"


@contextmanager
def alone(path: Path, what: str, longest: float = LONGEST_SECONDS) -> Iterator[None]:
    """Let only one process at a time be inside a block with this path.

    Inside the block, check again whether the work is already done. what: the name of the work in messages. Raises
    SetupError if another process has held the lock for `longest` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, began, told = FileLock(path), time.monotonic(), False
    while True:
        try:
            lock.acquire(timeout=min(TOLD_AFTER_SECONDS, longest), poll_interval=POLL_SECONDS)
            break
        except Timeout:
            by = holder(path) or "another process"
            if time.monotonic() - began > longest:
                raise SetupError(
                    f"another process has been computing {what} for too long ({by}); end it, or wait, and run the "
                    "same command again"
                ) from None
            if not told:
                print(visible(f"waiting for {what}, which is being computed: {by}"), file=sys.stderr)
                told = True
        except (NotImplementedError, OSError) as error:
            if not isinstance(error, NotImplementedError) and error.errno not in NO_LOCKS:
                raise
            yield  # a file system without locks
            return
    try:
        with suppress(OSError):  # a full disk: then nobody knows who it is
            path.write_text(json.dumps(Holder(platform.node(), os.getpid(), time.time())), encoding="utf-8")
        yield
    finally:
        lock.release()


def holder(path: Path) -> Holder | None:
    """Return the last holder of the lock, which still holds it if `is_held`; None if no holder is known."""
    try:
        host, pid, since = json.loads(path.read_text(encoding="utf-8"))
        return Holder(str(host), int(pid), float(since))
    except (OSError, ValueError, TypeError):
        return None


def is_held(path: Path) -> bool | None:
    """Return whether a process is inside the block of this lock; None if the file or its system does not tell.

    The file is only read, so this works where the reader may not write.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # NFS gives an exclusive lock only to one who may write
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(handle)
    return False


def try_to_hold(path: Path) -> BaseFileLock | None:
    """Take the lock until it is released or the process ends; None if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock
