"""Estimates of the memory that a batch takes, and what earlier batches of a model have shown about its memory.

A batch takes the keys and values of all its columns, the logits of its rows, and a forward's intermediate results.
"""

import gc
import math
import sys
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from bench.console.escape import visible
from bench.model import kv_cache
from bench.model.nucleus import drawing_bytes
from bench.model.streams import tried_together
from methods import placement
from methods.base import Demand
from methods.decoding import PIECE

GIB = 2**30
WORTH_TELLING = GIB  # bytes of a batch from which its estimate is told
STEERING_COPIES = 8  # fp32 copies of a piece of a step's logits that decoding-time steering makes
LOGIT_BYTES = 8  # bytes of each fp32 logit while it is normalised: the logit and its exponential
UNSTEERED = Demand()
WIDTHS = ("intermediate_size", "ffn_dim", "ffn_hidden_size", "n_inner", "moe_intermediate_size")
"""Names that configs have for the width of the MLP; it is 4 D if they do not give it."""


class Estimate(NamedTuple):
    """Bytes that a batch takes at its peak. further: intermediate results of the forwards."""

    cache: int
    logits: int
    further: int

    @property
    def total(self) -> int:
        """The sum of all parts, in bytes."""
        return sum(self)


@dataclass
class Memory:
    """Facts that runs have shown about a loaded model's memory; the steered and the unsteered model share them.

    ceiling: estimate of the largest batch that may still be tried. halvings: how often the batches of a likelihood were
    halved.
    """

    ceiling: float = math.inf
    halvings: int = 0
    told: set[Any] = field(default_factory=set)

    def tell(self, key: Any, line: str) -> None:
        """Print a message once for each key."""
        if key not in self.told:
            self.told.add(key)
            print(visible(f"memory: {line}"), file=sys.stderr)


def cache_bytes(config: PreTrainedConfig, itemsize: int) -> int:
    """Return the bytes of one column of one row in the KV cache; a sliding window counts as full attention."""
    text: Any = config.get_text_config()
    heads = _largest(text, "num_key_value_heads") or _largest(text, "num_attention_heads")
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):  # as Falcon has it
        heads = 1
    keys = values = _head_size(text)
    if getattr(text, "qk_nope_head_dim", None):  # DeepSeek's latent attention, which is cached unfolded
        keys, values = text.qk_nope_head_dim + text.qk_rope_head_dim, text.v_head_dim
    return int(text.num_hidden_layers * heads * (keys + values) * itemsize)


def _head_size(text: Any) -> int:
    return int(_largest(text, "head_dim") or text.hidden_size // text.num_attention_heads)


def _largest(text: Any, name: str) -> int:
    """Return the value of a field of the config, the largest if blocks differ in it; 0 if there is none."""
    try:
        value = getattr(text, name, None)
    except RuntimeError:  # transformers refuses to read a field that differs between blocks (Gemma 4)
        value = [getattr(one, name, None) for one in text.per_layer_config]
    several = value if isinstance(value, list | tuple) else [value]
    return max([int(one) for one in several if one], default=0)


def estimate(
    model: PreTrainedModel,
    rows: int,
    texts: int,
    width: int,
    new: int,
    demand: Demand = UNSTEERED,
    device: torch.device | None = None,
) -> Estimate:
    """Estimate the memory of a batch: `texts` texts of at most `width` tokens are read, and `rows` rows continue them.

    The rows have copies of the texts' caches. new: number of columns that are added for further tokens. demand: what
    the steering takes in addition. device: where the batch is computed; None: where the model is.
    """
    width += demand.room
    read = max(texts * (width + kv_cache.ROOM), rows * (width + new))
    tried = tried_columns(rows, width + new, demand)
    config: Any = model.config.get_text_config()
    itemsize, columns = model.dtype.itemsize, read // max(rows, 1)
    column = cache_bytes(model.config, itemsize)
    cache = ((1 + demand.readings) * read + tried) * column
    logits = (2 + demand.readings) * rows * config.vocab_size * itemsize  # of this step and the one before
    per_head = 2 * config.num_attention_heads * _head_size(config) * itemsize  # of a column of a block
    copied = max(rows * columns, tried) * per_head
    moved = read * column // config.num_hidden_layers  # of a block, while rows are taken over
    drawn = drawing_bytes(rows, config.vocab_size, device or placement.input_device(model))
    steered = steering_bytes(rows * config.vocab_size, itemsize, demand)
    return Estimate(cache, logits, max(_forward_bytes(model, texts, width), copied, drawn, steered) + moved)


def tried_columns(rows: int, columns: int, demand: Demand) -> int:
    """Return how many columns of caches are copied to try tokens ahead, for rows with this number of columns."""
    return tried_together(rows, columns) * (columns + 1) if demand.ahead else 0


def steering_bytes(logits: int, itemsize: int, demand: Demand) -> int:
    """Return the bytes that decoding-time steering takes for this number of logits: fp32 copies, and steered logits."""
    if not demand.readings and not demand.ahead:
        return 0
    return STEERING_COPIES * 4 * min(logits, PIECE) + logits * itemsize


def _forward_bytes(model: PreTrainedModel, rows: int, width: int) -> int:
    """Return the bytes of a forward's intermediate results for (rows, width) tokens, in the block that takes most."""
    config: Any = model.config.get_text_config()
    itemsize, heads = model.dtype.itemsize, config.num_attention_heads
    mlp = max(_largest(config, name) for name in WIDTHS) or 4 * config.hidden_size
    experts = getattr(config, "num_experts_per_tok", None) or 1
    a_token = 6 * config.hidden_size + 4 * heads * _head_size(config) + 3 * mlp * experts
    eager = getattr(config, "_attn_implementation", None) == "eager"
    a_pair = 2 * heads * max(4, itemsize) if eager else 1 + itemsize  # scores and weights, or the mask alone
    return int(rows * width * (a_token * itemsize + width * a_pair))


def ran_out(error: BaseException) -> bool:
    """Return whether an error says that no memory is left, on a card or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("can't allocate memory", "DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def release(device: torch.device) -> None:
    """Give memory that is no longer used back to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
