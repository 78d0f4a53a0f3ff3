"""Next-token logits at every token of given texts: whole distributions, not single probabilities.

The hooks of a steering method see what they see in a likelihood (`bench.model.log_likelihood`): the context is the
prompt, and what comes after it is read with the prompt's KV cache, as in sampling.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bench.console import stopping
from bench.model import batches, memory
from bench.model.lm import LM, Request
from bench.model.log_likelihood import limits_of
from bench.model.sampling import prefill
from methods.progress import advance


def next_token_logits(lm: LM, requests: Sequence[Request]) -> Iterator[tuple[int, Tensor]]:
    """Yield the number of each request and its logits (T + 1, V), in the model's dtype; its continuation has T tokens.

    Row t predicts token t of the continuation, and the last row what would follow all of it. The logits include
    decoding-time steering. They come batch by batch, short continuations first. Which requests share a batch follows
    from the lengths and the batch size. So two models get the same requests in the same batches, and equal models give
    equal bits.

    Raises NotFiniteError if the model computes NaN or infinity.
    """
    order = sorted(range(len(requests)), key=lambda number: (len(requests[number].continuation), number))
    for batch in _batches(lm, requests, order):
        stopping.check()
        for some, first, further in _read_in_halves(lm, requests, batch):
            for row, number in enumerate(some):
                told = further[row, : len(requests[number].continuation)]
                yield number, torch.cat([first[row, None], told])  # (T + 1, V)


_Read = tuple[list[int], Tensor, Tensor]
"""Numbers of requests with their logits (B, V) after the context and (B, T, V) after each token of the continuation."""


def _read_in_halves(lm: LM, requests: Sequence[Request], batch: list[int]) -> list[_Read]:
    """Read the batch at once or, if memory does not hold that, in halves."""

    def size(part: list[int]) -> memory.Estimate:
        contexts, texts = ([len(requests[number][field]) for number in part] for field in (0, 1))
        found = memory.estimate(lm.model, len(part), len(part), max(contexts), max(texts), lm.steering.demand)
        return found._replace(logits=found.logits * max(texts))

    def halves(part: list[int]) -> list[list[int]]:
        return [list(half) for half in batches.halved(part)]

    return batches.in_halves(lm, batch, size, halves, lambda part: [_read(lm, requests, part)])


def _read(lm: LM, requests: Sequence[Request], batch: list[int]) -> _Read:
    some = [requests[number] for number in batch]
    length = torch.tensor([len(one.continuation) for one in some])  # (B,)
    width = int(length.max())
    ids = torch.tensor([one.continuation + [0] * (width - len(one.continuation)) for one in some])  # (B, T)
    rows, first = prefill(lm, [one.context for one in some])  # (B, V)
    further = lm.read(rows, ids, torch.arange(width)[None, :] < length[:, None])  # (B, T, V)
    advance(int(length.sum()))
    return batch, first, further


def _batches(lm: LM, requests: Sequence[Request], order: Sequence[int]) -> Iterator[list[int]]:
    """Yield the numbers of requests that are read together; `order` sorts them by the length of the continuation."""
    limits = limits_of(lm)
    columns = min(limits.tokens, limits.logits // lm.model.config.get_text_config().vocab_size)
    batch: list[int] = []
    longest = 0  # longest context of the batch, in tokens
    for number in order:
        context, continuation = requests[number]
        longest = max(longest, len(context))
        full = len(batch) == lm.sampling.batch_size
        if batch and (full or (len(batch) + 1) * max(longest, len(continuation)) > columns):
            yield batch
            batch, longest = [], len(context)
        batch.append(number)
    if batch:
        yield batch
