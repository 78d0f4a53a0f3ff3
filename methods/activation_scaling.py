"""Activation scaling (arXiv 2410.04962), our form: the outputs of each attention and MLP are scaled or reversed."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import layout, options, sites
from methods.base import Artefact, FitData, Method, Steering, refuse_no_change, required_background, required_pairs
from methods.errors import SetupError
from methods.intervention import Hook, edited, hooked
from methods.optimiser import LOSS_SCALE, gradients, soft_threshold
from methods.placement import check_materialised, input_device
from methods.progress import advance
from methods.sites import Place
from methods.tokens import Text, encode, encode_pairs
from methods.training import STEP_COST, logits_and_targets
from methods.training_memory import TrainingMemory, training_memory, wanting

USUAL_PAIRS = 200  # the number of pairs that `passes` assumes
NORM_ROWS = 4  # rows of random numbers, on which a norm is tried to find out how it uses its weight
ALIKE = 1e-3  # relative tolerance of that trial; a norm that uses its weight in another way is off by far more


@dataclass(frozen=True, kw_only=True)
class ActivationScaling(Method):
    """y <- (1 + strength * a_lc) * y, where y is what component c, attention or MLP, of block l adds to the stream.

    There are 2 L scalars a, one for each component, which act at all tokens. They begin at 0 and are learnt, while the
    model's weights stay fixed. The loss is

        loss = -log sigmoid(log p(desired | prompt) - log p(undesired | prompt))    each a mean over its tokens
               + kl_weight * KL(model || scaled model) on background texts, over all their tokens
               + sparsity * sum |a|, by a proximal step after each Adam step, with Adam's step size for each scalar

    Of arXiv 2410.04962 we could only read the abstract and descriptions by others. The paper learns a signed scalar for
    each block, component and token position, for prompts of one length. Its three goals correspond to the three terms
    here: effectiveness (the right answer's logit is above the wrong one's), faithfulness (other tokens stay as before)
    and minimality (few scalars differ from 1). The paper compares such scalars with added vectors. Our form differs in
    that it has one scalar for all positions, whole continuations instead of answer tokens, a log-sigmoid instead of a
    margin, and weights, optimiser and steps of our own choice. The paper's scalars that are functions of the activation
    (DynScalar) are not implemented. The paper reports nothing on toxicity.

    At a = -1 a component writes nothing, below -1 it writes the reverse. Strength is the share of the learnt change.
    If no norm follows the component's matrix, the matrix and its bias are scaled; if one follows, the norm's weight is
    scaled. So steering costs nothing and can be exported as a checkpoint. If neither is possible (a mixture of
    experts), a hook scales the output.

    Example:
        >>> from methods import ActivationScaling, FitData
        >>> method = ActivationScaling(steps=5)
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs, background=background))
        >>> with method.apply(model, artefact, 0.5):
        ...     name = "model.layers.3.self_attn.o_proj.weight"
        ...     factor = model.get_parameter(name) / weights[name]
        >>> factor.allclose(1 + 0.5 * artefact["scales"][3, 0])
        True
    """

    name: ClassVar[str] = "activation_scaling"
    title: ClassVar[str] = "Activation scaling (our form)"
    cite: ClassVar[str] = "2410.04962"
    family: ClassVar[str] = "activation"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs", "background"})
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "share of the learnt change"

    kl_weight: float = 1.0
    sparsity: float = 1e-3
    learning_rate: float = 1e-2
    steps: int = 200
    batch_size: int = 4
    max_tokens: int = 128
    seed: int = 0
    strengths: Sequence[float] = (0.25, 0.5, 0.75, 1.0, 1.5)

    def passes(self) -> float:
        """Return an estimate for the usual number of pairs, since the number of steps does not depend on it."""
        return STEP_COST * self.steps * self.batch_size / USUAL_PAIRS

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a setting that is not allowed, and if a component's matrix cannot be found."""
        options.check_types(self)
        if self.steps < 1 or self.batch_size < 1 or not 0 < self.learning_rate < math.inf:
            raise SetupError(
                f"method.steps={self.steps}, method.batch_size={self.batch_size}, method.learning_rate="
                f"{self.learning_rate}: steps and batch size must be at least 1, and the learning rate above 0"
            )
        for key in ("kl_weight", "sparsity"):
            options.check_number(key, getattr(self, key), lambda value: value >= 0, "of 0 or more")
        if self.max_tokens < 2:
            raise SetupError(f"method.max_tokens={self.max_tokens}: a text needs at least 2 tokens")
        for kind in layout.WRITERS:
            layout.stream_rows(model, 0, kind)

    def training(self, model: PreTrainedModel) -> TrainingMemory:
        """Return the memory for training the scalars: each block's activations, and both of its scaled parts in fp32.

        The places of the parts can only be found in a model with weights. So for the estimate, a tensor of equal size
        is scaled before each block.
        """
        inputs = [block for block in layout.blocks(model) for _ in sites.PARTS]
        scales = nn.Parameter(torch.zeros(len(inputs), device=input_device(model)))
        hooks = [Hook(block, "input", _scaling(scales, at)) for at, block in enumerate(inputs)]
        batches = [(2 * self.batch_size, self.max_tokens)] + [(self.batch_size, self.max_tokens)] * bool(self.kl_weight)
        with wanting(model, []), hooked(hooks):
            return training_memory(model, [scales], "adamw", batches)

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the scalars "scales" (L, 2), of attention and of the MLP of each block.

        A pair in which a text is a single token, which no earlier token predicts, is left out.
        Raises SetupError without pairs or background, and if the loss is not finite.
        """
        self.check(model)
        pairs = required_pairs(data, self.name)
        background = required_background(
            data, "activation_scaling needs ordinary texts, on which the model is to stay as it is,"
        )
        check_materialised(model, list(model.parameters()))
        encoded = encode_pairs(model, tokenizer, pairs, self.max_tokens)
        sides = list(zip(*(map(_told, side) for side in (encoded.desired, encoded.undesired)), strict=True))
        sides = [pair for pair in sides if all(len(text.tokens) > text.prompt for text in pair)]
        whole, cut_background = encode(model, tokenizer, [""] * len(background), background, self.max_tokens)
        usual = [text for text in (_told(text, 1) for text in whole) if len(text.tokens) > 1]
        if not sides or not usual:
            raise SetupError(
                f"activation_scaling: {len(sides)} pairs and {len(usual)} background texts have a token to predict "
                "from earlier ones; give longer texts"
            )
        if all(one.tokens == other.tokens for one, other in sides):
            raise SetupError(
                "activation_scaling: the two texts of every pair are the same, so neither is preferred; give other "
                "pairs"
            )
        scales, losses = self._learn(model, sides, usual)
        refuse_no_change(self.name, [scales], f"method.sparsity={self.sparsity} leaves no scalar above 0; lower it")
        last = torch.tensor(losses[-max(1, len(losses) // 10) :])
        return {
            "scales": scales.view(-1, len(sites.PARTS)).cpu(),
            "info.first_loss": torch.tensor(losses[0]),
            "info.last_loss": last.mean(),
            "info.zeros": (scales == 0).sum().cpu(),
            "info.left_out_pairs": torch.tensor(len(encoded.desired) - len(sides)),
            "info.cut_pairs": torch.tensor(encoded.cut),
            "info.cut_background": torch.tensor(cut_background),
        }

    def _learn(
        self, model: PreTrainedModel, pairs: Sequence[tuple[Text, ...]], background: Sequence[Text]
    ) -> tuple[Tensor, list[float]]:
        """Return the scalars (2 L,), and the loss at each step."""
        places = _places(model)
        generator = torch.Generator().manual_seed(self.seed)
        batches = _Batches(len(pairs), generator), _Batches(len(background), generator)
        half = any(parameter.dtype == torch.float16 for parameter in model.parameters())
        losses: list[float] = []
        with torch.inference_mode(False), torch.enable_grad():
            scales = torch.zeros(len(places), device=input_device(model), requires_grad=True)
            optimiser = torch.optim.Adam([scales], lr=self.learning_rate)
            scale = LOSS_SCALE if half else 1.0
            while len(losses) < self.steps:
                some = [pairs[i] for i in batches[0].next(self.batch_size)]
                others = [background[i] for i in batches[1].next(self.batch_size)] if self.kl_weight else []
                loss = self.loss(model, places, scales, some, others)
                if not loss.isfinite():
                    raise SetupError(
                        f"activation_scaling: the loss is {loss.item()} after {len(losses)} steps; lower "
                        "method.learning_rate, or check that the model's weights are whole"
                        + (", or set model.dtype=bfloat16" if half else "")
                    )
                (scales.grad,), scale = gradients(loss, [scales], scale)
                optimiser.step()
                with torch.no_grad():
                    scales.copy_(soft_threshold(scales, self.sparsity * _step_size(optimiser, scales)))
                losses.append(float(loss.detach()))
                tokens = sum(len(text.tokens) for text in [*(text for pair in some for text in pair), *others])
                advance((STEP_COST - 1) * tokens)
        return scales.detach(), losses

    def loss(
        self,
        model: PreTrainedModel,
        places: Sequence[Place],
        scales: Tensor,
        pairs: Sequence[tuple[Text, ...]],
        background: Sequence[Text],
    ) -> Tensor:
        """Return the first two terms of the loss for scalars (2 L,), one for each place.

        pairs: the desired and the undesired text of each pair.
        """
        texts = [pair[side] for side in (0, 1) for pair in pairs]
        with hooked(place.hook(_scaling(scales, at)) for at, place in enumerate(places)):
            means = mean_log_probabilities(model, texts)  # (2 n,)
            now = logits_and_targets(model, background)[0] if background else None  # (C, V)
        desired, undesired = means.chunk(2)
        loss = -functional.logsigmoid(desired - undesired).mean()
        if now is None:
            return loss
        with torch.no_grad():
            before = logits_and_targets(model, background)[0]
        kept = functional.kl_div(now.log_softmax(-1), before.log_softmax(-1), log_target=True, reduction="batchmean")
        return loss + self.kl_weight * kept

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Scale what the components write inside the `with`. Raises SetupError for an artefact of another model."""
        scales = artefact.get("scales")
        if scales is None or scales.shape != (len(layout.blocks(model)), len(sites.PARTS)):
            shape = None if scales is None else tuple(scales.shape)
            raise SetupError(f"activation_scaling: scales {shape} were not fitted on this model; fit it again")
        with ExitStack() as stack:
            for layer, row in enumerate(scales.tolist()) if strength else ():
                for part, scale in zip(sites.PARTS, row, strict=True):
                    factor = 1 + strength * scale
                    if factor == 1:
                        continue
                    new = _folded(model, layer, part, factor)
                    if new is not None:
                        stack.enter_context(edited(new))
                    else:
                        place = sites.written(model, layer, part)
                        stack.enter_context(hooked([place.hook(_times(factor))]))
            yield Steering()


class _Batches:
    """Row numbers in a random order, shuffled again after each pass."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count, self.generator, self.queue = count, generator, torch.empty(0, dtype=torch.long)

    def next(self, size: int) -> list[int]:
        if not len(self.queue):
            self.queue = torch.randperm(self.count, generator=self.generator)
        batch, self.queue = self.queue[:size], self.queue[size:]
        return batch.tolist()


def mean_log_probabilities(model: PreTrainedModel, texts: Sequence[Text]) -> Tensor:
    """Return the mean log p of the tokens of each text's continuation, (N,) in nats; no continuation may be empty."""
    logits, targets = logits_and_targets(model, texts)  # (C, V), (C,)
    said = -functional.cross_entropy(logits, targets, reduction="none")  # (C,)
    counts = [len(text.tokens) - text.prompt for text in texts]
    return torch.stack([one.mean() for one in torch.split(said, counts)])


def _step_size(optimiser: torch.optim.Adam, scales: Tensor) -> Tensor:
    """Return how far Adam has just moved each scalar per unit of its averaged gradient."""
    state, options = optimiser.state[scales], optimiser.param_groups[0]
    squared: Tensor = state["exp_avg_sq"] / (1 - options["betas"][1] ** float(state["step"]))
    size: Tensor = options["lr"] / (squared.sqrt() + options["eps"])
    return size


def _told(text: Text, prompt: int | None = None) -> Text:
    """Return the text with a prompt of at least one token, since nothing predicts the first token."""
    return text._replace(prompt=max(text.prompt if prompt is None else prompt, 1))


def _places(model: PreTrainedModel) -> list[Place]:
    """Return the outputs of all components: attention and MLP of the first block, then of the next."""
    return [sites.written(model, layer, part) for layer in range(len(layout.blocks(model))) for part in sites.PARTS]


def _times(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda hidden: hidden * factor


def _scaling(scales: Tensor, at: int) -> Callable[[Tensor], Tensor]:
    def function(hidden: Tensor) -> Tensor:  # in fp32, so that the scalar's gradient is fp32
        return (hidden.float() * (1 + scales[at].to(hidden.device))).to(hidden.dtype)

    return function


def _folded(model: PreTrainedModel, layer: int, part: sites.Part, factor: float) -> dict[nn.Parameter, Tensor] | None:
    """Return new weights with which the component writes `factor` times as much; None if only a hook can do that."""
    module = sites.written(model, layer, part).module
    weight, bias = (getattr(module, name, None) for name in ("weight", "bias"))
    if not isinstance(weight, nn.Parameter):  # a mixture of experts
        return None
    if sites.is_normed(model, layer, part):
        new = _folded_norm(module, weight, factor)
    else:
        new = {weight: weight.detach().float() * factor}
    if new is not None and isinstance(bias, nn.Parameter):
        new[bias] = bias.detach().float() * factor
    return new


@torch.no_grad()
def _folded_norm(module: nn.Module, weight: nn.Parameter, factor: float) -> dict[nn.Parameter, Tensor] | None:
    """Return a norm's scaled weight; whether the norm keeps w, or w - 1 as in Gemma, is found by trying."""
    bias = getattr(module, "bias", None)
    draw = torch.randn(NORM_ROWS, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    without = torch.zeros_like(weight) if bias is None else bias.detach()
    wanted = 2 * (module(draw) - without)
    for offset in (0.0, 1.0):
        with edited({weight: 2 * (weight.detach().float() + offset) - offset}):
            found = module(draw) - without
        if (found - wanted).float().norm() <= max(ALIKE, 4 * torch.finfo(weight.dtype).eps) * wanted.float().norm():
            return {weight: factor * (weight.detach().float() + offset) - offset}
    return None
