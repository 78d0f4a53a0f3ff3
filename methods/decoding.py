"""What a method that steers at decoding time gets: the logits, every row's tokens, and other readings of the rows."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

PIECE = 2**23  # number of logits that are processed at a time: each temporary tensor then takes 32 MiB in fp32
PROBABLE = (256, 2048)  # how many tokens are sorted to find a nucleus: 256, if too few 2048, else all


class Streams(Protocol):
    """Further readings of the texts that the model is writing (the rows of a batch), each with a KV cache of its own.

    The caches follow the rows: if a row is copied, dropped or continued, its further readings are as well.
    """

    def other(
        self, name: str, inside: Callable[[], AbstractContextManager[object]], before: Sequence[int] = ()
    ) -> Tensor:
        """Return the logits (B, K, V) after the step's columns (`Step.columns`), as the model gives them in a context.

        name: the name of this reading; each context has its own. inside: returns the context, for example one that
        edits weights; the context is entered and left at every forward. before: tokens put before every row's text; a
        BOS token that the text begins with moves in front of them. If a reading is not asked for in one forward, it
        reads the missed tokens in the next forward that asks for it.
        """
        ...

    def ahead(self, tokens: Tensor) -> Tensor:
        """Return the final state, which the unembedding reads, after each of N next tokens (B, K, N): (B, K, N, D).

        Each token that is tried costs a forward of one token. Raises SetupError for a model with a sliding window, or
        without a final norm.
        """
        ...


class Step(NamedTuple):
    """One forward of the model. In sampling K is 1; if a text is read as a whole, all its columns come at once."""

    logits: Tensor  # (B, K, V) of the next token after each of K columns
    ids: Tensor  # (B, C) each row's tokens so far, those of this forward included
    real: Tensor  # (B, C) false at padding, where an id says nothing
    columns: Tensor  # (K,) which columns of `ids` the logits follow
    prompt: Tensor  # (B,) number of tokens of each row's prompt
    streams: Streams


def by_pieces(function: Callable[..., Tensor], *logits: Tensor) -> Tensor:
    """Apply a function that takes logits (N, V) to logits (..., V), piece by piece.

    The result has the shape and dtype of the first of `logits`.
    The function gets a few rows at a time, so that its intermediate results stay small even for a long text.
    """
    flat = [one.reshape(-1, one.shape[-1]) for one in logits]
    rows = max(1, PIECE // flat[0].shape[-1])
    found = torch.empty_like(flat[0])
    for start in range(0, len(found), rows):
        found[start : start + rows] = function(*(one[start : start + rows] for one in flat))
    return found.view(logits[0].shape)


def most_probable(logits: Tensor, top_p: float, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` most probable tokens (..., C), and which of them are in the nucleus (..., C).

    The nucleus is the smallest set of most probable tokens whose probability reaches top_p (arXiv 1904.09751 section
    3.1); at 1 it holds every token, although rounded probabilities may reach 1 before the last. logits: (..., V).
    """
    probability = torch.softmax(logits.float(), -1)
    values, tokens = probability.topk(min(count, logits.shape[-1]), -1)
    before = values.double().cumsum(-1) - values  # probability of the tokens before this one
    return tokens, (before < top_p) | (top_p >= 1)


def nucleus_edge(logits: Tensor, top_p: float) -> Tensor:
    """Return the logit (N, 1) at which the nucleus of logits (N, V) ends: none inside is lower, none outside higher.

    Let p be the probability of the least probable token inside. The edge lies between the logit of this token and the
    highest logit outside, interpolated by the share of p that is needed to reach top_p: at share 0 the edge is the
    logit inside, at share 1 the logit outside. So the edge changes continuously with the probabilities, even when a
    token enters or leaves the nucleus. At a top_p of 1 the edge is minus infinity: all tokens are inside.
    """
    logits = logits.float()
    if top_p >= 1:
        return torch.full_like(logits[:, :1], -torch.inf)
    size = logits.shape[-1]
    for count in (*PROBABLE, size):
        tokens, inside = most_probable(logits, top_p, min(count, size - 1) + 1)
        if not inside[:, -1].any() or tokens.shape[-1] == size:
            break
    last = inside.sum(-1, keepdim=True) - 1  # (N, 1)
    probability = torch.softmax(logits, -1).gather(-1, tokens)  # (N, C)
    upto = probability.double().cumsum(-1).gather(-1, last)  # (N, 1)
    own = probability.gather(-1, last)
    needed = (1 - (upto - top_p) / own).clamp(0, 1).to(logits)
    ends = logits.gather(-1, tokens)
    after = ends.gather(-1, (last + 1).clamp(max=tokens.shape[-1] - 1))
    return ends.gather(-1, last) * (1 - needed) + after * needed
