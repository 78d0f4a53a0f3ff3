"""DeTox, published again as ProFS: the MLP value matrices are projected off a toxic subspace (arXiv 2405.13967)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import anatomy
from methods.base import INFO, Artefact, FitData, Method, Steering, required_pairs
from methods.directions import Text, encode, pooled_features
from methods.errors import SetupError
from methods.intervention import edited

ReadText = Literal["continuation", "full"]
ReadPositions = Literal["all", "continuation"]


class Subspace(NamedTuple):
    """What one layer's pairs say. directions: (R, D) orthonormal rows; explained: their share of the variance of T."""

    directions: Tensor
    explained: float


@dataclass(frozen=True, kw_only=True)
class DeTox(Method):
    """Remove from what the MLPs write the R directions along which undesired texts differ from desired ones.

    For each block l of the range, with X+ and X- (N, D) the mean residual stream over the tokens of the desired and
    undesired texts (section 4 of arXiv 2405.13967, and its released code github Uppaal/detox-edit):

        mu = first right singular vector of X+ (not centred);  T = (X+ - X-) / 2 (I - mu mu^T)
        P  = sum of v_i v_i^T over the first R right singular vectors of T;  W_value <- (I - strength P) W_value

    Biases, attention and embeddings still write there, so the subspace is not gone from the model. The paper embeds
    the continuation by itself, all tokens of it. In Llama-like models the first of those is an attention sink (see
    `methods.directions`): `skip_first`, or text="full" with read="continuation", leave it out of the mean.
    """

    name: ClassVar[str] = "detox"
    family: ClassVar[str] = "weights"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "fraction projected"

    rank: int = 2
    layer_start: int | float = 0.42
    layer_stop: int | float | None = None
    center: bool = True
    text: ReadText = "continuation"
    read: ReadPositions = "all"
    skip_first: int = 0
    max_tokens: int = 128
    strengths: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1.0)

    def check(self, model: PreTrainedModel) -> None:
        """Raise SetupError for an empty layer range, a rank that the width cannot hold, or an unknown reading."""
        anatomy.layer_range(model, self.layer_start, self.layer_stop, "method.layer")
        width = anatomy.width(model)
        if not 1 <= self.rank < width:
            raise SetupError(f"method.rank={self.rank} is outside 1 to {width - 1}, the model's width less the mean's")
        if self.text not in get_args(ReadText):
            raise SetupError(f"method.text={self.text!r}: allowed are {', '.join(get_args(ReadText))}")
        if self.read not in get_args(ReadPositions):
            raise SetupError(f"method.read={self.read!r}: allowed are {', '.join(get_args(ReadPositions))}")

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """One subspace per layer: "layers.<l>.directions" (R, D). Raises SetupError where the pairs hold too little."""
        self.check(model)
        pairs = required_pairs(data, self.name)
        layers = anatomy.layer_range(model, self.layer_start, self.layer_stop, "method.layer")
        if self.rank > len(pairs.prompt):
            raise SetupError(f"method.rank={self.rank} needs as many pairs and got {len(pairs.prompt)}; lower the rank")
        prompts = pairs.prompt if self.text == "full" else [""] * len(pairs.prompt)
        desired, undesired = (
            self._features(model, encode(tokenizer, prompts, texts, self.max_tokens), layers)  # (L, N, D)
            for texts in (pairs.desired, pairs.undesired)
        )
        artefact, explained = {}, []
        for i, layer in enumerate(layers):
            found = toxic_subspace(desired[i], undesired[i], self.rank, center=self.center)
            artefact[f"layers.{layer}.directions"] = found.directions
            explained.append(found.explained)
        artefact[INFO + "explained_variance"] = torch.tensor(explained)  # (L,)
        return artefact

    def _features(self, model: PreTrainedModel, texts: list[Text], layers: range) -> Tensor:
        return pooled_features(model, texts, layers, read=self.read, skip_first=self.skip_first)

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Project the value matrices inside the block. Raises SetupError if that would change none of them."""
        new = {}
        for name, directions in artefact.items():
            if name.startswith(INFO) or strength == 0:
                continue
            layer = int(name.split(".")[1])
            if layer >= len(anatomy.blocks(model)) or directions.shape[1] != anatomy.width(model):
                raise SetupError(f"detox: {name} {tuple(directions.shape)} was not fitted on this model; fit it again")
            matrix = anatomy.value_matrix(model, layer)
            edit = matrix.stored(projected_off(matrix.read(), directions, strength))
            if not torch.equal(edit, matrix.parameter):
                new[matrix.parameter] = edit
        if strength != 0 and not new:
            raise SetupError("detox changed no matrix: the artefact holds no direction that the model's MLPs write to")
        with edited(new):
            yield Steering()


def toxic_subspace(desired: Tensor, undesired: Tensor, rank: int, *, center: bool = True) -> Subspace:
    """The first `rank` right singular vectors of T, from pooled features (N, D), in double precision.

    Swapping the texts of a pair flips the sign of a row of T and leaves T^T T as it is: for a given mu the result does
    not depend on which text of a pair is called desired.

    Raises SetupError when the pairs differ in fewer directions than `rank`.
    """
    difference = (desired.double() - undesired.double()) / 2  # (N, D)
    if center:
        mean = torch.linalg.svd(desired.double(), full_matrices=False).Vh[0]  # (D,)
        difference = difference - torch.outer(difference @ mean, mean)  # (N, D)
    values, directions = torch.linalg.svd(difference, full_matrices=False)[1:]
    rounding = 1e-6 * max(float(desired.abs().max()), float(undesired.abs().max()))  # of features computed in fp32
    found = int((values > rounding).sum())
    if rank > found:
        raise SetupError(
            f"method.rank={rank}, but desired and undesired texts differ in only {found} directions; lower the rank, "
            "or give pairs whose texts differ"
        )
    share = float(values[:rank].square().sum() / values.square().sum())
    return Subspace(directions[:rank].float().contiguous(), share)


def projected_off(weight: Tensor, directions: Tensor, strength: float = 1.0) -> Tensor:
    """(I - strength V^T V) W in fp32, for W (D, M) and orthonormal rows V (R, D)."""
    basis = directions.to(weight.device)
    written = basis @ weight.float()  # (R, M) what each neuron writes along each direction
    return weight.float() - strength * basis.T @ written  # (D, M)
