"""EigenShift (arXiv 2509.16660): singular values of the unembedding are damped where toxic states stand out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import directions, layout, options
from methods.base import INFO, Artefact, FitData, Method, Steering, required_pairs
from methods.errors import SetupError
from methods.intervention import edited
from methods.placement import check_materialised
from methods.training import encoded_pairs
from methods.untying import untied

Projection = Literal["paper", "released"]
Ranking = Literal["size", "signed"]
Clean = Literal["continuation", "prompt"]
ROWS = 8192  # rows of the unembedding that are in double precision at a time


@dataclass(frozen=True, kw_only=True)
class EigenShift(Method):
    """sigma_i <- (1 - strength) sigma_i for the K chosen singular values of the unembedding W (V, D).

        W = U diag(sigma) V^T;   a_i(h) = v_i^T h;   gap_i = mean of a_i in toxic states - mean of a_i in clean states
        W' = W - strength * W V_T V_T^T,   V_T (D, K): the v_i of the K = share * D directions with the largest gaps

    h is the state (D,) that the unembedding reads. Strength is 1 - alpha of arXiv 2509.16660 (section 2): its headline
    row has alpha 0, which is strength 1, and it recommends alpha .9. U is never computed: the v_i are the eigenvectors
    of W^T W, in double precision. Biases are not changed. If token embedding and unembedding are one matrix, the
    unembedding gets a copy, and only the copy is edited.

    The following is our reading of what the paper leaves open, and our differences from it:

    - States. The paper lets the model write 20 tokens and takes the state before each token that a toxicity
      classifier's judgement rests on; its clean states are those at the end of clean prompts. A method has no
      classifier here: the states before each token of the pairs' undesired continuations count as toxic, and the states
      before each token of the desired continuations as clean. clean="prompt" takes the states at the end of the pairs'
      prompts, as the paper does; then the two kinds of states also differ in their position in the text.
    - Ranking. The paper takes the largest gaps with their sign, but an SVD leaves the sign of each v_i open.
      rank_by="size" compares |gap|; "signed" first turns each v_i so that its entry of largest size is positive.
    - projection="released" is what the authors' code does: it transposes V^T, which numpy returns, once too often, so
      that gap_i belongs to row i of V and not to the direction that is damped. "paper" is the formula.

    Example:
        >>> from methods import EigenShift, FitData
        >>> method = EigenShift(share=0.1)
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs))
        >>> with method.apply(model, artefact, 1.0):
        ...     left = model.lm_head.weight @ artefact["directions"].T
        >>> tuple(left.shape), round(float(left.abs().max()), 4)
        ((300, 4), 0.0)
    """

    name: ClassVar[str] = "eigenshift"
    title: ClassVar[str] = "EigenShift"
    cite: ClassVar[str] = "2509.16660"
    family: ClassVar[str] = "weights"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "1 - alpha"

    share: float = 0.05
    projection: Projection = "paper"
    rank_by: Ranking = "size"
    clean: Clean = "continuation"
    max_tokens: int = 128
    strengths: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 1.0)

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for an option outside its range, and for a model without a matrix that reads its states."""
        options.check_choice("projection", self.projection, get_args(Projection))
        options.check_choice("rank_by", self.rank_by, get_args(Ranking))
        options.check_choice("clean", self.clean, get_args(Clean))
        options.check_number("share", self.share, lambda share: 0 < share < 1, "above 0 and below 1")
        options.check_whole("max_tokens", self.max_tokens, 1)
        layout.final_norm(model)
        unembedding(model)

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the chosen v_i as rows, "directions" (K, D), in descending order of their singular values.

        Raises SetupError without pairs, and if the two kinds of states have the same mean.
        """
        self.check(model)
        pairs = required_pairs(data, self.name)
        texts = encoded_pairs(model, tokenizer, pairs, self.max_tokens)
        desired, undesired = (directions.final_states(model, side) for side in (texts.desired, texts.undesired))
        toxic = torch.cat([states[:-1] for states in undesired]).double()  # (n, D)
        clean = torch.cat([states[:1] if self.clean == "prompt" else states[:-1] for states in desired]).double()
        difference = toxic.mean(0) - clean.mean(0)  # (D,)
        usual = toxic.norm(dim=-1).mean()
        if difference.norm() <= directions.SAME * usual:
            raise SetupError(
                f"eigenshift: toxic and clean states have the same mean (it differs by {difference.norm():.2g}, their "
                f"length is {usual:.2g}); give pairs whose texts differ"
            )
        values, axes = singular(unembedding(model))
        gaps = self._gaps(axes, difference)
        chosen = gaps.argsort(descending=True, stable=True)[: max(1, round(self.share * len(gaps)))].sort().values
        return {
            "directions": axes[chosen].float().contiguous(),
            INFO + "chosen": chosen,
            INFO + "largest_gap": gaps.max().float(),
            INFO + "share_of_squares": (values[chosen].square().sum() / values.square().sum()).float(),
            INFO + "toxic_states": torch.tensor(len(toxic)),
            INFO + "clean_states": torch.tensor(len(clean)),
            INFO + "left_out_pairs": torch.tensor(len(pairs.prompt) - len(texts.desired)),
            INFO + "cut_pairs": torch.tensor(texts.cut),
        }

    def _gaps(self, axes: Tensor, difference: Tensor) -> Tensor:
        """Return the gaps (D,), from the v_i as rows of `axes` (D, D) and the difference of means (D,)."""
        along = (axes.T if self.projection == "released" else axes) @ difference
        return along.abs() if self.rank_by == "size" else along

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Damp the unembedding inside the `with`. Raises SetupError for an artefact of another model."""
        basis = directions.fitted(model, artefact, "directions", self.name, axes=2)  # (K, D)
        if strength == 0:
            yield Steering()
            return
        with untied(model):
            weight = unembedding(model)
            with edited({weight: damped(weight, basis, strength)}):
                yield Steering()


def unembedding(model: PreTrainedModel) -> nn.Parameter:
    """Return the matrix (V, D) from final states to logits. Raises SetupError if none has that width."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    weight = getattr(head, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 2 or weight.shape[1] != layout.width(model):
        raise SetupError(
            f"eigenshift: {model.config.model_type} has no unembedding as wide as its final states; choose another "
            "method"
        )
    check_materialised(model, [weight])
    return weight


@torch.no_grad()
def singular(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the singular values (D,) of W (V, D), largest first, and right singular vectors as rows (D, D), in fp64.

    Each vector is turned so that its entry of largest size is positive. Raises SetupError if W is not finite.
    """
    gram = sum(part.double().T @ part.double() for part in torch.split(weight.detach(), ROWS))
    assert isinstance(gram, Tensor)
    if not gram.isfinite().all():
        raise SetupError("eigenshift: the unembedding is not finite; check that the model's weights are whole")
    squares, vectors = torch.linalg.eigh(gram.cpu())  # ascending values; vectors as columns
    axes = vectors.T.flip(0)
    largest = axes.gather(-1, axes.abs().argmax(-1, keepdim=True))  # (D, 1)
    return squares.flip(0).clamp(min=0).sqrt(), axes * largest.sign()


def damped(weight: Tensor, basis: Tensor, strength: float) -> Tensor:
    """Return W - strength * W V V^T in fp32, for W (V, D) and orthonormal rows (K, D)."""
    whole, rows = weight.detach().float(), basis.to(weight.device)
    return whole - strength * (whole @ rows.T) @ rows
