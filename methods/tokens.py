"""Texts as token ids: prompt and continuation are tokenised as one text and split where the continuation begins.

If they were tokenised separately, they could have tokens that occur neither in the whole text nor in a sample:
SentencePiece puts a space before every text, and a token may span the join. So the whole text is tokenised once, and
the continuation's tokens are all that contain one of its characters: a token that spans the join belongs to the
continuation.
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods.base import Pairs
from methods.errors import SetupError, check_texts


class Text(NamedTuple):
    """One text as token ids; the first `prompt` are the prompt's, of which the first `special` are the tokenizer's."""

    tokens: list[int]
    prompt: int
    special: int = 0  # BOS, and whatever else the tokenizer puts before a text

    @property
    def continuation(self) -> list[int]:
        """The continuation's token ids."""
        return self.tokens[self.prompt :]


class EncodedPairs(NamedTuple):
    """Both texts of each pair; `cut` of the pairs were too long and have lost tokens."""

    desired: list[Text]
    undesired: list[Text]
    cut: int


def split(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    continuations: Sequence[str],
    *,
    special_tokens: bool = True,
) -> list[Text]:
    """Return each prompt with its continuation, tokenised as one text and split by the offsets of the tokens.

    special_tokens: whether to keep the tokens that the tokenizer puts around a text (BOS).

    Raises SetupError for a tokenizer that cannot say where in the text its tokens are.
    """
    if not prompts:
        return []
    if not tokenizer.is_fast:
        raise SetupError(
            f"{type(tokenizer).__name__} does not say where in a text its tokens are; convert it to a fast tokenizer "
            "(tokenizer.json)"
        )
    found = tokenizer(
        [prompt + continuation for prompt, continuation in zip(prompts, continuations, strict=True)],
        add_special_tokens=special_tokens,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    texts = []
    for prompt, tokens, offsets, special in zip(
        prompts, found["input_ids"], found["offset_mapping"], found["special_tokens_mask"], strict=True
    ):
        begin = next((i for i, (_, end) in enumerate(offsets) if end > len(prompt)), len(tokens))
        texts.append(Text(list(tokens), begin, next((i for i, one in enumerate(special) if not one), len(tokens))))
    return texts


def longest_text(model: PreTrainedModel) -> int | None:
    """Return how many tokens the model was made to read at most; None if its config names no limit.

    It is the smaller of `max_position_embeddings` and `longest_alike`.
    """
    config = model.config.get_text_config()
    limits = getattr(config, "max_position_embeddings", None), longest_alike(config)
    return min((int(limit) for limit in limits if limit is not None), default=None)


def longest_alike(config: Any) -> int | None:
    """Return the largest length, in tokens, at which a text is read alike in any batch; None: at every length.

    config: that of the text model. With rotary positions of the kind "longrope" (Phi-3, 128k), transformers uses the
    long factors for all rows of a batch if the longest row exceeds `original_max_position_embeddings`, and the short
    factors otherwise. Doge attends to the `keep_window_size` strongest columns; in a batch with more columns, padding
    columns compete with those of the text. Llama 4 scales its attention anew every `floor_scale` columns, and counts
    padding among them; a batch of contexts and continuations is at most twice as wide as its longest text.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(one for one in rope.values() if isinstance(one, Mapping))]  # of all layers, or of each type
    limits = [one.get("original_max_position_embeddings") for one in kinds if one.get("rope_type") == "longrope"]
    limits.append(getattr(config, "keep_window_size", None))
    if getattr(config, "attn_temperature_tuning", None):
        limits.append((config.floor_scale - 1) // 2)
    return min((int(limit) for limit in limits if limit is not None), default=None)


steered: "weakref.WeakSet[PreTrainedModel]" = weakref.WeakSet()
"""Models that `LM.steered` changes now (bench.model.lm)."""


def check_unsteered(model: PreTrainedModel) -> None:
    """Raises SetupError inside `with lm.steered(...)`, where a fit would learn from the steered model."""
    if model in steered:
        raise SetupError(
            "this model is steered now, and a method would learn from what it does then; fit before "
            "`with lm.steered(...)`, or put the methods into one (`methods.Stack`), which fits each on those before it"
        )


def check_known(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> None:
    """Raises SetupError for a token that the tokenizer has, and the model has not."""
    embeddings: Any = model.get_input_embeddings()
    rows = int(embeddings.weight.shape[0])
    unknown = next((one for one in ids if one >= rows), None)
    if unknown is not None:
        raise SetupError(
            f"a text holds {tokenizer.convert_ids_to_tokens(unknown)!r}, token {unknown} of the tokenizer, but the "
            f"model has embeddings of {rows} tokens; give the tokenizer of this model, or leave such texts out"
        )


def encode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    continuations: Sequence[str],
    max_tokens: int | None = None,
) -> tuple[list[Text], int]:
    """Return the texts as `split` gives them, cut to `max_tokens` and to the model's limit, and how many were cut.

    A text that is too long loses tokens of its prompt from the left, after BOS; if its continuation by itself is too
    long, it loses the prompt and then the end of the continuation. A text without any token becomes end-of-text.
    """
    check_texts(prompts, "prompts")
    check_texts(continuations, "texts")
    if len(prompts) != len(continuations):
        raise SetupError(
            f"{len(prompts)} prompts and {len(continuations)} texts do not belong together; give equally many, in the "
            "same order"
        )
    texts = _readable(model, tokenizer, split(tokenizer, prompts, continuations))
    cut = [_cut([text], _limit(model, max_tokens))[0] for text in texts]
    return cut, sum(len(short.tokens) < len(text.tokens) for short, text in zip(cut, texts, strict=True))


def encode_pairs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Pairs, max_tokens: int | None = None
) -> EncodedPairs:
    """Return both texts of each pair, cut as in `encode`, except that both prompts lose the same number of tokens.

    That number is what the longer text has to lose. Raises SetupError if the texts of a pair differ only in what is cut
    off.
    """
    limit = _limit(model, max_tokens)
    both = pairs.desired, pairs.undesired
    wholes = [_readable(model, tokenizer, split(tokenizer, pairs.prompt, texts)) for texts in both]
    desired, undesired, cut = [], [], 0
    for number, whole in enumerate(zip(*wholes, strict=True), 1):
        one, other = _cut(whole, limit)
        if (one, other) != whole:
            cut += 1
            if one.tokens == other.tokens and whole[0].tokens != whole[1].tokens:
                raise SetupError(
                    f"pair {number}: its texts have {len(whole[0].tokens)} and {len(whole[1].tokens)} tokens, and cut "
                    f"to {limit} they are the same: the part that differs would be cut off. Shorten the texts, or "
                    "raise method.max_tokens where the method has it"
                )
        desired.append(one)
        undesired.append(other)
    return EncodedPairs(desired, undesired, cut)


def _limit(model: PreTrainedModel, max_tokens: int | None) -> int | None:
    if max_tokens is not None and max_tokens < 1:
        raise SetupError(f"method.max_tokens={max_tokens}: expected at least 1")
    limits = [limit for limit in (max_tokens, longest_text(model)) if limit is not None]
    return min(limits, default=None)


def _readable(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[Text]) -> list[Text]:
    """Return the texts, with the end-of-text token in place of an empty one, since a model needs a token.

    Raises SetupError for a token that the model lacks, and for a model that is steered now.
    """
    check_unsteered(model)
    for text in texts:
        check_known(model, tokenizer, text.tokens)
    end: Any = tokenizer.eos_token_id
    if end is None and not all(text.tokens for text in texts):
        raise SetupError(
            "a training text is empty, and the tokenizer has no end-of-text token to read in its place; leave out "
            "empty texts, or give the tokenizer an eos_token"
        )
    return [text if text.tokens else Text([int(end)], 0) for text in texts]


def _cut(texts: Sequence[Text], limit: int | None) -> list[Text]:
    """Drop the same number of tokens from the left of all prompts, then cut the texts to `limit` from the right."""
    excess = 0 if limit is None else max(len(text.tokens) for text in texts) - limit
    if excess <= 0:
        return list(texts)
    found = []
    for tokens, prompt, special in texts:
        dropped = min(excess, max(prompt - special, 0))
        kept = (tokens[:special] + tokens[special + dropped :])[:limit]
        found.append(Text(kept, min(prompt - dropped, len(kept)), min(special, len(kept))))
    return found
