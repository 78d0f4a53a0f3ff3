"""What surrounds a fit without being one of its arguments: who counts its tokens, and where a training is kept.

Outside `listening` and `checkpointing` a fit runs as well: it reports to nobody and begins at its first step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_advance: ContextVar[Callable[[float], None] | None] = ContextVar("advance", default=None)
_skip: ContextVar[Callable[[float], None] | None] = ContextVar("skip", default=None)
_folder: ContextVar[Path | None] = ContextVar("folder", default=None)


def advance(tokens: float) -> None:
    """Say that this many tokens went through the model; without a listener it does nothing."""
    listener = _advance.get()
    if listener is not None:
        listener(tokens)


def skip(tokens: float) -> None:
    """Say that this many tokens need not go through the model, since an earlier run has kept what they give."""
    listener = _skip.get()
    if listener is not None:
        listener(tokens)


@contextmanager
def listening(
    listener: Callable[[float], None] | None, skipped: Callable[[float], None] | None = None
) -> Iterator[None]:
    """Send every `advance` inside the block to the listener, and every `skip` to `skipped`; None silences them."""
    tokens = _advance.set(listener), _skip.set(skipped)
    try:
        yield
    finally:
        _advance.reset(tokens[0])
        _skip.reset(tokens[1])


class Count:
    """How many tokens went through the model."""

    tokens: float = 0.0


@contextmanager
def counting() -> Iterator[Count]:
    """Count what goes through the model inside the block; whoever listens outside it still hears of it."""
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
