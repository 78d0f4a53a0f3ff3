"""LinEAS (arXiv 2503.10679): affine maps, one for each unit at each place, learnt together by a distributional loss."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import directions, layout, maps, options, sites
from methods.base import INFO, Artefact, FitData, Method, Steering, refuse_no_change, required_pairs
from methods.errors import SetupError
from methods.intervention import Hook, hooked
from methods.maps import Map, Spot
from methods.optimiser import LOSS_SCALE, gradients, soft_threshold
from methods.placement import input_device
from methods.progress import advance
from methods.tokens import Text, encode_pairs
from methods.training import STEP_COST
from methods.training_memory import TrainingMemory, training_memory, wanting

Where = Literal["auto", "norm", "attention", "mlp", "both", "block"]
LineasRead = Literal["all", "continuation"]
USUAL_PAIRS = 200  # the number of pairs that `passes` assumes
END_RATE = 1e-3  # share of the learning rate that is left at the end (authors' code)


@dataclass(frozen=True, kw_only=True)
class LinEAS(Method):
    """y <- (1 - strength) y + strength (w y + b) at all tokens, for each unit of each place by itself.

    All w and b are learnt together, starting from w = 1 and b = 0; the model's weights are not trained (section 3 of
    arXiv 2503.10679):

        loss = mean over places of mean over units of sum_n (a_(n) - c_(n))^2

    a_n is the mean of the unit over the tokens of a source text (prompt and undesired continuation) with all maps on.
    c_n is the unit's mean over a target text (prompt and desired continuation) in the unsteered model. The index (n)
    means that the values of each side are sorted: since both sides have equally many texts, the sum is the number of
    texts times the squared Wasserstein distance of the two sets of values. As in the authors' code (github
    apple/ml-lineas), the loss is a sum over the texts of a batch, so that a step grows with the batch, and no root is
    taken; the steps are plain gradient descent, whose rate falls along a cosine to a thousandth.

    sparsity is the paper's gamma: after each step, w - 1 and b of each place shrink by a proximal step of the penalty

        sparsity * (sum |x_i| + sqrt(D) |x|)    with x (D,) either w - 1 or b, |x| its length

    The proximal step has the rate of the gradient step, as in the code; Algorithm 1 leaves the rate out. It is our
    reading that w - 1 and b of a place are two groups, each with weight sqrt(D).

    where: `auto` takes the norms that the paper's pattern finds: the norms after attention and MLP if a model has them
    (Gemma 2 and 3, OLMo 2 and 3), else the last norm of each block, which in Llama has "post_attention" in its name
    and stands before the MLP. `norm` takes the last norm of each block in every model.

    The paper's texts are unpaired and have no prompt. Ours come in pairs with a prompt, so only the continuation is
    pooled by default, and the loss does not depend on which texts form a pair. If there are more pairs than
    `batch_size`, each step draws its source texts and its target texts independently. skip_first leaves out the first
    tokens of a text, which matters for texts without a prompt: their first token is an attention sink.

    At the output of a linear module with a bias, and of LayerNorm, the maps are written into the weights, so that they
    can be exported; at an RMSNorm or a block they run as hooks.

    Example:
        >>> from methods import FitData, LinEAS
        >>> method = LinEAS(where="block", steps=5)
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs))
        >>> with method.apply(model, artefact, 0.6):
        ...     moved = (model(**inputs).logits != logits).any(-1)[0]
        >>> bool(artefact["info.last_loss"] < artefact["info.first_loss"]), bool(moved.all())
        (True, True)
    """

    name: ClassVar[str] = "lineas"
    title: ClassVar[str] = "LinEAS"
    cite: ClassVar[str] = "2503.10679"
    family: ClassVar[str] = "activation"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "share of the transport"

    where: Where = "auto"
    steps: int = 1000
    learning_rate: float = 0.1
    batch_size: int = 32
    sparsity: float = 0.0
    read: LineasRead = "continuation"
    skip_first: int = 1
    max_tokens: int = 128
    seed: int = 0
    strengths: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1)

    def passes(self) -> float:
        """Return an estimate for USUAL_PAIRS pairs; each step reads one text of each pair in its batch."""
        return (1 + STEP_COST * self.steps * min(self.batch_size, USUAL_PAIRS) / USUAL_PAIRS) / 2

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a setting that is not allowed."""
        options.check_choice("where", self.where, get_args(Where))
        options.check_choice("read", self.read, get_args(LineasRead))
        options.check_number("learning_rate", self.learning_rate, lambda rate: rate > 0, "above 0")
        options.check_number("sparsity", self.sparsity, lambda gamma: gamma >= 0, "of 0 or more")
        for key, least in (("steps", 1), ("batch_size", 2), ("skip_first", 0), ("max_tokens", 1), ("seed", None)):
            options.check_whole(key, getattr(self, key), least)
        if self.where in ("auto", "norm"):
            for layer in range(len(layout.blocks(model))):
                sites.last_norm(model, layer)

    def training(self, model: PreTrainedModel) -> TrainingMemory:
        """Return an upper bound of the memory for training the maps: it includes logits, which are not computed.

        The places can only be found in a model with weights. So the bound is that of two maps at the input of each
        block, where tensors have the same size as at the places.
        """
        inputs = [block for block in layout.blocks(model) for _ in sites.PARTS]
        shape = (len(inputs), layout.width(model))
        slopes, shifts = (nn.Parameter(torch.zeros(shape, device=input_device(model))) for _ in range(2))
        hooks = [Hook(block, "input", _mapping(slopes, shifts, at)) for at, block in enumerate(inputs)]
        with wanting(model, []), hooked(hooks):
            return training_memory(model, [slopes, shifts], "adamw", [(self.batch_size, self.max_tokens)])

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return a map for each place, "<place>.scale" and "<place>.shift" (D,).

        Raises SetupError if there are no pairs, if both sides have the same texts, or if the loss is not finite.
        """
        self.check(model)
        texts = encode_pairs(model, tokenizer, required_pairs(data, self.name), self.max_tokens)
        if sorted(text.tokens for text in texts.desired) == sorted(text.tokens for text in texts.undesired):
            raise SetupError(
                "lineas: the desired texts are the undesired ones, in whatever order, so there is nothing to carry "
                "from one to the other; give pairs whose texts differ"
            )
        spots = self._spots(model)
        places = [spot.place for spot in spots]
        directions.check_long_enough(texts.undesired, self.read, self.skip_first)
        targets = directions.pooled_at(model, texts.desired, places, read=self.read, skip_first=self.skip_first)
        learnt, losses = self._learn(model, spots, texts.undesired, targets)
        refuse_no_change(
            self.name,
            [one.moved() for one in learnt],
            f"method.sparsity={self.sparsity} leaves all maps at the identity; lower it",
        )
        still = sum(int((one.scale == 1).logical_and(one.shift == 0).sum()) for one in learnt)
        return maps.saved(spots, learnt) | {
            INFO + "first_loss": torch.tensor(losses[0]),
            INFO + "last_loss": torch.tensor(losses[-max(1, len(losses) // 10) :]).mean(),
            INFO + "share_left_alone": torch.tensor(still / sum(len(one.scale) for one in learnt)),
            INFO + "cut_pairs": torch.tensor(texts.cut),
        }

    def _spots(self, model: PreTrainedModel) -> list[Spot]:
        """Return the places that are mapped, in the order in which they run."""
        found = maps.post_norms(model) if self.where == "auto" else []
        if not found and self.where in ("auto", "norm"):
            layers = range(len(layout.blocks(model)))
            return [Spot(f"layers.{layer}.norm", layer, None, sites.last_norm(model, layer)) for layer in layers]
        return found or maps.spots(model, self.where)  # type: ignore[arg-type]

    def _learn(
        self, model: PreTrainedModel, spots: Sequence[Spot], source: Sequence[Text], targets: Sequence[Tensor]
    ) -> tuple[list[Map], list[float]]:
        """Return the maps, and the loss at each step. targets: a tensor (N, D) for each place."""
        generator = torch.Generator().manual_seed(self.seed)
        half = any(parameter.dtype == torch.float16 for parameter in model.parameters())
        losses, scale = list[float](), LOSS_SCALE if half else 1.0
        with torch.inference_mode(False), torch.enable_grad():
            shape = (len(spots), layout.width(model))
            slopes, shifts = (torch.zeros(shape, device=input_device(model), requires_grad=True) for _ in range(2))
            for step in range(self.steps):
                batch, wanted = self._batch(source, targets, generator)
                loss = self.loss(model, spots, slopes, shifts, batch, wanted)
                _check_finite("the loss", loss, step, half)
                found, scale = gradients(loss, [slopes, shifts], scale)
                rate = self._rate(step)
                for one, gradient in zip((slopes, shifts), found, strict=True):
                    with torch.no_grad():
                        one.copy_(sparser(one - rate * gradient, rate * self.sparsity))
                losses.append(float(loss.detach()))
                advance((STEP_COST - 1) * sum(len(text.tokens) for text in batch))
        _check_finite("the size of the maps", torch.stack([slopes, shifts]).detach().norm(), self.steps, half)
        rows = zip(slopes.detach().cpu(), shifts.detach().cpu(), strict=True)
        return [Map(1 + slope, shift.clone()) for slope, shift in rows], losses

    def _rate(self, step: int) -> float:
        """Return the learning rate of a step counted from 0."""
        return self.learning_rate * (END_RATE + (1 - END_RATE) * (1 + math.cos(math.pi * step / self.steps)) / 2)

    def _batch(
        self, source: Sequence[Text], targets: Sequence[Tensor], generator: torch.Generator
    ) -> tuple[list[Text], list[Tensor]]:
        """Return source texts, and as many rows of each place's targets; all of them if they fit into one batch."""
        if len(source) <= self.batch_size:
            return list(source), list(targets)
        texts, rows = (torch.randperm(len(source), generator=generator)[: self.batch_size] for _ in range(2))
        return [source[i] for i in texts.tolist()], [one[rows] for one in targets]

    def loss(
        self,
        model: PreTrainedModel,
        spots: Sequence[Spot],
        slopes: Tensor,
        shifts: Tensor,
        source: Sequence[Text],
        targets: Sequence[Tensor],
    ) -> Tensor:
        """Return the loss of a batch of source texts under the maps y -> y + slope * y + shift.

        slopes, shifts: (M, D) each, with a row for each of M places. targets: a tensor (B, D) for each place.
        """
        places = [spot.place for spot in spots]
        with hooked(place.hook(_mapping(slopes, shifts, at)) for at, place in enumerate(places)):
            pooled = directions.pooled_once(model, source, places, read=self.read, skip_first=self.skip_first)
        found = [distance(one, wanted).to(slopes.device) for one, wanted in zip(pooled, targets, strict=True)]
        return torch.stack(found).mean()

    def changes(self, artefact: Artefact) -> Artefact:
        """Return w - 1 and b of each place."""
        return maps.changes(artefact)

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Apply the maps inside the `with`. Raises SetupError for an artefact of another model or other places."""
        spots = self._spots(model) if strength else []
        found = [maps.loaded(model, artefact, spot, self.name, supported=False) for spot in spots]
        with maps.applied(spots, found, strength):
            yield Steering()


def distance(source: Tensor, target: Tensor) -> Tensor:
    """Return the squared differences of the sorted values, (B, D) each, summed over texts and averaged over units."""
    gaps = source.sort(0).values - target.to(source.device).sort(0).values  # (B, D)
    return gaps.square().sum(0).mean()


def sparser(values: Tensor, threshold: float) -> Tensor:
    """Apply the proximal step of threshold * (sum |x_i| + sqrt(D) |x|) to each row x of values (M, D)."""
    shrunk = soft_threshold(values, threshold)
    lengths = shrunk.norm(dim=-1, keepdim=True)  # (M, 1)
    least = threshold * math.sqrt(values.shape[-1])
    kept: Tensor = shrunk * (1 - least / lengths.where(lengths > 0, torch.ones_like(lengths))).clamp(min=0)
    return kept


def _check_finite(what: str, value: Tensor, steps: int, half: bool) -> None:
    if not value.isfinite():
        raise SetupError(
            f"lineas: {what} is {value.item()} after {steps} steps; lower method.learning_rate, or check that the "
            "model's weights are whole" + (", or set model.dtype=bfloat16" if half else "")
        )


def _mapping(slopes: Tensor, shifts: Tensor, at: int) -> Callable[[Tensor], Tensor]:
    def function(hidden: Tensor) -> Tensor:  # in fp32, so that the gradients are in fp32, too
        values, device = hidden.float(), hidden.device
        return (values + slopes[at].to(device) * values + shifts[at].to(device)).to(hidden.dtype)

    return function
