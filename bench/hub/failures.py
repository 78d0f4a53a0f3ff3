"""Errors for what the hub cannot give: is it missing there, or only out of reach now?"""

import re
from typing import Literal, NamedTuple

from methods.errors import SetupError


class Repo(NamedTuple):
    """A repository of the hub. option: the setting that chose it, for messages (model, scorer.NAME)."""

    kind: Literal["model", "dataset"]
    name: str
    option: str

    @property
    def page(self) -> str:
        """The address of its web page."""
        return f"https://huggingface.co/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    def __str__(self) -> str:
        """Its kind and name."""
        return f"the {'data set' if self.kind == 'dataset' else self.kind} {self.name}"


class MissingError(SetupError):
    """The hub was asked and does not have the repository, revision or file."""


class UnreachableError(SetupError):
    """The hub did not answer as it should, which says nothing about what it has."""


CREDENTIALS = re.compile(r"(?<=://)[^/\s@'\"]+@|(?<=[^\s'\"])\?[^\s'\"]*=[^\s'\"]*")
"""Secrets that an address may hold: a name with a password, a signature in the query."""


def reason(error: BaseException) -> str:
    """Return what a library said about a download, in a line without credentials."""
    told = " ".join((str(error).strip() or type(error).__name__).split("\n\n")[0].split())
    return CREDENTIALS.sub("", told)[:300]


def failure(repo: Repo, error: BaseException, wanted: str = "") -> SetupError:
    """Return the error to raise in place of an error of the hub's client.

    It is a MissingError only if the hub itself says that nothing is there.

    wanted: the file or revision that was asked for.
    """
    from huggingface_hub import errors

    while isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # the client says "not in the cache" if anything kept it from asking
    why = reason(error)
    if isinstance(error, UnicodeEncodeError):
        return SetupError(
            f"{repo}: the token for the hub holds a character that no token has ({error.object[error.start]!r}); set "
            "HF_TOKEN anew, or run `hf auth login`"
        )
    if isinstance(error, OSError) and error.filename is not None:
        return SetupError(
            f"{wanted or 'what is fetched'} of {repo} cannot be kept in the cache of the hub's client "
            f"({error.filename}: {error.strerror}); get the right to write there, or set HF_HUB_CACHE=FOLDER (or "
            "HF_HOME=FOLDER) to another folder"
        )
    if isinstance(error, errors.GatedRepoError):
        return SetupError(
            f"{repo} is gated: its authors ask you to accept their terms first. Open {repo.page}, log in and accept "
            "them; then run `hf auth login` here, or set HF_TOKEN to a token of your account, and run the same command "
            "again"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        set_it = "" if repo.kind == "dataset" else f"; set {repo.option}.revision=COMMIT, as {repo.page}/commits has it"
        return MissingError(f"the hub has no revision {wanted or 'of that name'} of {repo}{set_it}")
    if isinstance(error, errors.RepositoryNotFoundError):
        return MissingError(
            f"the hub shows no {repo.kind} {repo.name}: is the name right ({repo.page})? A private one is shown after "
            "`hf auth login`"
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return MissingError(f"{repo} has no file {wanted} on the hub")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return UnreachableError(f"{repo}: the hub was not asked, since HF_HUB_OFFLINE is set; unset it, or prefetch")
    if isinstance(error, errors.HFValidationError):
        return SetupError(f"{repo}: {why}; expected ORG/NAME")
    what = f"{wanted} of {repo}" if wanted else str(repo)
    return UnreachableError(
        f"the hub could not be asked for {what} ({type(error).__name__}: {why}), so it is not known whether it is "
        "there; run the same command again later (what was fetched is kept), or set runtime.offline=true to use only "
        "what was fetched"
    )
