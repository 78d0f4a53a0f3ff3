"""SASA (arXiv 2410.03818): tokens after which the model's own state lies on the desired side become likelier."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from methods import directions, layout, options
from methods.base import Artefact, Demand, FitData, Method, Steering, required_pairs
from methods.decoding import Step, most_probable
from methods.errors import SetupError
from methods.separation import separation_facts
from methods.tokens import encode_pairs

Margin = Literal["raw", "std"]


@dataclass(frozen=True, kw_only=True)
class SASA(Method):
    """z(c) <- z(c) + strength * softmax over candidates of margin(c), for each candidate c for the next token.

        margin(c) = w . (g(c) - (mean of desired + mean of undesired) / 2)

    g(c) is the model's final state, (D,), when c is read after the text; this takes a forward of one token for each c.
    Candidates are the tokens of the nucleus, at most the `max_candidates` most probable; all other tokens keep their
    logits. w is fitted on the final states at the last token of desired and undesired texts (prompt and continuation):

        w = pseudo-inverse(S) (mean of desired - mean of undesired) / 2, at unit length,
        S = (scatter of desired + scatter of undesired) / (N + N - 2),   (D, D)

    where the pseudo-inverse leaves out eigenvalues of at most `eigenvalue`. Strength is the paper's beta, in logits:
    since the softmax sums to 1, no logit rises by more than the strength.

    The method follows arXiv 2410.03818 and its code as continued in AISteer360. Differences: the texts are our pairs
    and not two sets of comments. The code tries all tokens that earlier filters leave, or the whole vocabulary if there
    is no filter; the limit on candidates is ours. margin="std", our default, measures margins in standard deviations of
    the texts along w, since raw margins are large on many models, and their softmax then picks one token; "raw" is the
    paper's. The last token is found by each text's own length, whichever side is padded. A likelihood is steered by the
    same function at every token, so it is the likelihood under the distribution that is sampled from, and it costs as
    many forwards as sampling.

    Example:
        >>> from methods import SASA, FitData
        >>> method = SASA(max_candidates=8)
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs))
        >>> with method.apply(model, artefact, 10) as steering:
        ...     print(steering.demand)  # what `next_logits` takes: 8 next tokens are tried
        Demand(readings=0, ahead=8, copies=0, room=0)
    """

    name: ClassVar[str] = "sasa"
    title: ClassVar[str] = "SASA"
    cite: ClassVar[str] = "2410.03818"
    family: ClassVar[str] = "decoding"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    has_control: ClassVar[bool] = True  # type: ignore[misc]  # not an option
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "beta, logits"

    top_p: float = 0.9
    max_candidates: int = 20
    margin: Margin = "std"
    eigenvalue: float = 1e-6
    strengths: Sequence[float] = (2, 5, 10, 20, 50)

    def demand(self) -> Demand:
        """Return the memory for trying the candidates ahead."""
        return Demand(ahead=self.max_candidates)

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a model in which no token can be tried ahead, and for an option outside its range."""
        options.check_types(self)
        layout.final_norm(model)
        layers = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
        if any(getattr(layer, "is_sliding", False) for layer in layers):
            raise SetupError(
                f"sasa: {model.config.model_type} has a sliding window, from which a token cannot be tried and taken "
                "back; choose another method"
            )
        if not 0 < self.top_p <= 1 or type(self.max_candidates) is not int or self.max_candidates < 2:
            raise SetupError(
                f"method.top_p={self.top_p}, method.max_candidates={self.max_candidates}: expected a probability "
                "above 0 and at "
                "most 1, and at least 2 tokens to choose between"
            )
        if self.margin not in get_args(Margin):
            raise SetupError(f"method.margin={self.margin!r}: allowed are {', '.join(get_args(Margin))}")
        if not self.eigenvalue >= 0:
            raise SetupError(f"method.eigenvalue={self.eigenvalue}: expected 0 or more; paper: 1e-6")

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return w as "direction" (D,), and two scalars along it: "midpoint", and the "deviation" within a side.

        Raises SetupError if there are no pairs, or if the states of the two sides do not differ or do not vary.
        """
        self.check(model)
        texts = encode_pairs(model, tokenizer, required_pairs(data, self.name))
        block = len(layout.blocks(model)) - 1
        desired, undesired = (  # (N, D) each
            directions.pooled_features(model, side, [block], read="last", after_final_norm=True)[0]
            for side in (texts.desired, texts.undesired)
        )
        probe = fisher(desired, undesired, self.eigenvalue)
        margins = [side.double() @ probe.direction - probe.midpoint for side in (desired, undesired)]  # (N,) each
        right = torch.cat([margins[0] > 0, margins[1] < 0])
        return {
            "direction": probe.direction.float(),
            "midpoint": probe.midpoint.float(),
            "deviation": probe.deviation.float(),
            "info.deviation": probe.deviation.float(),
            "info.rank": torch.tensor(probe.rank),
            "info.train_accuracy": right.float().mean(),
            "info.cut_pairs": torch.tensor(texts.cut),
            **separation_facts(desired, undesired),
        }

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Raise candidates' logits inside the `with`. Raises SetupError for an artefact of another model."""
        direction = directions.fitted(model, artefact, "direction", self.name)
        unit = artefact["deviation"] if self.margin == "std" else torch.tensor(1.0)

        def next_logits(step: Step) -> Tensor:
            tokens, inside = most_probable(step.logits, self.top_p, self.max_candidates)  # (B, K, N)
            tried = int(inside.sum(-1).max())
            tokens, inside = tokens[..., :tried], inside[..., :tried]
            states = step.streams.ahead(tokens).float()  # (B, K, N, D)
            margin = (states @ direction.to(states) - artefact["midpoint"].to(states)) / unit.to(states)  # (B, K, N)
            share = margin.masked_fill(~inside, -torch.inf).softmax(-1)
            return step.logits.scatter_add(-1, tokens, (strength * share).to(step.logits))

        yield Steering(next_logits=next_logits, demand=self.demand()) if strength else Steering()


class Probe(NamedTuple):
    """A direction (D,) of unit length, and scalars along it: the midpoint of two sides, the deviation within a side."""

    direction: Tensor
    midpoint: Tensor
    deviation: Tensor
    rank: int


def fisher(desired: Tensor, undesired: Tensor, eigenvalue: float) -> Probe:
    """Fit Fisher's discriminant of two sides, (N, D) each, in double precision; only eigenvalues above a bound count.

    Raises SetupError if the sides do not vary, or have the same mean.
    """
    sides = [desired.double(), undesired.double()]
    means = [side.mean(0) for side in sides]  # (D,) each
    scatter = sum((side - mean).T @ (side - mean) for side, mean in zip(sides, means, strict=True))
    covariance = scatter / max(sum(map(len, sides)) - len(sides), 1)  # (D, D)
    values, vectors = torch.linalg.eigh(covariance)  # (D,), and (D, D) with eigenvectors as columns
    kept = values > eigenvalue
    if not kept.any():
        raise SetupError(
            "sasa: the final states of the desired or of the undesired texts do not vary (no eigenvalue above "
            f"{eigenvalue:g}); give "
            "more pairs, whose texts differ"
        )
    difference = means[0] - means[1]
    along = vectors[:, kept].T @ difference / 2  # (R,)
    if float(along.norm()) <= directions.SAME * float(torch.stack(means).norm(dim=-1).mean()):
        raise SetupError(
            "sasa: the final states of desired and undesired texts have the same mean; give pairs whose texts differ "
            "where they end"
        )
    direction = vectors[:, kept] @ (along / values[kept])  # (D,)
    direction = direction / direction.norm()
    midpoint = direction @ (means[0] + means[1]) / 2
    return Probe(direction, midpoint, (direction @ covariance @ direction).sqrt(), int(kept.sum()))
