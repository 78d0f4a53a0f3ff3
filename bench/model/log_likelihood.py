"""Log-probabilities of continuations, given as token ids: each distinct context is read once, then shared.

A beginning that many contexts share, such as the few-shot examples of a task, is read once as well.

A batch holds contexts of similar length, padded on the left; the continuations are read with copies of their context's
KV cache, padded on the right. So a hook sees where the context ends and where padding is, as in sampling: a position
scope steers a likelihood as it steers a sampled text. Which rows share a batch follows from the set of requests, the
batch size and the limits here, not from the order of the requests.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.model import batches as in_batches
from bench.model import devices, memory, padding
from bench.model.lm import LM, NotFiniteError, Request
from bench.model.rows import Rows, branch
from bench.model.sampling import prefill
from bench.model.shared_prefix import alike
from bench.records import unfinished
from methods.errors import SetupError, refuse_one_text
from methods.progress import advance

BATCH_TOKENS = 8192  # columns of a batch, cache included: bounds the memory of the KV cache
CPU_TOKENS = 1024  # columns of one forward on a CPU, which gains nothing from more
ENOUGH = 1 / 8  # a batch with this share of a full forward is closed rather than padded more
PADDING = 0.1  # share of padding from which a batch with ENOUGH tokens is closed
CHUNK_FORWARDS = 2  # full forwards of contexts whose continuations share batches; at most `batch_size` contexts
LOGITS = 2**26  # logits held at a time: 256 MiB in fp32
CHUNK = 2**24  # logits normalised at a time
CPU_CHUNK = 2**20  # logits normalised at a time on a CPU, so that they fit into its cache


class Likelihood(NamedTuple):
    """How probable a continuation is.

    logprob: sum over its tokens, in nats. greedy: whether each token is the model's first choice. tokens: their number.
    """

    logprob: float
    greedy: bool
    tokens: int


class Limits(NamedTuple):
    """The most that a batch holds: columns (cache included), columns of one forward (`tokens`), and logits."""

    columns: int
    tokens: int
    logits: int


_Tokens = tuple[int, ...]
_Row = tuple[_Tokens, _Tokens]  # context, continuation


class _Place(NamedTuple):
    """A continuation, and the place of the context that it follows: the number of the context's batch, and its row."""

    part: int
    context: int
    continuation: _Tokens


def log_likelihood(lm: LM, prompts: Sequence[str], continuations: Sequence[str]) -> list[Likelihood]:
    """Score each continuation after its prompt by its log-probability, sum_t log p(token_t | prompt, tokens before t).

    Prompt and continuation are tokenised as one text; a token that spans the join belongs to the continuation. A text
    that is longer than the model reads loses tokens of its prompt from the left.

    Args:
        lm: the model, steered if it is used inside `lm.steered`.
        prompts: N texts, worded as in sampling: with the steering prefix, BOS and, in a chat, the template.
        continuations: N texts; entry i comes after prompt i.

    Returns:
        For each continuation its log-probability in nats, whether every token is the model's first choice, and how many
        tokens the continuation has.

    Raises:
        SetupError: the lists differ in length, or one of them is a single text.
        ValueError: a continuation by itself is longer than the model reads.
        NotFiniteError: the model computes NaN or infinity.

    Example:
        >>> from bench import log_likelihood
        >>> fox, dog = log_likelihood(lm, ["The quick brown", "The quick brown"], [" fox", " dog"])
        >>> fox.logprob < 0, fox.tokens > 0
        (True, True)
    """
    refuse_one_text(prompts, "prompts")
    refuse_one_text(continuations, "continuations")
    if len(prompts) != len(continuations):
        raise SetupError(f"{len(prompts)} prompts and {len(continuations)} continuations; give one for each prompt")
    return likelihoods(lm, lm.encode_pairs(prompts, continuations))


def likelihoods(lm: LM, requests: Sequence[Request]) -> list[Likelihood]:
    """Return sum_t log p(continuation_t | context, continuation_<t) of each request, in a `Likelihood`.

    A text longer than the model's `max_length` loses tokens of its context from the left, as in lm-eval's HFLM.

    Raises ValueError for an empty context or continuation, and for a continuation that by itself is longer than the
    model can read; NotFiniteError if decoding-time steering gives a token probability 0.
    """
    rows = [_fitted(request, lm.max_length) for request in requests]
    found: dict[_Row, Likelihood] = {}
    by_context: dict[_Tokens, set[_Tokens]] = {}
    for context, continuation in rows:
        by_context.setdefault(context, set()).add(continuation)

    def what() -> Any:
        asked = [[context, sorted(by_context[context])] for context in sorted(by_context)]
        halved = [lm.memory.halvings] if lm.memory.halvings else []  # with other limits there are other batches
        return ["log-probabilities", lm.identity, lm.steering_identity, lm.steered_by, asked, *halved]

    limits = limits_of(lm)
    with unfinished.batches(what, lm.sampling.batch_size) as kept:
        lm = lm if kept.batch_size == lm.sampling.batch_size else _with_batch_size(lm, kept.batch_size)
        for number, (beginning, chunk) in enumerate(_chunks(lm, list(by_context), limits)):
            batches = [[(context, _ordered(by_context[context])) for context in batch] for batch in chunk]
            read = kept.once(number, functools.partial(_read_in_halves, lm, beginning, batches))
            asked_of_it = [(context, one) for batch in batches for context, several in batch for one in several]
            found.update(zip(asked_of_it, (Likelihood(*one) for one in read), strict=True))
    return [found[row] for row in rows]


def _with_batch_size(lm: LM, batch_size: int) -> LM:
    return replace(lm, sampling=replace(lm.sampling, batch_size=batch_size))


def limits_of(lm: LM) -> Limits:
    """Return the limits that the constants here set; if memory is scarce, half of them, a quarter, and so on.

    Limits that were halved once stay halved, so that the same requests share batches later, whatever memory is free
    then.
    """
    free = devices.free_for(lm.model)
    while (found := _halved(lm, lm.memory.halvings)).columns > 1:
        if _most(lm, found).total <= min(free, lm.memory.ceiling):
            break
        lm.memory.halvings += 1
    if lm.memory.halvings:
        lm.memory.tell(
            ("columns", lm.memory.halvings), f"likelihoods are read in batches of {found.columns} columns, not "
            f"{BATCH_TOKENS}, since {free / memory.GIB:.3g} GiB may be used"
        )  # fmt: skip
    return found


def _halved(lm: LM, halvings: int) -> Limits:
    tokens = min(CPU_TOKENS, BATCH_TOKENS) if lm.device.type == "cpu" else BATCH_TOKENS
    columns = max(1, BATCH_TOKENS >> halvings)
    return Limits(columns, min(tokens, columns), max(1, LOGITS >> halvings))


def _most(lm: LM, limits: Limits) -> memory.Estimate:
    """Return the most memory that contexts and continuations take; both have a cache."""
    itemsize, demand = lm.model.dtype.itemsize, lm.steering.demand
    columns = limits.columns + min(CHUNK_FORWARDS * limits.tokens, limits.columns)
    columns = columns * (1 + demand.readings) + memory.tried_columns(limits.columns, 1, demand)
    held = min(limits.logits, limits.tokens * lm.model.config.get_text_config().vocab_size)
    logits = held * (1 + demand.readings) * itemsize + min(held, _chunk(lm.device)) * memory.LOGIT_BYTES
    forward = memory.estimate(lm.model, 0, 1, limits.tokens, 0).further
    further = max(forward, memory.steering_bytes(held, itemsize, demand))
    return memory.Estimate(columns * memory.cache_bytes(lm.model.config, itemsize), logits, further)


def _chunk(device: torch.device) -> int:
    return CPU_CHUNK if device.type == "cpu" else CHUNK


def _fitted(request: Request, max_length: int) -> _Row:
    context, continuation = request
    if not context:
        raise ValueError("a likelihood needs a context of at least one token; give the end-of-text token")
    if not continuation:  # log p = 0, more than any answer that says something
        raise ValueError("a likelihood needs a continuation of at least one token; make requests by LM.encode_pairs")
    if len(continuation) > max_length:
        raise ValueError(f"a continuation of {len(continuation)} tokens exceeds the model's {max_length}")
    room = max_length + 1 - len(continuation)  # the last token is predicted, not read
    return tuple(context[-room:]), tuple(continuation)


def _packed(lengths: Sequence[int], fits: Callable[[int, int], bool], enough: float = math.inf) -> Iterator[range]:
    """Yield ranges over ascending lengths, of as many rows as `fits(rows, width)` allows.

    Once a range has `enough` tokens, it ends before a row that would make too much PADDING.
    """
    start = tokens = 0
    for i, width in enumerate(lengths):
        columns = (i - start + 1) * width
        wasteful = tokens >= enough and columns - tokens - width > PADDING * columns
        if i > start and (wasteful or not fits(i - start + 1, width)):
            yield range(start, i)
            start, tokens = i, 0
        tokens += width
    if start < len(lengths):
        yield range(start, len(lengths))


class _Beginning:
    """The common beginning of some contexts, as token ids; it is read when it is first asked for.

    shortest: length of the shortest of these contexts, which the hooks of a steering method get as the prompt's length.
    """

    def __init__(self, lm: LM, tokens: _Tokens, shortest: int) -> None:
        self.lm, self.tokens, self.shortest = lm, tokens, shortest

    @functools.cached_property
    def rows(self) -> Rows | None:
        """The one row that was read; None if the contexts have nothing in common."""
        if not self.tokens:
            return None
        rows = self.lm.start(torch.tensor([self.shortest]))
        ids = torch.tensor([self.tokens])
        self.lm.read(rows, ids, torch.ones_like(ids, dtype=torch.bool), keep=1)
        advance(len(self.tokens))
        return rows


def _chunks(lm: LM, contexts: list[_Tokens], limits: Limits) -> Iterator[tuple[_Beginning, list[list[_Tokens]]]]:
    """Yield chunks: batches of contexts with one beginning, short ones first, whose continuations share batches."""
    most = max(1, min(lm.sampling.batch_size, limits.logits // lm.model.config.get_text_config().vocab_size))
    windowed = padding.needs_no_gaps(lm.model)
    limit = 0 if windowed else min(CHUNK_FORWARDS * limits.tokens, limits.columns)
    for group in alike(contexts):
        ordered = _ordered(group.contexts)
        beginning = _Beginning(lm, ordered[0][: group.shared], len(ordered[0]))

        def fits(count: int, width: int, shared: int = group.shared) -> bool:
            return count <= most and count * width <= limits.tokens and count * (shared + width) <= limits.columns

        chunk: list[list[_Tokens]] = []
        rows = columns = 0
        even = group.shared and windowed  # padding between beginning and text would be counted as text
        for several in _of_equal_length(ordered) if even else [ordered]:
            lengths = [len(context) for context in several]
            for batch in _packed([length - group.shared for length in lengths], fits, ENOUGH * limits.tokens):
                more = len(batch) * lengths[batch[-1]]
                if chunk and (columns + more > limit or rows + len(batch) > lm.sampling.batch_size):
                    yield beginning, chunk
                    chunk, rows, columns = [], 0, 0
                chunk.append([several[i] for i in batch])
                rows, columns = rows + len(batch), columns + more
        yield beginning, chunk


def _ordered(several: Iterable[_Tokens]) -> list[_Tokens]:
    return sorted(several, key=lambda one: (len(one), one))


def _of_equal_length(ordered: list[_Tokens]) -> list[list[_Tokens]]:
    return [list(several) for _, several in itertools.groupby(ordered, key=len)]


_Asked = list[tuple[_Tokens, list[_Tokens]]]  # contexts with their continuations, which are read together


def _read_in_halves(lm: LM, beginning: _Beginning, batches: list[_Asked]) -> list[Likelihood]:
    """Return what `_read` does; if memory does not hold all of it, one half after the other is read."""

    def size(part: list[_Asked]) -> memory.Estimate:
        widths = [len(context) + len(one) for batch in part for context, several in batch for one in several]
        return memory.estimate(lm.model, len(widths), sum(map(len, part)), max(widths), 0, lm.steering.demand)

    return in_batches.in_halves(lm, batches, size, _halves, functools.partial(_read, lm, beginning))


def _halves(batches: list[_Asked]) -> list[list[_Asked]]:
    """Divide in two: several batches, else the contexts of the one batch, else the continuations of its one context."""
    if len(batches) > 1:
        return [list(half) for half in in_batches.halved(batches)]
    (batch,) = batches
    if len(batch) > 1:
        return [[list(half)] for half in in_batches.halved(batch)]
    ((context, several),) = batch
    return [[[(context, list(half))]] for half in in_batches.halved(several)]


def _read(lm: LM, beginning: _Beginning, batches: list[_Asked]) -> list[Likelihood]:
    """Return the likelihoods of all continuations of these contexts, in their order."""
    shared = len(beginning.tokens)
    parts: list[Rows] = []
    rows: list[_Place] = []
    sums: list[float] = []
    all_greedy: list[bool] = []
    for batch in batches:
        prompts = [list(context[shared:]) for context, _ in batch]
        last = torch.tensor([max(map(len, prompts)) - 1])  # as a number: with a slice, torch would multiply row by row
        read, logits = prefill(lm, prompts, beginning.rows, last)  # (P, V)
        own = [_Place(len(parts), i, one) for i, (_, continuations) in enumerate(batch) for one in continuations]
        start = torch.tensor([row.context for row in own], device=lm.device)  # (R,) context of each row
        first = torch.tensor([row.continuation[0] for row in own], device=lm.device)  # (R,)
        logprob, greedy = _token_logprobs(logits, first, start)
        parts.append(read)
        rows += own
        sums += logprob.tolist()
        all_greedy += greedy.tolist()
    order = sorted(range(len(rows)), key=lambda r: len(rows[r].continuation))
    columns = max(read.seen.shape[1] for read in parts)
    for batch_of in _row_batches(lm, [len(rows[r].continuation) - 1 for r in order], columns):
        some = sorted((order[i] for i in batch_of), key=lambda r: rows[r].part)
        further, further_greedy = _further(lm, parts, [rows[r] for r in some])
        for r, value, chosen in zip(some, further, further_greedy, strict=True):
            sums[r] += value
            all_greedy[r] = all_greedy[r] and chosen
    if not all(map(math.isfinite, sums)):
        raise NotFiniteError(
            f"a log-probability is not finite at strength {lm.steered_by}, since some token of a text "
            "has probability 0. Set a finite strength, or for dexperts a finite method.outside, or leave out the "
            "suites that read likelihoods"
        )
    return [
        Likelihood(value, chosen, len(row.continuation))
        for value, chosen, row in zip(sums, all_greedy, rows, strict=True)
    ]


def _row_batches(lm: LM, widths: list[int], context: int) -> Iterator[range]:
    """Yield the numbers of rows, of ascending width, that need a second forward; the cache has `context` columns."""
    limits = _halved(lm, lm.memory.halvings)
    single = widths.count(0)  # rows of one token, which the first forward has answered

    def fits(count: int, width: int) -> bool:
        return (
            count <= lm.sampling.batch_size
            and count * width <= limits.tokens
            and count * (context + width) <= limits.columns
            and count * width * lm.model.config.get_text_config().vocab_size <= limits.logits
        )

    for batch in _packed(widths[single:], fits, ENOUGH * limits.tokens):
        yield range(single + batch.start, single + batch.stop)


def _further(lm: LM, parts: list[Rows], rows: list[_Place]) -> tuple[list[float], list[bool]]:
    """Return the summed log-probability of each row's tokens after the first, and whether all are first choices.

    The rows are in the order of their parts.
    """
    tokens = [row.continuation for row in rows]
    width = max(map(len, tokens)) - 1
    ids = torch.tensor([[*c[:-1], *[0] * (width - len(c) + 1)] for c in tokens], device=lm.device)  # (B, T)
    targets = torch.tensor([[*c[1:], *[0] * (width - len(c) + 1)] for c in tokens], device=lm.device)  # (B, T)
    length = torch.tensor([len(c) - 1 for c in tokens], device=lm.device)  # (B,)
    real = torch.arange(width, device=lm.device)[None, :] < length[:, None]  # (B, T)
    of_part = itertools.groupby(rows, key=lambda row: row.part)
    read = [(parts[part], torch.tensor([one.context for one in own], device=lm.device)) for part, own in of_part]
    logits = lm.read(branch(read, width), ids, real)  # (B, T, V)
    advance(int(length.sum()))
    used = real.flatten().nonzero()[:, 0]  # positions that are not padding
    logprob = torch.zeros(real.shape, dtype=torch.double, device=lm.device)
    greedy = torch.ones_like(real)
    logprob[real], greedy[real] = _token_logprobs(logits.flatten(0, 1), targets.flatten()[used], used)
    return logprob.sum(-1).tolist(), greedy.all(-1).tolist()


def _token_logprobs(logits: Tensor, tokens: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return log softmax(logits[rows])[tokens] in float64, and if each is the largest; (P, V), (N,), (N,) -> (N,)."""
    logprob, greedy = [], []
    step = max(1, _chunk(logits.device) // logits.shape[-1])
    for start in range(0, len(tokens), step):
        token = tokens[start : start + step]
        scores = logits[rows[start : start + step]].float()  # (C, V)
        at_token = scores.gather(-1, token[:, None])[:, 0]
        logprob.append(at_token.double() - scores.logsumexp(-1).double())
        greedy.append(scores.argmax(-1) == token)
    return torch.cat(logprob), torch.cat(greedy)
