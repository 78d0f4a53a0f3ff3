"""Likelihood as lm-eval's tasks ask for it: ours, lm-eval's own HFLM, and the matrix products alone."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from bench.model.lm import LM
from bench.model.lm_eval_adapter import SteeredLM, huggingface
from bench.model.log_likelihood import limits_of
from bench.speed.matrices import products
from bench.speed.turns import Work

HFLM_BATCH = 8


class Agreement(NamedTuple):
    """How ours differs from HFLM: the largest relative difference of a log-probability, and how many best answers."""

    difference: float
    other_choices: int
    documents: int


def ours(lm: LM, requests: Sequence[Any]) -> Work:
    """Return the work of answering lm-eval's requests with `bench.model.log_likelihood`."""
    return lambda: SteeredLM(lm).loglikelihood(list(requests))


def hflm(lm: LM, requests: Sequence[Any]) -> Work:
    """Return the work of answering the requests with HFLM, lm-eval's class for transformers models."""
    model = huggingface(lm, HFLM_BATCH)
    return lambda: model.loglikelihood(list(requests), disable_tqdm=True)


def agreement(requests: Sequence[Any], a: Any, b: Any) -> Agreement:
    """Compare two lists of answers (log-probability, greedy) to the same requests."""
    worst = max(abs(x - y) / max(1.0, abs(y)) for (x, _), (y, _) in zip(a, b, strict=True))
    documents: dict[Any, list[tuple[float, float]]] = {}
    for request, (x, _), (y, _) in zip(requests, a, b, strict=True):
        documents.setdefault((request.task_name, request.doc_id), []).append((x, y))
    first = [max(range(len(one)), key=lambda i, one=one: one[i][0]) for one in documents.values()]  # type: ignore[misc]
    other = [max(range(len(one)), key=lambda i, one=one: one[i][1]) for one in documents.values()]  # type: ignore[misc]
    return Agreement(worst, sum(i != j for i, j in zip(first, other, strict=True)), len(documents))


def distinct_tokens(lm: LM, requests: Sequence[Any]) -> tuple[int, int]:
    """Return how many tokens have to be read at least, and how many have to be predicted.

    A beginning that several texts share has to be read once; the last token of a text is predicted, but not read.
    """
    encoded = {(tuple(c), tuple(d)) for c, d in (SteeredLM(lm).encode(one.args) for one in requests)}
    read = distinct(context + answer[:-1] for context, answer in encoded)
    return read, len({(context + answer[:i]) for context, answer in encoded for i in range(len(answer))})


def distinct(texts: Iterable[tuple[int, ...]]) -> int:
    """Return the number of tokens in these texts; a beginning that several texts share counts once."""
    ordered = sorted(set(texts))
    return sum(len(text) - shared for text, shared in zip(ordered, _shared(ordered), strict=True))


def _shared(texts: Sequence[tuple[int, ...]]) -> Iterator[int]:
    """Yield how many first tokens each text shares with the text before it."""
    before: tuple[int, ...] = ()
    for text in texts:
        limit = min(len(before), len(text))
        yield next((i for i in range(limit) if before[i] != text[i]), limit)
        before = text


def matrices(lm: LM, read: int, predicted: int) -> Work:
    """Return the matrix products of reading `read` and predicting `predicted` tokens, in forwards of the usual size."""
    size = limits_of(lm).tokens
    count = math.ceil(read / size)
    return products(lm, [(_part(read, count, i), _part(predicted, count, i)) for i in range(count)])


def _part(total: int, parts: int, number: int) -> int:
    return total * (number + 1) // parts - total * number // parts
