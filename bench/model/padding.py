"""How padding changes what a model computes: a few forwards of a short text show it.

Sampling and likelihood pad rows on the left, and likelihood may read a text after a beginning that other texts share,
with padding in between. Most models read the positions of tokens from `position_ids`, so padding that is masked changes
nothing. Some count columns instead: MPT's ALiBi and GPT-Neo's local attention, or position embeddings of their own.
"""

import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from bench.model import kv_cache
from methods import layout
from methods.errors import SetupError
from methods.intervention import Positions, at
from methods.placement import input_device

TOKENS, HALF, PADS = 6, 3, 3  # of the text that is read, of its first part, and of padding
EXACT, ROUNDED = 1e-3, 0.1  # differences of logits, in their spread, that rounding explains: in fp32, in 16 bits
WINDOWS = ("sliding_window", "window_size", "attention_window", "local_attention_window")
"""Names that configs have for the number of columns that a token sees."""

_gaps: "weakref.WeakKeyDictionary[PreTrainedModel, bool]" = weakref.WeakKeyDictionary()


def check_padding(model: PreTrainedModel) -> None:
    """Raises SetupError for a model that cannot read a text, or reads another one if padding stands before it.

    A model whose blocks pass on several residual streams, which no method knows, is refused, too.
    """
    kind = model.config.model_type
    handle = _first_block(model).register_forward_hook(_refuse_several(kind))
    ids = _text(model)
    try:
        plain = _alone(model, ids)
        padded = _read(model, [(PADS, ids[:HALF]), (0, ids[HALF:])])
    except SetupError:
        raise
    except Exception as error:  # the code of any architecture, which may not know padding or caches at all
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        raise SetupError(
            f"{kind}: a text of {TOKENS} tokens could not be read with a cache and padding ({type(error).__name__}: "
            f"{error}); choose a model whose architecture reads position_ids, an attention mask and a KV cache"
        ) from error
    finally:
        handle.remove()
    if (found := _difference(plain, padded)) > _allowed(model):
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


@torch.inference_mode()
def _gap_matters(model: PreTrainedModel) -> bool:
    ids = _text(model)
    whole, apart = _read(model, [(0, ids)]), _read(model, [(0, ids[:HALF]), (PADS, ids[HALF:])])
    return _difference(whole, apart) > _allowed(model)


def _text(model: PreTrainedModel) -> Tensor:
    """Return token ids (TOKENS,) that differ from each other, from the middle of the vocabulary."""
    embeddings: Any = model.get_input_embeddings()
    size = int(embeddings.weight.shape[0])
    return (torch.arange(TOKENS, device=input_device(model)) + size // 2) % size


@torch.inference_mode()
def _alone(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the logits (V,) after a text, read as the model does by itself."""
    with _as_prompt(0, 0, len(ids)):
        found: Tensor = model(input_ids=ids[None]).logits[0, -1]
    return found


def _as_prompt(pads: int, read: int, more: int) -> AbstractContextManager[None]:
    """Return a context in which the forward's tokens count as those of a prompt, for hooks that steer by position."""
    first, length, cached, prompt = (torch.tensor([one]) for one in (pads, more, read, TOKENS))
    return at(Positions(first, length, cached, prompt))


@torch.inference_mode()
def _read(model: PreTrainedModel, parts: Sequence[tuple[int, Tensor]]) -> Tensor:
    """Return the logits (V,) after the parts of a text, read one after the other; each has some padding before it."""
    cache, seen, logits = kv_cache.empty(model.config), torch.zeros(1, 0, dtype=torch.long), torch.empty(0)
    for pads, ids in parts:
        read = int(seen.sum())
        real = torch.arange(pads + len(ids)) >= pads  # (T,)
        seen = torch.cat([seen, real.long()[None]], dim=-1)
        position = (read + torch.arange(pads + len(ids)) - pads).clamp(min=0)
        with _as_prompt(pads, read, len(ids)):
            logits = model(
                input_ids=pad(ids, (pads, 0))[None],
                attention_mask=seen.to(ids.device),
                position_ids=position[None].to(ids.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[0, -1]
    return logits


def _difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of logits (V,), in units of their standard deviation."""
    spread = one.float().std().clamp(min=torch.finfo(torch.float32).tiny)
    return float((one.float() - other.float().to(one.device)).abs().max() / spread)


def _allowed(model: PreTrainedModel) -> float:
    return EXACT if model.dtype == torch.float32 else ROUNDED


def _first_block(model: PreTrainedModel) -> nn.Module:
    """Return the first block; the model itself if its blocks are not found, of which methods tell."""
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
