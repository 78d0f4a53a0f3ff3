"""Which files a model is made of, and what names their bytes: a wheel's GGUF, a folder, or a hub revision."""

import functools
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from bench.data.wheels import file_sha256
from bench.digests import DamagedError
from bench.record import sha256
from methods.errors import SetupError

WEIGHTS = ("*.safetensors", "*.bin")
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


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
    kind = source(node)
    if kind == "path":
        check_folder(node.path, "model.path")
    elif kind == "id":
        check_id(node.id, "model.id")
    else:
        from bench.wheel_model import pinned_wheel

        pinned_wheel(node.wheel, node.gguf, node.sha256)


def check_config(where: str, **named: Any) -> None:
    """Raises ValueError for a config.json that asks for attention by code from the hub, which transformers would run.

    named: revision and the like, as `from_pretrained` has them.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(where, trust_remote_code=False, **named)
    asked = getattr(config, "_attn_implementation", None)
    if "/" in str(asked):
        raise ValueError(f"custom code: attn_implementation is {asked}")


def check_id(name: str, option: str) -> None:
    """Raises SetupError for what is no id of the hub, and where a folder of that name here would be read instead."""
    if not HUB_ID.fullmatch(str(name)) or Path(str(name)).exists():
        raise SetupError(
            f"{option}={name}: ORG/NAME on the hub is wanted, and no folder of that name here; for a folder set "
            f"{option.removesuffix('id')}path=FOLDER {option}=null"
        )


def check_folder(path: str, option: str) -> None:
    """Raises SetupError for a folder without config or weights; `option` is what the user set it by."""
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise SetupError(f"{option}={path}: no config.json there; give a folder that save_pretrained wrote")
    if not any(True for pattern in WEIGHTS for _ in folder.glob(pattern)):
        raise SetupError(f"{option}={path}: no weights there ({', '.join(WEIGHTS)}); the download is cut short?")
    if (folder / "adapter_config.json").is_file():
        raise SetupError(
            f"{option}={path}: there is an adapter in it (adapter_config.json), which names another model to be loaded "
            "in this one's place; give a folder with the whole model, the adapter merged into it"
        )


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


def text_rules(node: DictConfig, where: Callable[[], str], offline: bool = False) -> dict[str, Any]:
    """How a text begins and ends with this model, as its identity has it.

    bos: what `model.bos=tokenizer` comes to. stop_tokens: null, unless the generation config lists tokens without the
    tokenizer's own end of text, which older versions did not stop at then.

    where: gives the folder or hub id to load from, where a file of the model has to be read.
    """
    kind = source(node)
    if node.bos != "tokenizer" and kind == "wheel":  # a GGUF file names one token that ends a text
        return {"bos": node.bos, "stop_tokens": None}
    revision = commit(node.id, node.revision, offline) if kind == "id" else None
    try:
        return dict(_text_rules(where(), revision, node.bos, offline))
    except SetupError:
        if node.bos == "tokenizer" or kind != "id":
            raise
        return {"bos": node.bos, "stop_tokens": None}  # known results of a model that cannot be had are still found


@functools.cache
def _text_rules(where: str, revision: str | None, bos: str, offline: bool) -> tuple[tuple[str, Any], ...]:
    from transformers import AutoConfig, GenerationConfig

    from bench.lm import load_tokenizer, set_bos, stop_tokens

    tokenizer = load_tokenizer(where, revision, offline=offline)
    resolved = set_bos(tokenizer, bos)  # type: ignore[arg-type]
    named: dict[str, Any] = {"revision": revision, "local_files_only": offline}
    try:
        ends = GenerationConfig.from_pretrained(where, **named).eos_token_id
    except (OSError, ValueError):
        ends = getattr(AutoConfig.from_pretrained(where, trust_remote_code=False, **named), "eos_token_id", None)
    own = tokenizer.eos_token_id
    left_out = isinstance(ends, list) and own is not None and own not in ends
    return ("bos", resolved), ("stop_tokens", sorted(stop_tokens(ends, own)) if left_out else None)


def check_files(node: DictConfig, revision: str | None, cache: Path | None = None) -> None:
    """Raises DamagedError for a file of a hub model that is not what the hub calls it.

    The client keeps each file under its sha256, small ones under git's sha1. cache: its folder; None: the usual one.
    """
    if source(node) != "id":
        return
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(node.id, "config.json", cache_dir=cache, revision=revision)
    for path in sorted(Path(config).parent.rglob("*")) if isinstance(config, str) else ():
        blob = path.resolve()
        digest = {64: file_sha256, 40: _git_sha1}.get(len(blob.name))
        if path.is_symlink() and path.is_file() and digest is not None and digest(blob) != blob.name:
            raise DamagedError(f"{path} is not the file that the hub has; delete {blob}, and it is fetched again")


def _git_sha1(path: Path) -> str:
    """Name of a file's content in git."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
