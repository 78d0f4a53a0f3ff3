"""What several methods share: texts as tokens, and the residual stream of a text pooled into one vector.

The first token of a text is an attention sink in most decoders: in the middle blocks its residual norm is a hundred
times that of the others, so it dominates any mean, norm or SVD that includes it (arXiv 2309.17453 section 3). Whoever
pools says which positions it reads.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import anatomy
from methods.base import Artefact
from methods.errors import SetupError
from methods.fitting import advance
from methods.intervention import Positions, Site, at, record, stopped_after

Read = Literal["all", "continuation", "last"]
SAME = 1e-5  # of the features' length: a mean difference that is shorter is rounding


class Text(NamedTuple):
    """One text as token ids, of which the first `prompt` belong to the prompt."""

    tokens: list[int]
    prompt: int


def encode(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], continuations: Sequence[str], max_tokens: int = 512
) -> list[Text]:
    """Prompt and continuation tokenised apart, as when the model samples; the special tokens are the tokenizer's.

    Texts are cut at `max_tokens`. A text without any token gets the end-of-text token, since a model needs one.
    """
    texts = []
    for prompt, continuation in zip(prompts, continuations, strict=True):
        head = tokenizer(prompt).input_ids
        tail = tokenizer(continuation, add_special_tokens=False).input_ids
        tokens = (head + tail)[:max_tokens] or [tokenizer.eos_token_id]
        texts.append(Text(tokens, min(len(head), len(tokens))))
    return texts


@torch.inference_mode()
def pooled_features(
    model: PreTrainedModel,
    texts: Sequence[Text],
    layers: Sequence[int],
    *,
    read: Read,
    skip_first: int = 0,
    site: Site = "output",
    after_final_norm: bool = False,
    batch_size: int = 32,
) -> Tensor:
    """(L, N, D) fp32 on the CPU: the residual stream of each text at each layer, averaged over the positions read.

    read: "all" tokens, those of the "continuation", or the "last" one. skip_first leaves out that many leading tokens
    of the text (1 leaves out the attention sink). A text in which nothing is left to read is read at its last token.
    after_final_norm applies the model's final norm before pooling, for features taken as `hidden_states[-1]`.
    """
    norm = anatomy.final_norm(model) if after_final_norm else None
    pooled = torch.empty(len(layers), len(texts), anatomy.width(model))
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i].tokens))  # little padding
    for start in range(0, len(by_length), batch_size):
        rows = by_length[start : start + batch_size]
        batch = [texts[i] for i in rows]
        with record(model, layers, site) as seen:
            _forward(model, batch, max(layers))
        weights = _weights(batch, read, skip_first).to(model.device)  # (B, T)
        for i, layer in enumerate(layers):
            hidden = norm(seen[layer]) if norm is not None else seen[layer]  # (B, T, D)
            pooled[i, rows] = torch.einsum("bt,btd->bd", weights, hidden.float()).cpu()
    return pooled


@torch.inference_mode()
def mean_norm(
    model: PreTrainedModel,
    texts: Sequence[Text],
    layer: int,
    *,
    read: Read,
    skip_first: int,
    site: Site = "output",
    batch_size: int = 32,
) -> float:
    """Mean length of the residual stream over the tokens read (of each text, then over the texts).

    It is the yardstick for what is added there. Which tokens are read: as in `pooled_features`.
    """
    total = 0.0
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        with record(model, [layer], site) as seen:
            _forward(model, batch, layer)
        norms = seen[layer].float().norm(dim=-1).cpu()  # (B, T)
        total += float((_weights(batch, read, skip_first) * norms).sum())
    return total / len(texts)


YARDSTICK_TEXTS = 64  # whose mean length is the unit of a strength: it moves by a few percent from text to text


def residual_norm(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    continuations: Sequence[str],
    layer: int,
) -> Tensor:
    """Scalar: mean length of the output of block `layer` over the tokens of some continuations, the first left out."""
    texts = encode(tokenizer, prompts[:YARDSTICK_TEXTS], continuations[:YARDSTICK_TEXTS])
    return torch.tensor(mean_norm(model, texts, layer, read="continuation", skip_first=1))


def _forward(model: PreTrainedModel, batch: Sequence[Text], last: int) -> None:
    """Right-padded texts read once, up to block `last`: what lies above it is read by nobody."""
    width = max(len(text.tokens) for text in batch)
    ids = torch.tensor([text.tokens + [0] * (width - len(text.tokens)) for text in batch])  # (B, T)
    length = torch.tensor([len(text.tokens) for text in batch])  # (B,)
    mask = (torch.arange(width)[None, :] < length[:, None]).long()  # (B, T)
    none = torch.zeros_like(length)
    positions = Positions(none, length, none, torch.tensor([text.prompt for text in batch]))
    positions = Positions(*(value.to(model.device) for value in positions))
    with at(positions), stopped_after(model, last):
        model(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            position_ids=(mask.cumsum(-1) - 1).clamp(min=0).to(model.device),
            use_cache=False,
        )
    advance(int(length.sum()))


def _weights(batch: Sequence[Text], read: Read, skip_first: int) -> Tensor:
    """(B, T) weights of the mean over the positions read; each row sums to 1."""
    weights = torch.zeros(len(batch), max(len(text.tokens) for text in batch))
    for row, text in enumerate(batch):
        end = len(text.tokens)
        start = {"all": 0, "continuation": text.prompt, "last": end - 1}[read]
        start = min(max(start, skip_first), end - 1)
        weights[row, start:end] = 1 / (end - start)
    return weights


def fitted(model: PreTrainedModel, artefact: Artefact, key: str, method: str) -> Tensor:
    """The tensor (..., D) under `key`. Raises SetupError where the artefact has another layer's, or another width."""
    tensor = artefact.get(key)
    if tensor is None:
        there = ", ".join(sorted(artefact)) or "nothing"
        raise SetupError(
            f"{method}: an artefact with {there} and without {key} was not fitted on this model at this layer; "
            "fit it again"
        )
    if tensor.shape[-1] != anatomy.width(model):
        raise SetupError(
            f"{method}: {key} {tuple(tensor.shape)} was not fitted on this model, whose width is "
            f"{anatomy.width(model)}; fit it again"
        )
    return tensor


def mean_difference(desired: Tensor, undesired: Tensor) -> Tensor:
    """Mean over pairs of desired - undesired, (..., N, D) -> (..., D)."""
    return (desired - undesired).mean(-2)


def top_tokens(model: PreTrainedModel, directions: Tensor, count: int = 10) -> Tensor:
    """(R, count) ids of the tokens whose logits each direction (R, D) of the residual stream raises most.

    The final norm is left out. Without result, (R, 0), where the unembedding is of another width than the stream.
    """
    weight: Tensor = model.get_output_embeddings().weight.detach()  # type: ignore[no-untyped-call]  # (V, D)
    if weight.shape[1] != directions.shape[1]:
        return torch.empty(len(directions), 0, dtype=torch.long)
    logits = directions.to(weight.device).float() @ weight.float().T  # (R, V)
    return logits.topk(min(count, len(weight)), dim=-1).indices.cpu()
