"""The id of a result: a hash of everything that can change its numbers, and of nothing else.

`batch_size`, folders, and the grid that a strength was tuned over are not part of the hash. Options that are `null` are
dropped before hashing, so ids stay the same when a new option, which is `null` by default, is added.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.files.digests import file_sha256
from methods.broken import reading
from methods.errors import SetupError

if TYPE_CHECKING:
    from methods.base import Method

SCHEMA = 1  # of records; bump when what a record means changes
ID = re.compile(r"[0-9a-f]{12}")
"""The form of an id (`digest`). An "id" of any other form in a record or a folder never becomes part of a path."""


def canonical(parts: Any) -> Any:
    """Return plain JSON values without the `null` entries of mappings, and with integral floats as int."""
    if isinstance(parts, Mapping):
        return {str(key): canonical(value) for key, value in sorted(parts.items()) if value is not None}
    if isinstance(parts, Sequence) and not isinstance(parts, str):
        return [canonical(part) for part in parts]
    if isinstance(parts, float) and parts.is_integer():
        return int(parts)
    if parts is None or isinstance(parts, str | int | float | bool):
        return parts
    raise TypeError(f"{parts!r} of type {type(parts).__name__} is not a plain JSON value, so it has no identity")


def digest(parts: Any) -> str:
    """Return the first 12 hex digits of the canonical JSON's sha256."""
    text = json.dumps(canonical(parts), sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def method_identity(method: "Method") -> dict[str, Any]:
    """Return name, version and hyper-parameters, without the grid of strengths, which changes no number of a cell.

    A hyper-parameter declared by `methods.base.later` is left out if it has its default. If a hyper-parameter is the
    path of a file (`methods.base.of_file`), the content of the file counts. Raises SetupError for a file that cannot be
    read.
    """
    if not is_dataclass(method):
        raise TypeError(f"{type(method).__name__} is not a dataclass, so its hyper-parameters cannot be read")
    parameters = {
        f.name: _told(f, value)
        for f in fields(method)
        if f.name != "strengths" and not ((value := getattr(method, f.name)) == f.default and f.metadata.get("later"))
    }
    parameters |= _orders(method)
    own = {"name": method.name, "version": method.version, "parameters": canonical(parameters)}
    return own | origin(method)


def origin(thing: Any) -> dict[str, str]:
    """Return the class path of an object from another package, whose name may also exist in this project.

    Empty for this project's own classes: their names are unique, and their ids were made without a class path.
    """
    path = f"{type(thing).__module__}.{type(thing).__qualname__}"
    return {} if path.startswith(("methods.", "bench.")) else {"class": path}


def named(thing: Any, *arguments: Any) -> dict[str, Any]:
    """Return the identity that a suite, a scorer or a source of training texts states, with the path of its class."""
    own: dict[str, Any] = thing.identity(*arguments)
    return own | origin(thing)


def _orders(method: "Method") -> dict[str, list[str]]:
    """Return the order of the methods inside a method, as "parts_order", if they are not sorted by name."""
    found = {f.name: value for f in fields(method) if isinstance(value := getattr(method, f.name), Mapping)}  # type: ignore[arg-type]
    made = {name: list(value) for name, value in found.items() if any(map(is_dataclass, value.values()))}
    return {f"{name}_order": order for name, order in made.items() if order != sorted(order)}


def _told(option: Field[Any], value: Any) -> Any:
    """Return a hyper-parameter's value; "null" for None in one that was added later, since its default is not None."""
    if option.metadata.get("later") and value is None:
        return "null"
    return _content(option.name, value) if option.metadata.get("file") else _plain(value)


def _content(name: str, path: str | None) -> dict[str, str] | None:
    """Return the sha256 of the file that a hyper-parameter names; None if it names none."""
    if path is None:
        return None
    with reading(lambda error: SetupError(f"method.{name}={path}: it cannot be read ({error}); give a file")):
        return {"sha256": file_sha256(Path(path))}


def _plain(value: Any) -> Any:
    """Return a hyper-parameter as JSON values; methods, also in a mapping, become their identities."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return method_identity(value) if is_dataclass(value) and not isinstance(value, type) else value  # type: ignore[arg-type]


def fit_id(model: Mapping[str, Any], method: Mapping[str, Any], data: Mapping[str, Any] | None) -> str:
    """Return the id of an artefact. `data` is the recipe of the data that the method learnt from; None without data.

    The fit seed is a hyper-parameter of those methods that have one (`seed: ${seed.fit}`), so a method without
    randomness is not fitted again for every seed.
    """
    return digest({"schema": SCHEMA, "model": model, "method": method, "data": data})


def steering_identity(fit: str | None, method: Mapping[str, Any], strength: float) -> dict[str, Any] | None:
    """Return the identity of the steering; None at strength 0, which is the unsteered model for every method."""
    return None if strength == 0 else {"fit": fit, "method": method["name"], "strength": strength}


def generation_id(
    model: Mapping[str, Any],
    steering: Mapping[str, Any] | None,
    prompts: Sequence[str],
    num_samples: int,
    decoding: Mapping[str, Any],
) -> str:
    """Return the id of a set of continuations. `decoding`: the settings that can change a text, and the code's version.

    It does not matter which part of a text is judged (`judged` of the model), so runs that differ only in this part
    share their texts.
    """
    model = {key: value for key, value in model.items() if key != "judged"}
    parts = {"schema": SCHEMA, "model": model, "steering": steering, "prompts": list(prompts)}
    return digest(parts | {"num_samples": num_samples, "decoding": decoding})


def record_id(
    model: Mapping[str, Any], steering: Mapping[str, Any] | None, suite: Mapping[str, Any], split: str
) -> str:
    """Return the id of a suite's result. `suite` holds its name, version, settings and, if it samples, the decoding."""
    return digest({"schema": SCHEMA, "model": model, "steering": steering, "suite": suite, "split": split})


def comparison_id(model: Mapping[str, Any], suite: Mapping[str, Any], split: str) -> str:
    """Return the id that records share if they differ only in their steering, so that their items may be paired."""
    return digest({"schema": SCHEMA, "model": model, "suite": suite, "split": split})
