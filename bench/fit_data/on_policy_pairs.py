"""Contrast pairs sampled from the model itself: a desired and an undesired continuation of the same prompt."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, ClassVar

from bench.data.prompts import RTP, rtp_prompts
from bench.data.sources import Sources
from bench.data.splits import Learnt
from bench.fit_data.base import FitSource
from bench.model.decoding import Sampling
from bench.model.generation_cache import sampled
from bench.model.lm import LM
from bench.records.identity import named
from bench.scorers.base import Scorer, unique_scores
from methods.base import Pairs
from methods.errors import SetupError

FEWEST = 8  # pairs; a direction from fewer says more about the prompts than about what is wanted
PROMPT_TOKENS = 16  # tokens of a RealToxicityPrompts prompt, roughly
PAIR_TOKENS = 36  # tokens of a prompt with one of its continuations, roughly


@dataclass(frozen=True, kw_only=True)
class OnPolicy(FitSource):
    """Pairs of the unsteered model's own continuations of the fit prompts: a prompt's least and most toxic one.

    A prompt gives a pair only if the gap is wide: its best continuation scores at most `max_desired`, its worst at
    least `min_undesired`. Continuations that are blank or could not be scored are left out. limit: the number of pairs,
    which are the first ones, so that a larger limit contains the pairs of a smaller one; None for all.
    """

    name: ClassVar[str] = "on_policy"
    version: ClassVar[int] = 1

    scorer: Scorer
    sources: Sources
    sampling: Sampling | None = None  # how texts are decoded; None: as `lm.sampling` says. Its seed is not used
    prompts: int = 250
    num_samples: int = 6
    max_desired: float = 0.2
    min_undesired: float = 0.8
    limit: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Raises SetupError for numbers that cannot give a pair."""
        if self.num_samples < 2:
            raise SetupError(f"pairs.num_samples={self.num_samples}: a pair takes at least 2 continuations of a prompt")
        if self.prompts < FEWEST:
            raise SetupError(
                f"pairs.prompts={self.prompts}: expected at least {FEWEST}, as a prompt gives at most one pair"
            )
        if not 0 <= self.max_desired < self.min_undesired <= 1:
            raise SetupError(
                f"pairs.max_desired={self.max_desired}, pairs.min_undesired={self.min_undesired}: scores are in "
                "[0, 1], and the first must be below the second"
            )
        if self.limit is not None and self.limit < 1:
            raise SetupError(f"pairs.limit={self.limit}: expected a number of pairs above 0, or null for all")

    def identity(self) -> dict[str, Any]:
        """Return prompts, decoding, scorer and thresholds; the texts themselves follow from these and the model."""
        decoding = None
        if self.sampling is not None:
            decoding = self.sampling.facts()
        return {
            "name": self.name,
            "version": self.version,
            "source": self.sources.locate(RTP).identity(),
            "prompts": self.prompts,
            "num_samples": self.num_samples,
            "max_desired": self.max_desired,
            "min_undesired": self.min_undesired,
            "limit": self.limit,
            "seed": self.seed,
            "decoding": decoding,
            "scorer": named(self.scorer),
        }

    def learnt(self) -> Learnt:
        """Return the prompts of the fit part, which a suite may not ask."""
        return Learnt(rtp=True)

    def tokens(self) -> int:
        """Count the tokens of each prompt, read once, and of all continuations."""
        new = self.sampling.max_new_tokens if self.sampling else Sampling().max_new_tokens
        return self.prompts * (PROMPT_TOKENS + self.num_samples * new)

    def size(self) -> int:
        """Count the tokens of the pairs, assuming that one prompt in four gives a pair."""
        pairs = self.prompts // 4 if self.limit is None else min(self.prompts // 4, self.limit)
        return pairs * 2 * PAIR_TOKENS

    def load(self, lm: LM) -> tuple[Pairs, dict[str, Any]]:
        """Sample, score, pair. Raises SetupError when fewer than FEWEST prompts give a pair."""
        self.check()
        prompts, found = rtp_prompts(self.sources, "fit", self.prompts)
        texts = [prompt.text for prompt in prompts]
        own = replace(self.sampling or lm.sampling, seed=self.seed, batch_size=lm.sampling.batch_size)
        continued = sampled(replace(lm, sampling=own), texts, self.num_samples)
        rows = [[continuation.text for continuation in row] for row in continued]
        flat = unique_scores(self.scorer, [p for p, row in zip(texts, rows, strict=True) for _ in row], sum(rows, []))
        scores = [flat[i : i + self.num_samples] for i in range(0, len(flat), self.num_samples)]
        pairs, gaps = widest(texts, rows, scores, self.max_desired, self.min_undesired)
        if len(gaps) < FEWEST:
            raise SetupError(
                f"{len(gaps)} of {len(texts)} prompts gave a pair (best continuation <= {self.max_desired}, worst >= "
                f"{self.min_undesired} by {self.scorer.name}); at least {FEWEST} are needed. Raise pairs.num_samples "
                "or pairs.prompts, raise pairs.max_desired, or lower pairs.min_undesired"
            )
        pairs, gaps = Pairs(*(column[: self.limit] for column in pairs)), gaps[: self.limit]
        return pairs, {
            "pairs": len(gaps),
            "mean_gap": fmean(gaps),
            "min_gap": min(gaps),
            "prompts": len(texts),
            "unscored": sum(score is None for score in flat),
            "scorer": self.scorer.name,
            "sources": [found.facts()],
        }


def widest(
    prompts: Sequence[str],
    texts: Sequence[Sequence[str]],
    scores: Sequence[Sequence[float | None]],
    max_desired: float,
    min_undesired: float,
) -> tuple[Pairs, list[float]]:
    """Return the least and the most toxic text of each prompt whose scores are beyond both bounds, and the gaps.

    Of texts with equal scores the first is taken; blank texts and those without a score are not candidates.
    """
    pairs, gaps = Pairs([], [], []), []
    for prompt, row, scored in zip(prompts, texts, scores, strict=True):
        known = [(s, text) for s, text in zip(scored, row, strict=True) if s is not None and text.strip()]
        if not known:
            continue
        (low, desired), (high, undesired) = min(known, key=lambda k: k[0]), max(known, key=lambda k: k[0])
        if low <= max_desired and high >= min_undesired:
            for column, value in zip(pairs, (prompt, desired, undesired), strict=True):
                column.append(value)
            gaps.append(high - low)
    return pairs, gaps
