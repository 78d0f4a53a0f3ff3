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

from methods import layout, options
from methods.base import (
    DESIRED,
    INFO,
    UNDESIRED,
    Artefact,
    FitData,
    Method,
    Steering,
    later,
    required_labelled,
    required_pairs,
)
from methods.directions import Read, pooled_features
from methods.errors import SetupError
from methods.intervention import edited
from methods.probes import Probe, linear_probe, logistic_probe
from methods.separation import separation_facts
from methods.tokens import Text, encode, encode_pairs

LearnsFrom = Literal["pairs", "labelled"]
ProbeKind = Literal["linear", "logistic", "random"]
ProbeScale = Literal["raw", "unit"]
ClassRow = Literal["undesired", "desired"]
Rows = Literal["opposed", "aligned", "random"]
FINAL = "final"
QUARTERS = (1, 2, 3, 4)
NOT_OURS = "probe_rows: this artefact was not fitted on this model; fit it again"


class Sample(NamedTuple):
    """Texts with their pooled features (N, D) and classes (N,).

    trained, tested: the indices of the texts that a probe is trained and tested on. facts: facts about the texts, by
    their names in the artefact.
    """

    texts: list[Text]
    features: Tensor
    labels: Tensor
    trained: Tensor
    tested: Tensor
    facts: Artefact

    def of(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and classes of the texts with these indices."""
        return self.features[indices], self.labels[indices]


@dataclass(frozen=True, kw_only=True)
class ProbeRows(Method):
    """Add alpha times a probe vector to the MLP gate rows that point most away from it, over all blocks.

    The method follows sections 3.2 and 3.3 of arXiv 2407.08770 and its code (github lucywang720/model-surgery). w is
    the row for undesired texts of a two-class linear probe, without the bias. Rows are ranked by -cos(row, w) over the
    whole model, and the first K become row + alpha w (equation 3). Before the edit, the neuron of such a row is off
    where the state looks undesirable; the edit switches it on there. A negative alpha does the opposite. Models without
    a gate are edited in their first MLP matrix, which the paper does not do; the rows of all experts of a mixture count
    as rows of their block, in the experts' order. Detoxifying, resisting jailbreaks and changing the attitude differ
    only in the texts. For a second edit on top of a first one (section 4.5), see `methods.stack`.

    learns_from: with "labelled", the probe learns from single texts with labels, as in the paper, and the classes may
    differ in size. With "pairs", it learns from the texts of contrast pairs, and the two texts of a pair are held out
    together.

    loss_at: the alpha at which the probe's loss on the edited model is measured, as in Table 13. The loss is measured
    on the held-out texts, as read by the model before the edit ("info.probe_loss_desired" and
    "info.probe_loss_undesired") and after it (the same names with "_edited"). It is not measured for a logistic probe,
    whose rows give the right decisions but not the right probabilities.

    The paper trains for 9 epochs on a large corpus of comments. On a hundred pairs, 9 epochs are a hundred Adam steps
    at a learning rate of 1e-4, after which the probe is still at its random initialisation. So a small set is repeated
    for at least `min_steps` steps.

    The paper's ablations are options. With probe="random", the rows are chosen by the trained probe, but a random
    vector of the same length is added. rows: "opposed" are those that point most away from w, "aligned" those that
    point most along it, which the paper edits with a negative alpha, and "random" any rows.
    matrix: the matrix to edit. If it writes the stream (down, o), its columns are used as rows, since only they have
    length D. The paper does not say how it edits a matrix that writes, nor with which K; here K is the same share of
    that matrix's rows. skip_quarter: no row is taken from that quarter of the blocks; K is still a share of the rows of
    all blocks.

    Example:
        >>> from methods import FitData, ProbeRows
        >>> method = ProbeRows(row_fraction=0.05, min_steps=50)
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs))
        >>> with method.apply(model, artefact, 2.0):
        ...     rows = {name: (one != weights[name]).any(-1).sum() for name, one in model.named_parameters()}
        >>> int(sum(rows.values())), {name.split(".")[-2] for name, count in rows.items() if count}
        (13, {'gate_proj'})
    """

    name: ClassVar[str] = "probe_rows"
    title: ClassVar[str] = "Model Surgery"
    cite: ClassVar[str] = "2407.08770"
    family: ClassVar[str] = "weights"
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
    learns_from: LearnsFrom = later("pairs")
    loss_at: float | None = later(1.0)
    strengths: Sequence[float] = (0.5, 1.0, 2.0, 4.0, 8.0)

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]  # pairs or single texts
        """The field of `FitData` that the probe learns from."""
        return frozenset({self.learns_from})

    def check(self, model: PreTrainedModel) -> None:
        """Raise SetupError for a layer that the model lacks or an option outside its range."""
        options.check_types(self)
        self._site(model)
        if not 0 < self.row_fraction <= 1:
            raise SetupError(f"method.row_fraction={self.row_fraction} is outside (0, 1]; the paper's is 0.0465")
        if not 0 <= self.held_out < 1:
            raise SetupError(f"method.held_out={self.held_out} is outside [0, 1); the paper's is 0.1")
        allowed = {
            "learns_from": get_args(LearnsFrom),
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
        """Return the block to read, and whether its output is read after the final norm."""
        if self.layer == FINAL:
            layout.final_norm(model)
            return len(layout.blocks(model)) - 1, True
        if isinstance(self.layer, str):
            raise SetupError(f"method.layer={self.layer!r}: allowed are {FINAL}, a block number, a fraction in [0, 1)")
        return layout.layer_index(model, self.layer), False

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the vector that is added, "probe" (D,), and the rows to add it to, "rows" (K, 2): block and row each.

        With pairs, the facts also say how well the pairs agree (`methods.separation`). To measure how well they agree,
        all pairs are read at the place that the probe reads, and their mean difference, not the probe, is taken as the
        direction. The probe's own accuracy is `info.probe_accuracy`.
        """
        self.check(model)
        generator = torch.Generator().manual_seed(self.seed)
        read = self._pairs if self.learns_from == "pairs" else self._labelled
        sample = read(model, tokenizer, data, generator)
        train, test = sample.of(sample.trained), sample.of(sample.tested)
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
        artefact = {"probe": vector.contiguous(), "rows": rows}
        facts = {
            "probe_norm": raw.norm(),
            "probe_moved": torch.tensor(probe.moved),
            "probe_train_accuracy": torch.tensor(probe.accuracy(*train)),
            "probe_accuracy": torch.tensor(probe.accuracy(*test)),
            "probe_held_out_texts": torch.tensor(len(test[1])),
            **self._losses(model, probe, sample, artefact),
            "smallest_cosine": cosine.min(),
            "largest_cosine": cosine.max(),
            "rows_per_layer": torch.bincount(rows[:, 0], minlength=len(layout.blocks(model))),  # (L,)
        }
        known = {INFO + name: fact for name, fact in facts.items() if fact.isfinite().all()}
        return artefact | known | sample.facts

    def _pairs(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData, generator: torch.Generator
    ) -> Sample:
        """Return the texts of all pairs, the desired ones first. Raises SetupError if the pairs do not differ."""
        texts = encode_pairs(model, tokenizer, required_pairs(data, self.name), self.max_tokens)
        desired, undesired = (self._features(model, side) for side in (texts.desired, texts.undesired))  # (N, D) each
        if torch.equal(desired, undesired):
            raise SetupError("probe_rows: the desired and undesired texts of every pair are equal; give other pairs")
        trained, tested = self._parted(len(desired), "pairs", generator)  # of whole pairs, which share a prompt
        labels = (torch.arange(2 * len(desired)) >= len(desired)).long() * UNDESIRED
        facts = {f"{INFO}cut_pairs": torch.tensor(texts.cut), **separation_facts(desired, undesired)}
        trained, tested = (torch.cat([part, part + len(desired)]) for part in (trained, tested))
        return Sample(texts.desired + texts.undesired, torch.cat([desired, undesired]), labels, trained, tested, facts)

    def _labelled(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData, generator: torch.Generator
    ) -> Sample:
        """Return the single texts. Raises SetupError if only one class is left to train a probe on."""
        found = required_labelled(data, self.name)
        texts, cut = encode(model, tokenizer, [""] * len(found.text), found.text, self.max_tokens)
        trained, tested = self._parted(len(texts), "texts", generator)
        labels = torch.tensor(found.label)
        if len(set(labels[trained].tolist())) < 2:
            raise SetupError(
                f"probe_rows: {len(trained)} of {len(texts)} labelled texts train the probe, and all are of one class; "
                "give more texts of the other"
            )
        return Sample(
            texts, self._features(model, texts), labels, trained, tested, {f"{INFO}cut_labelled": torch.tensor(cut)}
        )

    def _parted(self, count: int, what: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the indices to train on and to hold out. Raises SetupError if fewer than two are left to train on."""
        order = torch.randperm(count, generator=generator)
        tested = round(self.held_out * count)
        if count - tested < 2:
            raise SetupError(
                f"probe_rows: {count} {what} with method.held_out={self.held_out} leave {count - tested} to "
                f"train a probe on; at least 2 are needed: give more {what} or hold out less"
            )
        return order[tested:], order[:tested]

    def _losses(self, model: PreTrainedModel, probe: Probe, sample: Sample, artefact: Artefact) -> dict[str, Tensor]:
        """Return the probe's loss on the held-out texts of each class, without the edit and with it at `loss_at`."""
        if self.probe == "logistic" or not len(sample.tested):
            return {}
        features, labels = sample.of(sample.tested)
        read = {"": features}
        if self.loss_at is not None:
            with self.apply(model, artefact, self.loss_at):
                read["_edited"] = self._features(model, [sample.texts[i] for i in sample.tested.tolist()])
        classes = {"desired": DESIRED, "undesired": UNDESIRED}
        return {
            f"probe_loss_{name}{when}": probe.loss(found, labels, label)
            for when, found in read.items()
            for name, label in classes.items()
        }

    def _rows(self, model: PreTrainedModel, vector: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return block and row number of the K rows to be moved, (K, 2), and their cosines to `vector`, (K,)."""
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
        )[0].clone()  # a copy, since nothing can be trained on a tensor from inference mode

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Inside the `with`, move the artefact's rows by strength times its probe; every other row stays as it is."""
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


def stream_cosines(model: PreTrainedModel, vector: Tensor, kind: layout.Kind) -> tuple[Tensor, Tensor]:
    """Return block and row number of all rows of this kind, (L * rows, 2), and their cosines to `vector` (D,).

    The cosines are (L * rows,).
    """
    cosines = []
    for layer in range(len(layout.blocks(model))):
        weight = layout.stream_rows(model, layer, kind).read().float()  # (rows, D)
        cosines.append(functional.cosine_similarity(weight, vector.to(weight.device), dim=-1).cpu())  # (rows,)
    where = [torch.stack([torch.full((len(c),), layer), torch.arange(len(c))], -1) for layer, c in enumerate(cosines)]
    return torch.cat(where), torch.cat(cosines)
