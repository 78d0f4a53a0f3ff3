"""DExperts (arXiv 2105.03023): the logits are moved away from those of a copy that was trained on unwanted texts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import options
from methods.base import INFO, Artefact, Demand, Examples, FitData, Method, Steering, required_pairs
from methods.decoding import Step, by_pieces, nucleus_edge
from methods.errors import SetupError
from methods.intervention import exchanged
from methods.optimiser import OptimizerName
from methods.training import STEP_COST, Recipe, changed, check_recipe, encoded, fine_tuned, most_memory
from methods.training_memory import TrainingMemory

AntiExpert = Literal["harmful", "undesired"]
Expert = Literal["base", "desired"]
Role = Literal["anti_expert", "expert"]


@dataclass(frozen=True, kw_only=True)
class DExperts(Method):
    """z' = z + strength * (z_expert - z_anti) at the tokens of the model's own nucleus; the others are penalised.

    z, z_expert and z_anti are the logits of the model, of an expert and of an anti-expert after the same tokens. With
    expert="base" the model is its own expert, z' = z + strength * (z - z_anti), the paper's "anti-only" form; with
    "desired" the expert is a copy fine-tuned on the desired texts of the pairs. The anti-expert is fine-tuned on the
    harmful texts, or on the undesired texts of the pairs. The nucleus is the smallest set of the model's most probable
    tokens whose probability reaches `top_p`. Strength is the paper's alpha.

    outside: the paper (section 2) and the authors' code (alisawuffles/DExperts) set the logits of the tokens outside
    the nucleus to -inf. A text that holds such a token would have a likelihood of 0, and a mean over texts would have
    no value, so our default is finite: these tokens keep their odds against the nucleus as a whole, but lowered by
    `outside` nats. At 20 nats all of them together are drawn once in a billion tokens, and a text loses 20 nats for
    each such token that it holds. `inf` gives the paper's form; likelihoods that are not finite are then refused.
    Sampling and likelihood are steered in the same way.

    edge: with a hard border, the last digit of a probability, which differs from batch to batch, decides whether a
    token at the border of the nucleus is inside, and a likelihood would differ by 20 nats. So by default the penalty
    grows to its full size over the first two nats below the nucleus' edge e (`methods.decoding.nucleus_edge`); an edge
    of 0 gives the paper's hard border. With an edge above 0:

        m(w) = 1 - (e - z(w)) / edge, between 0 and 1;   d = z_expert - z_anti
        z'(w) = z(w) + m(w) * strength * d(w) + (1 - m(w)) * (g - outside)
        g = log sum of m exp(z + strength * d) - log sum of m exp(z),  over all tokens

    Differences from the paper: its experts are models of their own, trained on 160,000 and 1.4 million comments of a
    set that we do not have; ours are copies of the model that learn a hundred texts, so learning rate and epochs are a
    choice of ours. The sampling's own nucleus is taken from z' afterwards, as for every method (sampling.top_p=1 is the
    paper's setting). Each expert adds a forward per token, and `apply` holds one more copy of the weights for it.

    Example:
        >>> from methods import DExperts, FitData
        >>> method = DExperts(anti_expert="harmful", epochs=1)
        >>> artefact = method.fit(model, tokenizer, FitData(harmful=harmful))
        >>> with method.apply(model, artefact, 1.5) as steering:
        ...     print(steering.demand)  # what `next_logits` takes: a reading of each text by a copy of the model
        Demand(readings=1, ahead=0, copies=1, room=0)
    """

    name: ClassVar[str] = "dexperts"
    title: ClassVar[str] = "DExperts"
    cite: ClassVar[str] = "2105.03023"
    family: ClassVar[str] = "decoding"
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "alpha"
    has_control: ClassVar[bool] = True  # type: ignore[misc]  # not an option

    anti_expert: AntiExpert = "harmful"
    expert: Expert = "base"
    top_p: float = 0.9
    outside: float = 20.0
    edge: float = 2.0
    learning_rate: float = 3e-5
    epochs: int = 5
    batch_size: int = 8
    max_tokens: int = 128
    seed: int = 0
    optimizer: OptimizerName = "adamw"
    gradient_checkpointing: bool = False
    strengths: Sequence[float] = (0.5, 1, 1.5, 2, 3)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # it depends on what the experts learn from
        """The fields of data that the experts learn from: harmful texts, pairs, or both."""
        anti = "harmful" if self.anti_expert == "harmful" else "pairs"
        return frozenset({anti} if self.expert == "base" else {anti, "pairs"})

    @property
    def recipe(self) -> Recipe:
        """The recipe by which both experts are trained."""
        return Recipe(
            self.learning_rate, self.epochs, self.batch_size, self.seed, self.optimizer, self.gradient_checkpointing
        )

    def passes(self) -> float:
        """Count a training step per epoch, and two readings for the loss before and after."""
        return STEP_COST * self.epochs + 2

    def demand(self) -> Demand:
        """Return a reading with its own weights for each expert that is not the model itself."""
        return Demand(readings=len(self._roles), copies=len(self._roles))

    @property
    def _roles(self) -> tuple[Role, ...]:
        return ("anti_expert",) if self.expert == "base" else ("anti_expert", "expert")

    def training(self, model: PreTrainedModel) -> TrainingMemory:
        """Return the memory for training all weights."""
        return most_memory(model, list(model.parameters()), self.recipe, self.max_tokens)

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a recipe that trains nothing, and for an option outside its range."""
        del model
        options.check_types(self)
        check_recipe(self.recipe)
        for key, value, allowed in (
            ("anti_expert", self.anti_expert, get_args(AntiExpert)),
            ("expert", self.expert, get_args(Expert)),
        ):
            if value not in allowed:
                raise SetupError(f"method.{key}={value!r}: allowed are {', '.join(allowed)}")
        if not 0 < self.top_p <= 1:
            raise SetupError(f"method.top_p={self.top_p}: expected a probability above 0 and at most 1; paper: 0.9")
        if not self.outside >= 0 or not 0 <= self.edge < math.inf:
            raise SetupError(
                f"method.outside={self.outside}, method.edge={self.edge}: expected nats, 0 or more; outside=inf "
                "forbids tokens"
            )

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the change of every weight by the training of each expert, as "anti_expert.change.<name>".

        Raises SetupError without the texts that an expert learns from, and if a loss is no longer finite.
        """
        self.check(model)
        found: Artefact = {}
        for role, what, examples in self._texts(data):
            completions = examples.completion if examples else []
            if not any(completions):
                step = "harmful=on_policy_toxic, or harmful=file harmful.path=FILE"
                raise SetupError(
                    f"dexperts: its {role} learns from {what} and got {len(completions) or 'none'}"
                    f"{', none of which has a completion' if completions else ''}; set "
                    + (step if what == "harmful texts" else "pairs=file pairs.path=FILE")
                )
            texts, cut = encoded(model, tokenizer, examples, what, self.max_tokens)
            found[f"{INFO}cut_{what.split()[0]}"] = torch.tensor(cut)
            for key, tensor in fine_tuned(model, texts, self.recipe, stage=role).items():
                known = key.startswith(INFO)
                found[f"{INFO}{role}.{key.removeprefix(INFO)}" if known else f"{role}.{key}"] = tensor
        return found

    def _texts(self, data: FitData) -> list[tuple[Role, str, Examples | None]]:
        """Return the training texts of each expert: its role, what the texts are called, and the texts."""
        learns: list[tuple[Role, str, Examples | None]] = []
        if self.anti_expert == "harmful":
            learns.append(("anti_expert", "harmful texts", data.harmful))
        else:
            pairs = required_pairs(data, self.name)
            learns.append(("anti_expert", "undesired texts", Examples(pairs.prompt, pairs.undesired)))
        if self.expert == "desired":
            pairs = required_pairs(data, self.name)
            learns.append(("expert", "desired texts", Examples(pairs.prompt, pairs.desired)))
        return learns

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Move the logits inside the `with`. Raises SetupError for the artefact of another model."""
        if not strength:
            yield Steering()
            return
        inside = {role: self._weights_of(model, artefact, role) for role in self._roles}

        def next_logits(step: Step) -> Tensor:
            readings = [step.streams.other(role, partial(exchanged, inside[role])) for role in inside]
            return by_pieces(lambda base, *others: self._moved(base, others, strength), step.logits, *readings)

        yield Steering(next_logits=next_logits, demand=self.demand())

    def _weights_of(self, model: PreTrainedModel, artefact: Artefact, role: Role) -> Mapping[nn.Parameter, Tensor]:
        """Return the weights of an expert."""
        own = {key.removeprefix(f"{role}."): one for key, one in artefact.items() if key.startswith(f"{role}.")}
        if not own:
            raise SetupError(f"{self.name}: an artefact without {role} was fitted with other options; fit it again")
        with changed(model, own, 1.0, self.name), torch.inference_mode(False):
            return {parameter: parameter.detach().clone() for parameter in model.parameters()}

    def _moved(self, base: Tensor, others: Sequence[Tensor], strength: float) -> Tensor:
        """Return the moved logits (N, V) of the model.

        others: the logits of the anti-expert and, if there is one, of the expert.
        """
        base = base.float()
        below = nucleus_edge(base, self.top_p) - base  # (N, V)
        member = (1 - below / self.edge).clamp(0, 1) if self.edge else (below <= 0).float()
        expert = base if self.expert == "base" else others[1].float()
        shift = strength * (expert - others[0].float())
        gained = _log_sum(base + shift, member) - _log_sum(base, member)  # (N, 1)
        penalised = base + member * shift + (1 - member) * (gained - self.outside)
        return torch.where(member == 1, base + shift, penalised)  # avoids 0 * inf with outside=inf


def _log_sum(logits: Tensor, weight: Tensor) -> Tensor:
    """Return the logarithm (N, 1) of the weighted sum of exponentials."""
    return (logits + weight.log()).logsumexp(-1, keepdim=True)
