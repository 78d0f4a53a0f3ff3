"""Checks that weights can be loaded and belong to their model, and the errors where they do not."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedTokenizerBase

from methods.broken import reading
from methods.errors import SetupError, loading_failure

BLOCK = re.compile(r"\.\d+\.")  # in the names of weights of numbered blocks
TABLE = re.compile(
    r"(attn|attention)\.(masked_)?bias$|rotary_emb\.inv_freq$"
)  # old files keep masks and angles as well


KINDS = {
    re.compile(rb"\s*$"): "it has no bytes",
    re.compile(
        rb"version https://git-lfs"
    ): "it is a pointer of Git LFS in place of the file (git lfs pull fetches it)",
    re.compile(rb"\s*<(!doctype|\?xml|html|head)", re.IGNORECASE): "it is a page of a web site in place of the file",
    re.compile(rb"\x80[\x02-\x05][^\x00]"): "it is a pickle of something else, and nothing in a pickle is ever run",
    re.compile(rb"\x1f\x8b\x08"): "it is packed by gzip",
}
"""Beginnings of files that cannot be read, and what each of these files is."""
TORCH = b"\x80\x02\x8a\x0al\xfc"  # of files that torch wrote before version 1.6; newer ones are zip files


def cannot_load(path: str, error: BaseException, what: str = "") -> SetupError:
    """Return the error for files of a model that a library could not load."""
    return SetupError(f"cannot load {what}a model from {path!r}: {why_not(path, error, STEP)}")


STEP = (
    "give a folder with config.json, weights and tokenizer (model.path=...), or a hub id that this machine can reach "
    "(model.id=...)"
)


def why_not(path: str, error: BaseException, step: str) -> str:
    """Return the file that is broken, if one is, and what to do; else what the library said, and `step`."""
    said = error if isinstance(error, Exception) else ValueError(str(error))  # a panic of a library in Rust
    broken = None if isinstance(error, SetupError) else broken_file(path)
    return broken or f"{loading_failure(said)}; {step}"


def broken_file(path: str) -> str | None:
    """Return which of the files of a model is broken, and what to do; None if none looks broken.

    path: a folder, or a hub id. For an id, the files in the hub client's cache are checked against the hashes in their
    names.
    """
    folder = Path(path)
    if not folder.is_dir() and (told := _broken_blob(path)):
        return told
    from bench.model.model_folder import read_from

    for file in (file for place in ([folder] if folder.is_dir() else _kept(path)) for file in read_from(place)):
        try:
            with reading(lambda error: SetupError(f"it is cut short or damaged ({error})")):
                _look(file)
        except SetupError as error:
            if isinstance(error.__cause__, PermissionError):
                return f"{file} cannot be read: {error.__cause__.strerror}; get the right to read it"
            return f"{file}: {_kind(file) or error}; take a whole copy of that file"
    return None


def _look(file: Path) -> None:
    """Raises an error if the first bytes of a file show that it is not of the kind that its name says."""
    with file.open("rb") as opened:
        head = opened.read(len(TORCH))
    if file.suffix == ".safetensors":
        with safe_open(file, "pt"):  # type: ignore[no-untyped-call]
            return
    if file.suffix == ".bin" and head != TORCH:
        zipfile.ZipFile(file).close()
    if file.suffix == ".json" and not isinstance(json.loads(file.read_text(encoding="utf-8")), dict):
        raise ValueError("not a JSON object")
    if not head:
        raise ValueError


def _kind(file: Path) -> str | None:
    """Return what a broken file really is; None if its first bytes do not tell."""
    try:
        with file.open("rb") as opened:
            head = opened.read(64)
    except OSError:
        return None
    return next((words for start, words in KINDS.items() if start.match(head)), None)


def _broken_blob(name: str) -> str | None:
    """Return which file in the hub client's cache differs from the hash in its name, and what to do; else None."""
    from bench.hub.download import damaged

    found = (damaged(path) for folder in _kept(name) for path in sorted(folder.rglob("*")))
    return next((one for one in found if one), None)


def _kept(name: str) -> list[Path]:
    """Return the folders in the cache of the hub's client that hold a model, one for each commit."""
    from bench.hub.failures import Repo
    from bench.hub.listing import storage

    return sorted((storage(Repo("model", name, "model")) / "snapshots").glob("*"))


def check_kind(path: str, config: Any) -> None:
    """Raises SetupError for a model that does not continue a text, such as an encoder or an encoder with a decoder."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    kinds: Any = MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING
    causal, masked = (type(config) in kind for kind in kinds)
    if getattr(config, "is_encoder_decoder", False):
        what = "an encoder with a decoder, which answers a whole text in place of going on from it"
    elif masked and not getattr(config, "is_decoder", False):
        what = "an encoder, which fills gaps in a text or judges one, and cannot go on from it"
    elif not causal:
        what = "no language model that writes on from a text"
    else:
        return
    raise SetupError(
        f"{path!r} is {what} ({type(config).__name__.removesuffix('Config')}); give a causal language model "
        "(AutoModelForCausalLM), such as GPT-2, LLaMA or Qwen"
    )


FEWEST_TOKENS = 0.9
"""The least share of the embedding's rows that have a token; models pad their matrices to a round number."""


def check_vocabulary(path: str, rows: int | None, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises SetupError if the tokenizer has a token that the embedding matrix has no row for.

    Tokens that were added to the vocabulary may lie beyond the matrix, as in some published models: no text has them
    unless it spells their name out. Tokens that begin or end a text, or stand for unknown text, must not lie beyond it;
    the padding token may, since it is never read. Also raised if the matrix has far more rows than there are tokens
    (FEWEST_TOKENS). rows: the number of rows of the matrix; None if it is not known.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if rows is None or backend is None:
        return
    special = {name: getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "unk")}
    last = max(backend.get_vocab(with_added_tokens=False).values(), default=-1)
    beyond = {f"the {name} token {token}" for name, token in special.items() if token is not None and token >= rows}
    if last >= rows:
        beyond = {f"token {last} ({tokenizer.convert_ids_to_tokens(last)!r})"}
    if not beyond and len(tokenizer) < FEWEST_TOKENS * rows:
        raise SetupError(
            f"{path!r}: the tokenizer has {len(tokenizer):,} tokens, but the model gives logits for {rows:,}, so it "
            "would write tokens that have no text; tokenizer and weights are of different models. Give a folder "
            "whose files belong together"
        )
    for one in sorted(beyond):
        raise SetupError(
            f"{path!r}: the tokenizer has {one}, but the model's embedding matrix has {rows:,} rows, for tokens 0 to "
            f"{rows - 1}; tokenizer and weights are of different models. Give a folder whose files belong together"
        )


def check_weights(path: str, loading: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of weights that no part of the model takes.

    Raises SetupError for a weight that the model has and the files lack, or have in another shape: transformers would
    draw it at random. It is also raised for a weight of a block that the model lacks, since the files are then of
    another model, and for quantised weights without a `quantization_config`, which would be taken for the numbers
    themselves.
    """
    missing = sorted(loading["missing_keys"])
    unexpected = sorted(name for name in loading["unexpected_keys"] if not TABLE.search(name))
    of_blocks = [name for name in unexpected if BLOCK.search(name)]
    shapes = [
        f"{name} ({tuple(ours)}, in the files {tuple(theirs)})"
        for name, theirs, ours in sorted(loading["mismatched_keys"])
    ]
    for names, what in (
        (missing, "files lack weights of the model"),
        (of_blocks, "model lacks weights of the files"),
        (shapes, "weights have other shapes than the model's"),
        (_whole_numbers(path), "files hold weights as whole numbers, and config.json does not say how to read them"),
    ):
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise SetupError(
                f"{path!r}: the {what}: {shown}; config.json and weights are of different models. Give a folder whose "
                "files belong together"
            )
    return tuple(unexpected)


def _whole_numbers(path: str) -> list[str]:
    """Return the weights in a folder that are kept as integers although its config.json names no quantisation."""
    files = sorted(Path(path).glob("*.safetensors")) if (Path(path) / "config.json").is_file() else []
    if not files:
        return []
    from bench.model.model_folder import read_object

    if "quantization_config" in read_object(Path(path) / "config.json"):
        return []
    found = []
    for file in files:
        with (
            reading(lambda error: SetupError(f"{file} cannot be read ({error}); take a whole copy of it")),  # noqa: B023
            safe_open(file, "pt") as opened,  # type: ignore[no-untyped-call]
        ):
            kinds = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118  # no mapping
        found += [name for name, kind in kinds.items() if kind[0] in "IU" and name.endswith("weight")]
    return sorted(found)
