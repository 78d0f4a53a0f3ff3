"""Checks that a model's cache suits this benchmark, and reads off its config how long a text may be."""

from typing import Any

from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from methods.errors import SetupError
from methods.tokens import longest_alike

LENGTHS = ("max_position_embeddings", "n_positions", "seq_length", "max_seq_len", "max_sequence_length", "n_ctx")
"""Names that configs have for the length of the longest text that a model was made for."""
NO_LIMIT = 65536
"""Longest text, in tokens, for a model that states none (ALiBi, as in Bloom); a longer one is taken for a mistake."""


def max_length(config: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the length in tokens of the longest text that a model was made for; NO_LIMIT if nothing states it.

    If the config does not state the length, the tokenizer may; transformers writes 10^30 there for "unknown". The
    result is smaller than the stated length if the model reads longer texts in another way, so that a text's numbers
    would depend on the other texts of its batch (`methods.tokens.longest_alike`): with "longrope" the result is
    `original_max_position_embeddings` (4096 for Phi-3-mini-128k), so that the short factors hold.
    """
    text = config.get_text_config()
    return min(_stated(text, tokenizer), longest_alike(text) or NO_LIMIT)


def _stated(text: Any, tokenizer: PreTrainedTokenizerBase) -> int:
    own = getattr(text, LENGTHS[0], None)
    if own and own > 0:  # XLNet has -1
        return int(own)
    said = [tokenizer.model_max_length, *(getattr(text, name, None) for name in LENGTHS[1:])]
    return next((int(one) for one in said if one and one <= NO_LIMIT), NO_LIMIT)


def check_cache(model: PreTrainedModel) -> None:
    """Raises SetupError for a model whose cache holds anything but keys and values of attention.

    Sampling and likelihood read a prompt once, pad rows on the left, and then copy, reorder and drop rows of the cache.
    A state-space or recurrent layer (Mamba, RWKV) keeps a running state instead, which padding would change.
    """
    kept = DynamicCache(config=model.config).layers
    recurrent = [layer for layer in kept if isinstance(layer, LinearAttentionCacheLayerMixin)]
    if not recurrent and not model._is_stateful:
        return
    listed = sorted(set(getattr(model.config.get_text_config(), "layer_types", None) or ()))
    named = f" ({', '.join(listed)})" if listed else ""
    raise SetupError(
        f"{model.config.model_type}: its layers{named} keep a running state of what they have read, as state-space, "
        "recurrent and hybrid models do, and padding would change it. Only models that keep nothing but keys and "
        "values of attention (full, sliding or chunked) can be sampled from here: choose one of those"
    )
