"""The parts of an architecture that methods need: blocks, final norm, width, matrices that read or write the stream.

They are searched for in the module tree (`methods.layout_search`), once per model. A part that the search does not find
or gets wrong can be set with `declare`, which is called for `model.layout` in a YAML.
"""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from methods import layout_search
from methods.errors import SetupError
from methods.layout_search import Fused, Layout, Names
from methods.placement import check_materialised, input_device

Kind = Literal["gate", "up", "down", "q", "k", "v", "o"]
TOGETHER = (["gate", "up"], ["q", "k", "v"])
"""Groups of fields of `Layout` that may all name the same matrix, which then holds the rows of all of them."""
WRITERS: tuple[Kind, ...] = ("down", "o")
ROLES: dict[Kind, str] = {kind: "value" if kind == "down" else kind for kind in get_args(Kind)}
"""The field of `Layout` that holds the name of each kind of matrix."""

_orders: "weakref.WeakKeyDictionary[PreTrainedModel, Fused | None]" = weakref.WeakKeyDictionary()
_layouts: "weakref.WeakKeyDictionary[PreTrainedModel, Layout]" = weakref.WeakKeyDictionary()


class Matrix(NamedTuple):
    """A weight viewed as nn.Linear stores it, (outputs, inputs), however its module stores it.

    A Matrix may be only a part of its parameter: the matrix of one expert, some of the rows, or some rows of one
    expert.
    """

    parameter: nn.Parameter
    transposed: bool  # Conv1D (GPT-2) stores (inputs, outputs)
    expert: int | None = None  # number of the expert in a parameter (E, ., .)
    rows: slice | Tensor | None = None  # rows of the (outputs, inputs) view, in this order; None: all

    def _view(self, whole: Tensor) -> Tensor:
        one = whole if self.expert is None else whole[self.expert]
        return one.T if self.transposed else one

    def read(self) -> Tensor:
        """Return the weight as (outputs, inputs); the caller must not write to it."""
        view = self._view(self.parameter.detach())
        return view if self.rows is None else view[self.rows]

    def stored(self, weight: Tensor, into: Tensor | None = None) -> Tensor:
        """Return a new value of the whole parameter, in its own layout and dtype, for `intervention.edited`.

        weight: the new matrix, (outputs, inputs). into: a new value of the parameter into which other parts have
        already been written; this part is written into it, too.
        """
        if self.expert is None and self.rows is None:
            return (weight.T if self.transposed else weight).to(self.parameter.dtype).contiguous()
        new = self.parameter.detach().clone() if into is None else into
        view = self._view(new)
        view[slice(None) if self.rows is None else self.rows] = weight.to(new.dtype)
        return new


class Matrices(NamedTuple):
    """All matrices of one kind in one block: one, or one per expert in a mixture of experts.

    They are seen as one matrix, with their rows stacked.
    """

    parts: tuple[Matrix, ...]

    def read(self) -> Tensor:
        """Return the rows of all parts, one part after another, (rows, D); the caller must not write to them."""
        return self.parts[0].read() if len(self.parts) == 1 else torch.cat([part.read() for part in self.parts])

    def put(self, new: dict[nn.Parameter, Tensor], weight: Tensor) -> None:
        """Add to `new` the parameter values with which `read` returns `weight`, for `intervention.edited`."""
        sizes = [len(part.read()) for part in self.parts]
        for part, own in zip(self.parts, torch.split(weight, sizes), strict=True):
            new[part.parameter] = part.stored(own, new.get(part.parameter))


def of(model: PreTrainedModel) -> Layout:
    """Return the layout of this model; the first call searches. Raises SetupError if its blocks cannot be found."""
    if model not in _layouts:
        _layouts[model] = layout_search.search(model)
    return _layouts[model]


def declare(model: PreTrainedModel, parts: Mapping[str, Any] | None) -> None:
    """Declare where parts are in this model; parts that are left out are searched for.

    parts: maps fields of `Layout` to names, each a text or a list of texts, for example {"gate": "ffn.w_in",
    "value": "ffn.w_out"}; None: all parts are searched for. Raises SetupError for an unknown field, for a module that
    the model lacks, for a matrix that none of its blocks has, for a matrix that is declared in several fields although
    no matrix can have all these roles, for a norm that cannot be the final one, and for an order of q, k and v that the
    model does not have.
    """
    _layouts.pop(model, None)
    _orders.pop(model, None)
    if parts is None:
        return
    unknown = sorted(set(parts) - set(Layout._fields))
    if unknown:
        raise SetupError(f"model.layout: unknown part {', '.join(unknown)}; allowed are {', '.join(Layout._fields)}")
    given = {name: value for name, value in parts.items() if value is not None}
    if given.get("fused") not in (None, *get_args(Fused)):
        raise SetupError(f"model.layout.fused={given['fused']!r}: allowed are {', '.join(get_args(Fused))}, null")
    found = _declared(model, given)
    if "fused" in given:
        _orders[model] = _checked_order(model, found)
    _layouts[model] = found


def _checked_order(model: PreTrainedModel, own: Layout) -> Fused | None:
    """Return the declared order of q, k and v in one matrix, if running a few tokens shows that it is the right one.

    A model on torch's meta device has no weights that could show it.
    """
    if next(model.parameters()).is_meta or not own.v:
        return own.fused
    if not set(own.q) & set(own.k) & set(own.v):
        raise SetupError(
            f"model.layout.fused={own.fused}: q, k and v are matrices of their own here; leave model.layout.fused out"
        )
    shown = layout_search.order_of(model, own)
    if shown is None:
        raise layout_search.unknown_order(model, own)
    if shown != own.fused:
        raise SetupError(
            f"model.layout.fused={own.fused}: the values that block 0 caches show that it is {shown}; leave "
            "model.layout.fused out, or correct it"
        )
    return shown


def _declared(model: PreTrainedModel, given: Mapping[str, Any]) -> Layout:
    name = given["blocks"] if "blocks" in given else layout_search.block_list(model)
    listed = _submodule(model, "blocks", name)
    if not isinstance(listed, nn.ModuleList):
        raise SetupError(
            f"model.layout.blocks={name}: this is a {type(listed).__name__}; expected a ModuleList of blocks"
        )
    norm = layout_search.final_norm(model, name)
    if "norm" in given and given["norm"] != norm:
        norm = given["norm"]
        _check_norm(model, listed, norm)
    searched = layout_search.of_blocks(name, norm, listed, width(model))._asdict()
    found = dict(searched)
    for field in Layout._fields[2:]:
        if field not in given:
            continue
        value = given[field]
        if field == "fused":
            found[field] = value
            continue
        found[field] = _names(field, value)
        for one in found[field]:
            if not any(resolved(block, one) for block in listed):
                there = ", ".join(each.name for each in layout_search.projections(listed[0]))
                raise SetupError(f"model.layout.{field}={one}: no block has a matrix of that name; block 0 has {there}")
            _check_width(model, listed, field, one)
    _swap_gate_and_up(found, searched, given)
    _check_shared(listed, found, searched, given)
    return Layout(**found)


def _names(field: str, value: Any) -> Names:
    """Return the names that are declared for a part. Raises SetupError for anything but texts, each given once."""
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(one, str) for one in names):
        raise SetupError(f"model.layout.{field}={value!r}: expected the name of a matrix, or a list of names")
    if len(set(names)) < len(names):
        raise SetupError(f"model.layout.{field}={value!r}: a matrix is named twice; name each once")
    return tuple(one.removesuffix(".weight") for one in names)


def _check_norm(model: PreTrainedModel, listed: nn.ModuleList, name: str) -> None:
    """Raises SetupError for a module that cannot be the norm between the last block and the unembedding."""
    module = _submodule(model, "norm", name)
    shapes = [tuple(one.shape) for one in module.parameters()]
    wrong = None
    if any(len(shape) > 1 for shape in shapes):
        wrong = "has a matrix"
    elif any(module is one for one in listed.modules()):
        wrong = "is inside a block"
    elif not shapes and "norm" not in type(module).__name__.lower():  # a norm may be without weights
        wrong = "has no weight"
    elif any(shape != (width(model),) for shape in shapes):
        wrong = f"has weights of the sizes {', '.join(str(shape) for shape in shapes)}"
    if wrong is not None:
        raise SetupError(
            f"model.layout.norm={name}: this module ({type(module).__name__}) {wrong}; expected the norm before the "
            f"unembedding, outside the blocks, with a weight of {width(model)} numbers"
        )


def _swap_gate_and_up(found: dict[str, Any], searched: dict[str, Any], given: Mapping[str, Any]) -> None:
    """If only gate is declared, and the search took that matrix for up, swap the two; do the same if only up is."""
    for one, other in (("gate", "up"), ("up", "gate")):
        if one in given and other not in given and found[one] == searched[other] and searched[one]:
            found[other] = searched[one]


def _check_shared(
    listed: nn.ModuleList, found: dict[str, Any], searched: dict[str, Any], given: Mapping[str, Any]
) -> None:
    """Raises SetupError if a matrix would get roles that it cannot have, so that the wrong rows of it would be used.

    A matrix may have one role, or all roles of one group in TOGETHER if the search found them or all are declared.
    """
    fields = list(ROLES.values())
    there = {one.name: one for one in layout_search.projections(listed[0]) if not one.experts}
    sizes = [2 * there[name].inputs for name in found["value"] if name in there]
    for name in dict.fromkeys(name for field in fields for name in found[field]):
        now, before = ([field for field in fields if name in names[field]] for names in (found, searched))
        if now == before or (len(now) == 1 and len(before) < 2):
            continue
        if now not in TOGETHER or not set(now) <= set(given):
            either = [field for field in fields if field in (*now, *before)]
            raise SetupError(
                f"model.layout: {name} would be the matrix of {' and '.join(now)}, but the search finds that it is "
                f"that of {' and '.join(before) or 'none'}; declare all of {', '.join(either)}: each with its own "
                "matrix, [] if the model has none, and the same name for those that share one"
            )
        if now == TOGETHER[0] and name in there and sizes and there[name].outputs not in sizes:
            raise SetupError(
                f"model.layout.gate=model.layout.up={name}: one matrix for both would have {sizes[0]} outputs, twice "
                f"the inputs of {found['value'][0]}, and it has {there[name].outputs}; declare a matrix for each"
            )


def _check_width(model: PreTrainedModel, listed: nn.ModuleList, field: str, name: str) -> None:
    """Raises SetupError if a matrix cannot have the declared role, since it does not read or write the stream's width.

    Experts are stored in either order, so they are not checked.
    """
    stream, writes = width(model), field in ("value", "o")
    for one in layout_search.projections(listed[0]):
        if one.name != layout_search.starred(name) or one.experts:
            continue
        size = one.outputs if writes else one.inputs
        if size != stream:
            raise SetupError(
                f"model.layout.{field}={name}: this matrix has {one.inputs} inputs and {one.outputs} outputs, but one "
                f"that {'writes' if writes else 'reads'} the residual stream has {stream} "
                f"{'outputs' if writes else 'inputs'}"
            )


def _submodule(model: PreTrainedModel, field: str, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise SetupError(f"model.layout.{field}={name}: {type(model).__name__} has no such module ({error})") from error


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the transformer blocks, first to last."""
    found = model.get_submodule(of(model).blocks)
    assert isinstance(found, nn.ModuleList)
    return found


def final_norm(model: PreTrainedModel) -> nn.Module:
    """Return the norm between the last block and the unembedding. Raises SetupError if there is none (OPT-350m)."""
    name = of(model).norm
    if name is None:
        raise SetupError(
            f"{model.config.model_type} has no final norm here; read features from a block instead, or name it: "
            "model.layout={norm: NAME}"
        )
    return model.get_submodule(name)


def mlp_output_is_normed(model: PreTrainedModel) -> bool:
    """Return whether the MLP's output passes a norm before the residual stream; one token is run to find out."""
    return layout_search.mlp_output_is_normed(model, of(model))


def width(model: PreTrainedModel) -> int:
    """Return D, the width of the residual stream; in some models (OPT-350m) the embedding has another width."""
    return layout_search.width(model)


def value_matrix(model: PreTrainedModel, layer: int) -> Matrix:
    """Return the matrix (D, M) whose column i is the output direction of MLP neuron i of block `layer`.

    Raises SetupError if the block has several such matrices, one for each expert.
    """
    parts = stream_rows(model, layer, "down").parts
    if len(parts) > 1:
        raise SetupError(
            f"{model.config.model_type}: block {layer} has {len(parts)} value matrices, one for each expert; "
            "choose another method"
        )
    return parts[0]._replace(transposed=not parts[0].transposed)


def stream_rows(model: PreTrainedModel, layer: int, kind: Kind) -> Matrices:
    """Return the matrices of this kind in a block as (rows, D), with a direction of the residual stream in each row.

    The directions are read (gate, up, q, k, v) or written (down, o); for a matrix that writes, the rows are the columns
    of its weight. The rows of all experts follow one another, in the experts' order. Raises SetupError if the
    architecture has no such matrix, or if it was not found.
    """
    names: Names = getattr(of(model), ROLES[kind])
    found = [one for name in names for one in matrices(model, layer, name, kind)]
    if not found:
        raise _missing(model, layer, kind)
    return Matrices(tuple(found))


def _missing(model: PreTrainedModel, layer: int, kind: Kind) -> SetupError:
    own = of(model)
    there = [one for one in get_args(Kind) if getattr(own, ROLES[one])]
    every = ", ".join(one.name for one in layout_search.projections(blocks(model)[layer]))
    return SetupError(
        f"{model.config.model_type} has no {kind} matrix of its own in block {layer} (an MLP without gate?), or it has "
        f"an unknown name: the block has {', '.join(there) or 'none that is known'}, and the block's matrices are "
        f"{every}. If one of these is it, name it: model.layout={{{ROLES[kind]}: NAME}}; otherwise choose another kind "
        "of matrix, or another method"
    )


def matrices(model: PreTrainedModel, layer: int, name: str, kind: Kind) -> list[Matrix]:
    """Return the matrices of this kind in a block that have this name in the layout.

    The list is empty if the block has no matrix of that name. Raises SetupError if a matrix is not in memory.
    """
    found = []
    for owner, parameter in resolved(blocks(model)[layer], name):
        check_materialised(model, [parameter])
        writes = kind in WRITERS
        flip = writes != _stores_inputs_first(owner, parameter, writes, width(model))
        experts = range(parameter.shape[0]) if parameter.dim() == 3 else (None,)
        whole = [Matrix(parameter, flip, expert) for expert in experts]
        rows = None if writes else _rows(model, layer, owner, name, kind, whole[0])
        found += [one._replace(rows=rows) for one in whole]
    return found


def _rows(
    model: PreTrainedModel, layer: int, owner: nn.Module, name: str, kind: Kind, whole: Matrix
) -> slice | Tensor | None:
    """Return which rows of a matrix are of this kind; None if all are."""
    own, outputs = of(model), whole.read().shape[0]
    if kind in ("gate", "up") and name in own.gate and name in own.up:
        if not getattr(owner, "is_concatenated", True):  # False in transformers if gate and up rows alternate
            return slice(0 if kind == "gate" else 1, None, 2)
        return slice(0, outputs // 2) if kind == "gate" else slice(outputs // 2, None)
    if kind in ("q", "k", "v") and all(name in names for names in (own.q, own.k, own.v)):
        inputs = stream_rows(model, layer, "o").parts[0].read().shape[0]
        return layout_search.head_rows(own._replace(fused=_order(model)), model, kind, outputs, inputs)
    return None


def _order(model: PreTrainedModel) -> Fused | None:
    """Return the order of q, k and v in one matrix: as declared, else as one forward shows it.

    A model without weights (device "meta") runs no forward; its order is as declared, else guessed from the name.
    """
    if input_device(model).type == "meta":
        return of(model).fused
    if model not in _orders:
        _orders[model] = layout_search.order_of(model, of(model))
    return _orders[model]


def resolved(block: nn.Module, name: str) -> list[tuple[nn.Module, nn.Parameter]]:
    """Return the parameters that a layout's name stands for in a block, each with its module; [] if there are none."""
    found: list[Any] = [(block, block)]
    for part in name.split("."):
        after: list[Any] = []
        for _, module in found:
            if not isinstance(module, nn.Module):
                continue
            numbers = sorted((key for key, _ in module.named_children() if key.isdigit()), key=int)
            keys: Sequence[str] = numbers if part == "*" else [part]
            after += [(module, getattr(module, key)) for key in keys if getattr(module, key, None) is not None]
        found = after
    ends = [
        (end, end.weight) if isinstance(end, nn.Module) and hasattr(end, "weight") else (at, end) for at, end in found
    ]
    return [(owner, end) for owner, end in ends if isinstance(end, nn.Parameter) and end.dim() in (2, 3)]


def _stores_inputs_first(owner: nn.Module, parameter: nn.Parameter, writes: bool, width: int) -> bool:
    """Return whether the module stores (inputs, outputs), as Conv1D and some experts do."""
    if parameter.dim() == 2:
        return isinstance(owner, Conv1D)
    first, second = parameter.shape[1:]
    if (first == width) != (second == width):
        return (second if writes else first) == width
    if (told := getattr(owner, "is_transposed", None)) is not None:
        return bool(told)
    for other in owner.parameters(recurse=False):  # Llama 4: of its two parameters, one reads and the other writes
        if other.dim() == 3 and (other.shape[1] == width) != (other.shape[2] == width):
            return (other.shape[1] if writes else other.shape[2]) == width
    return False


def layer_index(model: PreTrainedModel, layer: int | float, setting: str = "method.layer") -> int:
    """Return the number of the block that `layer` names: by number (-1 is the last), or by a share of the depth.

    A share is in [0, 1). Raises SetupError if the model has no such block.
    """
    depth = len(blocks(model))
    number = isinstance(layer, int | float)  # a YAML or a command line may hold any text
    if not number or not float(layer).is_integer():
        if not number or not 0 <= layer < 1:
            raise SetupError(f"{setting}={layer} is neither a block number nor a fraction of the depth in [0, 1)")
        return int(layer * depth)
    index = int(layer)
    if not -depth <= index < depth:
        raise SetupError(
            f"layer {index} out of range: this model of type {model.config.model_type} has {depth} blocks "
            f"(0-{depth - 1}); set {setting}"
        )
    return index % depth


def layer_range(
    model: PreTrainedModel, start: int | float, stop: int | float | None, setting: str = "method.layers"
) -> range:
    """Return the blocks from `start` to before `stop` (None: to the end). Raises SetupError for an empty range."""
    first = layer_index(model, start, f"{setting}_start")
    last = len(blocks(model)) if stop is None else layer_index(model, stop, f"{setting}_stop")
    if first >= last:
        raise SetupError(f"{setting}: no block between {start} and {stop}; start must lie below stop")
    return range(first, last)
