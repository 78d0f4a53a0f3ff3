"""Sampling as RealToxicityPrompts asks for it: by this project, by transformers' `generate`, and steered."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from bench.model.decoding import Sampling
from bench.model.lm import LM
from bench.model.sampling import continuations
from bench.speed.matrices import products
from bench.speed.turns import Work
from methods.base import FitData, Method, Pairs

PROMPTS = (
    "The weather today is",
    "In the morning the baker opens his shop and",
    "My neighbour told me that the garden",
    "On the way to school the children",
    "The letter from my aunt says that",
    "When I came to the market, everything was",
    "Her second book is about a small town where",
    "The river behind the house",
    "The new lamp in the kitchen gives a soft",
    "Our old dog runs along the river every day, and",
    "The train to the city arrives at noon because",
    "The soup that I cooked tastes of summer and",
)
ENDINGS = (
    ("warm and bright", "cold and grey"),
    ("smiles", "oversleeps"),
    ("is in bloom", "is bare"),
    ("sing", "miss the bus"),
    ("all is well", "all went wrong"),
    ("ripe", "sold"),
    ("people help each other", "nobody talks"),
    ("is clear and calm", "is dirty"),
    ("light", "flicker"),
    ("wags its tail", "limps home"),
    ("the line is free", "it is late again"),
    ("fresh herbs", "old salt"),
)
SAMPLES = 25
NEW_TOKENS = 20
TOP_P = 0.9


def settings(lm: LM) -> Sampling:
    """Return the decoding of RealToxicityPrompts."""
    return replace(lm.sampling, max_new_tokens=NEW_TOKENS, temperature=1.0, top_p=TOP_P, stop=None)


def ours(lm: LM, prompts: int) -> Work:
    """Return a function to be timed, which samples SAMPLES continuations of every prompt."""
    return lambda: continuations(lm, PROMPTS[:prompts], SAMPLES, settings(lm))


def count(lm: LM, prompts: int) -> int:
    """Count the tokens that `ours` samples, without stop tokens."""
    return sum(
        len(one.tokens or ()) for row in continuations(lm, PROMPTS[:prompts], SAMPLES, settings(lm)) for one in row
    )


class Generate:
    """The same sampling by transformers' `generate`, with `together` prompts in a batch.

    made: how many tokens each call made; the number varies, since stop tokens end texts earlier or later.
    """

    def __init__(self, lm: LM, prompts: int, together: int) -> None:
        self.lm, self.together = lm, together
        self.texts = [lm.encode(prompt) for prompt in PROMPTS[:prompts]]
        self.made: list[int] = []

    def __call__(self) -> None:
        """Sample all prompts once."""
        model: Any = self.lm.model
        stop = torch.tensor(sorted(self.lm.stop_tokens), device=self.lm.device)
        made = 0
        for start in range(0, len(self.texts), self.together):
            batch = self.texts[start : start + self.together]
            width = max(map(len, batch))
            ids = torch.tensor([[0] * (width - len(one)) + one for one in batch], device=self.lm.device)
            mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in batch], device=self.lm.device)
            new = model.generate(
                input_ids=ids, attention_mask=mask, do_sample=True, top_p=TOP_P, top_k=0, temperature=1.0,
                max_new_tokens=NEW_TOKENS, num_return_sequences=SAMPLES, pad_token_id=int(stop[0]),
            )[:, width:]  # fmt: skip
            made += int((~torch.isin(new, stop)).sum())
        self.made.append(made)


def matrices(lm: LM, prompts: int) -> Work:
    """Return the matrix products that `ours` needs: for the prompts once, then for one token of each row per step."""
    rows = prompts * SAMPLES
    size = lm.sampling.batch_size
    batches = [min(size, rows - start) for start in range(0, rows, size)]
    forwards = []
    for start, batch in zip(range(0, rows, size), batches, strict=True):
        used = range(start // SAMPLES, (start + batch - 1) // SAMPLES + 1)
        forwards.append((sum(len(lm.encode(PROMPTS[i])) for i in used), len(used)))
        forwards += [(batch, batch)] * (NEW_TOKENS - 1)
    return products(lm, forwards)


class Steered:
    """`ours`, steered by a method that learns from a few neutral sentences. Call it only inside `on`."""

    def __init__(self, lm: LM, method: Method, prompts: int) -> None:
        pairs = Pairs(list(PROMPTS), [f" {good}" for good, _ in ENDINGS], [f" {bad}" for _, bad in ENDINGS])
        self.lm, self.method, self.prompts = lm, method, prompts
        self.artefact = method.fit(lm.model, lm.tokenizer, FitData(pairs=pairs))

    @contextmanager
    def on(self) -> Iterator[None]:
        """Steer the model inside the `with`."""
        with self.lm.steered(self.method, self.artefact, self.method.strengths[0]) as self.steered:
            yield

    def __call__(self) -> None:
        """Sample all prompts once."""
        ours(self.steered, self.prompts)()
