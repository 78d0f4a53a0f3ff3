"""Batched sampling: one prefill per prompt in a batch, exact nucleus, one random stream per (seed, prompt, sample).

A text depends only on its own stream and prompt, so neither the order of prompts, nor a resumed run, nor the other
rows of a batch change it, unless rounding moves a draw across a boundary.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.model import batches, memory, penalties
from bench.model.decoding import Answer, Continuation, Sampling
from bench.model.lm import LM
from bench.model.nucleus import draw
from bench.model.rows import Rows, branch
from bench.model.thinking import begin
from bench.records import unfinished
from methods.errors import SetupError, refuse_one_text
from methods.progress import advance

VERSION = 1  # bump when the same settings give other texts


class _Unit(NamedTuple):
    prompt: int  # index into prompts
    sample: int


def sample(
    lm: LM,
    prompts: Sequence[str],
    num_samples: int = 25,
    max_new_tokens: int = 20,
    temperature: float = 1.0,
    top_p: float = 0.9,
    seed: int = 0,
    batch_size: int = 256,
) -> list[list[str]]:
    """Sample `num_samples` continuations of each prompt from the model.

    The same seed and prompt give the same texts, whatever the other prompts and the batch size.

    Args:
        lm: the model, steered if it is used inside `lm.steered`.
        prompts: N texts.
        num_samples: K continuations of each.
        max_new_tokens: the most tokens of a continuation.
        temperature: the logits are divided by it; 0 is greedy.
        top_p: probability of the nucleus that is drawn from, in (0, 1].
        seed: the seed of the draws.
        batch_size: the most rows that are decoded at once; fewer if memory is scarce.

    Returns:
        (N, K) texts, without the prompt; with thinking="strip" the answers, "" if the thinking was cut.

    Raises:
        SetupError: a setting is out of its range, or a prompt is too long for the model, or `prompts` is a single text.

    Example:
        >>> from bench import sample
        >>> texts = sample(lm, ["The quick brown", "People walk along"], num_samples=3, max_new_tokens=5)
        >>> len(texts), len(texts[0])
        (2, 3)
    """
    refuse_one_text(prompts, "prompts")
    settings = Sampling(max_new_tokens, temperature, top_p, seed, batch_size)
    rows = continuations(lm, prompts, num_samples, settings)
    alone = lm.identity.get("judged") == "answer"
    return [[one.answered().text if alone else one.text for one in row] for row in rows]


def continuations(lm: LM, prompts: Sequence[str], num_samples: int, settings: Sampling) -> list[list[Continuation]]:
    """Return the continuations that `sample` gives, with how each ended. Batches hold prompts of similar length."""
    encoded = [lm.encode(prompt) for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) + settings.max_new_tokens > lm.max_length:
            named = hashlib.sha256(prompt.strip().encode()).hexdigest()[:12]  # not the text, which may be toxic
            raise SetupError(
                f"a prompt of {len(ids)} tokens and {settings.max_new_tokens} new ones exceed the model's "
                f"{lm.max_length}; shorten or leave out the prompt whose text has the sha256 {named}..., or lower "
                "max_new_tokens"
            )
    order = sorted(range(len(prompts)), key=lambda i: (len(encoded[i]), prompts[i]))
    units = [_Unit(i, k) for i in order for k in range(num_samples)]
    texts: list[list[Continuation | None]] = [[None] * num_samples for _ in prompts]

    def what() -> Any:
        decoding = settings.facts() | {"seed": settings.seed}
        return ["texts", lm.identity, lm.steering_identity, lm.steered_by, list(prompts), num_samples, decoding]

    def size(batch: list[_Unit]) -> memory.Estimate:
        texts = {unit.prompt for unit in batch}
        width = len(encoded[batch[-1].prompt])
        return memory.estimate(lm.model, len(batch), len(texts), width, settings.max_new_tokens, lm.steering.demand)

    with unfinished.batches(what, settings.batch_size) as kept:
        for start, rows in batches.planned(lm, units, kept, size):
            batch = units[start : start + rows]
            decoded = kept.once(start, functools.partial(_decoded, lm, prompts, encoded, batch, settings, size))
            for unit, tokens in zip(batch, decoded, strict=True):
                texts[unit.prompt][unit.sample] = _continuation(lm, encoded[unit.prompt], tokens, settings.stop)
    return [[text for text in row if text is not None] for row in texts]


def _continuation(lm: LM, prompt: list[int], tokens: list[int], stop: str | None) -> Continuation:
    ended = bool(tokens) and tokens[-1] in lm.stop_tokens
    kept = tokens[:-1] if ended else tokens
    if lm.thinking is None or lm.thinking.tags is None:
        return _stopped(lm, prompt, kept, ended, stop)
    start, rest, outcome = begin(lm.tokenizer, lm.thinking, kept, ended)
    thought = kept[:start]
    before, said = _text(lm, prompt, thought), _stopped(lm, prompt + thought, kept[start:], ended, stop)
    answer = said.text.removeprefix(rest).lstrip() if outcome == "thought" else said.text
    whole = [*thought, *(said.tokens or [])]
    return Continuation(before + said.text, said.ended, whole, Answer(answer, start, outcome))


def _stops(lm: LM, tokens: list[int], stop: str) -> bool:
    """Return whether the stop string occurs in the text of new tokens; if the model thinks, in the answer."""
    if lm.thinking is not None and lm.thinking.tags is not None:
        tokens = tokens[begin(lm.tokenizer, lm.thinking, tokens, False).start :]
    return stop in str(lm.tokenizer.decode(tokens))


def _stopped(lm: LM, prompt: list[int], kept: list[int], ended: bool, stop: str | None) -> Continuation:
    """Return the text of sampled tokens, up to the stop string."""
    text = _text(lm, prompt, kept)
    if stop is not None and stop in text:
        text, ended = text.partition(stop)[0], True
        while not text.startswith(_text(lm, prompt, kept)):
            kept = kept[:-1]
    return Continuation(text, ended, kept)


def _text(lm: LM, prompt: list[int], tokens: list[int]) -> str:
    """Return the text that the new tokens add to the prompt's text; decoded alone, some would lose a leading space."""
    before = str(lm.tokenizer.decode(prompt, skip_special_tokens=True))
    whole = str(lm.tokenizer.decode(prompt + tokens, skip_special_tokens=True))
    return (
        whole[len(before) :] if whole.startswith(before) else str(lm.tokenizer.decode(tokens, skip_special_tokens=True))
    )


def _decoded(
    lm: LM,
    prompts: Sequence[str],
    encoded: list[list[int]],
    batch: list[_Unit],
    settings: Sampling,
    size: Callable[[list[_Unit]], memory.Estimate],
) -> list[list[int]]:
    """Return the new token ids of each unit of a batch; if memory does not hold it, it is decoded in halves."""
    found: dict[_Unit, list[int]] = {}

    def halves(units: list[_Unit]) -> list[list[_Unit]]:
        left = [unit for unit in units if unit not in found]
        return batches.halved(left) or ([left] if 0 < len(left) < len(units) else [])

    def compute(units: list[_Unit]) -> list[None]:
        _decode(lm, prompts, encoded, units, settings, found)
        return []

    batches.in_halves(lm, batch, size, halves, compute)
    return [found[unit] for unit in batch]


def _decode(
    lm: LM,
    prompts: Sequence[str],
    encoded: list[list[int]],
    batch: list[_Unit],
    settings: Sampling,
    found: dict[_Unit, list[int]],
) -> None:
    """Put the new token ids of each unit into `found` when its text has ended; the stop token is one of them."""
    used = list(dict.fromkeys(unit.prompt for unit in batch))  # each prompt is read once
    rows, logits = prefill(lm, [encoded[i] for i in used])  # (P, V)
    spread = torch.tensor([used.index(unit.prompt) for unit in batch], device=lm.device)  # (B,)
    rows.select(spread, settings.max_new_tokens)
    logits = logits[spread]  # (B, V)
    streams = [stream(settings.seed, prompts[u.prompt], u.sample, settings.max_new_tokens) for u in batch]
    keys = torch.from_numpy(np.stack(streams)).to(lm.device)  # (B, steps)
    stop = lm.stop_tokens
    new: list[list[int]] = [[] for _ in batch]
    alive = list(range(len(batch)))  # rows of the batch still being written
    for step in range(settings.max_new_tokens):
        allowed = penalties.applied(logits, rows, settings)
        drawn = draw(allowed, keys[:, step], settings.temperature, settings.top_p)  # (A,)
        tokens = drawn.tolist()  # the one wait for the device in a step, besides that for the check of the logits
        for row, token in zip(alive, tokens, strict=True):
            new[row].append(token)
        advance(len(tokens))
        last = step + 1 == settings.max_new_tokens
        going = [place for place, token in enumerate(tokens) if token not in stop and not last]
        if settings.stop is not None:
            going = [place for place in going if not _stops(lm, new[alive[place]], settings.stop)]
        found.update((batch[alive[place]], new[alive[place]]) for place in set(range(len(alive))).difference(going))
        if not going:
            break
        if len(going) < len(alive):
            kept = torch.tensor(going, device=lm.device)
            rows.select(kept)
            alive, drawn, keys = [alive[place] for place in going], drawn[kept], keys[kept]
        logits = lm.read(rows, drawn[:, None], torch.ones_like(drawn[:, None], dtype=torch.bool), keep=1)[:, -1]


def prefill(
    lm: LM, prompts: Sequence[list[int]], beginning: Rows | None = None, keep: int | Tensor = 1
) -> tuple[Rows, Tensor]:
    """Read the prompts, padded on the left, and return the rows and the logits (B, V) after the last token.

    beginning: a row that is read already, with which all prompts begin; `prompts` then hold only what follows it. keep:
    selects the last column, as in `LM.read`.
    """
    width = max(len(ids) for ids in prompts)
    ids = torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts])  # (B, T)
    length = torch.tensor([len(ids) for ids in prompts])  # (B,)
    real = torch.arange(width)[None, :] >= (width - length)[:, None]  # (B, T)
    if beginning is None:
        rows = lm.start(length)
    else:
        rows = branch([(beginning, torch.zeros(len(prompts), dtype=torch.long, device=lm.device))], width)
        rows.prompt = rows.seen.sum(-1) + length.to(lm.device)
    logits = lm.read(rows, ids, real, keep)[:, -1]
    advance(int(length.sum()))
    return rows, logits


def stream(seed: int, prompt: str, sample: int, steps: int) -> np.ndarray:
    """Return (steps,) int64 keys that belong to this seed, prompt and sample alone; each key draws one token."""
    digest = hashlib.sha256(f"{seed}\x00{sample}\x00{prompt}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return generator.integers(-(2**63), 2**63 - 1, size=steps, dtype=np.int64, endpoint=True)
