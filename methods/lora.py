"""LoRA fine-tuning on the desired texts (arXiv 2106.09685): what most users try first, as a comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods.adapter import AdapterMethod, adapter, factors, lora_parameters, ups
from methods.base import Artefact, FitData, refuse_no_change, required_pairs
from methods.training import NO_STEP, STEP_COST, encoded_pairs, foretold, mean_loss, train, trainable


@dataclass(frozen=True, kw_only=True)
class LoRA(AdapterMethod):
    """W <- W + strength * (alpha / rank) B A on every linear layer, learnt by cross-entropy of the desired texts.

        min over A, B of CE(desired continuation | prompt; W + (alpha / rank) B A)

    The prompts are not learnt, and no end-of-text token is put after a continuation: with fragments of 20 tokens, such
    a token would teach the model to stop, and toxicity would fall because there is no text. The undesired texts are not
    learnt from; they only affect how a long prompt is cut.

    The choice of adapted layers, rank, alpha, learning rate and epochs is ours.

    Example:
        >>> from methods import FitData, LoRA
        >>> method = LoRA(rank=2, learning_rate=1e-3, epochs=2)
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs))
        >>> name = "model.layers.0.mlp.up_proj.weight"
        >>> up, down = (artefact[f"adapter.{name}.{side}"] for side in ("up", "down"))  # (52, 2), (2, 36)
        >>> with method.apply(model, artefact, 0.5):
        ...     change = model.get_parameter(name) - weights[name]
        >>> change.allclose(0.5 * up @ down, atol=1e-6)
        True
    """

    name: ClassVar[str] = "lora"
    title: ClassVar[str] = "LoRA-SFT"
    cite: ClassVar[str] = "2106.09685"
    family: ClassVar[str] = "adapter"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "share of the adapter"

    strengths: Sequence[float] = (0.25, 0.5, 0.75, 1.0, 1.5)

    def passes(self) -> float:
        """Count a training step per epoch and two readings for the loss, all for only one text of each pair."""
        return (STEP_COST * self.epochs + 2) / 2

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the two LoRA factors of each matrix (`methods.adapter.factors`). Raises SetupError without pairs."""
        self.check(model)
        texts = encoded_pairs(model, tokenizer, required_pairs(data, self.name), self.max_tokens)
        facts: dict[str, float] = {"cut_pairs": texts.cut, "loss_before": mean_loss(model, texts.desired)}
        with adapter(model, self.rank, self.alpha, self.seed):
            vector = list(lora_parameters(model).values())
            with trainable(vector):
                facts["foretold_memory_bytes"] = foretold(model, vector, self.recipe, [texts.desired], self.name)
                train(model, vector, texts.desired, self.recipe, stage=self.name)
                facts["loss_after"] = mean_loss(model, texts.desired)
                artefact = factors(model)
        refuse_no_change(self.name, ups(artefact), NO_STEP)
        return artefact | {f"info.{name}": torch.tensor(value) for name, value in facts.items()}
