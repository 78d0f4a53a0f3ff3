"""Task negation (arXiv 2212.04089): what fine-tuning on harmful texts adds to the weights is subtracted from them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import options
from methods.base import Artefact, Demand, FitData, Method, Steering
from methods.errors import SetupError
from methods.optimiser import OptimizerName
from methods.training import STEP_COST, Recipe, changed, check_recipe, encoded, fine_tuned, most_memory
from methods.training_memory import TrainingMemory


@dataclass(frozen=True, kw_only=True)
class TaskNegation(Method):
    """W <- W - strength * (W' - W), where W' are all weights after fine-tuning on the harmful texts.

    The paper calls W' - W the task vector, and its negation is the paper's way to forget a task. The fine-tuning is
    that of `methods.finetune`, by cross-entropy of the completions; norms and biases are trained too, and a matrix that
    embedding and unembedding share counts once. Strength -1 is the fine-tuned model itself.

    Nothing limits the negated model: at too large a strength its text becomes nonsense. Choose the strength under a
    bound on perplexity, as the tuning here does.

    Differences from the paper: its toxic texts are comments with a high toxicity score, ours are the texts of
    conf/harmful, far fewer; learning rate, epochs and grid of strengths are a choice of ours.

    Example:
        >>> from methods import FitData, TaskNegation
        >>> method = TaskNegation(learning_rate=1e-3, epochs=2)
        >>> artefact = method.fit(model, tokenizer, FitData(harmful=harmful))
        >>> name = "model.layers.0.mlp.up_proj.weight"
        >>> with method.apply(model, artefact, 0.5):
        ...     change = model.get_parameter(name) - weights[name]
        >>> change.allclose(-0.5 * artefact[f"change.{name}"], atol=1e-6)
        True
    """

    name: ClassVar[str] = "task_negation"
    title: ClassVar[str] = "Task negation"
    cite: ClassVar[str] = "2212.04089"
    family: ClassVar[str] = "weights"
    needs: ClassVar[frozenset[str]] = frozenset({"harmful"})
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "share of the toxic change"

    learning_rate: float = 3e-5
    epochs: int = 5
    batch_size: int = 8
    max_tokens: int = 128
    seed: int = 0
    optimizer: OptimizerName = "adamw"
    gradient_checkpointing: bool = False
    strengths: Sequence[float] = (0.1, 0.2, 0.3, 0.5, 1.0)

    @property
    def recipe(self) -> Recipe:
        """The recipe by which the model is fine-tuned."""
        return Recipe(
            self.learning_rate, self.epochs, self.batch_size, self.seed, self.optimizer, self.gradient_checkpointing
        )

    def passes(self) -> float:
        """Return the passes over the data: STEP_COST per epoch, and two for the loss before and after."""
        return STEP_COST * self.epochs + 2

    def demand(self) -> Demand:
        """Return the memory of the original weights, which are restored at the end."""
        return Demand(copies=1)

    def training(self, model: PreTrainedModel) -> TrainingMemory:
        """Return the memory for training all weights."""
        return most_memory(model, list(model.parameters()), self.recipe, self.max_tokens)

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a recipe that trains nothing."""
        del model
        options.check_types(self)
        check_recipe(self.recipe)

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the change of every weight, not negated. Raises SetupError without harmful texts."""
        self.check(model)
        completions = data.harmful.completion if data.harmful else []
        if not any(completions):
            raise SetupError(
                f"task_negation learns from harmful texts and got {len(completions) or 'none'}"
                f"{', none of which has a completion' if completions else ''}; set harmful=on_policy_toxic, or "
                "harmful=file harmful.path=FILE"
            )
        texts, cut = encoded(model, tokenizer, data.harmful, "harmful texts", self.max_tokens)
        return fine_tuned(model, texts, self.recipe, stage=self.name) | {"info.cut_harmful": torch.tensor(cut)}

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Subtract strength times the change inside the `with`. Raises SetupError for another model's artefact."""
        with changed(model, artefact, -strength, self.name):
            yield Steering()
