"""How padding changes what a model computes: a few forwards of short texts show it.

Sampling and likelihood pad rows on the left, and likelihood may read a text after a beginning that other texts share,
with padding in between. Most models read the positions of tokens from `position_ids`, so padding that is masked changes
nothing. Some count columns instead: MPT's ALiBi and GPT-Neo's local attention, or position embeddings of their own.
"""

import math
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from bench.model import kv_cache
from bench.model.architecture import LENGTHS
from methods import layout
from methods.errors import SetupError
from methods.intervention import Positions, at
from methods.placement import input_device

TOKENS, HALF, PADS = 6, 3, 3  # of a text that is read, of its first part, and of padding
TEXTS = 4  # that must all show a change: in a mixture of experts, rounding may lead one of them to another expert
EXACT = 1e-3  # difference of logits, in their spread, that rounding explains in fp32
ROUNDED = (0.02, 0.1)  # in 16 bits: always, and at most
NOISE = 4  # between the two: times what padding behind a text, or a reading in two parts without padding, changes
WINDOWS = ("sliding_window", "window_size", "attention_window", "local_attention_window")
"""Names that configs have for the number of columns that a token sees."""

_gaps: "weakref.WeakKeyDictionary[PreTrainedModel, bool]" = weakref.WeakKeyDictionary()


def check_padding(model: PreTrainedModel) -> None:
    """Raises SetupError for a model that cannot read a text, or reads another one if padding stands before it.

    A model whose blocks pass on several residual streams, which no method knows, is refused, too.
    """
    kind = model.config.model_type
    handle = _first_block(model).register_forward_hook(_refuse_several(kind))
    try:
        found = _change(model, lambda ids: (_alone(model, ids), _read(model, [(PADS, ids[:HALF]), (0, ids[HALF:])])))
    except SetupError:
        raise
    except Exception as error:  # the code of any architecture, which may not know padding or caches at all
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        why = f"{kind}: a text of {TOKENS} tokens could not be read with a cache and padding"
        if small := _too_small(model):
            raise SetupError(f"{why}, and its config says {small}; choose a model that reads longer texts") from error
        raise SetupError(
            f"{why} ({type(error).__name__}: {error}); choose a model whose architecture reads position_ids, an "
            "attention mask and a KV cache"
        ) from error
    finally:
        handle.remove()
    if found:
        raise SetupError(
            f"{kind}: with padding before a text, or with a text read in two parts, its logits are others (by "
            f"{found:.2g} of their spread), so texts cannot share a batch, nor be written token by token; choose "
            "another model"
        )


def needs_no_gaps(model: PreTrainedModel) -> bool:
    """Return whether padding inside a text changes what the model computes, so that columns have to follow each other.

    That holds for a sliding window, which counts padding, and for attention that depends on the distance in columns.
    """
    if model not in _gaps:
        _gaps[model] = _has_window(model) or _gap_matters(model)
    return _gaps[model]


def _has_window(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    named = any(isinstance(getattr(config, name, None), int) for name in WINDOWS)
    return named or not kv_cache.keeps_all(kv_cache.empty(model.config))


def _gap_matters(model: PreTrainedModel) -> bool:
    return (
        _change(model, lambda ids: (_read(model, [(0, ids)]), _read(model, [(0, ids[:HALF]), (PADS, ids[HALF:])]))) > 0
    )


def _change(model: PreTrainedModel, readings: Callable[[Tensor], tuple[Tensor, Tensor]]) -> float:
    """Return the smallest `_difference` between two readings of a text, over a few texts.

    It is 0 if rounding explains the difference for one of the texts.
    """
    least = math.inf
    for number in range(TEXTS):
        ids = _text(model, number)
        found = _difference(*readings(ids))
        if not found > _rounding(model, ids, found):
            return 0.0
        least = min(least, found)
    return least


def _rounding(model: PreTrainedModel, ids: Tensor, found: float) -> float:
    """Return which difference rounding explains; in 16 bits it is measured if `found` could be more."""
    if model.dtype == torch.float32:
        return EXACT
    always, most = ROUNDED
    if not found > always:
        return always
    whole = _read(model, [(0, ids)])
    unseen = _read(model, [(0, ids)], after=PADS), _read(model, [(0, ids[:HALF]), (0, ids[HALF:])])
    return min(max(always, *(NOISE * _difference(whole, one) for one in unseen)), most)


def _text(model: PreTrainedModel, number: int = 0) -> Tensor:
    """Return token ids (TOKENS,) that differ from each other, from the middle of the vocabulary."""
    embeddings: Any = model.get_input_embeddings()
    size = int(embeddings.weight.shape[0])
    return (torch.arange(TOKENS, device=input_device(model)) + size // 2 + number * TOKENS) % size


def _too_small(model: PreTrainedModel) -> str | None:
    """Return the setting of the config that allows no text of TOKENS tokens or no window of 2; None if none does."""
    config = model.config.get_text_config()
    fewest = dict.fromkeys(LENGTHS, TOKENS) | dict.fromkeys(WINDOWS, 2)
    said = ((name, getattr(config, name, None), least) for name, least in fewest.items())
    return next(
        (f"{name}={value}" for name, value, least in said if isinstance(value, int) and 0 < value < least), None
    )


@torch.inference_mode()
def _alone(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the logits (V,) after a text, for which the model makes mask, positions and cache by itself."""
    with _as_prompt(0, 0, len(ids)):
        found: Tensor = model(input_ids=ids[None]).logits[0, -1]
    return found


def _as_prompt(pads: int, read: int, more: int) -> AbstractContextManager[None]:
    """Return a context in which the forward's tokens count as those of a prompt, for hooks that steer by position."""
    first, length, cached, prompt = (torch.tensor([one]) for one in (pads, more, read, TOKENS))
    return at(Positions(first, length, cached, prompt))


@torch.inference_mode()
def _read(model: PreTrainedModel, parts: Sequence[tuple[int, Tensor]], after: int = 0) -> Tensor:
    """Return the logits (V,) after the parts of a text, read one after the other; each has some padding before it.

    The cache is branched before each part, as sampling does it. after: padding behind each part, which no token sees.
    """
    cache, seen, logits = kv_cache.empty(model.config), torch.zeros(1, 0, dtype=torch.long), torch.empty(0)
    for pads, ids in parts:
        columns = pads + len(ids) + after
        cache = kv_cache.branch([(cache, torch.zeros(1, dtype=torch.long))], columns)
        read = int(seen.sum())
        column = torch.arange(columns)  # (T,)
        real = (column >= pads) & (column < pads + len(ids))
        seen = torch.cat([seen, real.long()[None]], dim=-1)
        with _as_prompt(pads, read, len(ids)):
            logits = model(
                input_ids=pad(ids, (pads, after))[None],
                attention_mask=seen.to(ids.device),
                position_ids=(read + column - pads).clamp(0, TOKENS - 1)[None].to(ids.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1 + after,
            ).logits[0, -1 - after]
    return logits


def _difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of logits (V,), in units of their standard deviation."""
    spread = one.float().std().clamp(min=torch.finfo(torch.float32).tiny)
    return float((one.float() - other.float().to(one.device)).abs().max() / spread)


def _first_block(model: PreTrainedModel) -> nn.Module:
    """Return the first block; the model itself if its blocks are not found, which methods report."""
    try:
        return layout.blocks(model)[0]
    except SetupError:
        return model


def _refuse_several(kind: str) -> Callable[[nn.Module, object, object], None]:
    def check(_module: nn.Module, _args: object, output: object) -> None:
        stream = output[0] if isinstance(output, tuple) else output
        if isinstance(stream, Tensor) and stream.dim() > 3:
            raise SetupError(
                f"{kind}: its blocks pass on a stream of {stream.dim()} dimensions, where one residual stream (texts, "
                "tokens, width) is expected; choose another model"
            )

    return check
