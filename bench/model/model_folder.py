"""The files of a model in a folder: which of them loading reads, and whether they are sound."""

import functools
import json
from pathlib import Path
from typing import Any

from bench.files.kept_digests import kept_sha256
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
"""The files that transformers looks for when it reads a folder's weights; it takes the first that is there."""


def check_config(where: str, **named: Any) -> Any:
    """Return the model's config.

    Raises ValueError if it cannot be read, or asks for attention by code from the hub, which transformers would run;
    for a folder, it is also raised for what `fingerprint` refuses.

    named: arguments such as revision, as `from_pretrained` takes them.
    """
    from transformers import AutoConfig

    if Path(where).is_dir():
        _check_contents(Path(where))
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=False, **named)
    except Exception as error:  # the config's values can make the architecture's own code raise any error
        raise ValueError(f"config.json: {loading_failure(error)}") from error
    asked = getattr(config, "_attn_implementation", None)
    if "/" in str(asked):
        raise ValueError(f"custom code: attn_implementation is {asked}")
    return config


def check_folder(path: str, option: str) -> None:
    """Raises SetupError for a folder without config or weights, or with files that cannot be what their names say.

    option: the option by which the user set the folder.
    """
    folder = Path(path)
    if not (folder / "config.json").is_file():
        raise SetupError(f"{option}={path}: no config.json there; give a folder that save_pretrained wrote")
    if not any(not path.is_dir() for pattern in WEIGHTS for path in folder.glob(pattern)):
        raise SetupError(f"{option}={path}: no weights there ({', '.join(WEIGHTS)}); was the download cut short?")
    if (folder / "adapter_config.json").is_file():
        raise SetupError(
            f"{option}={path}: there is an adapter in it (adapter_config.json), which names another model that "
            "would be loaded instead; give a folder with the whole model, with the adapter merged into it"
        )
    _check_contents(folder)


def fingerprint(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file that loading reads, by its path inside the folder.

    Raises SetupError for files that cannot be read, and if other files than these would be loaded.
    """
    _check_contents(folder)
    try:
        return {path.relative_to(folder).as_posix(): kept_sha256(path) for path in read_of(folder)}
    except OSError as error:
        why = error.strerror or error
        raise SetupError(
            f"{error.filename or folder} cannot be read: {why}; get permission to read it, or {WHOLE}"
        ) from error


def read_of(folder: Path) -> list[Path]:
    """Return the files that loading may read, including links that lead nowhere."""
    found = (path for pattern in (*READ, EXTRA_TEMPLATES) for path in folder.glob(pattern))
    return sorted(path for path in found if not path.is_dir())


def _check_contents(folder: Path) -> None:
    """Raises SetupError for JSON that is not an object, and if a file is named that `fingerprint` does not see.

    `fingerprint` does not see weights in another folder, weights with another ending, and missing files.
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
    """Return (naming file, file with weights) for each file that config.json or an index of shards names.

    known: the names of the model's files; only weights may be missing from the folder.

    Raises SetupError for an index that names none.
    """
    explicit = config.get("transformers_weights")
    start = explicit or next((name for name in WEIGHTS_IN_ORDER if name in known), None)
    named = [("config.json", explicit)] if explicit else []
    if start in known and str(start).endswith(".index.json"):
        shards = read_object(folder / start).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise SetupError(f"{folder / start} has no weight_map, which says what is in which file; {WHOLE}")
        named += [(start, name) for name in dict.fromkeys(map(str, shards.values()))]
    return named


def read_from(folder: Path) -> list[Path]:
    """Return the files that the model in this folder is loaded from; weights that are not loaded are left out."""
    found = read_of(folder)
    try:
        loaded = weights_loaded(folder, {path.name for path in found})
    except (SetupError, OSError):
        loaded = [name for name in WEIGHTS_IN_ORDER if (folder / name).is_file()][:1]
    return [path for path in found if path.suffix not in (".safetensors", ".bin") or path.name in loaded]


def weights_loaded(folder: Path, known: set[str]) -> list[str]:
    """Return the names of the files that the weights of a model are loaded from; [] if it has none.

    known: the names of the model's files; only weights may be missing from the folder. Raises SetupError for an index
    that names no file.
    """
    named = [str(name) for _, name in _weights_named(folder, read_object(folder / "config.json"), known)]
    return sorted(set(named)) or [name for name in WEIGHTS_IN_ORDER if name in known][:1]


WHOLE = "take a whole copy of that file from where the model is from"


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file of a model; callers must not change it. Raises SetupError for anything else."""
    stat = path.stat()
    return _parsed(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _parsed(path: Path, _size: int, _modified: int) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SetupError(
            f"{path} cannot be read: {error.strerror or error}; get permission to read it, or {WHOLE}"
        ) from error
    except (ValueError, RecursionError) as error:
        why = "brackets are nested too deeply" if isinstance(error, RecursionError) else error
        raise SetupError(f"{path} is not valid JSON ({why}); {WHOLE}") from error
    if not isinstance(value, dict):
        raise SetupError(f"{path} holds a JSON {type(value).__name__}, and an object, {{...}}, is expected; {WHOLE}")
    return value
