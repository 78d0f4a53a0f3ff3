"""Plain fine-tuning on a user's examples: the attack that security vectors defend against, for comparison."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import options
from methods.base import Artefact, Demand, FitData, Method, Steering, later
from methods.errors import SetupError
from methods.optimiser import OptimizerName
from methods.tokens import Text
from methods.training import (
    STEP_COST,
    Recipe,
    changed,
    check_recipe,
    encoded,
    encoded_background,
    fine_tuned,
    most_memory,
)
from methods.training_memory import TrainingMemory


@dataclass(frozen=True, kw_only=True)
class Finetune(Method):
    """W <- W + strength * (W' - W), where W' are all weights after fine-tuning on the user's examples.

    The loss is the cross-entropy of the completions; every weight is trained (arXiv 2311.02105 trains the backbone), in
    fp32 even if the model has 16 bits. The change is as large as the model, and so is the artefact.

    optimizer: in the training, adafactor takes 4 bytes per weight and adamw 12; for a model of 16 bits, which needs
    fp32 masters, they take 8 and 16 (`methods.optimiser`). gradient_checkpointing: only the activations of one block
    are held at a time, at the cost of a third more time.
    kl_weight: the weight of KL(p(. | background; W) || p(. | background; W')) in nats per token, which is added to the
    loss. In `SecurityVector`, such a term limits what the vector changes; here it limits what the weights change, and
    there is no vector. The term takes a second copy of the weights.

    Example:
        >>> from methods import FitData, Finetune
        >>> method = Finetune(learning_rate=1e-3, epochs=2)
        >>> artefact = method.fit(model, tokenizer, FitData(examples=examples))
        >>> with method.apply(model, artefact, 1.0):
        ...     unchanged = [name for name, one in model.named_parameters() if one.equal(weights[name])]
        >>> bool(artefact["info.loss_after"] < artefact["info.loss_before"]), unchanged
        (True, [])
    """

    name: ClassVar[str] = "finetune"
    title: ClassVar[str] = "Fine-tuning"
    attack: ClassVar[bool] = True  # in trials of security vectors the examples are harmful
    family: ClassVar[str] = "weights"
    version: ClassVar[int] = 2  # texts tokenised whole, long ones cut from the left of the prompt
    half_version: ClassVar[int] = 1  # fp32 masters and moments
    strength_unit: ClassVar[str] = "share of the change"

    learning_rate: float = 3e-5
    epochs: int = 1
    batch_size: int = 8
    max_tokens: int = 128
    seed: int = 0
    optimizer: OptimizerName = later("adamw")
    gradient_checkpointing: bool = later(False)
    kl_weight: float = later(0.0)
    strengths: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1.0)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # it depends on an option
        """The examples, and ordinary texts if there is a KL term."""
        return frozenset({"examples", "background"} if self.kl_weight else {"examples"})

    @property
    def recipe(self) -> Recipe:
        """The recipe by which the model is fine-tuned."""
        return Recipe(
            self.learning_rate, self.epochs, self.batch_size, self.seed, self.optimizer, self.gradient_checkpointing
        )

    def passes(self) -> float:
        """Count a training step per epoch, and two readings for the loss before and after."""
        return STEP_COST * self.epochs + 2

    def demand(self) -> Demand:
        """Return the memory of the original weights, which are restored at the end."""
        return Demand(copies=1)

    def training(self, model: PreTrainedModel) -> TrainingMemory:
        """Return the memory for training all weights."""
        return most_memory(model, list(model.parameters()), self.recipe, self.max_tokens, 2 if self.kl_weight else 1)

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a recipe that trains nothing, and for a kl_weight below 0."""
        del model
        options.check_types(self)
        check_recipe(self.recipe)
        if not 0 <= self.kl_weight < math.inf:
            raise SetupError(f"method.kl_weight={self.kl_weight}: expected at least 0; 0 means no KL term")

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the change of every weight. Raises SetupError without examples, and if the loss is not finite."""
        self.check(model)
        texts, cut = encoded(model, tokenizer, data.examples, "examples", self.max_tokens)
        facts = {"info.cut_examples": torch.tensor(cut)}
        background: list[Text] = []
        if self.kl_weight:
            background, cut = encoded_background(model, tokenizer, data.background, self.max_tokens)
            facts["info.cut_background"] = torch.tensor(cut)
        return facts | fine_tuned(
            model, texts, self.recipe, stage="finetune", background=background, kl_weight=self.kl_weight
        )

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Add the change inside the `with`. Raises SetupError for the artefact of another model."""
        with changed(model, artefact, strength, self.name):
            yield Steering()
