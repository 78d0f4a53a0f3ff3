"""Model Surgery: a probe for the unwanted behaviour is added to the MLP gate rows that oppose it (arXiv 2407.08770)."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import anatomy
from methods.base import INFO, Artefact, FitData, Method, Steering, required_pairs
from methods.directions import Read, Text, encode, pooled_features
from methods.errors import SetupError
from methods.intervention import edited

ProbeKind = Literal["linear", "logistic"]
ProbeScale = Literal["raw", "unit"]
FINAL = "final"
UNDESIRED = 1  # class of the undesired texts; desired ones are 0


class Probe(NamedTuple):
    """A linear classifier of pooled features: logits are weight @ x + bias, weight (2, D), bias (2,)."""

    weight: Tensor
    bias: Tensor
    moved: float = math.nan  # 1 - cosine between the undesired row as trained and as drawn; NaN where none was drawn

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Share of features (N, D) put into their class; NaN for none."""
        guess = (features @ self.weight.T + self.bias).argmax(-1)  # (N,)
        return float((guess == labels).float().mean())


@dataclass(frozen=True, kw_only=True)
class ProbeRows(Method):
    """Add alpha times a probe vector to the MLP gate rows that point most away from it, over all blocks.

    Sections 3.2 and 3.3 of arXiv 2407.08770 and its code (github lucywang720/model-surgery): w = row of a two-class
    linear probe for undesired texts, its bias dropped; rows are ranked by -cos(row, w) over the whole model; the first
    K become row + alpha w (equation 3). Such a neuron is off where the state looks undesirable, and the edit switches
    it on there. Models without a gate are edited in their first MLP matrix, which the paper does not do.

    The paper trains for 9 epochs of a large comment corpus. On a hundred pairs that is a hundred Adam steps of 1e-4,
    after which the probe is still its random draw: `min_steps` makes a small set go round until the probe is trained.
    """

    name: ClassVar[str] = "probe_rows"
    family: ClassVar[str] = "weights"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "alpha"

    layer: int | float | str = FINAL
    read: Read = "all"
    skip_first: int = 0
    max_tokens: int = 100
    probe: ProbeKind = "linear"
    probe_scale: ProbeScale = "raw"
    learning_rate: float = 1e-4
    batch_size: int = 16
    epochs: int = 9
    min_steps: int = 4000
    held_out: float = 0.1
    row_fraction: float = 0.0465
    seed: int = 0
    strengths: Sequence[float] = (0.5, 1.0, 2.0, 4.0, 8.0)

    def check(self, model: PreTrainedModel) -> None:
        """Raise SetupError for a layer that the model lacks or an option outside its range."""
        self._site(model)
        if not 0 < self.row_fraction <= 1:
            raise SetupError(f"method.row_fraction={self.row_fraction} is outside (0, 1]; the paper's is 0.0465")
        if not 0 <= self.held_out < 1:
            raise SetupError(f"method.held_out={self.held_out} is outside [0, 1); the paper's is 0.1")
        allowed = {"read": get_args(Read), "probe": get_args(ProbeKind), "probe_scale": get_args(ProbeScale)}
        for option, values in allowed.items():
            if getattr(self, option) not in values:
                raise SetupError(f"method.{option}={getattr(self, option)!r}: allowed are {', '.join(values)}")

    def _site(self, model: PreTrainedModel) -> tuple[int, bool]:
        """Block to read, and whether the final norm comes after it."""
        if self.layer == FINAL:
            anatomy.final_norm(model)
            return len(anatomy.blocks(model)) - 1, True
        if isinstance(self.layer, str):
            raise SetupError(f"method.layer={self.layer!r}: allowed are {FINAL}, a block number, a fraction in [0, 1)")
        return anatomy.layer_index(model, self.layer), False

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """The vector that is added, "probe" (D,), and where, "rows" (K, 2): block and row of each."""
        self.check(model)
        pairs = required_pairs(data, self.name)
        desired, undesired = (
            self._features(model, encode(tokenizer, pairs.prompt, texts, self.max_tokens))  # (N, D)
            for texts in (pairs.desired, pairs.undesired)
        )
        if torch.equal(desired, undesired):
            raise SetupError("probe_rows: the desired and undesired texts of every pair are equal; give other pairs")
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(desired), generator=generator)
        tested = round(self.held_out * len(order))  # both texts of a pair are held out, else the prompt gives it away
        train, test = (_labelled(desired[part], undesired[part]) for part in (order[tested:], order[:tested]))
        if self.probe == "linear":
            steps = max(self.epochs * math.ceil(len(train[1]) / self.batch_size), self.min_steps)
            probe = linear_probe(*train, steps, self.learning_rate, self.batch_size, generator)
        else:
            probe = logistic_probe(*train)
        raw = probe.weight[UNDESIRED]  # (D,)
        vector = raw / raw.norm() if self.probe_scale == "unit" else raw
        rows, cosine = opposed_rows(model, vector, self.row_fraction)
        facts = {
            "probe_norm": raw.norm(),
            "probe_moved": torch.tensor(probe.moved),
            "probe_train_accuracy": torch.tensor(probe.accuracy(*train)),
            "probe_accuracy": torch.tensor(probe.accuracy(*test)),
            "probe_held_out_texts": torch.tensor(len(test[1])),
            "largest_cosine": cosine.max(),
            "rows_per_layer": torch.bincount(rows[:, 0], minlength=len(anatomy.blocks(model))),  # (L,)
        }
        known = {INFO + name: fact for name, fact in facts.items() if fact.isfinite().all()}
        return {"probe": vector.contiguous(), "rows": rows, **known}

    def _features(self, model: PreTrainedModel, texts: list[Text]) -> Tensor:
        block, after_norm = self._site(model)
        return pooled_features(
            model, texts, [block], read=self.read, skip_first=self.skip_first, after_final_norm=after_norm
        )[0].clone()  # a tensor of its own: what inference mode made cannot be trained on

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Move the artefact's rows by strength times its probe inside the block; every other row stays as it is."""
        probe, rows = artefact["probe"], artefact["rows"]  # (D,), (K, 2)
        new = {}
        for layer in torch.unique(rows[:, 0]).tolist() if strength != 0 else []:
            chosen = rows[rows[:, 0] == layer, 1]
            if layer >= len(anatomy.blocks(model)) or len(probe) != anatomy.width(model):
                raise SetupError("probe_rows: this artefact was not fitted on this model; fit it again")
            matrix = anatomy.gate_matrix(model, layer)
            weight = matrix.read().float().clone()  # (M, D)
            weight[chosen.to(weight.device)] += strength * probe.to(weight.device)
            new[matrix.parameter] = matrix.stored(weight)
        with edited(new):
            yield Steering()


def _labelled(desired: Tensor, undesired: Tensor) -> tuple[Tensor, Tensor]:
    """Features (2N, D) and their classes (2N,)."""
    labels = torch.cat([torch.zeros(len(desired)), torch.full((len(undesired),), UNDESIRED)]).long()
    return torch.cat([desired, undesired]), labels


def linear_probe(
    features: Tensor, labels: Tensor, steps: int, learning_rate: float, batch_size: int, generator: torch.Generator
) -> Probe:
    """Linear D -> 2 by Adam on the log-likelihood of both classes, drawn as nn.Linear draws (section 3.2, Table 14)."""
    width = features.shape[1]
    drawn = (torch.rand(2, width + 1, generator=generator) * 2 - 1) / math.sqrt(width)  # the bias is the last column
    inputs = torch.cat([features, torch.ones(len(features), 1)], dim=-1)  # (N, D + 1)
    with torch.inference_mode(False), torch.enable_grad():
        weight = drawn.clone().requires_grad_()
        optimiser = torch.optim.Adam([weight], lr=learning_rate)
        queue = torch.empty(0, dtype=torch.long)
        for _ in range(steps):
            if not len(queue):
                queue = torch.randperm(len(labels), generator=generator)  # another epoch
            batch, queue = queue[:batch_size], queue[batch_size:]
            optimiser.zero_grad()
            functional.cross_entropy(inputs[batch] @ weight.T, labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    trained = weight.detach()
    moved = 1 - functional.cosine_similarity(trained[UNDESIRED, :width], drawn[UNDESIRED, :width], dim=0)
    return Probe(trained[:, :width], trained[:, width], float(moved))


def logistic_probe(features: Tensor, labels: Tensor) -> Probe:
    """Logistic regression with sklearn's default penalty; the undesired row is its coefficients, the other zeros."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=5000).fit(features.double().numpy(), labels.numpy())
    weight, bias = torch.zeros(2, features.shape[1]), torch.zeros(2)
    weight[UNDESIRED] = torch.from_numpy(model.coef_[0])
    bias[UNDESIRED] = float(model.intercept_[0])
    return Probe(weight, bias)


def opposed_rows(model: PreTrainedModel, vector: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
    """The `fraction` of all gate rows with the smallest cosine to `vector`: (K, 2) block and row, (K,) cosines."""
    cosines = []
    for layer in range(len(anatomy.blocks(model))):
        weight = anatomy.gate_matrix(model, layer).read().float()  # (M, D)
        cosines.append(functional.cosine_similarity(weight, vector.to(weight.device), dim=-1).cpu())  # (M,)
    where = torch.cat(
        [torch.stack([torch.full((len(c),), layer), torch.arange(len(c))], -1) for layer, c in enumerate(cosines)]
    )  # (L M, 2)
    cosine = torch.cat(cosines)
    chosen = cosine.argsort(stable=True)[: max(1, round(fraction * len(cosine)))]
    return where[chosen], cosine[chosen]
