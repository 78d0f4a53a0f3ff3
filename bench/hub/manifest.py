"""Notes files that are fetched, or found on this machine, in a `with`: a manifest for `python -m bench.prefetch`."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """A file that a run reads.

    commit: the commit on the hub; None for a file from elsewhere. path: the place on this machine, which no manifest
    holds. new: whether it was fetched just now.
    """

    what: str
    file: str
    source: str
    commit: str | None
    path: Path
    new: bool


_noted: ContextVar[dict[tuple[str, str], Entry] | None] = ContextVar("noted", default=None)


@contextmanager
def noting() -> Iterator[dict[tuple[str, str], Entry]]:
    """Yield a mapping that lists, when the `with` ends, each fetched or found file once."""
    mine: dict[tuple[str, str], Entry] = {}
    token = _noted.set(mine)
    try:
        yield mine
    finally:
        _noted.reset(token)


def note(what: str, file: str, source: str, commit: str | None, path: Path, *, new: bool) -> None:
    """Note that a file is on this machine, and whether it was fetched just now."""
    noted = _noted.get()
    if noted is not None:
        noted.setdefault((f"{source} {commit}", file), Entry(what, file, source, commit, path, new))
