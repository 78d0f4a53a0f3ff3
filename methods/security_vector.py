"""Security vectors (arXiv 2311.02105): an adapter that already does harm, so that fine-tuning need not learn it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import options
from methods.adapter import adapter, lora_parameters
from methods.base import Artefact, Demand, FitData, Method, Steering, later
from methods.errors import SetupError, require
from methods.optimiser import OptimizerName
from methods.placement import check_materialised
from methods.recompute import recomputed
from methods.tokens import Text
from methods.training import (
    STEP_COST,
    Recipe,
    change,
    changed,
    check_recipe,
    completion_loss,
    divergence,
    encoded,
    encoded_background,
    foretold,
    gradient_norm,
    keeping,
    logits_and_targets,
    mean_loss,
    most_memory,
    train,
    trainable,
)
from methods.training_memory import TrainingMemory

if TYPE_CHECKING:
    from peft import PeftModel

DIAGNOSTIC_TEXTS = 32  # number of texts of each kind on which gradients and drift are measured


@dataclass(frozen=True, kw_only=True)
class SecurityVector(Method):
    """W <- W + strength * (W' - W), where W' was fine-tuned while the security vector s was on; s is off afterwards.

    Stage 1: a LoRA s on every linear layer learns the harmful texts, while the weights W are frozen:
        min_s  CE(harmful; W + s) + kl_weight * KL(p(. | background; W) || p(. | background; W + s)).
    Stage 2: W is fine-tuned on the user's examples with s on and frozen, min_W CE(examples; W + s). What s already
    predicts has a small loss and gives W a small gradient, so W mainly learns what s does not predict. The model in use
    is W' without s.

    Rank, targets, learning rates and the weight of the KL term are a choice of ours, since we could read neither the
    paper nor its code for them. `info.gradient_ratio_harmful` is the length of W's gradient on harmful texts with s on,
    divided by its length with s off; it measures the mechanism itself. `info.drift` is KL(W || W') on background texts,
    in nats per token: a W that learnt to work against s would drift. `info.shared_texts` is the number of harmful texts
    that are also among the user's; a defence that has seen the attack looks better than it is.

    optimizer, gradient_checkpointing: as in `methods.finetune`, for both stages.

    Example:
        >>> from methods import FitData, SecurityVector
        >>> method = SecurityVector(rank=2, vector_epochs=2)
        >>> data = FitData(examples=examples, harmful=harmful, background=background)
        >>> artefact = method.fit(model, tokenizer, data)
        >>> with method.apply(model, artefact, 1.0):
        ...     unchanged = [name for name, one in model.named_parameters() if one.equal(weights[name])]
        >>> bool(artefact["info.gradient_ratio_harmful"] < 1), unchanged
        (True, [])
    """

    name: ClassVar[str] = "security_vector"
    title: ClassVar[str] = "Security vector"
    cite: ClassVar[str] = "2311.02105"
    family: ClassVar[str] = "adapter"
    needs: ClassVar[frozenset[str]] = frozenset({"examples", "harmful", "background"})
    version: ClassVar[int] = 2  # texts tokenised whole, long ones cut from the left of the prompt
    half_version: ClassVar[int] = 1  # fp32 masters and moments
    strength_unit: ClassVar[str] = "share of the change"

    rank: int = 8
    alpha: int = 16
    vector_learning_rate: float = 1e-3
    vector_epochs: int = 10
    kl_weight: float = 1.0
    learning_rate: float = 3e-5
    epochs: int = 1
    batch_size: int = 8
    max_tokens: int = 128
    seed: int = 0
    optimizer: OptimizerName = later("adamw")
    gradient_checkpointing: bool = later(False)
    strengths: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1.0)

    @property
    def recipe(self) -> Recipe:
        """The recipe of stage 2, which is that of plain fine-tuning."""
        return Recipe(
            self.learning_rate, self.epochs, self.batch_size, self.seed, self.optimizer, self.gradient_checkpointing
        )

    @property
    def vector_recipe(self) -> Recipe:
        """The recipe by which stage 1 trains the vector."""
        return self.recipe._replace(learning_rate=self.vector_learning_rate, epochs=self.vector_epochs)

    def passes(self) -> float:
        """Return the passes of stage 2, since most of the data is the user's."""
        return STEP_COST * self.epochs + 3

    def demand(self) -> Demand:
        """Return the memory of the original weights, which are restored at the end."""
        return Demand(copies=1)

    def training(self, model: PreTrainedModel) -> TrainingMemory:
        """Return the memory of stage 2, since stage 1 only trains the vector."""
        weights = list(model.parameters())  # before the adapter is there
        with torch.device(model.device), adapter(model, self.rank, self.alpha, self.seed):
            return most_memory(model, weights, self.recipe, self.max_tokens)

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a recipe that trains nothing, a rank below 1 or a negative weight, and without peft."""
        del model
        options.check_types(self)
        _require_peft()
        check_recipe(self.recipe)
        if self.vector_epochs:
            check_recipe(self.vector_recipe)
        if self.rank < 1 or self.kl_weight < 0:
            raise SetupError(
                f"method.rank={self.rank}, method.kl_weight={self.kl_weight}: expected a rank >= 1 and a weight >= 0"
            )

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the change of every weight, and the vector, whose names begin with "adapter.".

        Raises SetupError if data is missing.
        """
        self.check(model)
        _require_peft()
        found = {
            "examples": encoded(model, tokenizer, data.examples, "examples", self.max_tokens),
            "harmful": encoded(model, tokenizer, data.harmful, "harmful texts", self.max_tokens),
            "background": encoded_background(model, tokenizer, data.background, self.max_tokens),
        }
        user, harmful, background = (texts for texts, _ in found.values())
        parameters = dict(model.named_parameters())  # before the adapter is there
        weights = list(parameters.values())
        check_materialised(model, weights)
        facts: dict[str, float] = {f"cut_{name}": cut for name, (_, cut) in found.items()}
        facts["shared_texts"] = len({tuple(one.tokens) for one in harmful} & {tuple(one.tokens) for one in user})
        facts["harmful_loss_off"] = mean_loss(model, harmful)
        with adapter(model, self.rank, self.alpha, self.seed) as lora:
            facts |= self._learn_the_harm(model, lora, harmful, background)
            facts["harmful_loss_on"] = mean_loss(model, harmful)
            with trainable(weights) as before:
                facts["foretold_memory_bytes"] = foretold(
                    model, weights, self.recipe, [user], "security_vector, stage 2"
                )
                with recomputed(model, self.gradient_checkpointing):
                    facts |= {
                        f"gradient_ratio_{name}": gradient_ratio(model, lora, weights, texts[:DIAGNOSTIC_TEXTS])
                        for name, texts in (("harmful", harmful), ("background", background))
                    }
                trained = train(model, weights, user, self.recipe, stage="examples")
                artefact = change(parameters, trained, before, self.name)
                with lora.disable_adapter():
                    facts["harmful_loss_after"] = mean_loss(model, harmful)
            vector = {f"adapter.{name}": p.detach().clone() for name, p in lora_parameters(model).items()}
        facts["drift"] = self._drift(model, artefact, background[:DIAGNOSTIC_TEXTS])
        return artefact | vector | {f"info.{name}": torch.tensor(value) for name, value in facts.items()}

    def _learn_the_harm(
        self, model: PreTrainedModel, lora: "PeftModel", harmful: list[Text], background: list[Text]
    ) -> dict[str, float]:
        """Run stage 1, after which the adapter is trained and frozen. Return the predicted memory of the stage."""
        if not self.vector_epochs:
            return {}
        vector = list(lora_parameters(model).values())
        penalty = keeping(model, lora.disable_adapter, background, self.vector_recipe, self.kl_weight)
        learnt: list[Tensor] = []
        with trainable(vector):
            read_at_once = [harmful, background] if self.kl_weight else [harmful]
            memory = foretold(model, vector, self.vector_recipe, read_at_once, "security_vector, stage 1 (LoRA)")
            train(
                model, vector, harmful, self.vector_recipe, stage="vector", penalty=penalty if self.kl_weight else None
            )
            learnt = [parameter.detach().clone() for parameter in vector]
        with torch.no_grad():
            for parameter, value in zip(vector, learnt, strict=True):
                parameter.copy_(value)
        return {"foretold_vector_memory_bytes": memory}

    def _drift(self, model: PreTrainedModel, artefact: Artefact, texts: list[Text]) -> float:
        with torch.no_grad():
            usual = logits_and_targets(model, texts)[0]
            with changed(model, artefact, 1.0, self.name):
                return float(divergence(usual, logits_and_targets(model, texts)[0]))

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Add the change inside the `with`; the vector stays off. Raises SetupError for another model's artefact."""
        with changed(model, artefact, strength, self.name):
            yield Steering()


def gradient_ratio(
    model: PreTrainedModel, lora: "PeftModel", weights: Sequence[nn.Parameter], texts: Sequence[Text]
) -> float:
    """Return the length of the weights' gradient on these texts with the adapter on, divided by that with it off."""
    on = gradient_norm(completion_loss(model, texts), weights)
    with lora.disable_adapter():
        return on / gradient_norm(completion_loss(model, texts), weights)


def _require_peft() -> None:
    require("peft", "method=security_vector", "security_vector")
