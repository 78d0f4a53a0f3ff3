"""Direct preference optimisation (arXiv 2305.18290) of a LoRA: the desired text is made likelier than the undesired."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods.adapter import AdapterMethod, adapter, factors, lora_parameters, ups
from methods.base import Artefact, FitData, refuse_no_change, required_pairs
from methods.errors import SetupError
from methods.tokens import Text
from methods.training import NO_STEP, STEP_COST, encoded_pairs, foretold, log_likelihoods, minimise, trainable

READ_BATCH = 16  # pairs that are read at once outside the training


@dataclass(frozen=True, kw_only=True)
class DPO(AdapterMethod):
    """W <- W + strength * (alpha / rank) B A on every linear layer, learnt from which text of a pair is preferred.

        L = - mean over pairs of log sigmoid(beta (r(desired) - r(undesired)))
        r(y) = log p(y | x) - log p_ref(y | x),  log p summed over the tokens of y, not divided by their number

    The reference is the model without the adapter, so no second copy is held; the reference's log-probabilities are
    read once, before the training. As B = 0 at the start, both r are 0 there, L is log 2, and its gradient is
    -beta / 2 * mean of (grad log p(desired) - grad log p(undesired)): swapping the labels reverses it.
    `preference_loss` computes L alone, for any parameters.

    No end of text is put after a continuation (see `methods.lora`). `info.accuracy` is the share of the training pairs
    with r(desired) > r(undesired), `info.margin` the mean of beta times their difference. `info.desired_gain` and
    `info.undesired_gain` are the means of the two r in nats: DPO only asks that r(desired) be larger than r(undesired),
    so both may fall.

    We train a LoRA by AdamW for a fixed number of epochs, unlike the paper and the toxicity runs of arXiv 2401.01967,
    which train all weights by RMSprop at 1e-6 with a warm-up of 150 steps and stop on held-out pairs. Rank, alpha,
    learning rate and epochs are a choice of ours.

    Example:
        >>> from methods import DPO, FitData
        >>> method = DPO(rank=2, learning_rate=1e-3, epochs=3)
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs))
        >>> with method.apply(model, artefact, 1.0):
        ...     changed = [name for name, one in model.named_parameters() if not one.equal(weights[name])]
        >>> bool(artefact["info.margin"] > 0), len(changed)  # 7 matrices in each of 5 blocks
        (True, 35)
    """

    name: ClassVar[str] = "dpo"
    title: ClassVar[str] = "DPO"
    cite: ClassVar[str] = "2305.18290"
    family: ClassVar[str] = "adapter"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    version: ClassVar[int] = 1
    sets: ClassVar[int] = 2  # both texts of a pair
    strength_unit: ClassVar[str] = "share of the adapter"

    beta: float = 0.1
    learning_rate: float = 5e-5
    batch_size: int = 4
    strengths: Sequence[float] = (0.25, 0.5, 0.75, 1.0, 1.5)

    def passes(self) -> float:
        """Count a training step per epoch, and two readings: the reference before the training, the margins after."""
        return STEP_COST * self.epochs + 2

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for settings with which no LoRA can be trained, and for a beta that is not above 0."""
        super().check(model)
        if not 0 < self.beta < float("inf"):
            raise SetupError(f"method.beta={self.beta}: expected a number above 0; 0.1 is usual")

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the two factors of each matrix's change (`methods.adapter.factors`).

        Raises SetupError without pairs, and if the two texts of every pair are the same.
        """
        self.check(model)
        desired, undesired, cut = encoded_pairs(model, tokenizer, required_pairs(data, self.name), self.max_tokens)
        if all(one.tokens == other.tokens for one, other in zip(desired, undesired, strict=True)):
            raise SetupError("dpo: the two texts of every pair are the same, so neither is preferred; give other pairs")
        sizes = [len(one.tokens) + len(other.tokens) for one, other in zip(desired, undesired, strict=True)]
        reference = _all_log_likelihoods(model, desired, undesired)  # (N, 2)

        def loss(_step: int, rows: list[int]) -> Tensor:
            sides = ([side[row] for row in rows] for side in (desired, undesired))
            return preference_loss(model, *sides, beta=self.beta, reference=reference[rows])

        with adapter(model, self.rank, self.alpha, self.seed):
            vector = list(lora_parameters(model).values())
            with trainable(vector):
                memory = foretold(model, vector, self.recipe, [desired, undesired], self.name)
                minimise(model, vector, loss, sizes, self.recipe, stage=self.name)
                rewards = _all_log_likelihoods(model, desired, undesired) - reference  # (N, 2)
                artefact = factors(model)
        refuse_no_change(self.name, ups(artefact), NO_STEP)
        gains, margins = rewards.mean(0), self.beta * (rewards[:, 0] - rewards[:, 1])
        facts = {
            "loss_after": functional.softplus(-margins).mean(),
            "accuracy": (margins > 0).float().mean(),
            "margin": margins.mean(),
            "desired_gain": gains[0],
            "undesired_gain": gains[1],
            "cut_pairs": torch.tensor(cut),
            "foretold_memory_bytes": torch.tensor(memory),
        }
        return artefact | {f"info.{name}": value.cpu() for name, value in facts.items()}


def preference_loss(
    model: PreTrainedModel,
    desired: Sequence[Text],
    undesired: Sequence[Text],
    *,
    beta: float,
    reference: Tensor | None = None,
) -> Tensor:
    """Return DPO's loss of these pairs on the current model, differentiable in all parameters that require a gradient.

    desired, undesired: texts of the same prompts, as `methods.training.encoded_pairs` gives them.
    reference: (B, 2) log-probabilities of both under the reference model; None: the model is its own reference, as at
    the first step, so the loss is log 2 and its gradient that of the first step.
    """
    policy = pair_log_likelihoods(model, desired, undesired)
    return dpo_loss(policy, policy.detach() if reference is None else reference, beta)


def pair_log_likelihoods(model: PreTrainedModel, desired: Sequence[Text], undesired: Sequence[Text]) -> Tensor:
    """Return the log-probabilities (B, 2) of each pair's desired and undesired continuation, from one forward."""
    return log_likelihoods(model, [*desired, *undesired]).view(2, len(desired)).T


def dpo_loss(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Return the mean of - log sigmoid(beta (r(desired) - r(undesired))) over pairs; r = policy - reference, (B, 2)."""
    rewards = policy - reference.to(policy.device)
    return -functional.logsigmoid(beta * (rewards[:, 0] - rewards[:, 1])).mean()


@torch.no_grad()
def _all_log_likelihoods(model: PreTrainedModel, desired: Sequence[Text], undesired: Sequence[Text]) -> Tensor:
    """Return the log-likelihoods (N, 2) of a whole set of pairs."""
    starts = range(0, len(desired), READ_BATCH)
    return torch.cat(
        [pair_log_likelihoods(model, desired[i : i + READ_BATCH], undesired[i : i + READ_BATCH]) for i in starts]
    )
