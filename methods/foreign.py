"""Reads and checks files of steering vectors, as other programs write them, without running anything."""

import json
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from methods import base, layout, layout_search
from methods.broken import reading
from methods.errors import SetupError
from methods.intervention import Hook, hooked
from methods.placement import input_device

Format = Literal["auto", "gguf", "lm_eval", "caa", "refusal_direction", "safetensors"]
Side = Literal["input", "output"]
Operation = Literal["add", "clamp", "ablate"]


class Told(NamedTuple):
    """The user's statements about the vectors of a file; None: no statement."""

    layer: int | None
    hook: Side | None
    operation: Operation | None


ARCHITECTURE, OWN = "controlvector", "steerbench"
OUR_METADATA = {"operation": "add", "hook": "block output", "positions": "all"}


class Vector(NamedTuple):
    """A change at one side of one module, whose name is relative to `base_model`; vector, bias: (D,)."""

    module: str
    side: Side
    operation: Operation
    vector: Tensor
    coefficient: float
    bias: Tensor


class Content(NamedTuple):
    """All vectors of a file, its format, and the tokens that this format steers; None: the format does not say."""

    vectors: list[Vector]
    scope: Literal["all", "generation"] | None
    format: Format
    model: str | None = None  # the model that the file's name says it was made with


def read(path: str, form: Format, told: Told, model: PreTrainedModel) -> Content:
    """Return a file's vectors. Raises SetupError if it cannot be read, is ambiguous, or does not suit the model."""
    file = Path(path)
    if not file.is_file():
        raise SetupError(f"method.path={path}: there is no such file")
    kind = _kind(file) if form == "auto" else form
    content = READERS[kind](file, told, model)
    if not content.vectors:
        raise SetupError(f"{path}: it holds no vector other than zeros")
    width = layout.width(model)
    for one in content.vectors:
        for name, tensor in (("vector", one.vector), ("bias", one.bias)):
            if tensor.shape != (width,):
                raise SetupError(
                    f"{path}: the {name} at {one.module} has the shape {tuple(tensor.shape)}, and "
                    f"{model.config.model_type} has the width {width}: it was made for another model"
                )
            if not tensor.isfinite().all():
                raise SetupError(f"{path}: the {name} at {one.module} has entries that are not finite")
        if not (one.coefficient * one.vector).isfinite().all():
            raise SetupError(f"{path}: the vector at {one.module}, times {one.coefficient}, is not finite")
        if not one.vector.any():
            raise SetupError(f"{path}: the vector at {one.module} is all zeros")
    return content


def _kind(file: Path) -> Format:
    if file.suffix == ".gguf":
        return "gguf"
    if file.suffix == ".safetensors":
        return "safetensors"
    if file.suffix not in (".pt", ".pth"):
        raise SetupError(
            f"method.path={file}: set method.format; only the endings .gguf, .safetensors and .pt are known"
        )
    if isinstance(_unpickled(file), Mapping):
        return "lm_eval"
    if file.name == "direction.pt":
        return "refusal_direction"
    if re.match(r"vec_layer_\d+_", file.name):
        return "caa"
    raise SetupError(
        f"method.path={file}: a bare tensor does not say where it was read; set method.format=caa (output of a "
        "block, added after the prompt) or method.format=refusal_direction (input of a block)"
    )


def _unpickled(file: Path) -> Any:
    """Return what torch.save wrote; only tensors and plain values are allowed."""
    why = (
        "it is damaged, or a pickle that holds more than tensors, and nothing in a pickle is ever run; save the "
        "tensors as safetensors (layers.N.direction), in the program that wrote it"
    )
    with (
        warnings.catch_warnings(action="ignore"),  # about pickles that are refused anyway
        reading(lambda error: SetupError(f"{file} cannot be read: {why} ({type(error).__name__})"), Exception),
    ):
        return torch.load(file, map_location="cpu", weights_only=True)


def _vector(file: Path, value: Any, where: str) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise SetupError(f"{file}: the value at {where} is a {type(value).__name__}; expected a vector of floats")
    if value.layout != torch.strided or value.is_meta:
        raise SetupError(f"{file}: the value at {where} is sparse, or has no numbers; save a dense tensor")
    return value.detach().float().reshape(-1) if value.dim() == 2 and 1 in value.shape else value.detach().float()


def _block(model: PreTrainedModel, number: int, file: Path) -> str:
    """Return the name of a block below `base_model`. Raises SetupError for one that the model does not have."""
    blocks = layout.blocks(model)
    if not 0 <= number < len(blocks):
        raise SetupError(
            f"{file}: block {number} out of range: this model of type {model.config.model_type} has {len(blocks)} "
            f"blocks (0-{len(blocks) - 1}); it was made for another model"
        )
    found: str = next(name for name, module in model.base_model.named_modules() if module is blocks[number])
    return found


def _agreed(file: Path, option: str, told: Any, held: Any, *, needed: bool = False) -> Any:
    """Return the value that the user gives, else the file's. Raises SetupError if both are given and differ.

    needed: it is also raised if the user gives none; the file's value is then only a hint in the message.
    """
    if told is not None and held is not None and told != held:
        raise SetupError(f"{file}: method.{option}={told}, and the file says {held}; set method.{option}={held}")
    if needed and told is None:
        hint = "" if held is None else f" It seems to be {held}."
        raise SetupError(f"{file}: the file does not say what method.{option} is; set method.{option}=...{hint}")
    return held if told is None else told


def _single(file: Path, model: PreTrainedModel, layer: int, side: Side, operation: Operation) -> Vector:
    vector = _vector(file, _unpickled(file), "its top")
    return Vector(_block(model, layer, file), side, operation, vector, 1.0, torch.zeros_like(vector))


def _caa(file: Path, told: Told, model: PreTrainedModel) -> Content:
    named = re.match(r"vec_layer_(\d+)_", file.name)
    layer = _agreed(file, "layer", told.layer, int(named[1]) if named else None, needed=True)
    _agreed(file, "hook", told.hook, "output")
    _agreed(file, "operation", told.operation, "add")
    named_model = re.fullmatch(r"vec_layer_\d+_(.+)", file.stem)
    made_with = named_model[1] if named_model else None
    return Content([_single(file, model, layer, "output", "add")], "generation", "caa", made_with)


def _refusal_direction(file: Path, told: Told, model: PreTrainedModel) -> Content:
    beside = file.with_name("direction_metadata.json")
    held = None
    if beside.is_file():
        with reading(lambda error: SetupError(f"{beside} cannot be read ({error}); delete it or make it whole")):
            held = json.loads(beside.read_text(encoding="utf-8"))["layer"]
    layer = _agreed(file, "layer", told.layer, held, needed=True)
    _agreed(file, "hook", told.hook, "input")
    operation = told.operation
    if operation is None:
        raise SetupError(
            f"{file}: the authors either remove this vector from the stream or add it; set method.operation=ablate or "
            "method.operation=add (a negative strength adds what is left out)"
        )
    if operation == "clamp":
        raise SetupError(f"{file}: method.operation=clamp needs a value to clamp to; set ablate or add")
    return Content([_single(file, model, layer, "input", operation)], "all", "refusal_direction")


def _safetensors(file: Path, told: Told, model: PreTrainedModel) -> Content:
    tensors = {name: one for name, one in base.load(file).items() if not name.startswith(base.INFO)}
    strange = [name for name in tensors if not re.fullmatch(r"layers\.(0|[1-9][0-9]*)\.direction", name)]
    if strange or not tensors:
        raise SetupError(
            f"{file}: vectors of this format are called layers.N.direction, and the file holds "
            f"{', '.join(sorted(strange)) or 'none'}; only artefacts of such vectors can be imported"
        )
    side = _agreed(file, "hook", told.hook, None, needed=True)
    operation = _agreed(file, "operation", told.operation, None, needed=True)
    if operation == "clamp":
        raise SetupError(f"{file}: method.operation=clamp needs a value to clamp to, which it does not hold; set add")
    if operation == "ablate" and len(tensors) > 1:
        raise SetupError(f"{file}: method.operation=ablate needs one vector, and the file has {len(tensors)}; set add")
    found = []
    for name, tensor in tensors.items():
        number = int(name.split(".")[1])
        vector = _vector(file, tensor, name)
        found.append(Vector(_block(model, number, file), side, operation, vector, 1.0, torch.zeros_like(vector)))
    return Content(_of_layer(file, found, told, model), None, "safetensors")


def _of_layer(file: Path, found: list[Vector], told: Told, model: PreTrainedModel) -> list[Vector]:
    """Return all vectors. Raises SetupError if the user names a layer and the file does not have exactly that one."""
    if told.layer is not None and [one.module for one in found] != [_block(model, told.layer, file)]:
        there = ", ".join(one.module for one in found)
        raise SetupError(
            f"{file}: method.layer={told.layer}, and the file holds vectors at {there}; leave method.layer null"
        )
    return found


def _lm_eval(file: Path, told: Told, model: PreTrainedModel) -> Content:
    content = _unpickled(file)
    if not isinstance(content, Mapping):
        raise SetupError(f"{file}: format=lm_eval is a dict of module names, and this is a {type(content).__name__}")
    if content and all(isinstance(one, Tensor) for one in content.values()):
        raise SetupError(
            f"{file}: it is a plain mapping to vectors, from {', '.join(map(repr, list(content)[:4]))}"
            f"{' and others' if len(content) > 4 else ''}, which does not say where and how they are added; save them "
            "as layers.N.direction (N: a block, from 0) with safetensors.torch.save_file, and set method.hook, "
            "method.operation and method.scope"
        )
    modules = dict(model.base_model.named_modules())
    found = []
    for name, entry in content.items():
        if not isinstance(entry, Mapping) or not {"steering_vector", "steering_coefficient", "action"} <= set(entry):
            raise SetupError(
                f"{file}: {name} lacks one of lm-eval's entries steering_vector, steering_coefficient and action"
            )
        if name not in modules or not name:
            raise SetupError(
                f"{file}: {type(model.base_model).__name__} has no module {name}; it was made for another model"
            )
        vector, coefficient = _vector(file, entry["steering_vector"], name), entry["steering_coefficient"]
        operation, bias = entry["action"], entry.get("bias")
        if operation not in ("add", "clamp"):
            raise SetupError(f"{file}: {name} has the action {operation!r}; known are add and clamp")
        if entry.get("head_index") is not None or (operation == "add" and bias is not None):
            what = "a bias with the action add" if entry.get("head_index") is None else "head_index"
            raise SetupError(f"{file}: {name} has {what}, which is not supported; make the file without it")
        if type(coefficient) not in (int, float) or not abs(coefficient) <= sys.float_info.max:
            raise SetupError(f"{file}: {name} has the coefficient {coefficient!r}; expected a finite number")
        _agreed(file, "operation", told.operation, operation)
        offset = torch.zeros_like(vector) if bias is None else _vector(file, bias, f"{name}, bias")
        found.append(Vector(name, "output", operation, vector, float(coefficient), offset))
    _agreed(file, "hook", told.hook, "output")
    _check_outputs(file, [one.module for one in found], model)
    return Content(_of_layer(file, found, told, model), "all", "lm_eval")


def _check_outputs(file: Path, names: Sequence[str], model: PreTrainedModel) -> None:
    """Read one token; raise SetupError for a module that does not run, or whose output is not as wide as the stream."""
    if input_device(model).type == "meta":
        return
    widths: dict[str, int] = {}

    def noting(name: str) -> Callable[[Tensor], Tensor]:
        def note(hidden: Tensor) -> Tensor:
            widths[name] = hidden.shape[-1] if isinstance(hidden, Tensor) else 0
            return hidden

        return note

    modules = [(name, model.base_model.get_submodule(name)) for name in names]
    with torch.inference_mode(), hooked(Hook(module, "output", noting(name)) for name, module in modules):
        layout_search.read_one_token(model, use_cache=False)
    for name in names:
        if widths.get(name) != layout.width(model):
            gives = f"writes a width of {widths[name]}" if name in widths else "does not run by itself"
            raise SetupError(
                f"{file}: the module {name} {gives}, and a vector can only be added to an output of width "
                f"{layout.width(model)}; name "
                "a block, its attention or its MLP"
            )


def _gguf(file: Path, told: Told, model: PreTrainedModel) -> Content:
    import gguf

    def wrong(what: str) -> SetupError:
        return SetupError(f"{file}: {what}; it was made for another model")

    with reading(lambda error: SetupError(f"{file} is not a GGUF file ({error})"), Exception):
        reader = gguf.GGUFReader(file)
        facts = {name: field.contents() for name, field in reader.fields.items()}
        tensors = [(str(one.name), one.tensor_type.name, torch.tensor(one.data)) for one in reader.tensors]
    if facts.get("general.architecture") != ARCHITECTURE:
        raise SetupError(f"{file}: its architecture is {facts.get('general.architecture')!r}, not {ARCHITECTURE!r}")
    hint, depth = facts.get(f"{ARCHITECTURE}.model_hint"), len(layout.blocks(model))
    if hint is not None and hint != model.config.model_type:
        raise wrong(f"its model_hint is {hint!r}, and this model is a {model.config.model_type!r}")
    if (held := facts.get(f"{OWN}.blocks", depth)) != depth:
        raise wrong(f"it says that the model has {held} blocks, and this one has {depth}")
    for key, wanted in OUR_METADATA.items():
        if (held := facts.get(f"{OWN}.{key}", wanted)) != wanted:
            raise SetupError(f"{file}: its {OWN}.{key} is {held!r}, and only {wanted!r} is known")
    _agreed(file, "hook", told.hook, "output")
    _agreed(file, "operation", told.operation, "add")
    found: dict[int, Vector] = {}
    for name, kind, data in tensors:
        numbered = re.fullmatch(r"direction\.(0|[1-9][0-9]*)", name)
        if numbered is None or kind != "F32" or data.dim() != 1:
            raise SetupError(
                f"{file}: {name} is a {kind} of the shape {tuple(data.shape)}; expected direction.N of type F32"
            )
        number = int(numbered[1])
        if number == 0:
            raise SetupError(f"{file}: direction.0, which llama.cpp refuses: a control vector begins at block 1")
        found[number] = Vector(_block(model, number, file), "output", "add", data, 1.0, torch.zeros_like(data))
    count = facts.get(f"{ARCHITECTURE}.layer_count")
    if count is not None and count != len(found):
        raise SetupError(f"{file}: its layer_count is {count}, and it holds {len(found)} vectors; it is damaged")
    if sorted(found) == list(range(1, len(found) + 1)) and len(found) > 1 and len(found) != depth - 1:
        raise wrong(
            f"it holds blocks 1 to {len(found)}, as of a model of {len(found) + 1} blocks, and this one has {depth}"
        )
    steered = {number: one for number, one in found.items() if one.vector.any() or not one.vector.isfinite().all()}
    if (listed := facts.get(f"{OWN}.layers")) is not None and sorted(steered) != sorted(map(int, listed)):
        raise SetupError(f"{file}: its {OWN}.layers is {listed}, and vectors are at {sorted(steered)}; it is damaged")
    return Content(_of_layer(file, [steered[number] for number in sorted(steered)], told, model), "all", "gguf")


READERS: dict[str, Callable[[Path, Told, PreTrainedModel], Content]] = {
    "gguf": _gguf,
    "lm_eval": _lm_eval,
    "caa": _caa,
    "refusal_direction": _refusal_direction,
    "safetensors": _safetensors,
}
