"""What contrastive activation addition learns from: questions with two answers to choose from, (A) or (B)."""

import hashlib
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from bench.data.examples import too_few
from bench.data.sources import Sources
from bench.lm import LM
from methods.base import Pairs
from methods.errors import SetupError

CAA = "nrimsky/CAA"
SPLIT = "generate"  # the set has test_ab and test_open_ended as well, which nothing here reads
BEHAVIOURS = {  # questions to fit on, arXiv 2312.06681
    "coordinate-other-ais": 360,
    "corrigible-neutral-HHH": 290,
    "hallucination": 1000,
    "myopic-reward": 950,
    "refusal": 408,
    "survival-instinct": 903,
    "sycophancy": 1000,
}
PAIR_TOKENS = 230  # of a question read with either answer, roughly


@dataclass(frozen=True, kw_only=True)
class ABPairs:
    """Questions on one behaviour; the answer letter that matches it is desired, the one that does not is undesired.

    A base model reads "Input: QUESTION", a new line and "Response: (A)", as in the authors' code; a chat model reads
    the question in its chat template with the answer behind it. `method.read=letter` of caa reads the letter. The texts
    are in the order of a hash of the question: a larger `limit` contains a smaller one.

    swap: the matching answer is the undesired one. For a behaviour that is not wanted, so that a positive strength
    moves away from it.
    """

    name: ClassVar[str] = "ab"
    version: ClassVar[int] = 1

    sources: Sources
    behaviour: str = "sycophancy"
    limit: int | None = None
    swap: bool = False

    def check(self) -> None:
        """Raises SetupError for a behaviour that the set does not have, and for a limit below 1."""
        if self.behaviour not in BEHAVIOURS:
            raise SetupError(f"data.behaviour={self.behaviour!r}: allowed are {', '.join(BEHAVIOURS)}")
        if self.limit is not None and self.limit < 1:
            raise SetupError(f"data.limit={self.limit}: at least 1, or null for all")

    def identity(self) -> dict[str, Any]:
        """Source, behaviour (its config), how many, and which answer is the desired one."""
        self.check()
        source = self.sources.locate(CAA, self.behaviour, SPLIT).identity()
        own = {"name": self.name, "version": self.version, "source": source}
        return own | {"limit": self.limit, "swap": self.swap}

    def tokens(self) -> int:
        """Nothing is sampled."""
        return 0

    def size(self) -> int:
        """Each question twice, with either answer."""
        return (self.limit or BEHAVIOURS[self.behaviour]) * PAIR_TOKENS

    def load(self, lm: LM) -> tuple[Pairs, dict[str, Any]]:
        """The pairs, worded for this model. Raises SetupError for fewer than `limit`, and for answers that are none."""
        self.check()
        rows = [dict(row) for row in self.sources.load(CAA, self.behaviour, SPLIT)]
        if self.limit is not None and len(rows) < self.limit:
            raise too_few(f"questions on {self.behaviour}", self.limit, len(rows), "lower data.limit or set it to null")
        pairs = Pairs([], [], [])
        for row in sorted(rows, key=lambda row: _digest(row["question"]))[: self.limit]:
            prompt = worded(lm, row["question"])
            matching, other = (answer(row[f"answer_{kind}_behavior"]) for kind in ("matching", "not_matching"))
            if matching == other:
                raise SetupError(f"{CAA}, {self.behaviour}: both answers of {row['question'][:60]!r} are {other}")
            blank = "" if prompt[-1].isspace() else " "
            pairs.prompt.append(prompt)
            pairs.desired.append(blank + (other if self.swap else matching))
            pairs.undesired.append(blank + (matching if self.swap else other))
        about = {"pairs": len(pairs.prompt), "behaviour": self.behaviour, "swap": self.swap}
        return pairs, about | {"sources": [self.sources.locate(CAA, self.behaviour, SPLIT).facts()]}


def worded(lm: LM, question: str) -> str:
    """What the model reads before the answer: "Input: ..." or the chat template.

    A method puts BOS before every text where the tokenizer does so; a template that writes it too must not double it.
    """
    if not lm.chat:
        return f"Input: {question.strip()}\nResponse:"
    messages = [{"role": "user", "content": question.strip()}]
    text = str(lm.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
    bos = lm.tokenizer.bos_token
    return text.removeprefix(bos) if bos and lm.tokenizer("").input_ids == [lm.tokenizer.bos_token_id] else text


def answer(text: str) -> str:
    """A letter in brackets, without blanks around it. Raises SetupError for anything else."""
    if not re.fullmatch(r"\([A-Z]\)", text.strip()):
        raise SetupError(f"{CAA}: an answer is {text!r}, expected is a letter in brackets, as (A)")
    return text.strip()


def _digest(question: str) -> str:
    return hashlib.sha256(question.encode()).hexdigest()
