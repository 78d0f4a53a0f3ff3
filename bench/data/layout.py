"""Folders laid out like a data set on the hub: a README.md whose header lists configs, splits and files."""

import hashlib
from pathlib import Path
from typing import Any

import yaml

from bench.data.wheels import file_sha256


class NotThereError(LookupError):
    """A source that lacks a data set, config or split; the message says which."""


def split_files(folder: Path, config: str | None, split: str) -> list[Path]:
    """The files of one split of one config (None: the default one), in the order that the header gives them.

    Raises NotThereError that says what the folder does have.
    """
    chosen = _config(_configs(folder), config)
    files = chosen.get("data_files", [])
    entries = files if isinstance(files, list) else [files]
    splits: dict[str, list[str]] = {}
    for entry in entries:
        one = entry if isinstance(entry, dict) else {"split": "train", "path": entry}
        paths = one["path"] if isinstance(one["path"], list) else [one["path"]]
        splits.setdefault(str(one["split"]), []).extend(map(str, paths))
    if split not in splits:
        raise NotThereError(f"no split {split}; it has {', '.join(splits)}")
    found = [path for pattern in splits[split] for path in sorted(folder.glob(pattern))]
    if not found:
        raise NotThereError(f"{', '.join(splits[split])} is not in {folder}")
    return found


def _configs(folder: Path) -> list[dict[str, Any]]:
    readme = folder / "README.md"
    if not readme.is_file():
        raise NotThereError(f"no {readme}")
    parts = readme.read_text(encoding="utf-8").split("---\n", 2)
    header = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    configs = header.get("configs") if isinstance(header, dict) else None
    if not configs:
        raise NotThereError(f"{readme} has no header with `configs:`")
    return list(configs)


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
    """A README.md whose header lists `configs` (config -> split -> file), as `datasets.load_dataset(folder)` reads it."""
    header = {
        "configs": [
            {"config_name": config, "data_files": [{"split": split, "path": path} for split, path in splits.items()]}
            for config, splits in configs.items()
        ]
    }
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n{note}\n"
