"""Model Surgery: a probe for the unwanted behaviour is added to the MLP gate rows that oppose it (arXiv 2407.08770)."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import layout
from methods.base import INFO, Artefact, FitData, Method, Steering, required_pairs
from methods.directions import Read, pooled_features
from methods.errors import SetupError
from methods.intervention import edited
from methods.probes import logistic
from methods.separation import separation_facts
from methods.tokens import Text, encode_pairs

ProbeKind = Literal["linear", "logistic", "random"]
ProbeScale = Literal["raw", "unit"]
ClassRow = Literal["undesired", "desired"]
Rows = Literal["opposed", "aligned", "random"]
FINAL = "final"
UNDESIRED = 1  # class of the undesired texts; desired ones are 0
QUARTERS = (1, 2, 3, 4)
NOT_OURS = "probe_rows: this artefact was not fitted on this model; fit it again"


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
    it on there; a negative alpha does the opposite. Models without a gate are edited in their first MLP matrix, which
    the paper does not do; the rows of all experts of a mixture count as rows of their block, in the experts' order.
    Detoxifying, resisting jailbreaks and a change of attitude differ in the pairs alone; for a
    second edit on the model that the first one left (section 4.5) see `methods.stack`.

    The paper trains for 9 epochs of a large comment corpus. On a hundred pairs that is a hundred Adam steps of 1e-4,
    after which the probe is still at its random initialisation: `min_steps` makes a small set go round until it is
    trained.

    The paper's ablations are options. probe="random": the rows are those of the trained probe, what is added is a
    random vector of its length. rows: "random" ones, or "aligned", which the paper edits with a negative alpha.
    matrix: where a matrix writes the stream (down, o) its columns stand for rows, since only they are D long; the
    paper does not say how it did this, nor its K there, here the same share of that matrix's rows. skip_quarter: no
    row of that quarter of the blocks is taken; K counts all blocks, with and without it.
    """

    name: ClassVar[str] = "probe_rows"
    title: ClassVar[str] = "Model Surgery"
    cite: ClassVar[str] = "2407.08770"
    family: ClassVar[str] = "weights"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    version: ClassVar[int] = 2  # texts tokenised whole, long ones cut from the left of the prompt
    strength_unit: ClassVar[str] = "alpha"

    layer: int | float | str = FINAL
    read: Read = "all"
    skip_first: int = 0
    max_tokens: int = 100
    probe: ProbeKind = "linear"
    class_row: ClassRow = "undesired"
    probe_scale: ProbeScale = "raw"
    learning_rate: float = 1e-4
    batch_size: int = 16
    epochs: int = 9
    min_steps: int = 4000
    held_out: float = 0.1
    rows: Rows = "opposed"
    matrix: layout.Kind = "gate"
    skip_quarter: int | None = None
    row_fraction: float = 16384 / 352256
    seed: int = 0
    strengths: Sequence[float] = (0.5, 1.0, 2.0, 4.0, 8.0)

    def check(self, model: PreTrainedModel) -> None:
        """Raise SetupError for a layer that the model lacks or an option outside its range."""
        self._site(model)
        if not 0 < self.row_fraction <= 1:
            raise SetupError(f"method.row_fraction={self.row_fraction} is outside (0, 1]; the paper's is 0.0465")
        if not 0 <= self.held_out < 1:
            raise SetupError(f"method.held_out={self.held_out} is outside [0, 1); the paper's is 0.1")
        allowed = {
            "read": get_args(Read),
            "probe": get_args(ProbeKind),
            "class_row": get_args(ClassRow),
            "probe_scale": get_args(ProbeScale),
            "rows": get_args(Rows),
            "matrix": get_args(layout.Kind),
            "skip_quarter": (None, *QUARTERS),
        }
        for option, values in allowed.items():
            if getattr(self, option) not in values:
                names = ", ".join("null" if value is None else str(value) for value in values)
                raise SetupError(f"method.{option}={getattr(self, option)!r}: allowed are {names}")
        for layer in range(len(layout.blocks(model))):
            layout.stream_rows(model, layer, self.matrix)

    def _site(self, model: PreTrainedModel) -> tuple[int, bool]:
        """Block to read, and whether the final norm comes after it."""
        if self.layer == FINAL:
            layout.final_norm(model)
            return len(layout.blocks(model)) - 1, True
        if isinstance(self.layer, str):
            raise SetupError(f"method.layer={self.layer!r}: allowed are {FINAL}, a block number, a fraction in [0, 1)")
        return layout.layer_index(model, self.layer), False

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """The vector that is added, "probe" (D,), and where, "rows" (K, 2): block and row of each.

        How well the pairs agree (`methods.separation`) is said of all pairs where the probe reads them, with their mean
        difference as the direction, not the probe: `info.probe_accuracy` is the probe's own.
        """
        self.check(model)
        pairs = required_pairs(data, self.name)
        texts = encode_pairs(model, tokenizer, pairs, self.max_tokens)
        desired, undesired = (self._features(model, side) for side in (texts.desired, texts.undesired))  # (N, D) each
        if torch.equal(desired, undesired):
            raise SetupError("probe_rows: the desired and undesired texts of every pair are equal; give other pairs")
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(desired), generator=generator)
        tested = round(self.held_out * len(order))  # both texts of a pair are held out, else the prompt gives it away
        if len(order) - tested < 2:
            raise SetupError(
                f"probe_rows: {len(order)} pairs with method.held_out={self.held_out} leave {len(order) - tested} to "
                "train a probe on; at least 2 are needed: give more pairs or hold out less"
            )
        train, test = (_labelled(desired[part], undesired[part]) for part in (order[tested:], order[:tested]))
        if self.probe == "logistic":
            probe = logistic_probe(*train)
        else:
            steps = max(self.epochs * math.ceil(len(train[1]) / self.batch_size), self.min_steps)
            probe = linear_probe(*train, steps, self.learning_rate, self.batch_size, generator)
        raw = probe.weight[UNDESIRED if self.class_row == "undesired" else 1 - UNDESIRED]  # (D,)
        vector = raw / raw.norm() if self.probe_scale == "unit" else raw
        rows, cosine = self._rows(model, vector, generator)
        if self.probe == "random":
            drawn = torch.randn(len(vector), generator=generator)
            vector = drawn * (vector.norm() / drawn.norm())
        facts = {
            "probe_norm": raw.norm(),
            "probe_moved": torch.tensor(probe.moved),
            "probe_train_accuracy": torch.tensor(probe.accuracy(*train)),
            "probe_accuracy": torch.tensor(probe.accuracy(*test)),
            "probe_held_out_texts": torch.tensor(len(test[1])),
            "smallest_cosine": cosine.min(),
            "largest_cosine": cosine.max(),
            "cut_pairs": torch.tensor(texts.cut),
            "rows_per_layer": torch.bincount(rows[:, 0], minlength=len(layout.blocks(model))),  # (L,)
        }
        known = {INFO + name: fact for name, fact in facts.items() if fact.isfinite().all()}
        return {"probe": vector.contiguous(), "rows": rows, **known, **separation_facts(desired, undesired)}

    def _rows(self, model: PreTrainedModel, vector: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Block and row of the K rows to be moved, (K, 2), and their cosines to `vector`, (K,)."""
        where, cosine = stream_cosines(model, vector, self.matrix)
        count = max(1, round(self.row_fraction * len(cosine)))
        if self.skip_quarter is not None:
            quarter = where[:, 0] * len(QUARTERS) // len(layout.blocks(model)) + 1
            where, cosine = where[quarter != self.skip_quarter], cosine[quarter != self.skip_quarter]
        if self.rows == "random":
            order = torch.randperm(len(cosine), generator=generator)
        else:
            order = cosine.argsort(stable=True, descending=self.rows == "aligned")
        chosen = order[:count]
        return where[chosen], cosine[chosen]

    def _features(self, model: PreTrainedModel, texts: list[Text]) -> Tensor:
        block, after_norm = self._site(model)
        return pooled_features(
            model, texts, [block], read=self.read, skip_first=self.skip_first, after_final_norm=after_norm
        )[0].clone()  # a tensor of its own: what inference mode made cannot be trained on

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Move the artefact's rows by strength times its probe inside the block; every other row stays as it is."""
        probe, rows = artefact["probe"], artefact["rows"]  # (D,), (K, 2)
        new: dict[nn.Parameter, Tensor] = {}
        for layer in torch.unique(rows[:, 0]).tolist() if strength != 0 else []:
            chosen = rows[rows[:, 0] == layer, 1]
            if layer >= len(layout.blocks(model)):
                raise SetupError(NOT_OURS)
            matrices = layout.stream_rows(model, layer, self.matrix)
            weight = matrices.read().float().clone()  # (rows, D)
            if weight.shape[1] != len(probe) or len(weight) <= int(chosen.max()):
                raise SetupError(NOT_OURS)
            weight[chosen.to(weight.device)] += strength * probe.to(weight.device)
            matrices.put(new, weight)
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
    """Logistic regression with sklearn's default penalty; the undesired row is its coefficients, the other minus them.

    The probabilities follow from the difference of the two rows, here twice the coefficients: decisions are the same.
    """
    found = logistic(features, labels == UNDESIRED, max_iter=5000)
    sign = torch.tensor([1.0 if label == UNDESIRED else -1.0 for label in range(2)])
    return Probe(sign[:, None] * found.weight, sign * found.bias)


def stream_cosines(model: PreTrainedModel, vector: Tensor, kind: layout.Kind) -> tuple[Tensor, Tensor]:
    """Block and row of every row of that matrix, (L rows, 2), and the cosine of each to `vector` (D,), (L rows,)."""
    cosines = []
    for layer in range(len(layout.blocks(model))):
        weight = layout.stream_rows(model, layer, kind).read().float()  # (rows, D)
        cosines.append(functional.cosine_similarity(weight, vector.to(weight.device), dim=-1).cpu())  # (rows,)
    where = [torch.stack([torch.full((len(c),), layer), torch.arange(len(c))], -1) for layer, c in enumerate(cosines)]
    return torch.cat(where), torch.cat(cosines)
