"""Progress that code deep in a run reports without knowing who shows it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_advance: ContextVar[Callable[[float], None] | None] = ContextVar("advance", default=None)


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
