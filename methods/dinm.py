"""DINM (arXiv 2403.14472): a few steps of gradient descent on the value matrix of the block that is most toxic."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import layout, options
from methods.base import INFO, Artefact, FitData, Method, Steering, required_background, required_pairs
from methods.directions import stream_distances
from methods.errors import SetupError
from methods.intervention import edited
from methods.optimiser import OptimizerName
from methods.tokens import Text
from methods.training import (
    STEP_COST,
    Recipe,
    change,
    changed,
    check_recipe,
    completion_loss,
    divergence,
    encoded_background,
    encoded_pairs,
    foretold,
    logits_and_targets,
    mean_loss,
    minimise,
    most_memory,
    trainable,
)
from methods.training_memory import TrainingMemory

ENOUGH = 1e-4  # the loss at which the authors' code stops
READ_TEXTS = 16  # background texts on which the facts about the divergence are measured


@dataclass(frozen=True, kw_only=True)
class DINM(Method):
    """W <- W + strength * (W' - W) for the MLP value matrix W of one block.

    W' is what W becomes by a few steps of Adam on

        edit_weight * CE(desired continuation | prompt) + kl_weight * KL(p(. | ordinary text; before) || p(. | after))

    With `layer: null` the block is the one whose output tells the desired from the undesired texts best: the one with
    the largest distance between the two texts of a pair, over the tokens that both have
    (`methods.directions.stream_distances`). `info.distances` has the distance at every block. In a mixture of experts
    the value matrices of all its experts are trained.

    Differences from the paper and its code (github zjunlp/EasyEdit at 14cea82):
    - The paper edits for one attack prompt, judges, and restores; here all pairs give one edit, `batch_size` of them in
      each step, and ordinary texts (conf/background) stand for the paper's one question of general knowledge.
    - The code computes the KL term without a gradient, so the term protects nothing and only delays the stop at a loss
      of 1e-4. `kl_gradient: false` does the same; `true` also trains on the term.
    - The code measures the distance over padded texts, so it includes padding and tokens that only one of the texts
      has, and it takes the last block's output after the final norm.
    - On GPT-2 the code also trains the matrix's bias; here only one matrix changes.
    - The paper puts a system prompt after each of its prompts, in the fit and at the test; here there is none.

    Example:
        >>> from methods import DINM, FitData
        >>> method = DINM(layer=3, steps=2)
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs, background=background))
        >>> with method.apply(model, artefact, 1.0):
        ...     changed = [name for name, one in model.named_parameters() if not one.equal(weights[name])]
        >>> changed
        ['model.layers.3.mlp.down_proj.weight']
    """

    name: ClassVar[str] = "dinm"
    title: ClassVar[str] = "DINM"
    cite: ClassVar[str] = "2403.14472"
    family: ClassVar[str] = "weights"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs", "background"})
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "share of the change"

    layer: int | float | None = None
    steps: int = 10
    learning_rate: float = 5e-4
    batch_size: int = 8
    edit_weight: float = 0.1
    kl_weight: float = 1.0
    kl_gradient: bool = True
    max_tokens: int = 128
    seed: int = 0
    optimizer: OptimizerName = "adamw"
    gradient_checkpointing: bool = False
    strengths: Sequence[float] = (0.25, 0.5, 0.75, 1.0, 1.5)

    @property
    def recipe(self) -> Recipe:
        """The recipe by which the matrix is trained: a few steps, all at one learning rate."""
        return Recipe(
            self.learning_rate, max(1, self.steps), self.batch_size, self.seed, self.optimizer,
            self.gradient_checkpointing, self.steps, constant=True,
        )  # fmt: skip

    def passes(self) -> float:
        """Count the search for the block, and the few steps as if they read all of the data once."""
        return 1.0 + STEP_COST

    def training(self, model: PreTrainedModel) -> TrainingMemory:
        """Return the memory for training one matrix: of block 0 if none is set, as gradients go furthest back there."""
        layer = 0 if self.layer is None else layout.layer_index(model, self.layer)
        matrix = list(value_parameters(model, layer).values())
        return most_memory(model, matrix, self.recipe, self.max_tokens, 2 if self.kl_weight else 1)

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a block that the model lacks, for weights below 0, and for a recipe without steps."""
        options.check_types(self)
        if self.layer is not None:
            layout.layer_index(model, self.layer)
        check_recipe(self.recipe)
        if self.steps < 1 or not self.edit_weight > 0 or not self.kl_weight >= 0:
            raise SetupError(
                f"method.steps={self.steps}, method.edit_weight={self.edit_weight}, method.kl_weight={self.kl_weight}: "
                "steps must be at least 1, edit_weight above 0, kl_weight at least 0"
            )

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the change of one matrix, "change.<name>". Raises SetupError without pairs or background."""
        self.check(model)
        desired, undesired, cut = encoded_pairs(model, tokenizer, required_pairs(data, self.name), self.max_tokens)
        ordinary = required_background(data, "dinm keeps to the model's own predictions on ordinary texts")
        background, cut_background = encoded_background(model, tokenizer, ordinary, self.max_tokens)
        layer, facts = self._located(model, desired, undesired)
        parameters = value_parameters(model, layer)
        trained_on = self.recipe
        order = Recipe(0, 1, self.batch_size, self.seed + 1).batches(len(background))
        measured = background[:READ_TEXTS]
        with torch.no_grad():
            usual_logits = logits_and_targets(model, measured)[0]

        with trainable(list(parameters.values())) as before:
            originals = {p: one.to(p.device) for p, one in zip(parameters.values(), before, strict=True)}

            def loss(step: int, rows: list[int]) -> Tensor:
                texts = [background[int(row)] for row in order[step % len(order)]]
                kept = self.kl_weight * self._drift(model, originals, texts) if self.kl_weight else 0.0
                return self.edit_weight * completion_loss(model, [desired[row] for row in rows]) + kept

            batches = [desired, background] if self.kl_weight else [desired]
            memory = foretold(model, list(parameters.values()), trained_on, batches, self.name)
            loss_before = mean_loss(model, desired)
            sizes = [len(text.tokens) for text in desired]
            trained = minimise(
                model, list(parameters.values()), loss, sizes, trained_on, stage=self.name, enough=ENOUGH
            )
            artefact = change(parameters, trained, before, self.name)
            with torch.no_grad():
                drift = divergence(usual_logits, logits_and_targets(model, measured)[0])
            facts |= {
                "loss_before": torch.tensor(loss_before),
                "loss_after": torch.tensor(mean_loss(model, desired)),
                "drift": drift.cpu(),
            }
        facts |= {
            "layer": torch.tensor(layer),
            "cut_pairs": torch.tensor(cut),
            "cut_background": torch.tensor(cut_background),
            "foretold_memory_bytes": torch.tensor(memory),
        }
        return artefact | {INFO + name: value for name, value in facts.items()}

    def _located(
        self, model: PreTrainedModel, desired: Sequence[Text], undesired: Sequence[Text]
    ) -> tuple[int, dict[str, Tensor]]:
        """Return the block to edit, and the distances at each block if it was searched for."""
        if self.layer is not None:
            return layout.layer_index(model, self.layer), {}
        distances = stream_distances(model, desired, undesired).clone()  # (L,)
        if not distances.any():
            raise SetupError(
                "dinm: desired and undesired texts have the same features at every block; give pairs whose texts "
                "differ, or name the block: method.layer=0.9"
            )
        return int(distances.argmax()), {"distances": distances}

    def _drift(self, model: PreTrainedModel, originals: dict[nn.Parameter, Tensor], texts: Sequence[Text]) -> Tensor:
        """Return KL(before || now) in nats per token on ordinary texts."""
        with torch.no_grad(), edited(originals):
            usual = logits_and_targets(model, texts)[0]
        with torch.set_grad_enabled(self.kl_gradient):
            return divergence(usual, logits_and_targets(model, texts)[0])

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Add the change inside the `with`. Raises SetupError for the artefact of another model."""
        with changed(model, artefact, strength, self.name):
            yield Steering()


def value_parameters(model: PreTrainedModel, layer: int) -> dict[str, nn.Parameter]:
    """Return by name the parameters that hold a block's MLP value matrix: one, or in a mixture those of all experts."""
    wanted = {id(part.parameter) for part in layout.stream_rows(model, layer, "down").parts}
    return {name: one for name, one in model.named_parameters() if id(one) in wanted}
