"""End a command cleanly on a signal: Ctrl-C, SIGTERM (Slurm, `kill`, a shut-down), or a closed terminal.

Inside `orderly` each of these signals raises `Stopped` in the main thread, so that unfinished files vanish and finished
work is kept. A long call into a library cannot be interrupted in this way; therefore a thread ends the process after
GRACE_SECONDS, or at once if a second signal comes.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
GRACE_SECONDS = 7.0
"""Seconds from a signal until a process that does not end by itself is ended; Slurm waits 30 s before it kills."""


class Stopped(KeyboardInterrupt):
    """Raised when a signal has told the process to end. number: the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(name_of(number))
        self.number = number


_asked: list[int] = []
"""Signals that came inside the running `orderly`."""
_holds: list[None] = []
"""Not empty while `held` holds signals back."""
_ran: list[bool] = []
"""Not empty if an `orderly` has run in this process."""


def asked() -> int | None:
    """Return the signal that has come, even if a library has replaced the exception that it raised."""
    return _asked[0] if _asked else None


def check() -> None:
    """Raise Stopped if a signal has come and a library has caught the exception that it raised."""
    if _asked:
        raise Stopped(_asked[0])


@contextmanager
def held() -> Iterator[None]:
    """Hold signals back inside the `with`, where an exception would be lost, and raise Stopped at its end."""
    _holds.append(None)
    try:
        yield
    finally:
        _holds.clear()
    check()


def begin() -> None:
    """Let a signal end the process at once, with a message, until `orderly` begins; every command calls this first."""
    for one in SIGNALS:
        if signal.getsignal(one) is not signal.SIG_IGN:
            signal.signal(one, _at_once)


def _at_once(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    after = "" if _ran else "; nothing was begun"
    with suppress(OSError):
        os.write(2, f"stopped by {name_of(number)}{after}\n".encode())
    os._exit(exit_code(number))


def name_of(number: int) -> str:
    """Return the usual name of the signal."""
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def exit_code(number: int) -> int:
    """Return the exit code that a shell reports after a signal: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + number


@contextmanager
def orderly(farewell: Callable[[int], None], more: Sequence[int] = ()) -> Iterator[None]:
    """Let the signals end the work in the block as the head of this file says.

    farewell: prints a message, given the signal's number; the thread calls it if the main thread does not end.
    more: further signals that end the process in this way.
    Signals that were ignored (`nohup`) stay ignored. Called in a thread other than the main one, this changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    _asked.clear()
    _ran.append(True)
    before = {one: signal.getsignal(one) for one in (*SIGNALS, *more)}
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for one, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(one, _raise)
    ended = threading.Event()
    watch = threading.Thread(target=_watch, args=(read, ended, farewell, (*SIGNALS, *more)), daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(wakeup)
        for one, handler in before.items():
            signal.signal(one, signal.SIG_DFL if handler is None else handler)
        os.close(write)  # this ends the thread
        watch.join(1.0)
        os.close(read)
        _asked.clear()


def _raise(number: int, frame: FrameType | None) -> None:
    del frame
    _asked.append(number)
    if len(_asked) == 1 and not _holds:
        raise Stopped(number)


def _watch(read: int, ended: threading.Event, farewell: Callable[[int], None], signals: Sequence[int]) -> None:
    """Wait for a signal, then for the end of the block; the system writes each signal's number to the pipe."""
    first = _next(read, signals)
    if first is None:
        return
    again = lambda: _next(read, signals) is not None and _leave(first, ended, farewell)  # noqa: E731
    threading.Thread(target=again, daemon=True).start()
    if not ended.wait(GRACE_SECONDS):
        _leave(first, ended, farewell)


def _next(read: int, signals: Sequence[int]) -> int | None:
    """Return the next of these signals; None when the pipe is closed."""
    with suppress(OSError):
        while number := os.read(read, 1):
            if number[0] in signals:
                return number[0]
    return None


def _leave(number: int, ended: threading.Event, farewell: Callable[[int], None]) -> NoReturn | None:
    """End the process and its children without waiting for a terminal that does not read the message."""
    if ended.is_set():
        return None
    last = [threading.Thread(target=farewell, args=(number,), daemon=True)]
    last.append(threading.Thread(target=_end_children, daemon=True))  # it imports, which may wait for the main thread
    for one in last:
        one.start()
    for one in last:
        one.join(1.0)
    os._exit(exit_code(number))


def _end_children() -> None:
    """Send SIGTERM to the processes that this one has started; an idle worker would wait for work for minutes."""
    import psutil

    for one in psutil.Process().children():
        with suppress(psutil.Error):
            one.terminate()


def _in_child() -> None:
    """Undo the set-up in a forked process, which must not react to signals meant for its parent."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is _raise:
        signal.set_wakeup_fd(-1)
        for one in SIGNALS:
            if signal.getsignal(one) is _raise:
                signal.signal(one, signal.SIG_DFL)
    _holds.clear()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


os.register_at_fork(
    before=lambda: signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS),
    after_in_parent=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS),
    after_in_child=_in_child,
)
