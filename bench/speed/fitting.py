"""Fits of methods that learn in closed form, and the matrix products of reading their texts once."""

from collections.abc import Sequence
from typing import Any

from bench.model.lm import LM
from bench.speed import likelihood
from bench.speed.turns import Work
from methods.base import FitData, Method, Pairs
from methods.tokens import encode_pairs


def pairs(requests: Sequence[Any]) -> Pairs:
    """Pair the first two answers to each question; the time of a fit does not depend on which answer is right.

    A question with a single answer makes no pair.
    """
    answers: dict[Any, list[tuple[str, str]]] = {}
    for request in requests:
        answers.setdefault(request.doc_id, []).append(request.args)
    both = [(one[0], one[1]) for one in answers.values() if len(one) > 1]
    return Pairs([one[0] for one, _ in both], [one[1] for one, _ in both], [other[1] for _, other in both])


def ours(lm: LM, method: Method, learnt_from: Pairs) -> Work:
    """Return a function to be timed, which fits the method."""
    return lambda: method.fit(lm.model, lm.tokenizer, FitData(pairs=learnt_from))


def distinct_tokens(lm: LM, learnt_from: Pairs) -> int:
    """Return how many tokens have to be read at least; texts that begin alike share their beginning."""
    texts = encode_pairs(lm.model, lm.tokenizer, learnt_from)
    return likelihood.distinct(tuple(one.tokens) for one in (*texts.desired, *texts.undesired))


def matrices(lm: LM, read: int) -> Work:
    """Return the matrix products of reading `read` tokens once in all blocks, without predicting any."""
    return likelihood.matrices(lm, read, 0)
