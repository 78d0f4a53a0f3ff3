"""Weights that belong to their model: what is said where they cannot be loaded, or are those of another model."""

import json
import re
from pathlib import Path
from typing import Any

from safetensors import safe_open

from methods.errors import SetupError, loading_failure

BLOCK = re.compile(r"\.\d+\.")  # in the name of a weight: it is of a numbered block
TABLE = re.compile(
    r"(attn|attention)\.(masked_)?bias$|rotary_emb\.inv_freq$"
)  # old files keep masks and angles as well


def cannot_load(path: str, error: Exception, what: str = "") -> SetupError:
    """The error for files of a model that a library could not load."""
    return SetupError(
        f"cannot load {what}a model from {path!r}: {loading_failure(error)}; give a folder with config.json, weights "
        "and tokenizer (model.path=...), or a hub id that this machine can reach (model.id=...)"
    )


def check_weights(path: str, loading: dict[str, Any]) -> tuple[str, ...]:
    """The names of weights that have no place in the model, of none of its blocks.

    Raises SetupError for a weight that the model has and the files lack, or have in another shape: transformers would
    draw it at random. And for one of a block that the model lacks: then it is another model than the one that the files
    are of. And for quantised weights without a `quantization_config`, which would be taken for the numbers themselves.
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
    """Weights in a folder that are kept as integers although its config.json names no quantisation."""
    files = sorted(Path(path).glob("*.safetensors")) if (Path(path) / "config.json").is_file() else []
    if not files or "quantization_config" in json.loads((Path(path) / "config.json").read_text(encoding="utf-8")):
        return []
    found = []
    for file in files:
        with safe_open(file, "pt") as opened:  # type: ignore[no-untyped-call]
            kinds = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118  # no mapping
        found += [name for name, kind in kinds.items() if kind[0] in "IU" and name.endswith("weight")]
    return sorted(found)
