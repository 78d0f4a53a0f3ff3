"""Atomic files and folders: whole or absent, with any number of writers, and even if a process dies while writing.

An unfinished file or folder has a temporary name beside its final place, `.<name>.<host>.<random>.part`, and is renamed
when it is whole. Nothing that a reader may have open is removed for this: if a writer finds a whole folder at the final
place, it discards the one that it wrote. The writer holds a lock on the unfinished file or folder, which the system
releases when the process ends. So `sweep` can distinguish leftovers of dead processes from files that are being
written.
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
    """Make an empty folder in `parent` (None: the system's folder for temporary files); remove it after the block."""
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    path, handle = _locked_folder(parent, name)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(handle)


def _locked_folder(parent: Path, name: str) -> tuple[Path, int]:
    """Make a new folder with a lock on it; if `sweep` removes it before it is locked, make another one."""
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
    """Yield a temporary folder that becomes `target` if the block ends without an error, and vanishes if not.

    If another process has put a folder there in the meantime, that folder stays and this one vanishes, since both have
    the same content. An old folder that lacks any of these `files` is not whole and is set aside, as is a file or a
    link at `target`. replace: whether the new folder replaces an old one that is whole.
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
    """Rename the folder to `target` and return True; return False if something has that name already."""
    try:
        temporary.rename(target)
    except OSError as error:
        if error.errno not in TAKEN:
            raise
        return False
    return True


def set_aside(path: Path, folder: Path | None = None) -> Path | None:
    """Rename the file or folder to `.<name>.damaged`, with a number if this name is taken, and return the new path.

    Returns None if the file or folder is gone already. folder: where to move it, on the same file system; None: it
    stays in the folder where it is.
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
    """Write a file under another name and rename it; if that fails, nothing is left behind."""
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
    """Open a new file beside the target, with a lock on it; if `sweep` removes it before it is locked, open another."""
    while True:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.{HOST}.", suffix=SUFFIX, dir=target.parent)
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        if Path(name).exists():
            return handle, name
        os.close(handle)


def sweep(*folders: Path) -> list[Path]:
    """Remove unfinished files and folders of dead processes from these folders and from the system's temporary folder.

    Returns the paths that were removed. Subfolders are not searched.
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
    """Remove a file or folder unless another process holds its lock; returns whether it was removed.

    On a file system without locks nothing is removed.
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
