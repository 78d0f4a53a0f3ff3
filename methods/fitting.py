"""What whoever calls `fit` may give it without a method having to ask: an ear for its progress, a place to resume from.

Outside `listening` and `checkpointing` a fit runs all the same, silently and from its beginning.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_advance: ContextVar[Callable[[float], None] | None] = ContextVar("advance", default=None)
_folder: ContextVar[Path | None] = ContextVar("folder", default=None)


def advance(tokens: float) -> None:
    """Say that this many tokens went through the model; without a listener it does nothing."""
    listener = _advance.get()
    if listener is not None:
        listener(tokens)


@contextmanager
def listening(listener: Callable[[float], None] | None) -> Iterator[None]:
    """Send every `advance` inside the block to the listener; None silences them."""
    token = _advance.set(listener)
    try:
        yield
    finally:
        _advance.reset(token)


@contextmanager
def checkpointing(folder: Path) -> Iterator[None]:
    """Inside the block, a training keeps its state in this folder, and goes on from what it finds there.

    The folder must belong to one fit alone: what is found there is taken to be of the same model, data and settings.
    """
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def checkpoint_folder() -> Path | None:
    """Where the running fit may keep its state; None where nobody gave a place."""
    return _folder.get()
