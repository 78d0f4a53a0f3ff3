"""The context of a fit: the progress bar that counts its tokens, and the folder for its checkpoints.

Outside `listening` and `checkpointing` a fit runs without reports and from its first step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

_advance: ContextVar[Callable[[float], None] | None] = ContextVar("advance", default=None)
_skip: ContextVar[Callable[[float], None] | None] = ContextVar("skip", default=None)
_earlier: ContextVar["Earlier | None"] = ContextVar("earlier", default=None)


def advance(tokens: float) -> None:
    """Report that this many tokens went through the model; without a listener it does nothing."""
    listener = _advance.get()
    if listener is not None:
        listener(tokens)


def skip(tokens: float) -> None:
    """Report that this many tokens need not go through the model, since an earlier run stored the result."""
    listener = _skip.get()
    if listener is not None:
        listener(tokens)


@contextmanager
def listening(
    listener: Callable[[float], None] | None, skipped: Callable[[float], None] | None = None
) -> Iterator[None]:
    """Send every `advance` inside the `with` to the listener, and every `skip` to `skipped`; None silences them."""
    tokens = _advance.set(listener), _skip.set(skipped)
    try:
        yield
    finally:
        _advance.reset(tokens[0])
        _skip.reset(tokens[1])


class Count:
    """The number of tokens that went through the model."""

    tokens: float = 0.0


@contextmanager
def counting() -> Iterator[Count]:
    """Count the tokens that go through the model inside the `with`; an outer listener gets them too."""
    count, outer = Count(), _advance.get()

    def both(tokens: float) -> None:
        count.tokens += tokens
        if outer is not None:
            outer(tokens)

    token = _advance.set(both)
    try:
        yield count
    finally:
        _advance.reset(token)


@dataclass
class Earlier:
    """What an earlier run of the same fit, which was stopped, left in a folder, and the seconds that it had taken."""

    folder: Path
    seconds: float = 0.0


@contextmanager
def checkpointing(folder: Path) -> Iterator[Earlier]:
    """Inside the `with`, a training keeps its state in this folder, and goes on from what it finds there.

    The folder must belong to one fit alone: what is found there is taken to be of the same model, data and settings.
    Yields a record of how many seconds the steps took that were found there and need not be computed again.
    """
    earlier = Earlier(folder)
    token = _earlier.set(earlier)
    try:
        yield earlier
    finally:
        _earlier.reset(token)


def checkpoint_folder() -> Path | None:
    """Return the folder in which the running fit may keep its state; None if there is none."""
    earlier = _earlier.get()
    return None if earlier is None else earlier.folder


def resumed(seconds: float) -> None:
    """Report that steps which took this many seconds in an earlier run need not be computed again."""
    earlier = _earlier.get()
    if earlier is not None:
        earlier.seconds += seconds
