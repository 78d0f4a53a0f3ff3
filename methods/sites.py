"""Places inside a block where a method may act: the outputs of attention and MLP, attention heads, MLP neurons.

All are found by structure, through the layout (`methods.layout`). Each place is a module and one of its sides, input or
output, which `methods.intervention.Hook` takes directly.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from methods import layout, layout_search
from methods.errors import SetupError
from methods.intervention import Hook, Site
from methods.layout_search import Layout, Names
from methods.positions import number_of_rows

Part = Literal["attention", "mlp"]
PARTS: tuple[Part, ...] = get_args(Part)


class Place(NamedTuple):
    """One side of a module: a tensor (B, T, width) goes in or comes out there."""

    module: nn.Module
    side: Site
    width: int

    def hook(self, function: Callable[[Tensor], Tensor]) -> Hook:
        """Return a hook that gives `function` (B, T, width), even if the model has B and T on one axis (OPT)."""

        def run(hidden: Tensor) -> Tensor:
            if hidden.dim() == 3:
                return function(hidden)
            rows = number_of_rows()
            return function(hidden.view(rows or 1, -1, self.width)).view_as(hidden)

        return Hook(self.module, self.side, run)


class Heads(NamedTuple):
    """The output of one block's query heads, (B, T, number * size), which goes into the output projection."""

    place: Place
    number: int
    size: int


class _Writers(NamedTuple):
    projection: nn.Module  # in a mixture of experts, the module that adds up the experts
    last: nn.Module  # the norm between the projection and the stream; if there is none, the projection


_Found = dict[tuple[int, Part], _Writers]
_cache: "weakref.WeakKeyDictionary[PreTrainedModel, tuple[Layout, _Found]]" = weakref.WeakKeyDictionary()


def written(model: PreTrainedModel, layer: int, part: Part) -> Place:
    """Return the place whose output (B, T, D) is what attention, or the MLP, of a block adds to the stream.

    If a norm follows the part (Gemma 2 and 3, OLMo 2 and 3), that is the output of the norm. Otherwise it is the output
    of the projection, or of the module that adds up a mixture of experts. Zeros there leave the stream unchanged. Some
    models multiply the output by a constant before they add it (Granite).
    """
    return Place(_found(model)[layer, part].last, "output", layout.width(model))


def projected(model: PreTrainedModel, layer: int, part: Part) -> Place:
    """Return the output (B, T, D) of the matrix through which attention or the MLP writes, or of all experts together.

    `written` returns this place as well, unless a norm follows (`is_normed`); then it returns the norm's output.
    """
    return Place(_found(model)[layer, part].projection, "output", layout.width(model))


def is_normed(model: PreTrainedModel, layer: int, part: Part) -> bool:
    """Return whether the output of attention or the MLP of this block passes a norm before the stream."""
    found = _found(model)[layer, part]
    return found.projection is not found.last


def last_norm(model: PreTrainedModel, layer: int) -> Place:
    """Return the output (B, T, D) of the last norm that is a direct child of the block.

    In Llama, GPT-2 and OPT it is the norm before the MLP, and in Gemma 2 and 3 and OLMo 2 and 3 the norm after the MLP.
    If attention and MLP run side by side, it may be their only norm (GPT-J, Phi-2). Raises SetupError if the block has
    no norm of its own.
    """
    norms = [module for module in layout.blocks(model)[layer].children() if "norm" in type(module).__name__.lower()]
    if not norms:
        raise SetupError(f"{model.config.model_type}: block {layer} has no norm of its own; choose another place")
    return Place(norms[-1], "output", layout.width(model))


def output_bias(model: PreTrainedModel, layer: int, part: Part) -> nn.Parameter | None:
    """Return the bias (D,) of the one matrix by which attention or the MLP writes; None if there is no such bias."""
    bias = getattr(projected(model, layer, part).module, "bias", None)
    return bias if isinstance(bias, nn.Parameter) else None


def heads(model: PreTrainedModel, layer: int) -> Heads:
    """Return the heads of a block, before the output projection; with grouped-query attention, the query heads.

    Raises SetupError if they are not all of one size.
    """
    module = _matrix_module(model, layer, "attention")
    inputs = layout.stream_rows(model, layer, "o").parts[0].read().shape[0]
    config = model.config.get_text_config()
    if getattr(config, "is_heterogeneous", False):  # blocks differ (Gemma 4)
        config = config.per_layer_config[layer]
    count = int(config.num_attention_heads)
    size = getattr(config, "head_dim", None) or inputs // count
    if count * size != inputs:
        raise SetupError(
            f"{model.config.model_type}: attention of block {layer} writes from {inputs} entries, which are not "
            f"{count} heads of {size}; choose a method that does not take heads apart"
        )
    return Heads(Place(module, "input", inputs), count, int(size))


def neurons(model: PreTrainedModel, layer: int) -> Place:
    """Return the MLP's hidden units, (B, T, M): the input of the matrix through which it writes.

    Raises SetupError for a mixture of experts, in which each expert has neurons of its own.
    """
    module = _matrix_module(model, layer, "mlp")
    return Place(module, "input", layout.value_matrix(model, layer).read().shape[1])


def mlp_linears(model: PreTrainedModel, layer: int) -> dict[str, nn.Module]:
    """Return the linear modules of the block's MLP by their names, in the order in which they run: gate, up, down.

    Gate and up may be one module. Raises SetupError for a mixture of experts, whose matrices are not separate modules.
    """
    own, block = layout.of(model), layout.blocks(model)[layer]
    _matrix_module(model, layer, "mlp")
    names = dict.fromkeys([*own.gate, *own.up, *own.value])
    if not own.gate:
        raise SetupError(
            f"{model.config.model_type}: the matrices of block {layer}'s MLP were not found; name them: "
            "model.layout={gate: NAME, value: NAME}"
        )
    return {name: block.get_submodule(name) for name in names if _is_linear(block, name)}


def _matrix_module(model: PreTrainedModel, layer: int, part: Part) -> nn.Module:
    """Return the one linear module through which a part of a block writes. Raises SetupError if there are several."""
    names = _names(model, part)
    block = layout.blocks(model)[layer]
    there = [name for name in names if "*" not in name and _is_linear(block, name)]
    if len(there) != 1 or len(layout.stream_rows(model, layer, "o" if part == "attention" else "down").parts) != 1:
        raise SetupError(
            f"{model.config.model_type}: the {part} of block {layer} writes through several matrices "
            f"({', '.join(names)}), "
            "one for each expert; choose another method, or another part of the block"
        )
    return block.get_submodule(there[0])


def _is_linear(block: nn.Module, name: str) -> bool:
    try:
        return isinstance(getattr(block.get_submodule(name), "weight", None), nn.Parameter)
    except AttributeError:
        return False


def _names(model: PreTrainedModel, part: Part) -> Names:
    names = layout.of(model).o if part == "attention" else layout.of(model).value
    if not names:
        raise SetupError(
            f"{model.config.model_type}: the matrix through which {part} writes was not found; name it: "
            f"model.layout={{{'o' if part == 'attention' else 'value'}: NAME}}"
        )
    return names


def _found(model: PreTrainedModel) -> _Found:
    own = layout.of(model)
    if model not in _cache or _cache[model][0] != own:  # another layout was declared
        blocks = enumerate(layout.blocks(model))
        _cache[model] = own, {(at, part): _search(model, block, part) for at, block in blocks for part in PARTS}
    return _cache[model][1]


def _search(model: PreTrainedModel, block: nn.Module, part: Part) -> _Writers:
    """Find the writers of a part by running one token.

    The projection outputs (1, 1, D), or (1, D), and a norm that follows gets this very tensor.
    """
    modules = _candidates(block, _names(model, part))
    shapes: dict[nn.Module, tuple[int, ...]] = {}
    kept: list[Tensor] = []  # keeps the tensors alive, so that no address is used twice
    addresses: set[int] = set()
    norms: list[nn.Module] = []

    def wrote(module: nn.Module, _args: object, output: object) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        if isinstance(tensor, Tensor):
            shapes[module] = tuple(tensor.shape)
            kept.append(tensor)
            addresses.add(tensor.data_ptr())

    def reads(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args and args[0].data_ptr() in addresses:
            norms.append(module)

    handles = [module.register_forward_hook(wrote) for module in modules]
    inside = set(modules[-1].modules()) if len(modules) > 1 else set()
    for module in block.modules():
        if "norm" in type(module).__name__.lower() and module not in inside:
            handles.append(module.register_forward_pre_hook(reads))
    try:
        layout_search.read_one_token(model, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    width = layout.width(model)
    whole = [module for shape in ((1, 1, width), (1, width)) for module in modules if shapes.get(module) == shape]
    projection = whole[0] if whole else None
    if projection is None:
        raise SetupError(f"{model.config.model_type}: no module writes all that {part} adds; choose another method")
    return _Writers(projection, norms[0] if norms else projection)


def _candidates(block: nn.Module, names: Names) -> list[nn.Module]:
    """Return the linear module, or, if there are several matrices, the modules around all of them, innermost first."""
    linear = [name for name in names if "*" not in name and _is_linear(block, name)]
    if len(names) == 1 and linear:
        return [block.get_submodule(linear[0])]
    present = [name for name in names if layout.resolved(block, name)]
    if len(present) == 1 and present[0] in linear:  # other blocks of this model are mixtures
        return [block.get_submodule(present[0])]
    parents = [name.split(".")[:-1] for name in present]
    shared: list[str] = []
    for parts in zip(*parents, strict=False):
        if len(set(parts)) > 1 or parts[0] == "*":
            break
        shared.append(parts[0])
    return [block.get_submodule(".".join(shared[:end])) for end in range(len(shared), 0, -1)]


def zeroed(places: Sequence[Place]) -> list[Hook]:
    """Return hooks that put zeros at these places, for ablations and tests."""
    return [place.hook(torch.zeros_like) for place in places]
