"""The files on the hub that make up a model: those that identify it, and those that are loaded."""

from fnmatch import fnmatch
from pathlib import Path

from bench.files.digests import file_sha256
from bench.hub import download
from bench.hub.failures import Repo
from bench.hub.listing import Listing, listing
from bench.model.model_folder import EXTRA_TEMPLATES, READ, WEIGHTS, weights_loaded
from methods.errors import SetupError


def about(repo: Repo, revision: str, offline: bool = False) -> tuple[Listing, Path]:
    """Return the list of a model's files, and a folder that holds those that loading reads, except the weights.

    Raises SetupError if the repository is not a language model of transformers, and if the files cannot be fetched.
    """
    found = listing(repo, revision, offline)
    if "config.json" not in found.files:
        raise SetupError(f"{repo} has no config.json, so transformers cannot load it as a model; give another one")
    if "adapter_config.json" in found.files:
        raise SetupError(
            f"{repo} is an adapter (adapter_config.json), which needs another model; give the whole model, with the "
            "adapter merged into it"
        )
    return found, download.fetch(repo, found, _small(found), offline)


def identity(repo: Repo, revision: str, offline: bool = False) -> dict[str, str]:
    """Return the sha256 of each file that loading reads, as for a folder with the same files.

    Weights whose hash the hub states are not read, and need not be fetched yet.
    """
    found, folder = about(repo, revision, offline)
    files = {name: found.files[name].sha256 or file_sha256(folder / name) for name in _small(found)}
    for name in _weights(repo, found, folder):
        digest = found.files[name].sha256
        if digest is None:  # weights of a small model, kept in git itself
            digest = file_sha256(download.fetch(repo, found, [name], offline) / name)
        files[name] = digest
    return dict(sorted(files.items()))


def fetch(repo: Repo, revision: str, offline: bool = False) -> None:
    """Bring every file here that loading reads. Raises SetupError if one cannot be fetched."""
    found, folder = about(repo, revision, offline)
    download.fetch(repo, found, _weights(repo, found, folder), offline)


def _small(found: Listing) -> list[str]:
    """Return the files that loading reads except the weights, by the patterns that also find a folder's files."""
    top = [name for name in found.files if "/" not in name and any(fnmatch(name, one) for one in READ)]
    templates = [name for name in found.files if fnmatch(name, EXTRA_TEMPLATES) and name.count("/") == 1]
    return sorted(name for name in (*top, *templates) if not _is_weights(name))


def _is_weights(name: str) -> bool:
    return any(fnmatch(name, one) for one in WEIGHTS)


def _weights(repo: Repo, found: Listing, folder: Path) -> list[str]:
    """Return the files that the weights are loaded from. Raises SetupError if there are none, or if one is missing."""
    known = {name for name in found.files if "/" not in name}
    names = weights_loaded(folder, known)
    if not names:
        raise SetupError(f"{repo} has no weights in a format that can be read ({', '.join(WEIGHTS)}); give another one")
    if lacking := [name for name in names if name not in known]:
        raise SetupError(f"{repo} lacks a part of its weights: {', '.join(lacking[:3])}; give another commit")
    return names
