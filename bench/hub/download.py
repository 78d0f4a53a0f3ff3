"""Files of a repository at a commit, fetched into the cache of the hub's client, where interrupted downloads continue.

The client begins a large file again after its process has ended (huggingface_hub 2.4). So this module fetches large
files itself, into `blobs/<sha256>.part`, which the next command continues; the client then finds the whole file and
links it.
"""

import errno
import hashlib
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.files.digests import DamagedError, file_sha256, sha256
from bench.hub import manifest
from bench.hub.failures import Repo, failure, reason
from bench.hub.listing import File, Listing, storage
from methods.errors import SetupError

FULL = (errno.ENOSPC, errno.EDQUOT)


def fetch(repo: Repo, found: Listing, names: Iterable[str], offline: bool = False) -> Path:
    """Fetch those of the files `names` that are missing; return the folder that holds the repository at this commit.

    Raises SetupError if a file is missing and cannot be fetched, and if the disk is full; DamagedError for a file
    that differs from the hub's.
    """
    folder = storage(repo) / "snapshots" / found.commit
    for name in names:
        file, place = found.files[name], folder / name
        if new := not place.is_file():
            if offline:
                raise SetupError(
                    f"{name} of {repo} was not fetched yet, and runtime.offline is set; fetch it on a machine with "
                    "network by `python -m bench.prefetch` with the same arguments"
                )
            with _fetching(repo, name, file):
                if file.sha256 is not None:
                    _large(repo, found.commit, name, file, file.sha256)
                _client(repo, found.commit, name)
        if told := damaged(place):
            raise DamagedError(told)
        manifest.note(str(repo).removeprefix("the "), name, repo.page, found.commit, place, new=new)
    return folder


def fetch_url(url: str, target: Path, digest: str, otherwise: str) -> Path:
    """Download a file whose sha256 is known to `target`; an interrupted download continues.

    otherwise: what to do without network, for the message. Raises SetupError if the download fails, or the file has
    another sha256.
    """
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]
    from huggingface_hub.file_download import http_get

    part = target.with_name(f"{digest}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        if not part.is_file() or sha256(part) != digest:
            with part.open("ab") as opened:
                http_get(url, opened, resume_size=opened.tell(), displayed_filename=target.name)
    except (OSError, ValueError, HTTPError) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise full(target.parent, target.name, "TORCH_HOME=FOLDER") from error
        raise SetupError(
            f"cannot download {url}: {reason(error)}; run the same command again, what has arrived is kept. {otherwise}"
        ) from error
    if sha256(part) != digest:
        part.unlink()
        raise SetupError(f"{url} has another sha256 than {digest}; it was deleted. {otherwise}")
    part.replace(target)
    manifest.note(target.name, target.name, url, None, target, new=True)
    return target


def _client(repo: Repo, commit: str, name: str) -> None:
    """Let the client fetch a small file, or link a large one that is already here."""
    from huggingface_hub import hf_hub_download

    hf_hub_download(repo.name, name, repo_type=repo.kind, revision=commit)


def _large(repo: Repo, commit: str, name: str, file: File, digest: str) -> None:
    """Fetch a large file from where an earlier download of it stopped."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]

    blob = storage(repo) / "blobs" / digest
    part = blob.with_name(f"{digest}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(part.with_suffix(".lock")):
        if blob.exists():
            return
        if part.exists() and part.stat().st_size > file.size:
            part.unlink()
        with part.open("ab") as opened:
            http_get(
                hf_hub_url(repo.name, name, repo_type=repo.kind, revision=commit),
                opened,
                resume_size=opened.tell(),
                headers=build_hf_headers(),
                expected_size=file.size,
                displayed_filename=f"{repo.name} {name}",
            )
        if sha256(part) != digest:
            part.unlink()
            raise SetupError(
                f"{name} of {repo} arrived with other bytes than the hub says it has; it was deleted. Run the same "
                "command again; if that happens twice, something between here and the hub changes files"
            )
        part.replace(blob)
    part.with_suffix(".lock").unlink(missing_ok=True)


@contextmanager
def _fetching(repo: Repo, name: str, file: File) -> Iterator[None]:
    """Fetch a file inside the `with`; if that fails, raise a SetupError that says why."""
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        yield
    except SetupError:
        raise
    except (OSError, ValueError, HTTPError) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise full(storage(repo).parent, f"{name} of {repo} ({file.size / 1e9:,.2f} GB)") from error
        raise failure(repo, error, name) from error


def full(place: Path, what: str, setting: str = "HF_HUB_CACHE=FOLDER (or HF_HOME=FOLDER)") -> SetupError:
    """Return the error for a disk that is full; setting: the setting by which the user moves the cache in `place`."""
    try:
        left = f"{shutil.disk_usage(place).free / 1e9:,.2f} GB are free"
    except OSError:
        left = "no space is left"
    return SetupError(
        f"the disk of {place} is full ({left}), so {what} could not be fetched; free some space there, or set "
        f"{setting} to a folder on another disk, and run the same command again: what has arrived is kept"
    )


def damaged(path: Path) -> str | None:
    """Return what is wrong with a link to a file in the hub client's cache, and what to do; None for nothing.

    The client keeps each file under its sha256, small ones under git's sha1.
    """
    blob = path.resolve()
    digest = {64: file_sha256, 40: _git_sha1}.get(len(blob.name))
    if not path.is_symlink() or not path.is_file() or digest is None or digest(blob) == blob.name:
        return None
    return f"{path} is not the file that the hub has; delete {blob}, and it is fetched again"


def _git_sha1(path: Path) -> str:
    """Return the sha1 by which git names the content of a file."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
