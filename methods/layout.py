"""Where things live in each architecture: blocks, the matrices that read and write the residual stream, final norm.

To add an architecture, add its `config.model_type` to LAYOUTS; names were checked against transformers 5.23.
"""

from typing import Literal, NamedTuple, get_args

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from methods.errors import SetupError


class Layout(NamedTuple):
    """Dotted names: of the block list and final norm from the model, of the matrices from one block."""

    blocks: str
    norm: str
    gate: str  # its rows are the neurons' input directions; the first MLP matrix where there is no gate
    value: str  # writes into the residual stream: one output direction per neuron
    o: str  # writes into the residual stream: what attention read
    up: str | None = None  # beside the gate; None where the MLP has no gate
    qkv: str | None = None  # "{}" stands for q, k or v; None where the three are one matrix


LLAMA = Layout(
    "model.layers", "model.norm", "mlp.gate_proj", "mlp.down_proj", "self_attn.o_proj", "mlp.up_proj",
    "self_attn.{}_proj",
)  # fmt: skip
LAYOUTS = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "gpt2": Layout("transformer.h", "transformer.ln_f", "mlp.c_fc", "mlp.c_proj", "attn.c_proj"),
    "opt": Layout(
        "model.decoder.layers", "model.decoder.final_layer_norm", "fc1", "fc2", "self_attn.out_proj", None,
        "self_attn.{}_proj",
    ),
    "gptj": Layout(
        "transformer.h", "transformer.ln_f", "mlp.fc_in", "mlp.fc_out", "attn.out_proj", None, "attn.{}_proj"
    ),
    "gpt_neox": Layout(
        "gpt_neox.layers", "gpt_neox.final_layer_norm", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "attention.dense"
    ),
}  # fmt: skip


class Matrix(NamedTuple):
    """A weight seen the way nn.Linear stores it, (outputs, inputs), whatever the module's own layout."""

    parameter: nn.Parameter
    transposed: bool  # Conv1D (GPT-2) stores (inputs, outputs)

    def read(self) -> Tensor:
        """The weight as (outputs, inputs): a view, not to be written to."""
        weight = self.parameter.detach()
        return weight.T if self.transposed else weight

    def stored(self, weight: Tensor) -> Tensor:
        """A new (outputs, inputs) weight in the parameter's own layout and dtype, for `intervention.edited`."""
        return (weight.T if self.transposed else weight).to(self.parameter.dtype).contiguous()


def of(model: PreTrainedModel) -> Layout:
    """The layout of this model's architecture. Raises SetupError for one that is not in LAYOUTS."""
    kind = model.config.model_type
    if kind not in LAYOUTS:
        known = ", ".join(sorted(LAYOUTS))
        raise SetupError(
            f"architecture {kind!r} is not known: steering knows {known}; add a line to LAYOUTS in methods/layout.py"
        )
    return LAYOUTS[kind]


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer blocks, first to last."""
    found = model.get_submodule(of(model).blocks)
    assert isinstance(found, nn.ModuleList)
    return found


def final_norm(model: PreTrainedModel) -> nn.Module:
    """The norm between the last block and the unembedding. Raises SetupError for OPT-350m, which has none."""
    parent, _, name = of(model).norm.rpartition(".")
    found = getattr(model.get_submodule(parent), name, None)
    if not isinstance(found, nn.Module):
        raise SetupError(f"{model.config.model_type} has no final norm here; read features from a block instead")
    return found


def width(model: PreTrainedModel) -> int:
    """D, read off the value matrix: some configs (OPT-350m) have an embedding of another width."""
    return value_matrix(model, 0).read().shape[0]


def value_matrix(model: PreTrainedModel, layer: int) -> Matrix:
    """(D, M): column i is the output direction of MLP neuron i of block `layer`."""
    return matrix(model, layer, of(model).value)


Kind = Literal["gate", "up", "down", "q", "k", "v", "o"]


def stream_rows(model: PreTrainedModel, layer: int, kind: Kind) -> Matrix:
    """(rows, D): one direction of the residual stream per row, read (gate, up, q, k, v) or written (down, o).

    Where a matrix writes, its columns are the rows here. Raises SetupError where the architecture has no such matrix.
    """
    names = of(model)
    if kind in ("down", "o"):
        found = matrix(model, layer, names.value if kind == "down" else names.o)
        return found._replace(transposed=not found.transposed)
    name = {"gate": names.gate, "up": names.up}.get(kind, names.qkv and names.qkv.format(kind))
    if name is None:
        there = [k for k in get_args(Kind) if k in ("gate", "down", "o") or (names.up if k == "up" else names.qkv)]
        raise SetupError(
            f"{model.config.model_type} has no {kind} matrix of its own (an MLP without gate, or q, k and v in one): "
            f"it has {', '.join(there)}"
        )
    return matrix(model, layer, name)


def matrix(model: PreTrainedModel, layer: int, name: str) -> Matrix:
    """The weight called `name` inside block `layer`, for example "mlp.up_proj"."""
    module = blocks(model)[layer].get_submodule(name)
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return Matrix(weight, transposed=isinstance(module, Conv1D))


def layer_index(model: PreTrainedModel, layer: int | float, setting: str = "method.layer") -> int:
    """The block that `layer` names: an integer counts from 0 (or back from -1), a fraction in [0, 1) is of the depth.

    Raises SetupError when the model has no such block.
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
            f"layer {index} out of range: {model.config.model_type} has {depth} (0-{depth - 1}); set {setting}"
        )
    return index % depth


def layer_range(
    model: PreTrainedModel, start: int | float, stop: int | float | None, setting: str = "method.layers"
) -> range:
    """Blocks from `start` up to but without `stop` (None: to the end). Raises SetupError for an empty range."""
    first = layer_index(model, start, f"{setting}_start")
    last = len(blocks(model)) if stop is None else layer_index(model, stop, f"{setting}_stop")
    if first >= last:
        raise SetupError(f"{setting}: no block between {start} and {stop}; start must lie below stop")
    return range(first, last)
