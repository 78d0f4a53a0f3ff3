"""Next-token logits at every token of given texts: whole distributions, not single probabilities.

The hooks of a steering method see what they see in a likelihood (`bench.model.log_likelihood`): the context is the
prompt, and what comes after it is read off the prompt's KV cache, as in sampling.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from bench.console import stopping
from bench.model.lm import LM, Request
from bench.model.log_likelihood import LOGITS, forward_tokens
from bench.model.sampling import prefill
from methods.progress import advance


def next_token_logits(lm: LM, requests: Sequence[Request]) -> Iterator[tuple[int, Tensor]]:
    """The number of each request with its logits (T + 1, V), in the model's dtype, for a continuation of T tokens.

    Row t is what token t of the continuation is predicted from, the last row what would follow all of it. Decoding-time
    steering is in the logits. They come batch by batch, short continuations first; which requests share a batch follows
    from the lengths and the batch size, so two models that are asked the same are asked in the same batches, and equal
    models give equal bits.

    Raises NotFiniteError where the model computes NaN or infinity.
    """
    order = sorted(range(len(requests)), key=lambda number: (len(requests[number].continuation), number))
    for batch in _batches(lm, requests, order):
        stopping.check()
        some = [requests[number] for number in batch]
        length = torch.tensor([len(one.continuation) for one in some])  # (B,)
        width = int(length.max())
        ids = torch.tensor([one.continuation + [0] * (width - len(one.continuation)) for one in some])  # (B, T)
        rows, first = prefill(lm, [one.context for one in some])  # (B, V)
        further = lm.read(rows, ids, torch.arange(width)[None, :] < length[:, None])  # (B, T, V)
        advance(int(length.sum()))
        for row, number in enumerate(batch):
            yield number, torch.cat([first[row, None], further[row, : length[row]]])  # (T + 1, V)


def _batches(lm: LM, requests: Sequence[Request], order: Sequence[int]) -> Iterator[list[int]]:
    """Numbers of requests that are read together; they come with ascending continuations."""
    columns = min(forward_tokens(lm), LOGITS // lm.model.config.get_text_config().vocab_size)
    batch: list[int] = []
    longest = 0  # context of the batch
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
