"""Nucleus sampling of one token per row, decided by the row's own key; `bench.model.sampling` builds on it."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CANDIDATES = (256, 2048)  # sizes of the partial top-k tried before the whole vocabulary is sorted
ROWS = 32  # rows at a time on a CPU, so that their probabilities fit into its caches
ROWS_ELSEWHERE = 512  # rows at a time on a card, which bounds the memory for sorting them
BYTES = 80  # the most for each logit of these rows, if a nucleus holds nearly all tokens and all are sorted
FLOORS = (
    1e-2,
    3e-3,
    1e-3,
    3e-4,
    1e-4,
    3e-5,
)  # probabilities above which a whole nucleus is looked for, without sorting
GOLDEN, MIX_1, MIX_2 = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def draw(logits: Tensor, keys: Tensor, temperature: float, top_p: float) -> Tensor:
    """Return next tokens (B,) from logits (B, V): a draw from the nucleus, decided by keys (B,) alone.

    The nucleus is the smallest set of most probable tokens whose probability reaches top_p (arXiv 1904.09751
    section 3.1). It is looked for among the CANDIDATES most probable tokens, then among more, at last among all.

    The draw is a race: token i arrives after Exponential(1) / p_i and the first wins, which has probability p_i / sum p
    (the Gumbel-max trick). Each token has its own time, so a small change of the logits, whether by rounding or by
    steering, rarely changes the winner: texts rarely depend on the batch size, and methods are compared on paired
    draws.
    """
    if temperature == 0:
        return logits.argmax(-1)
    if logits.device.type != "cpu":
        several = zip(_split(logits, ROWS_ELSEWHERE), _split(keys, ROWS_ELSEWHERE), strict=True)
        return torch.cat([_by_sorting(_probability(part, temperature), own, top_p) for part, own in several])
    parts = list(zip(_split(logits, ROWS), _split(keys, ROWS), strict=True))
    drawn, known = _by_floors([_probable(part, temperature, top_p) for part, _ in parts], keys, top_p)
    for i, (part, own) in enumerate(parts):
        left = (~known[i * ROWS : (i + 1) * ROWS]).nonzero()[:, 0]
        if len(left):
            drawn[i * ROWS + left] = _by_sorting(_probability(part[left], temperature), own[left], top_p)
    return drawn


def drawing_bytes(rows: int, vocabulary: int, device: torch.device) -> int:
    """Return the most memory that a draw takes besides the logits, in bytes."""
    return min(rows, ROWS if device.type == "cpu" else ROWS_ELSEWHERE) * vocabulary * BYTES


def _split(rows: Tensor, count: int) -> tuple[Tensor, ...]:
    return tuple(torch.split(rows, count))  # type: ignore[no-untyped-call]


def _probability(logits: Tensor, temperature: float) -> Tensor:
    """Return the probability of each token, (B, V), at this temperature."""
    logits = logits.float()
    return torch.softmax(logits if temperature == 1 else logits / temperature, dim=-1)


def _by_sorting(probability: Tensor, keys: Tensor, top_p: float) -> Tensor:
    """Return next tokens (B,) from probabilities (B, V); the nucleus is found by sorting the most probable tokens."""
    drawn = torch.empty_like(keys)
    rows = torch.arange(len(keys), device=keys.device)  # rows whose nucleus is still to be found
    for count in (*CANDIDATES, probability.shape[-1]):
        left = probability if len(rows) == len(keys) else probability[rows]
        values, tokens = left.topk(min(count, left.shape[-1]), dim=-1)  # (A, C)
        before = values.double().cumsum(-1) - values  # (A, C) probability of the tokens before this one
        found = (before[:, -1] + values[:, -1] >= top_p) | (values.shape[-1] == left.shape[-1])  # (A,)
        time = exponential(keys[rows][:, None], tokens) / values  # (A, C)
        winner = time.masked_fill(before >= top_p, torch.inf).argmin(-1, keepdim=True)
        drawn[rows[found]] = tokens.gather(-1, winner)[found, 0]
        rows = rows[~found]
        if not len(rows):
            break
    return drawn


class _Probable(NamedTuple):
    """Tokens above a floor and their probabilities, (N,) each. counts: (B,) tokens of each row; 0: no floor found."""

    counts: Tensor
    token: Tensor
    value: Tensor


def _probable(logits: Tensor, temperature: float, top_p: float) -> _Probable:
    """Return each row's tokens above the highest of FLOORS that leaves more than top_p; the nucleus is among them."""
    probability = _probability(logits, temperature)  # (B, V)
    rows, vocabulary = probability.shape
    place = torch.from_numpy(np.flatnonzero((probability > FLOORS[-1]).numpy()))  # eight times as fast as torch's
    row, value = place // vocabulary, probability.take(place)  # (N,)
    floor = torch.full((rows,), 2.0)
    for lower in FLOORS:
        mass = torch.bincount(row, torch.threshold(value, lower, 0.0), minlength=rows)  # (B,)
        holds = mass > top_p + 1e-4  # a margin larger than rounding errors
        floor = torch.where(holds & (floor > 1), lower, floor)
        if bool((floor < 1).all()):
            break
    kept = (value > floor[row]).nonzero()[:, 0]
    row, token = row[kept], place[kept] % vocabulary
    return _Probable(torch.bincount(row, minlength=rows), token, value[kept])


def _by_floors(parts: list[_Probable], keys: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Return next tokens (B,), and for which rows they are known: those whose winner is surely in the nucleus.

    The race is run among all tokens above the floor. Since the nucleus is a part of these, a winner that is in the
    nucleus also wins the race in the nucleus. It is in the nucleus if all more probable tokens have less than top_p
    together.
    """
    counts, token, value = (torch.cat(column) for column in zip(*parts, strict=True))
    row = torch.arange(len(keys)).repeat_interleave(counts)  # (N,)
    time = exponential(keys[row], token) / value
    first = torch.full(keys.shape, torch.inf, dtype=torch.double).scatter_reduce(0, row, time, "amin")
    won = (time == first[row]).nonzero()[:, 0]
    winner = torch.zeros_like(keys).scatter(0, row[won], won)  # (B,) place among the tokens above the floor
    least = value[winner] if len(value) else torch.zeros(len(keys))
    more = (value > least[row]).double() * value
    before = torch.zeros(keys.shape, dtype=torch.double).scatter_add(0, row, more)
    equal = torch.zeros_like(keys).scatter_add(0, row, (value == least[row]).long())
    known = (counts > 0) & (before < top_p - 1e-9) & (equal == 1)  # of equal ones, the order decides which is in
    return (token[winner] if len(value) else torch.zeros_like(keys)), known


def exponential(keys: Tensor, tokens: Tensor) -> Tensor:
    """Return Exponential(1) numbers, float64, each a hash of a key and a token number (both int64, broadcast).

    The hash is the finaliser of SplitMix64 (Steele, Lea and Flood 2014, doi 10.1145/2660193.2660195 figure 17) in
    arithmetic modulo 2**64.
    """
    mixed = keys + (tokens + 1) * GOLDEN
    mixed = (mixed ^ _shift(mixed, 30)) * MIX_1
    mixed = (mixed ^ _shift(mixed, 27)) * MIX_2
    mixed = mixed ^ _shift(mixed, 31)
    uniform = (_shift(mixed, 11).double() + 0.5) * 2.0**-53  # in (0, 1), never either end
    return -torch.log(uniform)


def _shift(number: Tensor, bits: int) -> Tensor:
    """Shift right without the sign, which int64 would drag along."""
    return (number >> bits) & ((1 << (64 - bits)) - 1)
