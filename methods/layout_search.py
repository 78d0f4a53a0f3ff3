"""Finds parts in a model's module tree: the block list, a block's projections, the final norm.

The tree gives the candidates. A block list is a `nn.ModuleList` of similar blocks, as many as the config says. In a
block, the candidates are all Linear and Conv1D modules and the three-dimensional parameters that hold a mixture of
experts. The last part of a candidate's name (SUFFIXES) shows what it is for; in an MLP its shape may show it, too. A
part that is not found is left empty; a method that needs it raises an error that says to name it in `model.layout`.
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
    """The dotted names of a model's parts; names of matrices start at a block, the other names at the model.

    A matrix's name is that of a linear module, or of a parameter that holds one matrix or a matrix for each expert. "*"
    stands for every number, as in "mlp.experts.*.gate_proj". A block needs to have only some of the names, since in
    some models only some blocks are a mixture of experts. An empty entry means that the architecture has no such
    matrix, or that it was not found.

    A name under both gate and up is one matrix that holds both, the gate's rows first. A name under q, k and v is one
    matrix that holds all three.
    """

    blocks: str
    norm: str | None  # None: the model has no final norm
    gate: Names  # rows are the neurons' input directions; the first MLP matrix if there is no gate
    up: Names  # the matrix beside the gate; empty if the MLP has no gate
    value: Names  # writes into the residual stream: one output direction per neuron
    q: Names
    k: Names
    v: Names
    o: Names  # writes the result of attention into the residual stream
    fused: Fused | None = None
    """The order of the rows in one matrix for q, k and v.

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
"""The last parts of names, by what they are for; c_proj and wo mean one thing in attention and another in an MLP."""
OF_ATTENTION: Names = (*SUFFIXES["q"], *SUFFIXES["qkv"], "o_proj", "out_proj", "out_lin")
"""The last parts of names that occur only in attention."""
GROUPED: Names = (
    "query_key_value",
)  # in GPT-NeoX, Bloom, Falcon and Persimmon; other models put all of q, then k, then v
FINAL_NORMS: Names = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "final_norm", "norm_f")
EMBEDDING_NORMS: Names = ("layernorm_embedding", "embeddings_layer_norm")  # Bart, ProphetNet; LFM2's is the final one
FEW = 4  # tokens that are run to tell the order of q, k and v; the first may be padding, whose values are zeros
NUMBER = re.compile(r"\.\d+(?=\.|$)")


class Projection(NamedTuple):
    """A candidate in a block: its name, with "*" for numbers, and its sizes.

    The sizes of experts are in the order in which they are stored, so `outputs` and `inputs` may be swapped.
    """

    name: str
    outputs: int
    inputs: int
    experts: bool = False

    @property
    def group(self) -> str:
        """The name of the module that contains the candidate."""
        return self.name.rpartition(".")[0]

    @property
    def suffix(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]


def search(model: PreTrainedModel) -> Layout:
    """Return the layout, as far as the tree shows it. Raises SetupError unless exactly one list can be the blocks."""
    name = block_list(model)
    listed = model.get_submodule(name)
    assert isinstance(listed, nn.ModuleList)
    return of_blocks(name, final_norm(model, name), listed, width(model))


def width(model: PreTrainedModel) -> int:
    """Return D, the width of the residual stream; in some models (OPT-350m) the embedding has another width."""
    return int(model.config.get_text_config().hidden_size)


def of_blocks(name: str, norm: str | None, listed: nn.ModuleList, width: int) -> Layout:
    """Return the layout of these blocks; names that only some blocks have (mixtures of experts) are all listed.

    If a matrix of an MLP is not found in one MLP, its entry is left empty for all: a method that edits only the other
    MLPs would be another method.
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
    """Return the name of the language model's block list. Raises SetupError if none, or more than one, can be it."""
    depth = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    lists: dict[str, nn.ModuleList] = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and module
    }
    like = [name for name, listed in lists.items() if _like_blocks(listed)]
    like = [name for name in like if not any(name.startswith(f"{other}.") for other in like)]  # not a block's experts
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
    """Return whether all modules are of one class with at least two matrices in each, as attention or an MLP has."""
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
    """Yield the role and names of each matrix of attention, and append the order of a fused matrix to `orders`."""
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
    """Return the known parts of each MLP of a block.

    An MLP is a module beside attention that reads and writes the stream. If the names in it show nothing and it is the
    block's only MLP, the parts are found by their shapes.
    """
    groups = [
        [one for one in there if one.group == name]
        for name in dict.fromkeys(one.group for one in there if one.group not in attention)
    ]
    groups = [group for group in groups if len(group) > 1 and _reads_and_writes(group, width)]
    named = [_by_name(group) for group in groups]
    return [_by_shape(groups[0], width)] if len(named) == 1 and not named[0] else named


def _reads_and_writes(group: Sequence[Projection], width: int) -> bool:
    """Return whether matrices of the group read the stream and write it; experts may be stored transposed."""
    if all(one.experts for one in group):
        return all(width in (one.outputs, one.inputs) for one in group)
    return any(one.inputs == width for one in group) and any(one.outputs == width for one in group)


def _by_name(group: Sequence[Projection]) -> dict[str, Names]:
    """Return gate, up and value of one MLP, as far as the names in it show them."""
    by_suffix = {one.suffix: one.name for one in group}

    def named(role: str) -> Names:
        return tuple(by_suffix[suffix] for suffix in SUFFIXES[role] if suffix in by_suffix)[:1]

    gate, up, both, first, value = (named(role) for role in ("gate", "up", "both", "first", "value"))
    found = {"value": value} if value else {}
    if both:
        return found | {"gate": both, "up": both}
    if gate and up:
        return found | {"gate": gate, "up": up}
    if len(group) == 2 and (gate or first):  # if a third one is unknown, that one could be the gate
        return found | {"gate": gate or first}
    return found


def _by_shape(group: Sequence[Projection], width: int) -> dict[str, Names]:
    """Return gate and value of an MLP of two matrices: gate maps the stream to another width, value maps that back."""
    reads = [one for one in group if one.inputs == width != one.outputs]
    writes = [one for one in group if one.outputs == width and [one.inputs] == [each.outputs for each in reads]]
    if len(group) != 2 or not writes:
        return {}
    return {"gate": (reads[0].name,), "value": (writes[0].name,)}


def final_norm(model: PreTrainedModel, blocks: str) -> str | None:
    """Return the name of the norm after the blocks; None if none, or more than one, can be it.

    The norms in the module that holds the list of blocks are looked at. If exactly one of them has a known name
    (FINAL_NORMS), this norm is taken. Otherwise it is the only norm after the list, not counting norms of the
    embeddings (EMBEDDING_NORMS).
    """
    parent, _, own = blocks.rpartition(".")
    beside = list(model.get_submodule(parent).named_children())
    norms = [name for name, module in beside if "norm" in type(module).__name__.lower()]
    known = [name for name in norms if name in FINAL_NORMS]
    order = [name for name, _ in beside]
    later = [name for name in norms if order.index(name) > order.index(own) and name not in EMBEDDING_NORMS]
    found = next((one for one in (known, later) if len(one) == 1), None)
    return None if found is None else f"{parent}.{found[0]}" if parent else found[0]


def head_rows(layout: Layout, model: PreTrainedModel, kind: str, outputs: int, inputs: int) -> Tensor:
    """Return the indices of the rows of `kind` in one matrix (outputs, D) for q, k and v, in the order of the heads.

    inputs: the number of inputs of the matrix through which attention writes, one for each entry of each query head.
    Raises SetupError if the order of the rows is not known, or does not fit the matrix.
    """
    heads = int(model.config.get_text_config().num_attention_heads)
    size = inputs // heads
    key_heads, rest = divmod(outputs - inputs, 2 * size)
    matrix = f"{model.config.model_type}: {layout.v[0]}, one matrix for q, k and v,"
    if rest or key_heads < 1 or heads % key_heads:
        raise SetupError(
            f"{matrix} has {outputs} rows, which are not those of {heads} query heads of {size} rows, and as many key "
            "heads as value heads; choose a method that neither reads nor edits q, k and v, or another model"
        )
    if layout.fused is None:
        raise unknown_order(model, layout)
    number = torch.arange(outputs)
    if layout.fused == "stacked":
        parts: list[Tensor] = list(torch.split(number, [inputs, key_heads * size, key_heads * size]))
        return parts["qkv".index(kind)]
    grouped = number.view(key_heads, heads // key_heads + 2, size)
    part = {"q": grouped[:, :-2], "k": grouped[:, -2], "v": grouped[:, -1]}[kind]
    return part.flatten()


def unknown_order(model: PreTrainedModel, layout: Layout) -> SetupError:
    """Return the error for one matrix for q, k and v in an order that is neither of the two."""
    return SetupError(
        f"{model.config.model_type}: {layout.v[0]}, one matrix for q, k and v, has its rows in an order that is not "
        "known: neither stacked (all of q, then k, then v) nor groups (for each key head its q, k and v) gives the "
        "values that block 0 caches. No other order can be declared; choose a method that neither reads nor edits q, k "
        "and v, or another model"
    )


@torch.inference_mode()
def order_of(model: PreTrainedModel, layout: Layout) -> Fused | None:
    """Find the order of q, k and v in one matrix by running a few tokens: v's rows must give block 0's cached values.

    Return None if neither "stacked" nor "groups" gives these values. If both do, as in a model with a single key head,
    return the order that `layout` has.
    """
    cache, seen = DynamicCache(config=model.config), dict[str, Tensor]()
    block = model.get_submodule(layout.blocks).get_submodule("0")

    def keep(_module: nn.Module, _args: object, output: Tensor) -> None:
        seen["output"] = output[0]  # (T, rows)

    handle = block.get_submodule(layout.v[0]).register_forward_hook(keep)
    try:
        _read_tokens(model, FEW, past_key_values=cache, use_cache=True)
    finally:
        handle.remove()
    held = cast(Any, cache.layers[0]).values[0]  # (H, C, head size); a sliding window keeps the last columns
    output = _clipped(model, seen["output"])[-held.shape[1] :]  # (C, rows)
    fitting = []
    for order in get_args(Fused):
        rows = head_rows(layout._replace(fused=order), model, "v", output.shape[1], _written(block, layout))
        found = output[:, rows].view(len(output), -1, held.shape[-1]).transpose(0, 1)  # (key heads, C, head size)
        if len(held) % len(found) == 0 and torch.equal(found.repeat_interleave(len(held) // len(found), 0), held):
            fitting.append(cast(Fused, order))
    return layout.fused if layout.fused in fitting else next(iter(fitting), None)


def _clipped(model: PreTrainedModel, output: Tensor) -> Tensor:
    """Return what attention makes of the output of its matrix: some models (MPT, DBRX) clip it at a number."""
    text = model.config.get_text_config()
    limits = [getattr(one, "clip_qkv", None) for one in (text, getattr(text, "attn_config", None))]
    return next((output.clamp(-limit, limit) for limit in limits if limit), output)


def read_one_token(model: PreTrainedModel, **settings: Any) -> None:
    """Run a forward pass on one token; to hooks of an earlier method that steer by position it is a prompt."""
    _read_tokens(model, 1, **settings)


def _read_tokens(model: PreTrainedModel, count: int, **settings: Any) -> None:
    """Run a forward pass on the first tokens of the vocabulary, as on a prompt."""
    device = input_device(model)
    none, length = torch.zeros(1, dtype=torch.long, device=device), torch.full((1,), count, device=device)
    with at(Positions(none, length, none, length)):
        model(input_ids=torch.arange(count, device=device)[None], **settings)


def _written(block: nn.Module, layout: Layout) -> int:
    """Return the width of all query heads together: the number of inputs of the matrix by which attention writes."""
    return next(one.inputs for one in projections(block) if one.name == layout.o[0])


@torch.inference_mode()
def mlp_output_is_normed(model: PreTrainedModel, layout: Layout) -> bool:
    """Return whether the output of the first block's MLP passes a norm before the residual stream (Gemma 2, OLMo 2).

    One token is run. If there is such a norm, it receives the very tensor that the MLP, or its value matrix, returned.
    """
    block = model.get_submodule(layout.blocks).get_submodule("0")
    above = {name.rpartition(".")[0] for name in layout.value} | set(layout.value)
    above |= {name.rpartition(".")[0] for name in above}
    written: set[int] = set()
    kept: list[Tensor] = []  # keeps the tensors alive, so that no address is used twice
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
