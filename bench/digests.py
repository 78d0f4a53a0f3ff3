"""Digests of files that numbers depend on: written beside them once, checked whenever they are read.

A folder is sealed by `sha256.json`, which names each of its files with its sha256. So damage that leaves a file
readable (a flipped bit, another tensor of the same shape) is found before a number is made of it.
"""

import json
from pathlib import Path

from bench.data.wheels import file_sha256
from bench.record import dumps, sha256, write_whole
from methods.errors import SetupError

SEAL = "sha256.json"


class DamagedError(SetupError):
    """A file is not what was written; the message names it."""


def seal(folder: Path, verified: bool = True) -> None:
    """Write the sha256 of every file below `folder` to its `sha256.json`.

    verified: False where nobody knows whether the files are still what was once written.
    """
    files = {path.relative_to(folder).as_posix(): sha256(path) for path in _files(folder)}
    write_whole(folder / SEAL, dumps({"files": files, "verified": verified}))


def verified(folder: Path, *, always: bool = True) -> bool:
    """Whether the files below `folder` are known to be what was written.

    False for a folder without a seal, as older versions wrote them: it gets one now, which says so.
    always: read every file now; False for large files that are read once a process, and again when size or time differ.

    Raises DamagedError where a file is missing or has other bytes than were written.
    """
    if not (folder / SEAL).is_file():
        seal(folder, verified=False)
    try:
        sealed = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        files, known = dict(sealed["files"]), bool(sealed["verified"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{folder / SEAL} cannot be read; {_again(folder)}") from error
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            raise DamagedError(f"{path} is missing; {_again(folder)}")
        if (sha256 if always else file_sha256)(path) != digest:
            raise DamagedError(f"{path} is not what was written (its sha256 differs); {_again(folder)}")
    return known


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / SEAL)


def _again(folder: Path) -> str:
    return f"delete the folder {folder}, and the same command makes it again"
