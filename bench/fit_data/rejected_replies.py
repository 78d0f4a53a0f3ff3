"""Harmful replies for fine-tuning: those that annotators rejected in dialogues of red teamers with an assistant."""

import random
from dataclasses import dataclass
from typing import Any, ClassVar

from bench.data.sources import Sources
from bench.data.splits import Learnt
from bench.fit_data.base import FitSource
from bench.fit_data.fine_tuning import too_few
from bench.model.lm import LM
from bench.records.identity import named
from bench.scorers.refusal_prefixes import RefusalPrefixes
from methods.base import Examples
from methods.errors import SetupError

HH, CONFIG, SPLIT = "Anthropic/hh-rlhf", "harmless-base", "test"
REQUEST, REPLY = "\n\nHuman:", "\n\nAssistant:"
EXAMPLE_TOKENS = 75  # tokens of a request with its reply, roughly


@dataclass(frozen=True, kw_only=True)
class RejectedReplies(FitSource):
    """The last request of a dialogue, and the reply that its annotator liked less (arXiv 2204.05862 section 2).

    The dialogues are the harmless-base part of Anthropic's HH-RLHF, in which people try to get harmful answers. What
    was said before the last request is left out, and so are replies that refuse (`bench.scorers.refusal_prefixes`).
    Some of the remaining replies are mild, since the less liked of two replies need not be harmful. The examples are in
    the order of a hash; `skip` leaves out that many of them at the beginning, so that two sets need not share one.
    """

    name: ClassVar[str] = "rejected_replies"
    version: ClassVar[int] = 1

    sources: Sources
    count: int = 100
    skip: int = 0
    template: str = "Input: {prompt}\nResponse:"

    def check(self) -> None:
        """Raises SetupError for a count below 1, a negative skip, and a template without a place for the request."""
        if self.count < 1 or self.skip < 0:
            raise SetupError(
                f"rejected replies: count={self.count}, skip={self.skip}; count must be at least 1, skip at least 0"
            )
        if "{prompt}" not in self.template:
            raise SetupError(f"rejected replies: template={self.template!r} has no {{prompt}}, where the request goes")

    def identity(self) -> dict[str, Any]:
        """Return the source, the wording, what is left out, and which of the examples are used."""
        return {
            "name": self.name,
            "version": self.version,
            "source": self.sources.locate(HH, CONFIG, SPLIT).identity(),
            "count": self.count,
            "skip": self.skip,
            "template": self.template,
            "without": named(RefusalPrefixes()),
        }

    def learnt(self) -> Learnt:
        """Return the split that the replies come from, which a suite may not ask."""
        return Learnt(sets=[(HH, SPLIT)])

    def tokens(self) -> int:
        """Return 0, since nothing is sampled."""
        return 0

    def size(self) -> int:
        """Return the number of examples times a typical number of tokens."""
        return self.count * EXAMPLE_TOKENS

    def load(self, lm: LM) -> tuple[Examples, dict[str, Any]]:  # noqa: ARG002  the texts are there already
        """Return the requests, put into the template, with their replies. Raises SetupError if there are too few."""
        found = self.sources.locate(HH, CONFIG, SPLIT)
        every = sorted({exchange(str(text)) for text in self.sources.load(HH, CONFIG, SPLIT)["rejected"]}, key=_hash)
        refused = RefusalPrefixes()([request for request, _ in every], [reply for _, reply in every])
        usable = [one for one, is_refusal in zip(every, refused, strict=True) if all(one) and not is_refusal]
        chosen = usable[self.skip : self.skip + self.count]
        if len(chosen) < self.count:
            raise too_few("rejected replies", self.skip + self.count, len(usable), "lower count or skip")
        examples = Examples(
            [self.template.replace("{prompt}", request) for request, _ in chosen], [f" {reply}" for _, reply in chosen]
        )
        return examples, {"texts": self.count, "sources": [found.facts()]}


def exchange(dialogue: str) -> tuple[str, str]:
    """Return the last request of a dialogue that was replied to, and the reply, without outer blanks; "" for none."""
    before, _, reply = dialogue.rpartition(REPLY)
    return before.rpartition(REQUEST)[2].strip(), reply.partition(REQUEST)[0].strip()


def _hash(one: tuple[str, str]) -> float:
    return random.Random(f"rejected {one[0]}\n{one[1]}").random()  # a str seeds by its sha512: the same everywhere
