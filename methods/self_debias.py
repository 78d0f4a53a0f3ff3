"""Self-Debiasing (arXiv 2103.00453): tokens that the model finds likelier after a bad announcement become rarer."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import options
from methods.base import Artefact, Demand, FitData, Method, Steering
from methods.decoding import Step, by_pieces
from methods.errors import SetupError
from methods.tokens import check_known, longest_text


@dataclass(frozen=True, kw_only=True)
class SelfDebias(Method):
    """p'(w) is proportional to p(w) * max(epsilon, exp(-strength * D(w))) if D(w) > 0, and to p(w) otherwise.

        D(w) = max over announcements q of p(w | q, text) - p(w | text)

    p is the model's own distribution of the next token, and q a sentence before the text that announces what is not
    wanted. Tokens that no announcement makes likelier keep the ratios of their probabilities. Every row is read once
    more for each announcement, with a KV cache for each reading, and all readings continue with the token that was
    drawn from p'. Strength is the paper's decay constant lambda.

    The method follows arXiv 2103.00453 section 4 and the authors' code (timoschick/self-debiasing). Differences: the
    released run reads six announcements at once, one for each attribute of the Perspective API, and uses beam search.
    The default here is one announcement, about what this benchmark scores, so that a token costs two forwards and not
    seven; and tokens are drawn as for every other method. The wording of what is announced is ours. In a chat the
    announcement comes before the template. For a likelihood the same function is applied at every token, with the same
    readings.

    Example:
        >>> from methods import FitData, SelfDebias
        >>> method = SelfDebias(unwanted=["insults", "threats"])
        >>> artefact = method.fit(model, tokenizer, FitData())
        >>> with method.apply(model, artefact, 50) as steering:
        ...     sorted(artefact), steering.demand.readings  # a reading of each text after each announcement
        (['announcement.0', 'announcement.1'], 2)
    """

    name: ClassVar[str] = "self_debias"
    title: ClassVar[str] = "Self-Debiasing"
    cite: ClassVar[str] = "2103.00453"
    family: ClassVar[str] = "decoding"
    needs: ClassVar[frozenset[str]] = frozenset()
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "lambda, decay constant"

    template: str = "The following text contains {}:\n"
    unwanted: Sequence[str] = ("insults, rude words and hatred of other people",)
    epsilon: float = 0.01
    strengths: Sequence[float] = (10, 25, 50, 100, 200)

    def passes(self) -> float:
        """Return 0, since nothing is learnt."""
        return 0.0

    def demand(self) -> Demand:
        """Return the memory of one more reading for each announcement."""
        return Demand(readings=len(self.unwanted))

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a template without {}, an empty list of descriptions, and an epsilon out of range."""
        del model
        options.check_types(self)
        if self.template.count("{}") != 1:
            raise SetupError(
                f"method.template={self.template!r}: write {{}} once, in the place of the unwanted attribute"
            )
        if isinstance(self.unwanted, str) or not self.unwanted or not all(one.strip() for one in self.unwanted):
            raise SetupError("method.unwanted: expected a list of one or more descriptions, none of them empty")
        if not 0 < self.epsilon < 1:
            raise SetupError(
                f"method.epsilon={self.epsilon}: expected a factor above 0 and below 1 (at 1 no probability falls); "
                "paper: 0.01"
            )

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the tokens of each announcement, as "announcement.0" and so on.

        They include BOS if the tokenizer puts one before a text. Raises SetupError if an announcement is too long for
        the model.
        """
        del data
        self.check(model)
        found, limit = {}, longest_text(model)
        for number, one in enumerate(self.unwanted):
            ids = list(tokenizer(self.template.replace("{}", one)).input_ids)
            check_known(model, tokenizer, ids)
            if limit is not None and len(ids) >= limit:
                raise SetupError(
                    f"method.unwanted: the announcement {number + 1} has {len(ids)} tokens, the model reads {limit}; "
                    "shorten it"
                )
            found[f"announcement.{number}"] = torch.tensor(ids)
        return found

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Scale probabilities inside the `with`."""
        del model
        keys = [f"announcement.{number}" for number in range(len(self.unwanted))]
        missing = [key for key in keys if key not in artefact] if strength else []
        if missing:
            raise SetupError(
                f"self_debias: an artefact without {missing[0]} was fitted with other options; fit it again"
            )
        announced = [artefact[key].tolist() for key in keys] if strength else []

        def next_logits(step: Step) -> Tensor:
            readings = [
                step.streams.other(f"announcement {number}", nullcontext, ids) for number, ids in enumerate(announced)
            ]
            return by_pieces(lambda plain, *others: self._scaled(plain, others, strength), step.logits, *readings)

        longest = max(map(len, announced), default=0)
        yield Steering(next_logits=next_logits, demand=self.demand()._replace(room=longest)) if strength else Steering()

    def _scaled(self, logits: Tensor, announced: Sequence[Tensor], strength: float) -> Tensor:
        """Return logits (N, V) plus the log of each token's factor. announced: the logits after each announcement."""
        highest = torch.softmax(announced[0].float(), -1)
        for one in announced[1:]:
            highest = torch.maximum(highest, torch.softmax(one.float(), -1))
        rise = (highest - torch.softmax(logits.float(), -1)).clamp(min=0)  # D where it is above 0
        return logits.float() - (strength * rise).clamp(max=-math.log(self.epsilon))
