"""Functions that several methods share: they pool the residual stream of a text into one vector, and measure lengths.

The first token of a text is an attention sink in most decoders: in the middle blocks its residual norm is a hundred
times that of the others, so it dominates any mean, norm or SVD that includes it (arXiv 2309.17453 section 3). Every
function that pools names the positions that it reads.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from methods import layout
from methods.base import Artefact
from methods.errors import SetupError
from methods.intervention import Positions, Site, at, hooked, record, stopped_after
from methods.placement import input_device
from methods.progress import advance
from methods.sites import Place
from methods.tokens import Text

Read = Literal["all", "continuation", "last"]
Reduce = Literal["mean", "max"]
Short = Literal["refuse", "last"]
SAME = 1e-5  # as a share of the features' length: a shorter mean difference is rounding


class Padding(NamedTuple):
    """The padding of texts if the padding itself is read: its token, its side, and the width that it fills."""

    token: int
    side: str  # left | right
    columns: int


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
    padding: Padding | None = None,
    short: Short = "refuse",
    batch_size: int = 32,
) -> Tensor:
    """Return each text's residual stream at each layer, averaged over the positions read: (L, N, D) fp32 on the CPU.

    read: "all" tokens, those of the "continuation", or the "last" one. skip_first: the number of leading tokens of the
    text that are left out (1 leaves out the attention sink). With "continuation" and "last", a text in which no token
    remains to be read is read at its last token, unless it has only one token. Raises SetupError for a text in which
    nothing may be read (`is_too_short`); with short="last" its last token is read.
    after_final_norm: whether the model's final norm is applied before pooling; the last block's features are then those
    in transformers' `hidden_states[-1]`.
    padding: pads all texts to one length and averages in what the model computes at the padding. The padding is masked
    in attention as usual, and the position ids are the model's own.
    """
    if short == "refuse":
        check_long_enough(texts, read, skip_first)
    norm = layout.final_norm(model) if after_final_norm else None
    pooled = torch.empty(len(layers), len(texts), layout.width(model))
    for rows, batch in _batches(texts, batch_size):
        with record(model, layers, site) as seen:
            positions = _forward(model, batch, max(layers), padding)
        weights = _weights(batch, read, skip_first, padding)  # (B, T)
        for i, layer in enumerate(layers):
            with at(positions):  # for hooks of other methods on the norm
                hidden = norm(seen[layer]) if norm is not None else seen[layer]  # (B, T, D)
            pooled[i, rows] = torch.einsum("bt,btd->bd", weights.to(hidden.device), hidden.float()).cpu()
    check_finite(pooled)
    return pooled


@torch.inference_mode()
def pooled_at(
    model: PreTrainedModel,
    texts: Sequence[Text],
    places: Sequence[Place],
    *,
    read: Read,
    reduce: Reduce = "mean",
    skip_first: int = 0,
    last: int | None = None,
    short: Short = "refuse",
    batch_size: int = 32,
) -> list[Tensor]:
    """Return the values at each place (`methods.sites`), pooled over the positions read: (N, width) fp32 on the CPU.

    One pass over the texts serves all places, and only what is pooled is kept. read, skip_first and short: as in
    `pooled_features`. reduce: the mean over the positions, or the largest value of each unit. last: the highest block
    that has to run; None: all.
    """
    if short == "refuse":
        check_long_enough(texts, read, skip_first)
    pooled = [torch.empty(len(texts), place.width) for place in places]
    for rows, batch in _batches(texts, batch_size):
        found = pooled_once(model, batch, places, read=read, reduce=reduce, skip_first=skip_first, last=last)
        for whole, one in zip(pooled, found, strict=True):
            whole[rows] = one.cpu()
    for one in pooled:
        check_finite(one)
    return pooled


def pooled_once(
    model: PreTrainedModel,
    batch: Sequence[Text],
    places: Sequence[Place],
    *,
    read: Read,
    reduce: Reduce = "mean",
    skip_first: int = 0,
    last: int | None = None,
) -> list[Tensor]:
    """Return what `pooled_at` gives for one batch, (B, width) fp32 per place; on the model's device, with gradients."""
    weights = _weights(batch, read, skip_first)  # (B, T)
    pooled: dict[int, Tensor] = {}

    def keep(at: int) -> Callable[[Tensor], Tensor]:
        def function(hidden: Tensor) -> Tensor:  # (B, T, width)
            own = weights.to(hidden.device)
            if reduce == "max":
                pooled[at] = hidden.float().masked_fill(own[..., None] == 0, -torch.inf).amax(1)
            else:
                pooled[at] = torch.einsum("bt,btd->bd", own, hidden.float())
            return hidden

        return function

    with hooked(place.hook(keep(at)) for at, place in enumerate(places)):
        _forward(model, batch, len(layout.blocks(model)) - 1 if last is None else last)
    return [pooled[at] for at in range(len(places))]


@torch.inference_mode()
def final_states(model: PreTrainedModel, texts: Sequence[Text], *, batch_size: int = 32) -> list[Tensor]:
    """Return the states that the unembedding reads around each text's continuation of C tokens: (C + 1, D) fp32, CPU.

    Row i is the state from which token i of the continuation is predicted, and row i + 1 the state after that token.
    Every text has a prompt of at least one token. Raises SetupError for a model without a final norm.
    """
    norm, last = layout.final_norm(model), len(layout.blocks(model)) - 1
    found = [torch.empty(0)] * len(texts)
    for rows, batch in _batches(texts, batch_size):
        with record(model, [last]) as seen:
            positions = _forward(model, batch, last)
        with at(positions):  # for hooks of other methods on the norm
            states = norm(seen[last]).float().cpu()  # (B, T, D)
        for number, text, own in zip(rows, batch, states, strict=True):
            found[number] = own[text.prompt - 1 : len(text.tokens)].clone()
            check_finite(found[number])
    return found


def _batches(texts: Sequence[Text], size: int) -> Iterator[tuple[list[int], list[Text]]]:
    """Yield batches of texts of similar length, which need little padding: the indices of the texts, and the texts."""
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i].tokens))
    for start in range(0, len(by_length), size):
        rows = by_length[start : start + size]
        yield rows, [texts[i] for i in rows]


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
    """Return the mean length of the residual stream, averaged over the tokens read of each text, then over the texts.

    This length is the unit for vectors that are added at that layer. `read` and `skip_first` say which tokens are read,
    as in `pooled_features`.
    """
    return mean_norms(model, texts, [layer], read=read, skip_first=skip_first, site=site, batch_size=batch_size)[0]


@torch.inference_mode()
def mean_norms(
    model: PreTrainedModel,
    texts: Sequence[Text],
    layers: Sequence[int],
    *,
    read: Read,
    skip_first: int,
    site: Site = "output",
    batch_size: int = 32,
) -> list[float]:
    """Return `mean_norm` at each of the layers, from one pass over the texts.

    A text of which `skip_first` leaves no token is left out. Raises SetupError if none is left.
    """
    given, texts = len(texts), [text for text in texts if not is_too_short(text, read, skip_first)]
    if not texts:
        raise SetupError(
            f"all {given} texts end within their first {'token' if skip_first == 1 else f'{skip_first} tokens'}, where "
            "the length of the residual stream says nothing of other tokens; give longer texts"
        )
    totals = [0.0] * len(layers)
    for start in range(0, len(texts), batch_size):
        batch = texts[start : start + batch_size]
        with record(model, layers, site) as seen:
            _forward(model, batch, max(layers))
        weights = _weights(batch, read, skip_first)  # (B, T)
        for i, layer in enumerate(layers):
            norms = seen[layer].float().norm(dim=-1).cpu()  # (B, T)
            totals[i] += float((weights * norms).sum())
    check_finite(torch.tensor(totals))
    return [total / len(texts) for total in totals]


@torch.inference_mode()
def stream_distances(
    model: PreTrainedModel, texts: Sequence[Text], others: Sequence[Text], *, batch_size: int = 16
) -> Tensor:
    """Return the distance of a pair's two texts at the output of each block, averaged over the pairs: (L,).

        distance_l = mean over pairs of sqrt(sum over t of |h_l,t(text) - h_l,t(other)|^2)

    t runs over the tokens that both texts have: up to the end of the shorter one. Padding is not read, and the last
    block's output is read before the final norm.
    """
    layers = range(len(layout.blocks(model)))
    total = torch.zeros(len(layers))
    for start in range(0, len(texts), batch_size):
        pairs = list(zip(texts[start : start + batch_size], others[start : start + batch_size], strict=True))
        with record(model, layers) as seen:
            _forward(model, [text for side in zip(*pairs, strict=True) for text in side], layers[-1])
        length = torch.tensor([min(len(one.tokens), len(other.tokens)) for one, other in pairs])  # (B,)
        both = torch.arange(seen[0].shape[1])[None, :] < length[:, None]  # (B, T)
        for layer in layers:
            one, other = seen[layer].float().chunk(2)  # (B, T, D) each
            squares = (one - other).square().sum(-1).cpu()  # (B, T)
            total[layer] += (squares * both).sum(-1).sqrt().sum()
    check_finite(total)
    return total / len(texts)


def check_finite(features: Tensor) -> None:
    """Raises SetupError for NaN or infinity, from which no direction can be computed."""
    if not features.isfinite().all():
        raise SetupError(
            "the model's residual stream is not finite in the training texts (NaN or infinity); set "
            "model.dtype=float32, or check that the model's weights are whole"
        )


YARDSTICK_TEXTS = 64  # number of texts whose mean length is the unit of a strength; lengths differ by a few percent


def residual_norm(model: PreTrainedModel, texts: Sequence[Text], layer: int) -> Tensor:
    """Return the mean length (a scalar) of block `layer`'s output over the tokens of the first texts' continuations.

    The first YARDSTICK_TEXTS texts are read, and the first token of each is left out.
    """
    return residual_norms(model, texts, [layer])[0]


def residual_norms(model: PreTrainedModel, texts: Sequence[Text], layers: Sequence[int]) -> Tensor:
    """Return `residual_norm` at each of the layers, (L,), from one pass over the texts."""
    return torch.tensor(mean_norms(model, texts[:YARDSTICK_TEXTS], layers, read="continuation", skip_first=1))


def is_too_short(text: Text, read: Read, skip_first: int) -> bool:
    """Return whether nothing of the text may be read, because `skip_first` leaves out all its tokens.

    For "continuation" and "last", the last token may be read although it is left out, unless it is the only token.
    """
    return len(text.tokens) <= (skip_first if read == "all" else min(skip_first, 1))


def check_long_enough(texts: Sequence[Text], read: Read, skip_first: int) -> None:
    """Raises SetupError for texts of which `skip_first` leaves no token (`is_too_short`)."""
    if count := sum(is_too_short(text, read, skip_first) for text in texts):
        raise SetupError(
            f"{count} of {len(texts)} texts have nothing to read behind the tokens that method.skip_first={skip_first} "
            "leaves out; remove them, or set method.skip_first=0, with which the first token is read, an attention "
            "sink in most models"
        )


def _forward(model: PreTrainedModel, batch: Sequence[Text], last: int, padding: Padding | None = None) -> Positions:
    """Run padded texts once, up to block `last`; the blocks above it are skipped. Return the texts' positions."""
    length = torch.tensor([len(text.tokens) for text in batch])  # (B,)
    token, side, width = padding or Padding(0, "right", int(length.max()))
    first = width - length if side == "left" else torch.zeros_like(length)  # (B,)
    column = torch.arange(width)[None, :]  # (1, T)
    mask = ((column >= first[:, None]) & (column < (first + length)[:, None])).long()  # (B, T)
    ids = torch.full(mask.shape, token)
    ids[mask.bool()] = torch.tensor([token for text in batch for token in text.tokens])
    device = input_device(model)
    prompt = torch.tensor([text.prompt for text in batch])  # (B,)
    cached = torch.zeros_like(length)
    positions = Positions(first.to(device), length.to(device), cached.to(device), prompt.to(device))
    in_text = (mask.cumsum(-1) - 1).clamp(min=0).to(device)  # (B, T)
    with at(positions), stopped_after(model, last):
        model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=in_text if padding is None else None,
            use_cache=False,
        )
    advance(int(length.sum()))
    return positions


def _weights(batch: Sequence[Text], read: Read, skip_first: int, padding: Padding | None = None) -> Tensor:
    """Return the weights (B, T) of the mean over the positions read; each row sums to 1."""
    weights = torch.zeros(len(batch), padding.columns if padding else max(len(text.tokens) for text in batch))
    for row, text in enumerate(batch):
        end = len(text.tokens)
        start = {"all": 0, "continuation": text.prompt, "last": end - 1}[read]
        start = min(max(start, skip_first), end - 1)
        if padding is None:
            weights[row, start:end] = 1 / (end - start)
            continue
        first = padding.columns - end if padding.side == "left" else 0
        weights[row] = 1 / (padding.columns - start)
        weights[row, first : first + start] = 0
    return weights


def check_depth(model: PreTrainedModel, artefact: Artefact, method: str) -> None:
    """Raises SetupError if the artefact names a block that the model does not have ("layers.12.direction")."""
    depth = len(layout.blocks(model))
    for key in artefact:
        first, _, rest = key.partition(".")
        number = rest.partition(".")[0]
        if first == "layers" and number.isdecimal() and int(number) >= depth:
            raise SetupError(
                f"{method}: {key} was not fitted on this model, which has {depth} blocks (0-{depth - 1}); fit it again"
            )


def fitted(model: PreTrainedModel, artefact: Artefact, key: str, method: str, axes: int | None = None) -> Tensor:
    """Return the tensor (..., D) under `key`. Raises SetupError if there is none, or if its width is not the model's.

    The error is also raised for an artefact of a deeper model (`check_depth`). axes: the number of axes that the tensor
    must have; None allows any.
    """
    tensor = artefact.get(key)
    if tensor is None:
        there = ", ".join(sorted(artefact)) or "nothing"
        raise SetupError(
            f"{method}: an artefact with {there} and without {key} was not fitted on this model at this layer; "
            "fit it again"
        )
    if tensor.dim() != (axes or tensor.dim()) or tensor.shape[-1:] != (layout.width(model),):
        raise SetupError(
            f"{method}: {key} {tuple(tensor.shape)} was not fitted on this model, whose width is "
            f"{layout.width(model)}; fit it again"
        )
    check_depth(model, artefact, method)
    return tensor


def mean_difference(desired: Tensor, undesired: Tensor) -> Tensor:
    """Return the mean over pairs of desired - undesired, (..., N, D) -> (..., D)."""
    return (desired - undesired).mean(-2)


def top_tokens(model: PreTrainedModel, directions: Tensor, count: int = 10) -> Tensor:
    """Return the ids (R, count) of the tokens whose logits each direction (R, D) of the residual stream raises most.

    The final norm is left out. The result is empty, (R, 0), if the unembedding is not as wide as the stream, or not in
    memory (`methods.placement`).
    """
    weight: Tensor = model.get_output_embeddings().weight.detach()  # type: ignore[no-untyped-call]  # (V, D)
    if weight.shape[1] != directions.shape[1] or weight.is_meta:
        return torch.empty(len(directions), 0, dtype=torch.long)
    logits = directions.to(weight.device).float() @ weight.float().T  # (R, V)
    return logits.topk(min(count, len(weight)), dim=-1).indices.cpu()
