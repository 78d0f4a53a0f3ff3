"""Folders laid out like a data set on the hub: a README.md whose header lists configs, splits and files."""

import hashlib
import os
from pathlib import Path
from typing import Any

import yaml

from bench.data.wheels import file_sha256
from methods.errors import SetupError


class NotThereError(LookupError):
    """A source that lacks a data set, config or split; the message says which."""


def split_files(folder: Path, config: str | None, split: str) -> list[Path]:
    """The files of one split of one config (None: the default one), in the order that the header gives them.

    Raises NotThereError that says what the folder does have.
    """
    splits = _patterns(_config(_header(folder)["configs"], config))
    if split not in splits:
        raise NotThereError(f"no split {split}; it has {', '.join(splits)}")
    found = [path for pattern in splits[split] for path in sorted(folder.glob(pattern))]
    if not found:
        raise NotThereError(f"{', '.join(splits[split])} is not in {folder}")
    return found


def view(folder: Path, views: Path) -> Path:
    """A folder below `views` that shows the same configs and splits, made for `datasets.load_dataset`.

    `load_dataset` looks into its own cache first, under a key made of the folder's last name and the header's text
    alone (datasets 5.2): the same data set in another folder, or with other content, would silently give the old rows.
    The view's header names the files by their full path and carries a hash of their place, size and time.
    """
    header = _header(folder)
    digest = hashlib.sha256(repr(header).encode())
    configs = []
    for config in header["configs"]:
        entries = []
        for split, patterns in _patterns(config).items():
            paths = [path.resolve() for pattern in patterns for path in sorted(folder.glob(pattern))]
            for path in paths:
                digest.update(f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
            if paths:
                entries.append({"split": split, "path": [str(path) for path in paths]})
        configs.append({**config, "data_files": entries})
    tag = digest.hexdigest()[:16]
    shown = views / tag / folder.parent.name / folder.name
    if not (shown / "README.md").is_file():
        shown.mkdir(parents=True, exist_ok=True)
        named = {**header, "configs": [{**config, "description": tag} for config in configs]}
        whole = shown / f".{os.getpid()}"
        whole.write_text(_readme(named, f"View of {folder}."), encoding="utf-8")
        whole.replace(shown / "README.md")
    return shown


def _header(folder: Path) -> dict[str, Any]:
    """Raises SetupError for a header that is broken: another source in its place would be a surprise."""
    readme = folder / "README.md"
    if not readme.is_file():
        raise NotThereError(f"no {readme}")
    try:
        parts = readme.read_text(encoding="utf-8").split("---\n", 2)
        header = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise SetupError(f"{readme}: its header cannot be read ({type(error).__name__}); give a whole copy") from error
    if not isinstance(header, dict) or not header.get("configs"):
        raise NotThereError(f"{readme} has no header with `configs:`")
    if not all(isinstance(one, dict) and "config_name" in one for one in header["configs"]):
        raise SetupError(f"{readme}: an entry of its `configs:` has no config_name; write it as the hub does")
    return header


def _patterns(config: dict[str, Any]) -> dict[str, list[str]]:
    """File patterns of each split of a config, however its header writes them."""
    files = config.get("data_files", [])
    splits: dict[str, list[str]] = {}
    for entry in files if isinstance(files, list) else [files]:
        one = entry if isinstance(entry, dict) else {"split": "train", "path": entry}
        paths = one["path"] if isinstance(one["path"], list) else [one["path"]]
        splits.setdefault(str(one["split"]), []).extend(map(str, paths))
    return splits


def _config(configs: list[dict[str, Any]], name: str | None) -> dict[str, Any]:
    """The named config, or the one that the hub's loader takes for the default."""
    names = [str(config["config_name"]) for config in configs]
    if name is not None:
        wanted = [config for config in configs if config["config_name"] == name]
    else:
        wanted = [config for config in configs if config.get("default") or config["config_name"] == "default"]
        wanted = wanted or (configs if len(configs) == 1 else [])
    if not wanted:
        raise NotThereError(f"no config {name or 'by default'}; it has {', '.join(names)}")
    return wanted[0]


def fingerprint(files: list[Path]) -> str:
    """12 hex digits of the sha256 of the files' content; names and folders are no part of it."""
    return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()[:12]


def readme(configs: dict[str, dict[str, str]], note: str) -> str:
    """A README.md whose header lists `configs` (config -> split -> file), as `datasets.load_dataset` reads it."""
    header = {
        "configs": [
            {"config_name": config, "data_files": [{"split": split, "path": path} for split, path in splits.items()]}
            for config, splits in configs.items()
        ]
    }
    return _readme(header, note)


def _readme(header: dict[str, Any], note: str) -> str:
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n{note}\n"
