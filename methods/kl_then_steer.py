"""KL-then-steer (arXiv 2406.15518): the model learns to ignore a vector on ordinary texts, and is then steered."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import directions, layout, options
from methods.adapter import AdapterMethod, adapted, adapter, factors, lora_parameters
from methods.base import INFO, Artefact, FitData, Steering, required_background, required_pairs
from methods.errors import SetupError
from methods.intervention import Hook, adding, hooked, scope_mask
from methods.separation import separation_facts
from methods.tokens import Text
from methods.training import (
    STEP_COST,
    divergence,
    encoded_background,
    encoded_pairs,
    foretold,
    logits_and_targets,
    minimise,
    trainable,
)
from methods.training_memory import TrainingMemory

if TYPE_CHECKING:
    from peft import PeftModel

KTSScope = Literal["all", "generation"]
KLFrom = Literal["unsteered", "steered"]
READ_TEXTS = 16  # number of background texts on which drift_before and drift_after are measured


@dataclass(frozen=True, kw_only=True)
class KLThenSteer(AdapterMethod):
    """h_t <- h_t + strength * v at the output of block `layer`, with a LoRA that undoes its effect on ordinary texts.

        v = |h| d / |d|,  d = mean over pairs of (a(desired) - a(undesired)),   (D,)
        min over the LoRA of KL(p(. | ordinary text; W) || p(. | ordinary text; W + LoRA, h + c v))

    a(text) is the block's output averaged over the continuation, and |h|, the mean length of the stream at that
    block, is the unit of the strength. c is drawn for each text of a batch: with probability `share` it is uniform
    between -`coefficient` and `coefficient`, otherwise it is 0. The teacher is the model without LoRA and
    vector. The KL is averaged over the tokens of ordinary texts (conf/background), without padding.

    At any strength other than 0 the whole LoRA is added to the weights, and the strength scales only the vector: the
    paper, too, trains a model and then steers it. `epochs: 0` leaves the LoRA out and only adds the vector, in the same
    unit, so that steering with and without the LoRA can be compared. `info.drift_before` and `info.drift_after` are the
    KL above at c = `coefficient`, without and with the LoRA.

    scope: `all` adds v to every token, as in the training; `generation` adds it from the last prompt token on.

    Differences from the paper and its code (github AsaCooperStickland/kl-then-steer at 8a54057), which do not agree
    with each other:
    - kl_from: the code computes KL(steered || unsteered), padding included; "steered" computes it without the padding.
      The default, "unsteered", is the paper's KL(unsteered || steered).
    - The code draws c once per batch and finds the direction anew each time, from 40 pairs; here c is drawn for each
      text, as in the paper, and the direction is found once, from all pairs.
    - The code steers most blocks of the model's upper part at once, with vectors of arbitrary length; here only one
      block is steered. Layer, coefficient, learning rate, epochs, rank and alpha are a choice of ours (the paper uses a
      learning rate of 1e-5 and batches of 16).

    Example:
        >>> from methods import FitData, KLThenSteer
        >>> method = KLThenSteer(layer=2, rank=2, epochs=1)
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs, background=background))
        >>> with method.apply(model, artefact, 0.1):
        ...     changed = [name for name, one in model.named_parameters() if not one.equal(weights[name])]
        >>> len(changed)  # the LoRA is on 7 matrices in each of 5 blocks
        35
    """

    name: ClassVar[str] = "kl_then_steer"
    title: ClassVar[str] = "KL-then-steer"
    cite: ClassVar[str] = "2406.15518"
    family: ClassVar[str] = "adapter"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs", "background"})
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "mean residual norms"

    layer: int | float = 0.45
    coefficient: float = 0.5
    share: float = 0.125
    kl_from: KLFrom = "unsteered"
    scope: KTSScope = "all"
    epochs: int = 4
    batch_size: int = 16
    strengths: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5)

    def passes(self) -> float:
        """Count one reading of the pairs, and per epoch a training step and the teacher's reading of the background."""
        return 1.0 + (STEP_COST + 1) * self.epochs

    def training(self, model: PreTrainedModel) -> TrainingMemory | None:
        """Return the memory for training the adapter, if there is one."""
        return super().training(model) if self.epochs else None

    def residual_norms(self, facts: Mapping[str, Any]) -> float | None:  # noqa: ARG002  the unit says it
        """Return 1, since the strength is in mean residual norms."""
        return 1.0

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a block that the model lacks, and for a setting that is not allowed."""
        options.check_types(self)
        layout.layer_index(model, self.layer)
        if self.epochs:
            super().check(model)
        for key, value, allowed in (("scope", self.scope, KTSScope), ("kl_from", self.kl_from, KLFrom)):
            if value not in get_args(allowed):
                raise SetupError(f"method.{key}={value!r}: allowed are {', '.join(get_args(allowed))}")
        if not 0 < self.share <= 1 or not 0 < self.coefficient < float("inf"):
            raise SetupError(
                f"method.share={self.share}, method.coefficient={self.coefficient}: expected a share above 0 and at "
                "most 1, and a number above 0"
            )

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the vector (D,), and the two LoRA factors of each matrix.

        Raises SetupError if there are no pairs or no background texts, or if the pairs do not differ.
        """
        self.check(model)
        desired, undesired, cut = encoded_pairs(model, tokenizer, required_pairs(data, self.name), self.max_tokens)
        ordinary = required_background(data, "kl_then_steer learns to ignore its vector on ordinary texts")
        background, cut_background = encoded_background(model, tokenizer, ordinary, self.max_tokens)
        layer = layout.layer_index(model, self.layer)
        vector, facts = _vector(model, layer, desired, undesired)
        found: Artefact = {f"layers.{layer}.direction": vector}
        if self.epochs:
            with adapter(model, self.rank, self.alpha, self.seed) as lora:
                weights = list(lora_parameters(model).values())
                with trainable(weights):
                    facts["foretold_memory_bytes"] = torch.tensor(
                        foretold(model, weights, self.recipe, [background], self.name)
                    )
                    facts["drift_before"] = self._drift(model, lora, vector, background[:READ_TEXTS])
                    self._learn(model, lora, weights, vector, background)
                    facts["drift_after"] = self._drift(model, lora, vector, background[:READ_TEXTS])
                    found |= factors(model)
        facts |= {"cut_pairs": torch.tensor(cut), "cut_background": torch.tensor(cut_background)}
        return found | {INFO + name: value for name, value in facts.items()}

    def _learn(
        self,
        model: PreTrainedModel,
        lora: "PeftModel",
        weights: list[nn.Parameter],
        vector: Tensor,
        background: Sequence[Text],
    ) -> None:
        """Train the active adapter on the background texts."""
        batches = self.recipe.batches(len(background))
        drawn = self.coefficients([len(batch) for batch in batches])

        def loss(step: int, rows: list[int]) -> Tensor:
            return self.steered_divergence(model, lora, vector, drawn[step], [background[row] for row in rows])

        minimise(model, weights, loss, [len(text.tokens) for text in background], self.recipe, stage=self.name)

    def coefficients(self, sizes: Sequence[int]) -> list[Tensor]:
        """Return c of each text of each batch: mostly 0, else between -`coefficient` and `coefficient`."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.rand(sum(sizes), 2, generator=generator)
        value = self.coefficient * (2 * drawn[:, 1] - 1)
        return list(torch.split(torch.where(drawn[:, 0] < self.share, value, 0.0), list(sizes)))

    def steered_divergence(
        self, model: PreTrainedModel, lora: "PeftModel", vector: Tensor, coefficients: Tensor, texts: Sequence[Text]
    ) -> Tensor:
        """Return the KL between the original model and the model with adapter and vector, in nats per token.

        coefficients: c of each text, (B,). The direction of the KL is `kl_from`.
        """
        with torch.no_grad(), lora.disable_adapter():
            unsteered = logits_and_targets(model, texts)[0]
        block = layout.blocks(model)[layout.layer_index(model, self.layer)]
        with hooked([Hook(block, "output", pushing(vector, coefficients, self.scope))]):
            steered = logits_and_targets(model, texts)[0]
        return divergence(unsteered, steered) if self.kl_from == "unsteered" else divergence(steered, unsteered)

    @torch.no_grad()
    def _drift(self, model: PreTrainedModel, lora: "PeftModel", vector: Tensor, texts: Sequence[Text]) -> Tensor:
        coefficients = torch.full((len(texts),), self.coefficient)
        return self.steered_divergence(model, lora, vector, coefficients, texts).cpu()

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Add the whole adapter and strength times the vector inside the `with`; at strength 0 add nothing.

        Raises SetupError for an artefact of another model or layer.
        """
        layer = layout.layer_index(model, self.layer)
        vector = strength * directions.fitted(model, artefact, f"layers.{layer}.direction", self.name)
        hook = Hook(layout.blocks(model)[layer], "output", adding(vector, self.scope, boundary=True))
        whole = 1.0 if strength and self.epochs else 0.0
        with adapted(model, artefact, whole, self.name), hooked([hook] if strength else []):
            yield Steering()


def pushing(vector: Tensor, coefficients: Tensor, scope: KTSScope) -> Callable[[Tensor], Tensor]:
    """Return the function h -> h + c * vector at the tokens of the scope; `coefficients` (B,) holds c of each row."""

    def function(hidden: Tensor) -> Tensor:
        moved = hidden + coefficients.to(hidden)[:, None, None] * vector.to(hidden)  # (B, T, D)
        mask = scope_mask(scope, hidden.shape[1], boundary=True)
        return moved if mask is None else torch.where(mask[..., None].to(hidden.device), moved, hidden)

    return function


def _vector(
    model: PreTrainedModel, layer: int, desired: Sequence[Text], undesired: Sequence[Text]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the vector (D,), and how well the pairs agree on it. Raises SetupError if the pairs do not differ."""
    one, other = (
        directions.pooled_features(model, side, [layer], read="continuation")[0] for side in (desired, undesired)
    )  # (N, D) each
    difference = directions.mean_difference(one, other)  # (D,)
    length, size = difference.norm(), torch.cat([one, other]).norm(dim=-1).mean()
    if length <= directions.SAME * size:
        raise SetupError(
            f"kl_then_steer: desired and undesired texts have the same mean at block {layer} (the means "
            f"differ by {length:.2g}, the features are {size:.2g} long); give pairs whose texts differ"
        )
    residual = directions.residual_norm(model, desired, layer)
    known = {name.removeprefix(INFO): value for name, value in separation_facts(one, other).items()}
    return difference * (residual / length), {"direction_norm": length, "residual_norm": residual, **known}
