"""DeTox, published again as ProFS: the MLP value matrices are projected off a toxic subspace (arXiv 2405.13967)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import layout, options
from methods.base import INFO, Artefact, FitData, Method, Steering, required_pairs
from methods.directions import Padding, pooled_features, top_tokens
from methods.errors import SetupError
from methods.intervention import edited
from methods.separation import separation_facts
from methods.tokens import Text, encode_pairs

ReadText = Literal["continuation", "full"]
ReadPositions = Literal["all", "continuation"]
Pairing = Literal["paired", "independent"]
SubspaceKind = Literal["pairs", "random"]


class Subspace(NamedTuple):
    """The subspace of one layer. directions: (R, D) orthonormal rows; explained: their share of the variance of T.

    Each direction points to the undesired texts, and mean (D,), the mu of `DeTox`, to the desired ones.
    """

    directions: Tensor
    explained: float
    mean: Tensor


@dataclass(frozen=True, kw_only=True)
class DeTox(Method):
    """Remove R directions, along which undesired and desired texts differ, from what the MLPs write.

    For each block l of the range, with X+ and X- (N, D) the mean residual stream over the tokens of the desired and
    undesired texts (section 4 of arXiv 2405.13967, and its released code github Uppaal/detox-edit):

        mu = first right singular vector of X+ (not centred);  T = (X+ - X-) / 2 (I - mu mu^T)
        P  = sum of v_i v_i^T over the first R right singular vectors of T;  W_value <- (I - strength P) W_value

    The tokens that each v_i and mu write through the unembedding are kept beside them, as a description of what was
    removed. Biases, attention and embeddings still write to the subspace, so the stream keeps a part in it.

    The paper reads the continuation by itself, and all its tokens. In Llama-like models the first of these tokens is an
    attention sink (see `methods.directions`): `skip_first`, or text="full" with read="continuation", leave it out.

    The released code does two things that the paper does not mention; both are options here. pairing="independent": the
    two texts of a row come from different prompts, since that code draws the two lists independently.
    mask_padding=False: every text is padded to the length of the longest text in its list, and what the model computes
    at the padding is averaged in. The padding token and its side are the tokenizer's own (end-of-text if it has no
    padding token), and no token attends to padding, since the released code passes the attention mask on. If a norm
    stands between the MLP and the residual stream (Gemma 2 and 3, OLMo 2 and 3), the subspace is removed before that
    norm. The norm scales each coordinate by itself, so its output may have a part in the subspace again;
    `info.mlp_output_is_normed` marks this case in the record. In a mixture of experts every expert's matrices are
    projected.

    keys: the matrices by which the MLP reads the stream are projected too (the gate and, if there is one, `up`); the
    authors advise against it. subspace="random": the control, R random directions orthogonal to mu.

    Example:
        >>> from methods import DeTox, FitData
        >>> method = DeTox(rank=1, layer_start=3)
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs))
        >>> with method.apply(model, artefact, 1.0):
        ...     changed = [name for name, one in model.named_parameters() if not one.equal(weights[name])]
        >>> changed
        ['model.layers.3.mlp.down_proj.weight', 'model.layers.4.mlp.down_proj.weight']
    """

    name: ClassVar[str] = "detox"
    title: ClassVar[str] = "DeTox (ProFS)"
    cite: ClassVar[str] = "2405.13967"
    family: ClassVar[str] = "weights"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    version: ClassVar[int] = 2  # texts tokenised whole, long ones cut from the left; padding read as the authors do
    strength_unit: ClassVar[str] = "fraction projected"
    reads_labels: ClassVar[bool] = False  # the sign does not change T^T T; only mu depends on the labels

    rank: int = 2
    layer_start: int | float = 0.42
    layer_stop: int | float | None = None
    center: bool = True
    keys: bool = False
    subspace: SubspaceKind = "pairs"
    pairing: Pairing = "paired"
    text: ReadText = "continuation"
    read: ReadPositions = "all"
    mask_padding: bool = True
    skip_first: int = 0
    max_tokens: int = 128
    seed: int = 0
    strengths: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 1.0)

    def check(self, model: PreTrainedModel) -> None:
        """Raise SetupError for an empty layer range, a rank that the width cannot hold, or an unknown choice."""
        options.check_types(self)
        layout.layer_range(model, self.layer_start, self.layer_stop, "method.layer")
        width = layout.width(model)
        if not 1 <= self.rank < width:
            raise SetupError(f"method.rank={self.rank} is outside 1 to {width - 1}, one less than the model's width")
        allowed = {"text": ReadText, "read": ReadPositions, "pairing": Pairing, "subspace": SubspaceKind}
        for option, values in allowed.items():
            if getattr(self, option) not in get_args(values):
                raise SetupError(
                    f"method.{option}={getattr(self, option)!r}: allowed are {', '.join(get_args(values))}"
                )

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return a subspace per layer, "layers.<l>.directions" (R, D).

        Raises SetupError if there are too few pairs, or if the texts of the pairs do not differ.

        The two measures of how well the pairs agree (`methods.separation`) are means over the edited layers. They take
        the mean difference of X+ and X- as each layer's direction, so they describe the pairs, not the R directions.
        """
        self.check(model)
        pairs = required_pairs(data, self.name)
        layers = layout.layer_range(model, self.layer_start, self.layer_stop, "method.layer")
        if self.rank > len(pairs.prompt):
            raise SetupError(
                f"method.rank={self.rank} needs at least as many pairs and got {len(pairs.prompt)}; lower the rank"
            )
        prompts = pairs.prompt if self.text == "full" else [""] * len(pairs.prompt)
        texts = encode_pairs(model, tokenizer, pairs._replace(prompt=prompts), self.max_tokens)
        desired, undesired = (
            self._features(model, tokenizer, side, layers)  # (L, N, D)
            for side in (texts.desired, texts.undesired)
        )
        generator = torch.Generator().manual_seed(self.seed)
        if self.pairing == "independent":
            undesired = undesired[:, torch.randperm(len(pairs.prompt), generator=generator)]
        artefact, explained = {}, []
        for i, layer in enumerate(layers):
            if self.subspace == "random":
                found = random_subspace(desired[i], undesired[i], self.rank, generator, center=self.center)
            else:
                found = toxic_subspace(desired[i], undesired[i], self.rank, center=self.center)
            artefact[f"layers.{layer}.directions"] = found.directions
            artefact[f"{INFO}layers.{layer}.top_tokens"] = top_tokens(model, found.directions)  # (R, 10)
            artefact[f"{INFO}layers.{layer}.mean_top_tokens"] = top_tokens(model, found.mean[None])[0]  # (10,)
            explained.append(found.explained)
        artefact[INFO + "explained_variance"] = torch.tensor(explained)  # (L,)
        artefact[INFO + "cut_pairs"] = torch.tensor(texts.cut)
        artefact |= separation_facts(desired, undesired)
        if layout.mlp_output_is_normed(model):
            artefact[INFO + "mlp_output_is_normed"] = torch.tensor(1)
        return artefact

    def _features(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[Text], layers: range
    ) -> Tensor:
        padding = None
        if not self.mask_padding:
            own, end = tokenizer.pad_token_id, tokenizer.eos_token_id
            token = int(own if own is not None else end)  # type: ignore[arg-type]
            padding = Padding(token, tokenizer.padding_side, max(len(text.tokens) for text in texts))
        return pooled_features(model, texts, layers, read=self.read, skip_first=self.skip_first, padding=padding)

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Project the value matrices inside the `with`. Raises SetupError if that would change none of them."""
        new: dict[nn.Parameter, Tensor] = {}
        written: tuple[layout.Kind, ...] = ("down",)
        if self.keys:
            written += ("gate", "up") if layout.of(model).up else ("gate",)
        for name, directions in artefact.items():
            if name.startswith(INFO) or strength == 0:
                continue
            layer = int(name.split(".")[1])
            if layer >= len(layout.blocks(model)) or directions.shape[1] != layout.width(model):
                raise SetupError(f"detox: {name} {tuple(directions.shape)} was not fitted on this model; fit it again")
            for kind in written:
                for matrix in layout.stream_rows(model, layer, kind).parts:
                    edit = projected_off(matrix.read().T, directions, strength).T
                    new[matrix.parameter] = matrix.stored(edit, new.get(matrix.parameter))
        new = {parameter: edit for parameter, edit in new.items() if not torch.equal(edit, parameter)}
        if strength != 0 and not new:
            raise SetupError("detox changed no matrix: the artefact holds no direction that the model's MLPs write to")
        with edited(new):
            yield Steering()


def toxic_subspace(desired: Tensor, undesired: Tensor, rank: int, *, center: bool = True) -> Subspace:
    """Return the first `rank` right singular vectors of T, from pooled features (N, D), in double precision.

    Swapping the texts of a pair flips the sign of a row of T and leaves T^T T as it is: for a given mu the result does
    not depend on which text of a pair is called desired.

    Raises SetupError if the pairs differ in fewer directions than `rank`.
    """
    difference, mean = _difference(desired, undesired, center)
    values, directions = torch.linalg.svd(difference, full_matrices=False)[1:]
    rounding = 1e-6 * max(float(desired.abs().max()), float(undesired.abs().max()))  # of features computed in fp32
    found = int((values > rounding).sum())
    if rank > found:
        raise SetupError(
            f"method.rank={rank}, but desired and undesired texts differ in only {found} directions; lower the rank, "
            "or give pairs whose texts differ"
        )
    return _subspace(difference, directions[:rank], mean)


def random_subspace(
    desired: Tensor, undesired: Tensor, rank: int, generator: torch.Generator, *, center: bool = True
) -> Subspace:
    """Return `rank` random orthonormal directions, orthogonal to mu if `center`; a control for `toxic_subspace`."""
    difference, mean = _difference(desired, undesired, center)
    drawn = torch.randn(rank, len(mean), generator=generator, dtype=torch.float64)
    if center:
        drawn = drawn - torch.outer(drawn @ mean, mean)
    return _subspace(difference, torch.linalg.qr(drawn.T).Q.T, mean)


def _difference(desired: Tensor, undesired: Tensor, center: bool) -> tuple[Tensor, Tensor]:
    """Return the matrix T (N, D) of differences and the mean mu (D,), both float64."""
    difference = (desired.double() - undesired.double()) / 2  # (N, D)
    mean = torch.linalg.svd(desired.double(), full_matrices=False).Vh[0]  # (D,)
    if desired.double().mean(0) @ mean < 0:
        mean = -mean
    if center:
        difference = difference - torch.outer(difference @ mean, mean)  # (N, D)
    return difference, mean


def _subspace(difference: Tensor, directions: Tensor, mean: Tensor) -> Subspace:
    """Return directions in fp32, pointing to the undesired texts, with the share of T's variance that they explain."""
    along = difference @ directions.T  # (N, R)
    turned = directions * torch.where(along.mean(0) > 0, -1.0, 1.0)[:, None]
    share = float(along.square().sum() / difference.square().sum())
    return Subspace(turned.float().contiguous(), share, mean.float())


def projected_off(weight: Tensor, directions: Tensor, strength: float = 1.0) -> Tensor:
    """Return (I - strength V^T V) W in fp32, for W (D, M) and orthonormal rows V (R, D)."""
    basis = directions.to(weight.device)
    written = basis @ weight.float()  # (R, M) what each neuron writes along each direction
    return weight.float() - strength * basis.T @ written  # (D, M)
