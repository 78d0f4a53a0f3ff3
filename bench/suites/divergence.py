"""Side effects on ordinary text: KL divergence of the steered model's next token from the unsteered model's.

At token t of a text x, over the vocabulary V, in nats:

    KL_t = sum_v p(v | x_<t) (log p(v | x_<t) - log q(v | x_<t)),   p unsteered, q steered

Both models read the same tokens (teacher forcing), so nothing is sampled and no scorer judges. This is the cost of a
method on text that should not change; reinforcement learning bounds its drift in the other direction, by KL(q || p)
(arXiv 2009.01325 section 3.4). KL(p || q) weighs by p: it says how much q takes from what the unsteered model finds
probable. If q gives probability 0 to a token that p allows, the divergence is infinite, which is an error here. For the
unsteered model, and for strength 0, it is exactly 0: both are read in the same batches.

The texts are sentences of Wikipedia from a wheel, those of the suite perplexity_wiki_sentences that have at least five
words. The first `skip` of the file are left out, since background=wiki lets methods learn from them. As in that suite,
the token that begins a text is the prompt, and the sentence counts as generated; a steering prefix stands between the
two and is part of the prompt. So methods that steer generated tokens steer the whole sentence; those that act from the
last token of the prompt on also steer the first prediction; act_add, which steers the front of a prompt, steers almost
nothing. Prefix and sentence are tokenised apart, since both models have to read the same tokens of the sentence. A chat
model reads plain text as well.

Numbers can only be compared for the same texts and the same tokenizer. The sentences have about 14 tokens, so kl_95
is near the largest of a text. A prefix has most effect at the beginning of a text, where there is no other context: the
first prompt of the method `prompt` on SmolLM2-135M moves the first token by 7.3 nats, and tokens from the tenth on by
0.3; last_token_kl shows what is left of this effect at the end of a text.

The steered model's logits wait for the unsteered ones in a temporary file without a name: the unsteered model cannot be
asked inside the steered block, and keeping only some tokens would not be exact. The file has the model's dtype, 0.3 GB
for 100 sentences and a vocabulary of 49,000 in fp32, and lies where TMPDIR says.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bench.data.sources import Located, Sources
from bench.data.splits import Learnt, Prompt, part_of, prompt, rank
from bench.data.text_sets import WIKI, wiki_leak, wiki_sentences
from bench.model.lm import LM, Request
from bench.model.next_tokens import next_token_logits
from bench.stats import metrics
from bench.suites.base import Answers, Split, Suite, SuiteError, SuiteResult
from methods.errors import SetupError

TOKENS_A_TEXT = 16  # roughly
HIGH = 0.95  # the quantile of kl_95
METRICS = ("mean_kl", "kl_95", "last_token_kl")
SCOPE = "a sentence counts as generated, the token that begins a text and a steering prefix as the prompt"


class Logits:
    """Logits (T + 1, V) of texts by their number, in a temporary file that has no name and ends with this object."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  it is closed with this object
        self._places: dict[int, tuple[int, torch.Size, torch.dtype]] = {}

    def add(self, number: int, logits: Tensor) -> None:
        """Keep the logits of a text, bit by bit."""
        self._places[number] = self._file.tell(), logits.shape, logits.dtype
        self._file.write(logits.cpu().contiguous().view(torch.uint8).numpy().data)

    def read(self, number: int) -> Tensor:
        """Return the logits of a text, on the CPU."""
        place, shape, dtype = self._places[number]
        held = bytearray(shape.numel() * dtype.itemsize)
        self._file.seek(place)
        self._file.readinto(held)
        return torch.frombuffer(held, dtype=dtype).view(shape)


@dataclass(frozen=True, kw_only=True)
class Divergence(Suite[Logits]):
    """KL(unsteered || steered) of the next token in nats, with a text as the item.

    mean_kl        mean over the predicted tokens of all texts, so a text weighs as much as it has tokens.
    kl_95          95th percentile over the same tokens (linear between two of them), mean over the texts: the few
                   tokens that steering changes most, which a mean hides.
    last_token_kl  divergence of the token that would come next after the whole text, mean over the texts.

    texts: number of sentences of the test split; None: all. dev_texts: number of sentences of the dev split; no
    sentence is in both. max_tokens: the length at which a text is cut. skip: number of sentences at the beginning of
    the file that are not asked, since methods may learn from them.
    """

    version: ClassVar[int] = 1

    name: str = "kl"
    sources: Sources
    texts: int | None = 100
    dev_texts: int = 24
    max_tokens: int = 64
    skip: int = 200

    def __post_init__(self) -> None:
        """Raises SetupError for an impossible number of texts or tokens."""
        for option, least in (("texts", 1), ("dev_texts", 1), ("max_tokens", 1), ("skip", 0)):
            value = getattr(self, option)
            if value is not None and value < least:
                raise SetupError(f"suite.{self.name}.{option}={value}: expected at least {least}")

    def asked(self, split: Split) -> tuple[list[Prompt], Located]:
        """Return the sentences of a split. Raises SetupError if there are too few."""
        located, found = wiki_sentences(self.sources)
        prompts = [prompt(text) for text in sorted(found[self.skip :], key=rank)]
        return part_of(prompts, split, self.texts, self.dev_texts, f"suite.{self.name}.texts"), located

    def identity(self, split: Split) -> dict[str, Any]:
        """Return the texts, and the length at which they are cut."""
        return {
            "source": self.sources.locate(WIKI, None, "test").fingerprint,
            "texts": self.texts,
            "dev": self.dev_texts if split == "dev" else None,
            "max_tokens": self.max_tokens,
            "skip": self.skip,
        }

    def leak(self, learnt: Learnt) -> str | None:
        """Return why a method that learnt from sentences that are asked here must not be measured; None if it may."""
        return wiki_leak(learnt, self.name, self.skip)

    def tokens(self, split: Split) -> int:
        """Count the tokens of each text, read by both models."""
        count = self.dev_texts if split == "dev" else self.texts or 300
        return 2 * count * TOKENS_A_TEXT

    def ask(self, lm: LM, split: Split) -> Answers[Logits]:
        """Return the steered model's logits. Raises SetupError if a text with the steering prefix is too long."""
        said = Logits()
        for number, logits in next_token_logits(lm, self._requests(lm, self.asked(split)[0])):
            said.add(number, logits)
        return Answers(split, said)

    def score(self, answers: Answers[Logits], baseline: LM) -> SuiteResult:
        """Compare the logits with the unsteered model's. Raises SuiteError for a divergence that is NaN or infinite."""
        texts, located = self.asked(answers.split)
        found: dict[int, list[float]] = {}
        for number, logits in next_token_logits(baseline, self._requests(baseline, texts)):
            found[number] = divergence(logits, answers.said.read(number).to(logits.device)).tolist()
        broken = sum(not np.isfinite(values).all() for values in found.values())
        if broken:
            raise SuiteError(
                f"suite.{self.name}: the divergence is NaN or infinite in {broken} of {len(found)} texts, so it has "
                "no mean: the method gives probability 0 to tokens that the unsteered model allows. Leave "
                f"{self.name} out for it, or make its strength (of dexperts: method.outside) finite"
            )
        scores = pd.DataFrame([text_scores(text.id, found[number]) for number, text in enumerate(texts)])
        tables = [
            pd.DataFrame(
                {
                    "metric": name,
                    "item": scores["item"],
                    "value": scores[name],
                    "weight": scores["tokens"].astype(float) if name == "mean_kl" else 1.0,
                }
            )[metrics.ITEM_COLUMNS]
            for name in METRICS
        ]
        measured = {
            name: metrics.metric(table, higher_is_better=False) for name, table in zip(METRICS, tables, strict=True)
        }
        info = {
            "sources": [located.facts()],
            "scope": SCOPE,
            "texts": len(scores),
            "tokens": int(scores["tokens"].sum()),
        }
        return SuiteResult(measured, pd.concat(tables, ignore_index=True), scores, info)

    def _requests(self, lm: LM, texts: Sequence[Prompt]) -> list[Request]:
        """Return a request for each text; its context is the token that begins a text and the steering prefix."""
        prefix = _tokens(lm, lm.steering.prefix) if lm.steering.prefix else []
        requests = [Request([lm.end_of_text, *prefix], _tokens(lm, text.text)[: self.max_tokens]) for text in texts]
        longest = max(len(one.context) + len(one.continuation) for one in requests)
        if longest > lm.max_length:
            room = max(1, lm.max_length - 1 - len(prefix))
            raise SetupError(
                f"suite.{self.name}: a text with the steering prefix has {longest} tokens, the model reads "
                f"{lm.max_length}; set suite.{self.name}.max_tokens={room} for all methods"
            )
        return requests


def _tokens(lm: LM, text: str) -> list[int]:
    return list(lm.tokenizer(text, add_special_tokens=False).input_ids)


def text_scores(item: str, values: Sequence[float]) -> dict[str, Any]:
    """Return the metrics of one text from its T + 1 divergences: one at each token, and one after the last."""
    *of_tokens, last = values
    return {
        "item": item,
        "tokens": len(of_tokens),
        "mean_kl": float(np.mean(of_tokens)),
        "kl_95": float(np.quantile(of_tokens, HIGH)),
        "last_token_kl": last,
    }


def divergence(unsteered: Tensor, steered: Tensor) -> Tensor:
    """Return sum_v p_v (log p_v - log q_v) in nats, p unsteered, q steered; logits (C, V), (C, V) -> (C,) in float64.

    Equal logits give exactly 0, and a sum that rounding takes below 0 counts as 0.
    """
    p, q = (logits.double().log_softmax(-1) for logits in (unsteered, steered))  # (C, V)
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)
