"""The files of a repository at one commit, with their sizes and hashes, asked of the hub once and kept."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from bench.files.atomic import write_whole
from bench.hub.failures import Repo, UnreachableError, failure
from methods.errors import SetupError

COMMIT = re.compile(r"[0-9a-f]{40}")
NO_HUB = (
    "what answered for {repo} is not the hub, whose answer would be another one; see whether HF_ENDPOINT is right, and "
    "whether a proxy or the login page of a network stands between"
)
SECONDS = 15.0
"""How long the hub may take to answer, before it counts as not reached."""


class File(NamedTuple):
    """The size in bytes, and the sha256 of a large file; for a small one the hub only has git's own hash."""

    size: int
    sha256: str | None


class Listing(NamedTuple):
    """A repository at one commit: its files by their path."""

    commit: str
    files: dict[str, File]


class NotKeptError(SetupError):
    """Raised if the list of a repository at this revision was not stored, and the hub may not be asked."""


def storage(repo: Repo) -> Path:
    """Return the folder of a repository in the cache of the hub's client."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{repo.kind}s--{repo.name.replace('/', '--')}"


def listing(repo: Repo, revision: str, offline: bool = False) -> Listing:
    """Return the files of a repository at a commit, or at the present commit of a branch or tag.

    A commit never changes, so the hub is asked about it once. The hub is asked about a branch each time, and the commit
    that it names is kept, for use without network.

    Raises MissingError if the hub does not have the repository or revision; SetupError if the hub cannot be asked;
    NotKeptError if `offline` is set and nothing is kept.
    """
    if COMMIT.fullmatch(revision) or offline:
        if (kept := _kept(repo, revision)) is not None:
            return kept
    if offline:
        raise NotKeptError(
            f"{repo} at {revision} was not fetched yet, and runtime.offline is set; fetch it on a machine with network "
            "by `python -m bench.prefetch` with the same arguments"
        )
    found = _asked(repo, revision)
    _keep(repo, revision, found)
    return found


def _asked(repo: Repo, revision: str) -> Listing:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # the base of all its network errors

    info: Any
    try:
        info = HfApi().repo_info(
            repo.name, repo_type=repo.kind, revision=revision, timeout=SECONDS, files_metadata=True
        )
    except (OSError, ValueError, HTTPError) as error:
        raise failure(repo, error, revision) from error
    except (TypeError, KeyError, AttributeError) as error:
        raise UnreachableError(NO_HUB.format(repo=repo)) from error
    if not COMMIT.fullmatch(str(info.sha)):
        raise UnreachableError(NO_HUB.format(repo=repo))
    files = {}
    for one in info.siblings or ():
        sha256 = one.lfs.sha256 if one.lfs is not None else None
        files[one.rfilename] = File(int(one.size or 0), sha256)
    return Listing(str(info.sha), files)


def _place(repo: Repo, commit: str) -> Path:
    return storage(repo) / "steerbench" / f"{commit}.json"


def _keep(repo: Repo, revision: str, found: Listing) -> None:
    """Keep the list and, as the hub's client does, the commit of the revision; nothing is kept in a read-only cache."""
    with suppress(OSError):
        place = _place(repo, found.commit)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, json.dumps({name: list(file) for name, file in found.files.items()}, indent=1) + "\n")
        if revision != found.commit:
            ref = storage(repo) / "refs" / revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            write_whole(ref, found.commit)


def _kept(repo: Repo, revision: str) -> Listing | None:
    """Return the list that was kept; None if none was kept, or if it cannot be read."""
    try:
        commit = revision
        if not COMMIT.fullmatch(revision):
            commit = (storage(repo) / "refs" / revision).read_text(encoding="utf-8").strip()
        read = json.loads(_place(repo, commit).read_text(encoding="utf-8"))
        return Listing(commit, {name: File(int(size), sha256) for name, (size, sha256) in read.items()})
    except (OSError, ValueError, TypeError, AttributeError):
        return None
