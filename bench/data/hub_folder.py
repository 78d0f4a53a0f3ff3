"""Folders laid out like a data set on the hub, as its client makes them, with or without a header in README.md."""

import glob
import hashlib
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from bench.console.escape import visible
from bench.files import atomic
from bench.files.atomic import temporary_folder
from bench.files.digests import file_sha256
from methods.broken import reading
from methods.errors import SetupError

POINTER = b"version https://git-lfs.github.com/spec/"  # a text that git writes in place of a large file
SHA256 = re.compile(r"^[0-9a-f]{64}$", re.MULTILINE)
ENDING = re.compile(r"(\.\w+){0,2}$")  # such as .jsonl.gz
SHARD = re.compile(r"(\d{5})-of-(\d{5})")  # a numbered part, as in train-00000-of-00002.parquet

HEADER = """Begin its README.md with a header such as
---
configs:
- config_name: default
  data_files:
  - split: test
    path: data/test.jsonl
---"""


class NotThereError(LookupError):
    """Raised for a source that lacks a data set, config or split; the message says which."""


def split_files(folder: Path, config: str | None, split: str) -> list[Path]:
    """Return the files of one split of one config (None: the default one), in the order that the header gives them.

    Without a header the hub's own rules sort the files into splits by their names (`datasets`' split detection).

    Raises NotThereError if the folder lacks the config, the split or all of the split's files; the message says what
    is missing. Raises SetupError for a folder that cannot be understood, or that lacks one of several files; for such a
    folder no other source is tried.
    """
    splits = _splits(folder, _config(folder, config))
    if split not in splits:
        raise NotThereError(f"no split {split}; it has {', '.join(splits) or 'none'}")
    if not splits[split]:
        raise NotThereError(f"the files of split {split}, as {folder / 'README.md'} names them, are not there")
    return splits[split]


def split_names(folder: Path, config: str | None) -> list[str]:
    """Return the splits of a config (None: the default one) that have a file; raises as `split_files` does."""
    return [split for split, files in _splits(folder, _config(folder, config)).items() if files]


def broken(folder: Path, files: list[Path]) -> str | None:
    """Return what is wrong with one of these files of a folder, and what to do; None if none looks broken.

    It looks for faults that a library may not notice when it reads the file.
    """
    for part in sorted(folder.rglob("*.incomplete")):
        return f"{part} is a download that was not finished; run it again, or delete that file"
    for file in files:
        if not file.is_file():
            return f"{file} is a link to a file that is not there; give a whole copy"
        with file.open("rb") as opened:
            begins = opened.read(len(POINTER))
        if not begins:
            return f"{file} has no bytes; give a whole copy"
        if begins == POINTER:
            return f"{file} is a pointer of Git LFS in place of the file; fetch the file by: git lfs pull"
        noted = folder / ".cache/huggingface/download" / f"{os.path.relpath(file, folder)}.metadata"
        if (
            noted.is_file()
            and (digest := SHA256.search(noted.read_text("utf-8", "replace")))
            and digest[0] != file_sha256(file)
        ):
            return f"{file} is not what was downloaded (sha256 in {noted}); download it again, or delete {noted}"
    return None


def view(folder: Path, config: str | None, views: Path) -> Path:
    """Return a folder below `views` that presents this config and its splits to `datasets.load_dataset`.

    `load_dataset` looks into its own cache first, under a key made of the folder's last name and the header's text
    alone (datasets 5.2). So the same data set in another folder, or with changed content, would silently give the old
    rows. The view's header therefore names the files by their full paths and carries a hash of their paths, sizes and
    times.
    """
    found = _config(folder, config)
    splits = {split: files for split, files in _splits(folder, found).items() if files}
    header = _with_splits(_header(folder), str(found["config_name"]), list(splits))
    digest = hashlib.sha256(repr([header, found]).encode())
    for path in (path for files in splits.values() for path in files):
        digest.update(f"{path.absolute()} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
    tag = digest.hexdigest()[:16]
    shown = views / tag / folder.parent.name / folder.name
    entries = [
        {"split": split, "path": [glob.escape(str(_literal(path.absolute(), shown))) for path in files]}
        for split, files in splits.items()
    ]
    own = {key: value for key, value in found.items() if key != "data_dir"}
    configs = [{**own, "data_files": entries, "description": tag}]
    text = _readme({**header, "configs": configs}, f"View of {folder}.")
    _write_view(views, shown, text)
    return shown


def _write_view(views: Path, shown: Path, text: str) -> None:
    """Write the README.md of a view (a folder that points to a data set's files) unless it exists with this text.

    Anything else in its place is set aside.

    Raises SetupError if nothing can be written there.
    """
    readme = shown / "README.md"
    with suppress(OSError, UnicodeDecodeError):
        if readme.read_text(encoding="utf-8") == text:
            return
    for folder in (views, *reversed(shown.relative_to(views).parents[:-1]), shown.relative_to(views)):
        _make_room(views / folder, is_folder=True)
    _make_room(readme, is_folder=False)
    try:
        atomic.write_whole(readme, text)
    except OSError as error:
        raise SetupError(f"{readme} cannot be written ({error.strerror or error}); set runtime.cache=FOLDER") from error


def _make_room(path: Path, *, is_folder: bool) -> None:
    """Set aside whatever is in the place of a folder (`is_folder`) or file of the cache and is not one."""
    if (path.exists() or path.is_symlink()) and not (path.is_dir() if is_folder else path.is_file()):
        with suppress(OSError):
            moved = atomic.set_aside(path)
            what = "folder" if is_folder else "file"
            print(visible(f"warning: {path} is not a {what}; it is set aside as {moved}"), file=sys.stderr)


def _literal(path: Path, shown: Path) -> Path:
    """Return the file's path, or a link to it in the view if `datasets` would misread the path (`$` or `::`)."""
    if not re.search(r"\$|::", str(path)):
        return path
    link = shown / f"{hashlib.sha256(str(path).encode()).hexdigest()[:16]}{ENDING.search(path.name)[0]}"  # type: ignore[index]
    if link.is_symlink() and link.readlink() == path:
        return link
    shown.mkdir(parents=True, exist_ok=True)
    if link.exists() or link.is_symlink():
        atomic.set_aside(link)
    with suppress(FileExistsError):
        link.symlink_to(path)
    return link


def named(file: Path, folder: Path) -> Path:
    """Return the path as the user knows it: if the file is a link that lies directly in a view, the link's target."""
    return file.readlink() if file.parent == folder and file.is_symlink() and file.readlink().is_absolute() else file


# -- the header --------------------------------------------------------------------------------------------------------


def _header(folder: Path) -> dict[str, Any]:
    """Return the header of README.md, between its lines of dashes; empty if there is no README.md or no header.

    Raises SetupError for a broken header, since reading another source in its place would be a surprise.
    """
    readme = folder / "README.md"
    if not folder.is_dir():
        raise NotThereError(f"no folder {folder}")
    if not readme.is_file():
        return {}
    told = "its header cannot be read"
    with reading(
        lambda error: SetupError(f"{readme}: {told} ({type(error).__name__}); give a whole copy"), yaml.YAMLError
    ):
        found = re.match(r"\s*---[ \t]*\n(.*?)^---[ \t]*$", readme.read_text(encoding="utf-8-sig"), re.DOTALL | re.M)
        header = yaml.safe_load(found[1]) if found else {}
    if not isinstance(header or {}, dict):
        raise SetupError(f"{readme}: its header is not a list of names and values; write it as the hub does")
    return header or {}


def _config(folder: Path, name: str | None) -> dict[str, Any]:
    """Return the header's entry of the named config, or of the one that the hub's loader takes for the default.

    An entry that names no files is returned as it is. If the header lists no configs, an entry without files is made.
    """
    configs = _listed(folder)
    if not configs:
        if name in (None, "default"):
            return {"config_name": "default"}
        if (folder / name).is_dir():
            return {"config_name": name, "data_dir": name}
        names = [file.relative_to(folder).parts for file in folder.rglob("*") if file.is_file()]
        folders = {parts[0] for parts in names if len(parts) > 1 and not parts[0].startswith(".")} - {"data"}
        if folders:
            raise NotThereError(f"no config {name}; it has {', '.join(sorted(folders))}")
        raise SetupError(f"{folder}: nothing says which of its files are config {name}. {HEADER}")
    if name is not None:
        wanted = [config for config in configs if config["config_name"] == name]
    else:
        wanted = [config for config in configs if config.get("default") or config["config_name"] == "default"]
        wanted = wanted or (configs if len(configs) == 1 else [])
    if not wanted:
        raise NotThereError(
            f"no config {name or 'by default'}; it has {', '.join(config['config_name'] for config in configs)}"
        )
    return wanted[0]


def _listed(folder: Path) -> list[dict[str, Any]]:
    """Return the header's entries under `configs:`. Raises SetupError for one that is not written as on the hub."""
    configs = _header(folder).get("configs") or []
    readme = folder / "README.md"
    if not isinstance(configs, list):
        raise SetupError(f"{readme}: its `configs:` is not a list; write it as the hub does")
    for config in configs:
        if not isinstance(config, dict) or "config_name" not in config:
            raise SetupError(f"{readme}: an entry of its `configs:` has no config_name; write it as the hub does")
        name = config["config_name"]
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise SetupError(f"{readme}: config_name {name!r} is not a string; write it in quotes")
        if not isinstance(config.get("data_dir", ""), str):
            raise SetupError(f"{readme}: data_dir of config {name} is not a string; write it as the hub does")
    return [{**config, "config_name": str(config["config_name"])} for config in configs]


def _with_splits(header: dict[str, Any], config: str, splits: list[str]) -> dict[str, Any]:
    """Return the header with its `dataset_info` cut to these splits, since `datasets` expects every split in it."""
    listed = header.get("dataset_info")
    infos = [one for one in (listed if isinstance(listed, list) else [listed]) if isinstance(one, dict)]
    mine = [one for one in infos if str(one.get("config_name", "default")) == config]
    rest = {key: value for key, value in header.items() if key not in ("configs", "dataset_info")}
    if not mine:
        return rest
    kept = [one for one in mine[0].get("splits") or [] if isinstance(one, dict) and one.get("name") in splits]
    counted = {"splits": kept} if {one["name"] for one in kept} == set(splits) else {}
    return rest | {"dataset_info": {key: value for key, value in mine[0].items() if key != "splits"} | counted}


# -- files of a config -------------------------------------------------------------------------------------------------


def _splits(folder: Path, config: dict[str, Any]) -> dict[str, list[Path]]:
    """Return the files of each split of a config: those that its header lists or, if it lists none, by their names."""
    if config.get("data_files") is None:
        return _detected(folder, config)
    splits: dict[str, list[Path]] = {}
    for split, patterns in _patterns(folder, config).items():
        found = {pattern: _matching(folder / config.get("data_dir", ""), pattern) for pattern in patterns}
        for pattern, files in found.items():
            if not files and any(found.values()):
                raise SetupError(f"{folder / pattern}, which README.md names, is not there; give a whole copy")
            if glob.has_magic(pattern):
                _all_shards(files)
        splits[split] = [file for files in found.values() for file in files]
    return splits


def _patterns(folder: Path, config: dict[str, Any]) -> dict[str, list[str]]:
    """Return the file patterns of each split. Raises SetupError for entries that are not written as on the hub."""
    files = config["data_files"]
    splits: dict[str, list[str]] = {}
    for entry in files if isinstance(files, list) else [files]:
        one = {"split": "train", "path": entry} if isinstance(entry, str) else entry
        paths = one.get("path") if isinstance(one, dict) else None
        paths = [paths] if isinstance(paths, str) else paths
        known = isinstance(paths, list) and all(isinstance(path, str) for path in paths)
        if not known or not isinstance(one.get("split"), str | int) or isinstance(one["split"], bool):
            raise SetupError(
                f"{folder / 'README.md'}: data_files of config {config['config_name']} hold {entry!r}; expected are "
                "entries with `split: NAME` and `path: FILES`"
            )
        splits.setdefault(str(one["split"]), []).extend(paths or [])
    return splits


def _matching(folder: Path, pattern: str) -> list[Path]:
    """Return the files that match a pattern, including links that lead nowhere."""
    literal = folder / pattern
    if literal.is_file() or literal.is_symlink():
        return [literal]
    if Path(pattern).is_absolute():  # in a view's header
        return sorted(Path(literal.anchor).glob(pattern.removeprefix(literal.anchor)))
    found = folder.glob(f"{pattern}/*" if pattern.endswith("**") else pattern)
    return sorted(path for path in found if not path.is_dir() and not _hidden(path.relative_to(folder)))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") and part != ".." for part in path.parts)


def _detected(folder: Path, config: dict[str, Any]) -> dict[str, list[Path]]:
    """Return the files, sorted into splits by their names as `datasets` does it for the hub.

    Raises SetupError if there are none, or if the files of a split lie in several folders, which may be several
    configs.
    """
    import datasets  # late: importing it takes long
    from datasets.exceptions import DatasetsError

    place = folder / config.get("data_dir", "")
    if not place.is_dir():
        raise NotThereError(f"no folder {place}")
    with temporary_folder() as temporary:
        names = temporary.resolve() / "set"  # links of the same names, in a folder whose path is no pattern
        for file in sorted(place.rglob("*")):
            inside = file.relative_to(place)
            if file.is_symlink() and not file.exists() and not _hidden(inside):
                raise SetupError(f"{file} is a link to a file that is not there; give a whole copy")
            if file.is_file() and not _hidden(inside) and inside.name != "README.md":
                (names / inside).parent.mkdir(parents=True, exist_ok=True)
                (names / inside).symlink_to(file.absolute())

        def told(error: BaseException) -> SetupError:
            return SetupError(
                f"{place} cannot be understood as a data set ({type(error).__name__}): its README.md lists no files, "
                f"and those that are there have no names or kinds that `datasets` knows. {HEADER}"
            )

        with reading(told, DatasetsError):
            builder = datasets.load_dataset_builder(str(names), cache_dir=str(temporary))
    splits: dict[str, list[Path]] = {}
    for split, files in (builder.config.data_files or {}).items():
        splits[str(split)] = sorted(place / Path(str(file)).relative_to(names) for file in files)
    for split, files in splits.items():
        folders = sorted({str(file.parent.relative_to(place)) for file in files})
        if len(folders) > 1:
            raise SetupError(
                f"{place}: files of split {split} are in several folders ({', '.join(folders[:5])}), which may be "
                f"several configs. {HEADER}"
            )
        _all_shards(files)
    return splits


def _all_shards(files: list[Path]) -> None:
    """Raises SetupError if one of the numbered parts of a split is missing."""
    parts: dict[str, set[str]] = {}
    for file in files:
        if found := SHARD.search(file.name):
            parts.setdefault(f"{file.parent / file.name[: found.start()]}*-of-{found[2]}", set()).add(found[1])
    for named, there in parts.items():
        if len(there) < int(named[-5:]):
            raise SetupError(f"{named}: of these files only {', '.join(sorted(there))} are there; give a whole copy")


def fingerprint(files: list[Path]) -> str:
    """Return 12 hex digits of the sha256 of the files' content; their names and folders do not count."""
    return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()[:12]


def readme(configs: dict[str, dict[str, str]], note: str) -> str:
    """Return a README.md whose header lists the file of each config and split for `datasets.load_dataset`."""
    header = {
        "configs": [
            {"config_name": config, "data_files": [{"split": split, "path": path} for split, path in splits.items()]}
            for config, splits in configs.items()
        ]
    }
    return _readme(header, note)


def _readme(header: dict[str, Any], note: str) -> str:
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n{note}\n"
