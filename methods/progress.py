"""The context of a fit: the progress bar that counts its tokens, and the folder for its checkpoints.

Outside `listening` and `checkpointing` a fit runs without reports and from its first step.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_advance: ContextVar[Callable[[float], None] | None] = ContextVar("advance", default=None)
_skip: ContextVar[Callable[[float], None] | None] = ContextVar("skip", default=None)
_folder: ContextVar[Path | None] = ContextVar("folder", default=None)


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


@contextmanager
def checkpointing(folder: Path) -> Iterator[None]:
    """Inside the `with`, a training keeps its state in this folder, and goes on from what it finds there.

    The folder must belong to one fit alone: what is found there is taken to be of the same model, data and settings.
    """
    token = _folder.set(folder)
    try:
        yield
    finally:
        _folder.reset(token)


def checkpoint_folder() -> Path | None:
    """Return the folder in which the running fit may keep its state; None if there is none."""
    return _folder.get()
