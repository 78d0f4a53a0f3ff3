"""ARGRE (arXiv 2510.01243), our reading: final states move along a direction until a learnt reward is high enough."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import directions, layout, options
from methods.base import INFO, Artefact, FitData, Method, Steering, required_pairs
from methods.errors import SetupError
from methods.intervention import Hook, hooked, scope_mask
from methods.training import encoded_pairs


class Reward(NamedTuple):
    """theta(h) = outer . relu(inner h + offset), a number for each state h (D,).

    inner: (M, D); offset, outer: (M,). There is no constant term, since it would change neither the loss nor the gap
    between target and theta.
    """

    inner: Tensor
    offset: Tensor
    outer: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        """Return the rewards (...,) of states (..., D)."""
        return functional.relu(functional.linear(states, self.inner, self.offset)) @ self.outer

    def gradient(self, states: Tensor) -> Tensor:
        """Return the gradient (..., D) of the reward at states (..., D)."""
        active = functional.linear(states, self.inner, self.offset) > 0  # (..., M)
        return (active * self.outer) @ self.inner

    def to(self, device: torch.device) -> "Reward":
        """Return the same reward on another device."""
        return Reward(*(one.to(device) for one in self))


@dataclass(frozen=True, kw_only=True)
class ARGRE(Method):
    """h <- h + strength * max(0, target - theta(h)) d, then `iterations` times h <- h + strength * step * theta'(h).

    h is the state (D,) that the unembedding reads, at the last token of the prompt and at all later ones. Nothing else
    is touched, so the KV cache is that of the unsteered model. From pairs of texts, `fit` learns d, theta and target
    (sections 3 and 4.1 of the paper):

        d       first right singular vector of the differences of desired and undesired states at the last token
        h_k     = h- + k / (points + 1) d d^T (h+ - h-),  k = 1 .. points, at each token of the continuations
        theta   minimises the mean of -log sigmoid(beta_r (sum_t theta(better_t) - sum_t theta(worse_t))), by Adam
        target  mean of theta over all tokens of the desired continuations

    h+ and h- are the states after token t of the desired and of the undesired continuation of one prompt, up to the end
    of the shorter one. theta is a perceptron with one hidden layer. Strength is the share of the directional step
    (section 4.3). With iterations=0 only this step is left, the paper's form without iterations; if theta were linear,
    theta(h) = d . h, the step at strength 1 would bring a state below the target exactly to it.

    We wrote this from the text of the paper alone, whose formulas were lost in the copy that we read, and saw no code.
    The following points are our reading and unverified: the state is taken after the final norm; the singular vector is
    that of the uncentred differences, has length 1 and points from undesired to desired; better and worse are
    neighbours on the line h-, h_1, .., h_points, h+; both sums stop at the end of the shorter text, even for h- and
    h+ themselves; the hidden units are ReLUs, drawn as torch draws linear layers; Adam takes batches of `batch_size`
    such neighbours, in a random order; the iterations act on every state, whether or not its reward was too low, so
    that the change of a state does not jump where its reward reaches the target; and strength scales the iterations as
    well, so that strength 0 is the model itself. A review of the method gives the directional step as (target - theta)
    / beta with beta 1.

    The random control moves the same states by the same distances, in directions that are rotated at random (by the
    rotation "turn" in the control's artefact). If the vectors inside theta were rotated instead, theta would give
    another number for every state, so the steps would have arbitrary lengths, or length 0.

    Example:
        >>> from methods import ARGRE, FitData, generating
        >>> method = ARGRE(hidden=8, epochs=1)
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs))
        >>> with method.apply(model, artefact, 0.6), generating(model):
        ...     moved = (model(**inputs).logits != logits).any(-1)[0]
        >>> moved.nonzero().flatten().tolist()  # only the last token of the prompt
        [5]
    """

    name: ClassVar[str] = "argre"
    title: ClassVar[str] = "ARGRE (our reading)"
    cite: ClassVar[str] = "2510.01243"
    family: ClassVar[str] = "activation"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "share of the step"
    reads_labels: ClassVar[bool] = False  # the axis of d is the same if the texts of some pairs are swapped
    control_version: ClassVar[int] = 1  # what is added is turned, not what the reward reads

    points: int = 7
    hidden: int = 1024
    reward_beta: float = 0.05
    learning_rate: float = 5e-4
    epochs: int = 3
    batch_size: int = 16
    iterations: int = 5
    step: float = 0.5
    max_tokens: int = 128
    seed: int = 0
    strengths: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1)

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for numbers with which nothing is learnt, and for a model without a final norm."""
        for key in ("reward_beta", "learning_rate", "step"):
            options.check_number(key, getattr(self, key), lambda value: value > 0, "above 0")
        for key in ("hidden", "epochs", "batch_size", "max_tokens"):
            options.check_whole(key, getattr(self, key), 1)
        for key, least in (("points", 0), ("iterations", 0), ("seed", None)):
            options.check_whole(key, getattr(self, key), least)
        layout.final_norm(model)

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return d as "direction" (D,), "target" (a scalar), and theta: "inner" (M, D), "offset" (M,), "outer" (M,).

        Raises SetupError without pairs, if the last states of the two sides do not differ, and if the loss is not
        finite.
        """
        self.check(model)
        pairs = required_pairs(data, self.name)
        texts = encoded_pairs(model, tokenizer, pairs, self.max_tokens)
        desired, undesired = (  # (C, D) each: the states after the C tokens of a continuation
            [states[1:] for states in directions.final_states(model, side)] for side in (texts.desired, texts.undesired)
        )
        ends, others = (torch.stack([states[-1] for states in side]) for side in (desired, undesired))  # (N, D)
        direction, explained = main_direction(ends, others)
        reward, losses = self._learn(list(zip(desired, undesired, strict=True)), direction)
        good, bad = (torch.cat([reward(states) for states in side]) for side in (desired, undesired))
        target = good.mean()
        _check_finite("the reward of desired and undesired texts", target + bad.mean(), len(losses))
        return {
            "direction": direction,
            "target": target,
            **reward._asdict(),
            INFO + "explained_variance": torch.tensor(explained),
            INFO + "first_loss": torch.tensor(losses[0]),
            INFO + "last_loss": torch.tensor(losses[-max(1, len(losses) // 10) :]).mean(),
            INFO + "target_reward": target.clone(),
            INFO + "undesired_reward": bad.mean(),
            INFO + "open_for_desired": (good < target).float().mean(),
            INFO + "open_for_undesired": (bad < target).float().mean(),
            INFO + "left_out_pairs": torch.tensor(len(pairs.prompt) - len(texts.desired)),
            INFO + "cut_pairs": torch.tensor(texts.cut),
        }

    def _learn(self, pairs: Sequence[tuple[Tensor, Tensor]], direction: Tensor) -> tuple[Reward, list[float]]:
        """Return the reward and the loss at each step, from states of desired and undesired continuations, (C, D) each.

        It computes in double precision, because rounding would otherwise determine Adam's steps where gradients cancel.
        """
        generator = torch.Generator().manual_seed(self.seed)
        neighbours = [(pair, point) for pair in range(len(pairs)) for point in range(self.points + 1)]
        losses: list[float] = []
        with torch.inference_mode(False), torch.enable_grad():
            reward = drawn(len(direction), self.hidden, generator)
            optimiser = torch.optim.Adam(reward, lr=self.learning_rate)
            for _ in range(self.epochs):
                for batch in torch.split(torch.randperm(len(neighbours), generator=generator), self.batch_size):
                    chosen = [(pairs[pair], point) for pair, point in (neighbours[i] for i in batch.tolist())]
                    loss = self.loss(reward, [self.neighbours(pair, point, direction) for pair, point in chosen])
                    _check_finite("the loss of the reward", loss, len(losses))
                    optimiser.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimiser.step()
                    losses.append(float(loss.detach()))
        return Reward(*(one.detach().float() for one in reward)), losses

    def neighbours(self, pair: tuple[Tensor, Tensor], point: int, direction: Tensor) -> Tensor:
        """Return the states at a point of the line, counted from 0, and at the next, better point: (2, C, D) in fp64.

        pair: states (., D) of the desired and of the undesired continuation, of which the shorter has C tokens.
        """
        count = min(map(len, pair))
        good, bad = (states[:count].double() for states in pair)
        axis = direction.double()
        step = ((good - bad) @ axis)[:, None] * axis / (self.points + 1)  # (C, D)
        better = good if point == self.points else bad + (point + 1) * step
        return torch.stack([bad + point * step, better])

    def loss(self, reward: Reward, neighbours: Sequence[Tensor]) -> Tensor:
        """Return the mean loss of neighbours on a line, each (2, C, D), the worse one first."""
        counts = [states.shape[1] for states in neighbours]
        worse, better = reward(torch.cat(list(neighbours), dim=1))  # (total C,) each
        sums = torch.stack([one.sum() for one in torch.split(better - worse, counts)])
        return -functional.logsigmoid(float(self.reward_beta) * sums).mean()

    def changes(self, artefact: Artefact) -> Artefact:
        """Return the identity (D, D); a control rotates it, and `apply` turns each movement by that rotation."""
        return {"turn": torch.eye(len(artefact["direction"]))}

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Move final states inside the `with`. Raises SetupError for an artefact of another model."""
        direction = directions.fitted(model, artefact, "direction", self.name, axes=1)
        reward, target = learnt(model, artefact)
        turn = directions.fitted(model, artefact, "turn", self.name, axes=2) if "turn" in artefact else None

        def function(hidden: Tensor) -> Tensor:  # (B, T, D)
            nonlocal reward, direction, turn
            reward, direction = reward.to(hidden.device), direction.to(hidden.device)
            states = hidden.float()
            moved = self.moved(states, reward, direction, target, strength)
            if turn is not None:
                turn = turn.to(hidden.device)
                moved = states + (moved - states) @ turn
            mask = scope_mask("generation", hidden.shape[1], boundary=True)  # (B, T)
            assert mask is not None
            return torch.where(mask[..., None].to(hidden.device), moved.to(hidden.dtype), hidden)

        with hooked([Hook(layout.final_norm(model), "output", function)] if strength else []):
            yield Steering()

    def moved(self, states: Tensor, reward: Reward, direction: Tensor, target: float, strength: float) -> Tensor:
        """Return the states (..., D) in fp32 after the directional step and the iterations."""
        gap = (target - reward(states)).clamp(min=0)  # (...,)
        states = states + strength * gap[..., None] * direction
        for _ in range(self.iterations):
            states = states + strength * self.step * reward.gradient(states)
        return states


def learnt(model: PreTrainedModel, artefact: Artefact) -> tuple[Reward, float]:
    """Return the reward and the target of an artefact. Raises SetupError if one is missing or shapes disagree."""
    inner = directions.fitted(model, artefact, "inner", ARGRE.name, axes=2)  # (M, D)
    shapes = {name: tuple(artefact[name].shape) for name in ("offset", "outer", "target") if name in artefact}
    if shapes != {"offset": inner.shape[:1], "outer": inner.shape[:1], "target": ()}:
        raise SetupError(f"argre: {shapes} beside {len(inner)} hidden units are no reward and its target; fit it again")
    return Reward(inner, artefact["offset"], artefact["outer"]), float(artefact["target"])


def _check_finite(what: str, value: Tensor, steps: int) -> None:
    if not value.isfinite():
        raise SetupError(f"argre: {what} is {value.item()} after {steps} steps; lower method.learning_rate")


def main_direction(desired: Tensor, undesired: Tensor) -> tuple[Tensor, float]:
    """Return the first right singular vector (D,) of the differences (N, D), and its share of their squared lengths.

    The vector points from undesired to desired states. Raises SetupError if the states do not differ.
    """
    difference = desired.double() - undesired.double()
    usual = float(undesired.norm(dim=-1).mean())
    if float(difference.norm(dim=-1).mean()) <= directions.SAME * usual:
        raise SetupError(
            "argre: the states at the ends of desired and undesired texts are the same; give pairs whose texts differ"
        )
    values, axes = torch.linalg.svd(difference, full_matrices=False)[1:]
    axis = axes[0] if float(difference.mean(0) @ axes[0]) >= 0 else -axes[0]
    return axis.float().contiguous(), float(values[0].square() / values.square().sum())


def drawn(width: int, hidden: int, generator: torch.Generator) -> Reward:
    """Return a reward drawn as torch draws linear layers, in fp64: uniform in +-1 / sqrt(a layer's inputs)."""

    def uniform(*shape: int, inputs: int) -> Tensor:
        share = torch.rand(shape, generator=generator, dtype=torch.float64)
        return ((2 * share - 1) / math.sqrt(inputs)).requires_grad_()

    return Reward(uniform(hidden, width, inputs=width), uniform(hidden, inputs=width), uniform(hidden, inputs=hidden))
