"""Reading vectors of representation engineering (arXiv 2310.01405): the main direction of the pairs' differences."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import directions, options, vectors
from methods.base import Artefact, FitData, Method, Steering, required_pairs
from methods.errors import SetupError
from methods.intervention import adding, hooked
from methods.separation import separation_facts
from methods.tokens import encode_pairs

Center = Literal[False, "shuffle", True]
RepEScope = Literal["all", "prompt", "generation"]
Operation = Literal["add", "piecewise"]


@dataclass(frozen=True, kw_only=True)
class RepE(Method):
    """h_t <- h_t + strength * n_l * v_l at the output of each block l from `first_layer` to `last_layer`.

        X_l = rows a_l(desired_i) - a_l(undesired_i),   (N, D)
        v_l = first principal direction of X_l,   (D,), of length 1

    a_l(text) is the block's output (resid_post) at the last token, or averaged over the tokens that `read` names. n_l
    is the mean length of the stream at block l, so strength is in mean residual norms. v_l points to the side on which
    the desired text of most pairs lies; if both sides have equally many, the sign is that of the mean difference.

    center: whether the mean of the rows is subtracted before the principal direction is found. That mean is the mean
    difference between desired and undesired texts, and the two releases treat it differently. `false` keeps it; the
    result is also the principal direction of the 2N activations after the mean of each pair is subtracted from its two
    activations. `shuffle` swaps the texts of each pair at random and then centres, as the authors' code
    (andyzoujm/representation-engineering) does: the mean difference then counts as variance. `true` centres the
    differences desired - undesired, as vgel/repeng with `pca_diff` does by scikit-learn's PCA: the mean difference is
    gone, and the direction found is one along which the pairs differ from one another.
    operation: `add`, or the authors' `piecewise`, which adds sign(h . v) v and so strengthens the component along v
    that a token already has.
    keep_length: whether each token is rescaled to its original length (`normalize` in both releases).
    scope: both releases add at every token of prompt and answer.

    Differences from the releases: pairs are read as they are, without the paper's template around them. The last
    block's output is read and steered before the final norm, whereas repeng reads it after the norm and adds before it.
    The unit of the strength is the mean residual norm, whereas the releases add unit vectors times a coefficient.

    Example:
        >>> from methods import FitData, RepE
        >>> from methods.intervention import record
        >>> method = RepE(first_layer=2, last_layer=3, keep_length=True)
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs))
        >>> with method.apply(model, artefact, 0.3), record(model, [2]) as steered:
        ...     _ = model(**inputs)
        >>> steered[2].equal(stream[2]), steered[2].norm(dim=-1).allclose(stream[2].norm(dim=-1))
        (False, True)
    """

    name: ClassVar[str] = "repe"
    title: ClassVar[str] = "RepE"
    cite: ClassVar[str] = "2310.01405"
    family: ClassVar[str] = "activation"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = vectors.UNIT

    first_layer: int | float = 0.45
    last_layer: int | float = 0.45
    read: directions.Read = "last"
    skip_first: int = 0
    center: bool | str = False
    shuffle_seed: int = 0
    operation: Operation = "add"
    keep_length: bool = False
    scope: RepEScope = "all"
    strengths: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5)

    @property
    def reads_labels(self) -> bool:  # type: ignore[override]
        """Return whether the axis depends on which text of a pair is the desired one; otherwise only the sign does."""
        return self.center is True

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for layers that the model does not have, and for a setting that is not allowed."""
        options.check_types(self)
        vectors.block_range(model, self.first_layer, self.last_layer)
        options.check_choice("read", self.read, get_args(directions.Read))
        options.check_choice("center", self.center, get_args(Center))
        options.check_choice("operation", self.operation, get_args(Operation))
        options.check_choice("scope", self.scope, get_args(RepEScope))
        if self.skip_first < 0:
            raise SetupError(f"method.skip_first={self.skip_first} is negative; 0 leaves out no token")

    def residual_norms(self, facts: Mapping[str, Any]) -> float | None:
        """Return 1, which holds at each block, since the strength itself is in mean residual norms."""
        del facts
        return 1.0

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the vector of each block, and how much of the differences it explains. One pass reads all blocks.

        Raises SetupError if there are no pairs, or if the differences have no direction.
        """
        self.check(model)
        pairs = required_pairs(data, self.name)
        layers = vectors.block_range(model, self.first_layer, self.last_layer)
        texts = encode_pairs(model, tokenizer, pairs)
        desired, undesired = (  # (L, N, D) each
            directions.pooled_features(model, side, layers, read=self.read, skip_first=self.skip_first)
            for side in (texts.desired, texts.undesired)
        )
        found = [
            self.direction(one, float(length), layer)
            for one, length, layer in zip(
                desired - undesired, torch.cat([desired, undesired], 1).norm(dim=-1).mean(-1), layers, strict=True
            )
        ]
        units, explained, agreeing = (torch.stack(column) for column in zip(*found, strict=True))
        return {
            **vectors.kept(layers, units, directions.residual_norms(model, texts.desired, layers)),
            "info.explained": explained,
            "info.agreeing": agreeing,
            "info.cut_pairs": torch.tensor(texts.cut),
            **separation_facts(desired, undesired),
        }

    def direction(self, differences: Tensor, length: float, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the unit vector (D,), its share of the squared lengths, and the share of pairs that agree on its sign.

        differences: (N, D). length: the mean length of the texts' features, from which the differences were computed.
        Raises SetupError if the differences have no direction.
        """
        rows = differences.double()
        if self.center == "shuffle":
            generator = torch.Generator().manual_seed(self.shuffle_seed)
            rows = rows * (2 * torch.randint(2, (len(rows), 1), generator=generator) - 1)
        if self.center is not False:
            rows = rows - rows.mean(0)
        _, values, axes = torch.linalg.svd(rows, full_matrices=False)  # (K,), (K, D)
        if not values[0] > directions.SAME * length * len(rows) ** 0.5:
            what = "do not differ from one another" if differences.any() else "are all zero"
            raise SetupError(
                f"repe: the pairs' differences at block {layer} {what} (center={self.center}), so they have no "
                "principal direction; give pairs that differ where method.read looks"
                + (", or set method.center=false" if self.center is not False and differences.any() else "")
            )
        sides = (differences.double() @ axes[0]).sign()  # (N,)
        majority = sides.sum() if sides.sum() else differences.double().mean(0) @ axes[0]
        sign = -1.0 if majority < 0 else 1.0
        agreeing = (sides == sign).double().mean()
        return (sign * axes[0]).float(), (values[0] ** 2 / values.square().sum()).float(), agreeing.float()

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Move the stream at each block. Raises SetupError for an artefact of another model or of other layers."""
        layers = vectors.block_range(model, self.first_layer, self.last_layer)
        found = vectors.fitted(model, artefact, layers, self.name)
        maps = {layer: self._map(strength * vector) for layer, vector in found.items()} if strength else {}
        with hooked(vectors.hooks(model, maps)):
            yield Steering()

    def _map(self, vector: Tensor) -> vectors.Map:
        """Return the map of one block's stream. vector: (D,), already multiplied by the strength."""
        function = adding(vector, "all") if self.operation == "add" else vectors.towards_own_side(vector)
        return vectors.within(vectors.length_kept(function) if self.keep_length else function, self.scope)
