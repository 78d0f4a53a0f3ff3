"""Finds parts in a model's module tree: the block list, a block's projections, the final norm.

The tree gives the candidates: a `nn.ModuleList` of similar blocks, as many as the config says that the model has, and
in a block all Linear and Conv1D modules and the three-dimensional parameters that hold a mixture of experts. The last
part of its name (SUFFIXES) tells what a candidate is for; in an MLP its shape may tell as well. What remains open is
left empty; whoever needs it is told to name it in `model.layout`.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from methods.errors import SetupError
from methods.placement import input_device
from methods.positions import Positions, at

Fused = Literal["stacked", "groups"]
Names = tuple[str, ...]


class Layout(NamedTuple):
    """Dotted names of parts: of the block list and final norm as seen from the model, of matrices as seen from a block.

    A name is that of a linear module, or of a parameter that holds a matrix, or a matrix for each expert. "*" stands
    for every number, as in "mlp.experts.*.gate_proj". A block needs to have only some of the names, since in some
    models only some blocks are a mixture of experts. An empty entry: the architecture has no such matrix, or it was not
    found.

    A name under both gate and up is one matrix for both, the gate's rows first; one under q, k and v holds all three.
    """

    blocks: str
    norm: str | None  # None: the model has no final norm
    gate: Names  # rows are the neurons' input directions; the first MLP matrix where there is no gate
    up: Names  # beside the gate; empty where the MLP has no gate
    value: Names  # writes into the residual stream: one output direction per neuron
    q: Names
    k: Names
    v: Names
    o: Names  # writes into the residual stream: what attention read
    fused: Fused | None = None
    """How one matrix for q, k and v is ordered.

    stacked: all of q, then k, then v. groups: for each key head the rows of its query heads, then its k and its v.
    None: there is no such matrix, or the order is not known.
    """


SUFFIXES: dict[str, Names] = {
    "gate": ("gate_proj", "w1", "wi_0"),
    "up": ("up_proj", "w3", "wi_1"),
    "both": ("gate_up_proj", "gate_and_up_proj"),
    "first": ("fc1", "fc_in", "c_fc", "dense_h_to_4h", "wi", "lin1", "up_proj"),  # of an MLP without a gate
    "value": ("down_proj", "fc2", "fc_out", "c_proj", "dense_4h_to_h", "w2", "wo", "lin2"),
    "q": ("q_proj", "query", "wq", "q_lin"),
    "k": ("k_proj", "key", "wk", "k_lin"),
    "v": ("v_proj", "value", "wv", "v_lin"),
    "qkv": ("query_key_value", "c_attn", "qkv_proj", "Wqkv"),
    "o": ("o_proj", "out_proj", "dense", "c_proj", "wo", "out_lin", "proj"),
}
"""Last parts of names, by what they are for; c_proj and wo mean one thing in attention and another in an MLP."""
OF_ATTENTION: Names = (*SUFFIXES["q"], *SUFFIXES["qkv"], "o_proj", "out_proj", "out_lin")
"""Last parts of names that no MLP has."""
GROUPED: Names = (
    "query_key_value",
)  # of GPT-NeoX, Bloom, Falcon and Persimmon; the others put q, k and v one after another
FINAL_NORMS: Names = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "final_norm", "norm_f")
NUMBER = re.compile(r"\.\d+(?=\.|$)")


class Projection(NamedTuple):
    """A candidate in a block: its name, with "*" for numbers, and its sizes; those of experts are as stored."""

    name: str
    outputs: int
    inputs: int
    experts: bool = False

    @property
    def group(self) -> str:
        """Name of the module that it is in."""
        return self.name.rpartition(".")[0]

    @property
    def suffix(self) -> str:
        """Last part of the name."""
        return self.name.rpartition(".")[2]


def search(model: PreTrainedModel) -> Layout:
    """The layout, as far as the tree shows it. Raises SetupError where there is not exactly one list of blocks."""
    name = block_list(model)
    listed = model.get_submodule(name)
    assert isinstance(listed, nn.ModuleList)
    return of_blocks(name, final_norm(model, name), listed, width(model))


def width(model: PreTrainedModel) -> int:
    """D, the width of the residual stream; in some models (OPT-350m) the embedding has another width."""
    return int(model.config.get_text_config().hidden_size)


def of_blocks(name: str, norm: str | None, listed: nn.ModuleList, width: int) -> Layout:
    """The layout of these blocks; what differs between blocks (some are a mixture of experts) is listed together.

    A role of the MLP that one MLP of a block leaves open is left open for all: a method that edits only the others
    would be another method.
    """
    found: dict[str, list[str]] = {role: [] for role in Layout._fields[2:9]}
    orders: list[Fused | None] = []
    lacking: set[str] = set()
    for block in listed:
        there = projections(block)
        attention = {one.group for one in there if one.suffix in OF_ATTENTION}
        mlps = _mlps(there, attention, width)
        lacking |= {role for one in mlps for role in ("gate", "value") if role not in one}
        for role, names in [*_attention(there, attention, orders), *(pair for one in mlps for pair in one.items())]:
            found[role] += [one for one in names if one not in found[role]]
    for role in lacking | ({"up"} if "gate" in lacking else set()):
        found[role] = []
    order = orders[0] if len(set(orders)) == 1 else None
    return Layout(name, norm, **{role: tuple(names) for role, names in found.items()}, fused=order)


def block_list(model: PreTrainedModel) -> str:
    """Name of the list of blocks of the language model. Raises SetupError where none, or more than one, can be it."""
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists: dict[str, nn.ModuleList] = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and module
    }
    like = [name for name, listed in lists.items() if _like_blocks(listed)]
    like = [name for name in like if not any(name.startswith(f"{other}.") for other in like)]  # experts of a block
    fitting: list[str] = [name for name in like if depth is None or len(lists[name]) == depth]
    if len(fitting) > 1:
        decoder: nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
        inside = {module for module in decoder.modules()}
        fitting = [name for name in fitting if lists[name] in inside] if decoder is not model else fitting
    if len(fitting) == 1:
        return fitting[0]
    shown = ", ".join(f"{name} ({len(lists[name])} of {type(lists[name][0]).__name__})" for name in fitting or like)
    found = f"several lists of modules can be the blocks: {shown}" if fitting else (
        f"no list of {depth} blocks of one class was found, only {shown or 'none'}"
    )  # fmt: skip
    raise SetupError(f"{type(model).__name__}: {found}; name the one to steer: model.layout={{blocks: NAME}}")


def _like_blocks(listed: nn.ModuleList) -> bool:
    """Return whether all are of one class and each holds at least two matrices, as attention or an MLP does."""
    return len({type(one) for one in listed}) == 1 and len(projections(listed[0])) > 1


def projections(block: nn.Module) -> list[Projection]:
    """Return every matrix in a block that may read or write the residual stream; numbered ones (experts) count once."""
    found: dict[str, Projection] = {}
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            sizes = module.weight.shape[::-1] if isinstance(module, Conv1D) else module.weight.shape
            found.setdefault(starred(name), Projection(starred(name), *sizes))
            continue
        for own, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 3:  # (E, outputs, inputs), a mixture of experts
                whole = starred(f"{name}.{own}" if name else own)
                found.setdefault(whole, Projection(whole, parameter.shape[1], parameter.shape[2], experts=True))
    return list(found.values())


def starred(name: str) -> str:
    """Return a dotted name with "*" for every number."""
    return str(NUMBER.sub(".*", f".{name}"))[1:]


def _attention(
    there: Sequence[Projection], groups: set[str], orders: list[Fused | None]
) -> Iterator[tuple[str, Names]]:
    """Yield attention's matrices, each as its role and names, and put the order of a fused matrix into `orders`."""
    for one in there:
        if one.group not in groups:
            continue
        for role in ("q", "k", "v", "o"):
            if one.suffix in SUFFIXES[role]:
                yield role, (one.name,)
        if one.suffix in SUFFIXES["qkv"]:
            orders.append("groups" if one.suffix in GROUPED else "stacked")
            yield from ((role, (one.name,)) for role in "qkv")


def _mlps(there: Sequence[Projection], attention: set[str], width: int) -> list[dict[str, Names]]:
    """The known parts of each MLP of a block, which is a module beside attention that reads and writes the stream.

    An MLP whose names show nothing is identified by its shapes if the block has no other.
    """
    groups = [
        [one for one in there if one.group == name]
        for name in dict.fromkeys(one.group for one in there if one.group not in attention)
    ]
    groups = [group for group in groups if len(group) > 1 and _reads_and_writes(group, width)]
    named = [_by_name(group) for group in groups]
    return [_by_shape(groups[0], width)] if len(named) == 1 and not named[0] else named


def _reads_and_writes(group: Sequence[Projection], width: int) -> bool:
    """Return whether matrices of the group read the stream and write it; experts may be stored either way."""
    if all(one.experts for one in group):
        return all(width in (one.outputs, one.inputs) for one in group)
    return any(one.inputs == width for one in group) and any(one.outputs == width for one in group)


def _by_name(group: Sequence[Projection]) -> dict[str, Names]:
    """Gate, up and value of one MLP, as far as its names tell them."""
    by_suffix = {one.suffix: one.name for one in group}

    def named(role: str) -> Names:
        return tuple(by_suffix[suffix] for suffix in SUFFIXES[role] if suffix in by_suffix)[:1]

    gate, up, both, first, value = (named(role) for role in ("gate", "up", "both", "first", "value"))
    found = {"value": value} if value else {}
    if both:
        return found | {"gate": both, "up": both}
    if gate and up:
        return found | {"gate": gate, "up": up}
    if len(group) == 2 and (gate or first):  # with a third, unknown one, either could be the gate
        return found | {"gate": gate or first}
    return found


def _by_shape(group: Sequence[Projection], width: int) -> dict[str, Names]:
    """Gate and value of an MLP of two matrices: one takes the stream to another width, the other takes that back."""
    reads = [one for one in group if one.inputs == width != one.outputs]
    writes = [one for one in group if one.outputs == width and [one.inputs] == [each.outputs for each in reads]]
    if len(group) != 2 or not writes:
        return {}
    return {"gate": (reads[0].name,), "value": (writes[0].name,)}


def final_norm(model: PreTrainedModel, blocks: str) -> str | None:
    """Return the name of the norm after the blocks: beside their list, by name, else the only one made after it."""
    parent, _, own = blocks.rpartition(".")
    beside = list(model.get_submodule(parent).named_children())
    norms = [name for name, module in beside if "norm" in type(module).__name__.lower()]
    known = [name for name in norms if name in FINAL_NORMS]
    order = [name for name, _ in beside]
    later = [name for name in norms if order.index(name) > order.index(own)]
    found = next((one for one in (known, later) if len(one) == 1), None)
    return None if found is None else f"{parent}.{found[0]}" if parent else found[0]


def head_rows(layout: Layout, model: PreTrainedModel, kind: str, outputs: int, inputs: int) -> Tensor:
    """Return which rows of one matrix (outputs, D) for q, k and v are those of `kind`, in the order of its heads.

    inputs: the number of inputs of the matrix through which attention writes, one for each entry of each query head.
    Raises SetupError where the order is not known, or does not fit the matrix.
    """
    heads = int(model.config.get_text_config().num_attention_heads)
    size = inputs // heads
    key_heads, rest = divmod(outputs - inputs, 2 * size)
    if layout.fused is None or rest or key_heads < 1 or heads % key_heads:
        raise SetupError(
            f"{model.config.model_type}: the order of q, k and v in the one matrix {layout.q[0]} ({outputs} rows) "
            "is not "
            "known; set model.layout={fused: stacked} (all of q, then k, then v) or {fused: groups} (by key heads)"
        )
    number = torch.arange(outputs)
    if layout.fused == "stacked":
        parts: list[Tensor] = list(torch.split(number, [inputs, key_heads * size, key_heads * size]))
        return parts["qkv".index(kind)]
    grouped = number.view(key_heads, heads // key_heads + 2, size)
    part = {"q": grouped[:, :-2], "k": grouped[:, -2], "v": grouped[:, -1]}[kind]
    return part.flatten()


@torch.inference_mode()
def order_of(model: PreTrainedModel, layout: Layout) -> Fused | None:
    """Find how q, k and v lie in one matrix by reading one token: block 0 caches as values what the rows of v give.

    None if no order gives these values. With a single key head both orders are the same.
    """
    cache, seen = DynamicCache(config=model.config), dict[str, Tensor]()
    block = model.get_submodule(layout.blocks).get_submodule("0")

    def keep(_module: nn.Module, _args: object, output: Tensor) -> None:
        seen["output"] = output[0, -1]

    handle = block.get_submodule(layout.v[0]).register_forward_hook(keep)
    try:
        read_one_token(model, past_key_values=cache, use_cache=True)
    finally:
        handle.remove()
    held = cast(Any, cache.layers[0]).values[0, :, -1]  # (H, head size)
    for order in get_args(Fused):
        rows = head_rows(layout._replace(fused=order), model, "v", len(seen["output"]), _written(block, layout))
        found = seen["output"][rows].view(-1, held.shape[-1])
        if len(held) % len(found) == 0 and torch.equal(found.repeat_interleave(len(held) // len(found), 0), held):
            return cast(Fused, order)
    return None


def read_one_token(model: PreTrainedModel, **settings: Any) -> None:
    """Run a forward of one token, which counts as a prompt for hooks that steer by position (of an earlier method)."""
    device = input_device(model)
    none, one = torch.zeros(1, dtype=torch.long, device=device), torch.ones(1, device=device).long()
    with at(Positions(none, one, none, one)):
        model(input_ids=none[None], **settings)


def _written(block: nn.Module, layout: Layout) -> int:
    """Return the number of entries that all query heads write: the inputs of the matrix by which attention writes."""
    return next(one.inputs for one in projections(block) if one.name == layout.o[0])


@torch.inference_mode()
def mlp_output_is_normed(model: PreTrainedModel, layout: Layout) -> bool:
    """Return whether what the MLP of the first block writes passes a norm before the residual stream (Gemma 2, OLMo 2).

    One token is read: a norm in the block is then given the very tensor that the MLP, or its value matrix, returned.
    """
    block = model.get_submodule(layout.blocks).get_submodule("0")
    above = {name.rpartition(".")[0] for name in layout.value} | set(layout.value)
    above |= {name.rpartition(".")[0] for name in above}
    written: set[int] = set()
    kept: list[Tensor] = []  # so that no address is used twice
    normed: list[bool] = []

    def wrote(_module: nn.Module, _args: object, output: object) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        if isinstance(tensor, Tensor):
            kept.append(tensor)
            written.add(tensor.data_ptr())

    def reads(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        normed.append(bool(args) and args[0].data_ptr() in written)

    handles = []
    for name, module in block.named_modules():
        if name and starred(name) in above:
            handles.append(module.register_forward_hook(wrote))
        elif "norm" in type(module).__name__.lower():
            handles.append(module.register_forward_pre_hook(reads))
    try:
        read_one_token(model, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return any(normed)
