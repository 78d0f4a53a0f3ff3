"""Atomic files and folders: whole or absent, with any number of writers and whenever a process dies.

What is being written has a name of its own beside its place, `.<name>.<host>.<random>.part`, and is renamed when it is
whole. Nothing that a reader may have open is removed for that: whoever finds a folder in its place discards its own.
The writer holds a lock on the unfinished thing, which the system takes back when the process ends, so `sweep` can tell
what a dead process left behind from what is being written.
"""

import errno
import fcntl
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from bench.console.escape import visible

SUFFIX = ".part"
NAME = "steerbench"
HOST = re.sub(r"[^A-Za-z0-9-]", "-", platform.node())[:40]
LEFT_BEHIND = (f".*{SUFFIX}", ".convert-*", ".fetch-*")
"""Names of unfinished things; the last two are those of older versions."""
OURS = re.compile(rf"\..+\.[A-Za-z0-9-]+\.[a-z0-9_]{{8}}{re.escape(SUFFIX)}", re.DOTALL)
STALE_SECONDS = 86_400.0  # of another host, whose locks may not be seen from here
TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)  # something else is in the place


@contextmanager
def temporary_folder(parent: Path | None = None, name: str = NAME) -> Iterator[Path]:
    """An empty folder in `parent` (None: the system's folder for temporary files), removed when the block ends."""
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    path, handle = _locked_folder(parent, name)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def _locked_folder(parent: Path, name: str) -> tuple[Path, int]:
    """A new folder with a lock on it; another one where `sweep` was there before the lock."""
    while True:
        parent.mkdir(parents=True, exist_ok=True)
        path = Path(tempfile.mkdtemp(prefix=f".{name}.{HOST}.", suffix=SUFFIX, dir=parent))
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        with suppress(OSError):  # a file system without locks: then `sweep` leaves the folder alone, too
            fcntl.flock(handle, fcntl.LOCK_SH)
        if path.exists():
            return path, handle
        os.close(handle)


@contextmanager
def whole_folder(target: Path, files: Sequence[str] = (), *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `target` when the block ends well, and vanishes when it does not.

    Where another process has put a folder there in the meantime, that one stays and this one vanishes, since both hold
    the same; one without these `files` is not whole and is set aside, as is a file or a link in the place.
    replace: the folder that is there gives way instead.
    """
    with temporary_folder(target.parent, target.name) as outer:
        temporary = outer / target.name
        temporary.mkdir()
        yield temporary
        while not placed(temporary, target):
            whole = not target.is_symlink() and target.is_dir() and all((target / name).exists() for name in files)
            if whole and not replace:
                return
            if replace and not target.is_symlink():
                with suppress(FileNotFoundError):
                    target.rename(outer / f"replaced-{len(list(outer.iterdir()))}")
            elif (moved := set_aside(target)) is not None:
                told = f"warning: {target} is not whole; it is set aside as {moved.name} and made again"
                print(visible(told), file=sys.stderr)


def placed(temporary: Path, target: Path) -> bool:
    """Rename the folder to `target` and return True; return False where something has that name already."""
    try:
        temporary.rename(target)
    except OSError as error:
        if error.errno not in TAKEN:
            raise
        return False
    return True


def set_aside(path: Path, folder: Path | None = None) -> Path | None:
    """Rename what is there to `.<name>.damaged`, with a number where that is taken; None where it is gone already.

    folder: where to, on the same file system; None: beside it.
    """
    for number in range(1, 10_000):
        target = (folder or path.parent) / f".{path.name}.damaged{'' if number == 1 else f'-{number}'}"
        if target.exists() or target.is_symlink():
            continue
        try:
            path.rename(target)
        except FileNotFoundError:
            return None
        except OSError as error:  # another process took the name in this moment
            if error.errno not in TAKEN:
                raise
            continue
        return target
    raise OSError(errno.EEXIST, "too many copies are set aside; delete those ending in .damaged-*", str(path))


def write_whole(target: Path, content: str | bytes) -> None:
    """Write a file under another name and rename it; where that fails, nothing is left behind."""
    try:
        _write(target, content)
    except FileNotFoundError:  # another process removed the folder in this moment
        _write(target, content)


def _write(target: Path, content: str | bytes) -> None:
    handle, name = _locked_file(target)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
            file.flush()
            Path(name).chmod(0o644)
            Path(name).replace(target)  # while the lock is held
    finally:
        Path(name).unlink(missing_ok=True)


def _locked_file(target: Path) -> tuple[int, str]:
    """A new file beside the target, open and with a lock on it; another one where `sweep` was there before the lock."""
    while True:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.{HOST}.", suffix=SUFFIX, dir=target.parent)
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        if Path(name).exists():
            return handle, name
        os.close(handle)


def sweep(*folders: Path) -> list[Path]:
    """Remove what dead processes left unfinished directly in these folders, and in the system's for temporary files.

    Returns what was removed.
    """
    names = [(folder, pattern) for folder in folders for pattern in LEFT_BEHIND]
    names.append((Path(tempfile.gettempdir()), f".{NAME}.{HOST}.*{SUFFIX}"))
    removed = []
    for folder, pattern in names:
        for path in sorted(folder.glob(pattern)):
            if not path.is_symlink() and _removed(path):
                removed.append(path)
    return removed


def _removed(path: Path) -> bool:
    """Remove it unless another process holds its lock; returns whether it was removed.

    What other processes hold stays, and so does everything on a file system without locks.
    """
    try:
        old = time.time() - path.stat().st_mtime > STALE_SECONDS
        if path.name.endswith(SUFFIX) and not (OURS.fullmatch(path.name) and (f".{HOST}." in path.name or old)):
            return False
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True
