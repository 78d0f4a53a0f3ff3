"""Digests of files that numbers depend on: written beside the files once, and checked whenever the files are read.

A folder is sealed by `sha256.json`, which lists each of its files with its sha256. So damage that leaves a file
readable (a flipped bit, another tensor of the same shape) is found before a number is computed from it.
"""

import functools
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

from bench.console.escape import visible
from bench.files import atomic
from bench.files.atomic import write_whole
from bench.files.plain_json import dumps
from methods.broken import reading
from methods.errors import SetupError

SEAL = "sha256.json"

_unverified: ContextVar[set[str] | None] = ContextVar("unverified", default=None)


class DamagedError(SetupError):
    """A file is not what was written; the message names it."""


def seal(folder: Path, verified: bool = True, *, name: str | None = None) -> None:
    """Write the sha256 of every file below `folder` to its `sha256.json`.

    verified: False if nobody knows whether the files are still those that were written. name: the name that the folder
    will have, so that another folder in its place is noticed; None if it may have any name.
    """
    files = {file: sha256(folder / file) for file in sorted(_names(folder))}
    write_whole(folder / SEAL, dumps({"name": name, "files": files, "verified": verified}))


def verified(folder: Path, *, always: bool = True) -> bool:
    """Return whether the files below `folder` are known to be those that were written.

    Returns False for a folder without a seal, such as older versions wrote. This function then seals the folder, with a
    note that nobody checked its files. With `always`, every file is read now; without it, a large file is read once per
    process, and again only if its size or time has changed.

    Raises DamagedError if a file is missing or its bytes are not those that were written.
    """
    with reading(lambda error: DamagedError(f"{folder} cannot be read ({error}); {_again(folder)}")):
        return _noted(folder, _verified(folder, always))


def _verified(folder: Path, always: bool) -> bool:
    if not (folder / SEAL).exists() and not (folder / SEAL).is_symlink():
        with suppress(OSError):  # a folder that cannot be written is read all the same
            seal(folder, verified=False, name=folder.name)
        if not (folder / SEAL).is_file():
            return False
    sealed = _sealed(folder)
    if sealed.name not in (None, folder.name):
        raise DamagedError(f"{folder} was written as {sealed.name}, and renamed; {_again(folder)}")
    for file in sorted(_names(folder) - set(sealed.files)):
        raise DamagedError(f"{folder / file} is not among the files that were written; {_again(folder)}")
    for file, digest in sealed.files.items():
        path = folder / file
        if not path.is_file():
            raise DamagedError(f"{path} is missing; {_again(folder)}")
        with reading(lambda error: DamagedError(f"{path} cannot be read ({error}); {_again(folder)}")):  # noqa: B023
            found = (sha256 if always else file_sha256)(path)
        if found != digest:
            raise DamagedError(f"{path} is not what was written (its sha256 differs); {_again(folder)}")
    return sealed.verified


class Sealed(NamedTuple):
    """The content of a seal: the name of its folder (None: any), the sha256 of each file, and whether to trust them."""

    name: str | None
    files: dict[str, str]
    verified: bool


def _sealed(folder: Path) -> Sealed:
    """Read the seal of a folder. Raises DamagedError if it cannot be read or is not a seal."""
    path = folder / SEAL
    with reading(lambda error: DamagedError(f"{path} cannot be read ({error}); {_again(folder)}")):
        told = json.loads(path.read_text(encoding="utf-8"))
        found = Sealed(told.get("name"), dict(told["files"]), told["verified"])
    kinds = isinstance(found.name, str | None), isinstance(found.verified, bool)
    if not all(kinds) or not all(isinstance(one, str) for pair in found.files.items() for one in pair):
        raise DamagedError(f"{path} is not a seal; {_again(folder)}")
    return found


@contextmanager
def unverified() -> Iterator[set[str]]:
    """Yield a set that, when the block ends, holds the folders read inside it for which `verified` returned False."""
    outer, mine = _unverified.get(), set[str]()
    token = _unverified.set(mine)
    try:
        yield mine
    finally:
        _unverified.reset(token)
        if outer is not None:
            outer |= mine


def set_aside(folder: Path, why: DamagedError) -> None:
    """Rename a damaged folder to `.<name>.damaged`, with a warning, so that it can be made again in its place.

    Raises DamagedError if it cannot be renamed; if another process was faster, nothing is left to do.
    """
    try:
        moved = atomic.set_aside(folder)
    except OSError as error:
        raise DamagedError(f"{why}; it could not be set aside ({error.strerror or error})") from error
    if moved is not None:
        told = f"warning: {str(why).partition(';')[0]}; it is set aside as {moved.name} and made again"
        print(visible(told), file=sys.stderr)
    (_unverified.get() or set()).discard(_place(folder))  # the new files will have a digest


def note_unverified(folder: Path) -> None:
    """Note that files without a digest are read from this folder (`unverified`)."""
    collected = _unverified.get()
    if collected is not None:
        collected.add(_place(folder))


def _noted(folder: Path, known: bool) -> bool:
    if not known:
        note_unverified(folder)
    return known


def _place(folder: Path) -> str:
    """Return the name of a folder in records."""
    return f"{folder.parent.name}/{folder.name}"


def _names(folder: Path) -> set[str]:
    """Return the files below a folder, except the seal and hidden files, which are being written."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path != folder / SEAL)
    return {path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)}


def _again(folder: Path) -> str:
    return f"delete the folder {folder}, and the same command makes it again"


def sha256(path: Path) -> str:
    """Return the hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, in hex; the file is read only once while its size and time stay the same."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, _size: int, _modified: int) -> str:
    return sha256(path)
