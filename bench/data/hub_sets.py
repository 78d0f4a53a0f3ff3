"""Data sets of the hub: the files of one config, fetched at one commit, as a folder laid out like the hub."""

from collections.abc import Sequence
from pathlib import Path

from bench.data import hub_folder
from bench.files.atomic import temporary_folder
from bench.hub import download
from bench.hub.failures import Repo
from bench.hub.listing import Listing, listing

README = "README.md"


def fetched(name: str, config: str | None, split: str, revision: str, offline: bool = False) -> tuple[Path, str]:
    """Return the folder that holds the files of the config, and the commit that they come from.

    Raises NotThereError if the set has no such config or split; MissingError if the hub has no such set; SetupError if
    the files cannot be fetched, or if nothing says which files they are.
    """
    repo = Repo("dataset", name, "data")
    found = listing(repo, revision, offline)
    named = [README] if README in found.files else []
    folder = download.fetch(repo, found, named, offline)
    names = _files_of(folder / README if named else None, found, config, split)
    return download.fetch(repo, found, [*named, *names], offline), found.commit


def _files_of(readme: Path | None, found: Listing, config: str | None, split: str) -> Sequence[str]:
    """Return the names of a config's files in all splits.

    `hub_folder` finds them in a temporary folder of empty files that are named as on the hub.
    """
    with temporary_folder() as temporary:
        names = temporary.resolve() / "set"
        names.mkdir()
        for name in found.files:
            place = names / name
            if names in place.parents:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.touch()
        if readme is not None:
            (names / README).write_bytes(readme.read_bytes())
        hub_folder.split_files(names, config, split)  # raises if the split is missing, saying what there is
        splits = hub_folder.split_names(names, config)
        files = [file for one in splits for file in hub_folder.split_files(names, config, one)]
        return list(dict.fromkeys(file.relative_to(names).as_posix() for file in files))
