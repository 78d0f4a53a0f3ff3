"""Directional ablation (arXiv 2406.11717) and its affine form ACE (arXiv 2411.09003), by hooks or in the weights."""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import directions, layout, layout_search, options, sites, untying
from methods.base import INFO, Artefact, FitData, Method, Steering, required_pairs
from methods.erasing import Embeddings, Erasure, erasing_hooks
from methods.errors import SetupError
from methods.intervention import Hook, edited, hooked, record
from methods.placement import check_materialised, input_device
from methods.separation import separation_facts
from methods.tokens import encode_pairs

Operation = Literal["ablate", "affine"]
Eraser = Literal["orth", "leace"]
Form = Literal["hooks", "weights"]
ROUNDINGS, MOST = 4096, 0.25  # a difference up to this many eps, and up to this share, of the largest value is rounding


@dataclass(frozen=True, kw_only=True)
class Ablation(Method):
    """y <- y - strength * u w^T y for every y that is written to the residual stream, at every position.

        r = mean of undesired - mean of desired features,   (D,)
        u = r / |r|,   w = u (orth)   or   w = S^-1 u / (u^T S^-1 u) (leace);   in both w^T u = 1

    Features are the input of block `layer` (resid_pre), pooled over the tokens that `read` names. The y are the input
    of block 0, which is the sum of the embeddings, and what attention and MLP of every block add to the stream, taken
    after the norm if one follows them (`methods.sites.written`). The stream is the sum of these, so at strength 1,
    w^T h = 0 at the input of every block, and strength s removes the share s everywhere. The authors hook the input
    of every block instead of the embeddings. That has the same effect only at strength 1: at other strengths, the
    shares that are removed block after block compound. Strength 0 gives the unsteered model, and strength 1 the paper's
    method.

    operation: `ablate` is the operation of arXiv 2406.11717. `affine` is ACE, which moves the projection w^T h to the
    mean projection of the desired texts instead of to 0,

        h <- h - strength * u (w^T h - w^T mean of desired)

    The constant term of this map is added at the embeddings. The paper's alpha has another meaning: at 0 the behaviour
    is absent, at 1 it is present, and the vector r is not normalised. Our strength 1 is the paper's alpha 0.
    eraser: `orth` removes the orthogonal projection onto r. `leace` removes an oblique projection along the same u: of
    all such projections, it takes the one that changes the features least in the metric of S, the shrunk covariance of
    the features of desired and undesired texts: S = (1 - shrinkage) cov + shrinkage * tr(cov) / D * I. With fewer texts
    than D the covariance has no inverse, so some shrinkage is needed; how much is a choice of ours. At shrinkage 1,
    `leace` equals `orth`. With either eraser, the features of desired and of undesired texts have the same mean at
    strength 1.

    form: `hooks` changes what is written, in every architecture. `weights` edits the matrices that write to the stream,
    W <- W - strength * u (w^T W), their biases in the same way, and the token and position embeddings, E <- E -
    strength * (E w) u^T; the constant of `affine` is added to every row of the token embedding, divided by the factor
    by which the model multiplies the embedding (Gemma). Both forms compute the same map; for every new model this is
    checked on one token. If a norm stands between what is written and the stream (Gemma 2 and 3, OLMo 2 and 3) or after
    the embeddings (Bloom), edited weights cannot compute the map, and `weights` is refused. If the unembedding shares
    its matrix with the token embedding, it gets a copy of its own inside the `with` (`methods.untying`), so the
    direction is removed from what is written but not from the logits. Released code projects the shared matrix, so that
    the logits move as well.
    embeddings: `leave` projects only what the blocks write, so the stream keeps the embeddings' component along the
    direction; this is not allowed with `affine`.

    Not implemented: choosing position and layer by refusal scores, one direction per layer, or a weight for each layer.

    Example:
        >>> from methods import Ablation, FitData
        >>> from methods.intervention import record
        >>> method = Ablation(layer=2, eraser="leace")
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs))
        >>> with method.apply(model, artefact, 1.0), record(model, [0, 2, 4]) as steered:
        ...     _ = model(**inputs)
        >>> writer, reader = artefact["directions"]
        >>> [round(float((one @ reader).abs().max()), 4) for one in steered.values()]
        [0.0, 0.0, 0.0]
    """

    name: ClassVar[str] = "ablation"
    title: ClassVar[str] = "Directional ablation"
    cite: ClassVar[str] = "2406.11717"
    family: ClassVar[str] = "activation"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "share removed"

    layer: int | float = 0.45
    read: directions.Read = "continuation"
    skip_first: int = 0
    operation: Operation = "ablate"
    eraser: Eraser = "orth"
    shrinkage: float = 0.1
    form: Form = "hooks"
    embeddings: Embeddings = "project"
    strengths: Sequence[float] = (0.25, 0.5, 0.75, 1.0, 1.25)

    @property
    def reads_labels(self) -> bool:  # type: ignore[override]  # swapped labels keep u w^T, not the desired mean
        """Whether it matters which text of a pair is the desired one."""
        return self.operation == "affine"

    def check(self, model: PreTrainedModel) -> None:
        """Raise SetupError for a layer or setting that does not exist, and if weights cannot do what hooks do."""
        options.check_types(self)
        layout.layer_index(model, self.layer)
        for key, value, allowed in (
            ("read", self.read, get_args(directions.Read)),
            ("operation", self.operation, get_args(Operation)),
            ("eraser", self.eraser, get_args(Eraser)),
            ("form", self.form, get_args(Form)),
            ("embeddings", self.embeddings, get_args(Embeddings)),
        ):
            if value not in allowed:
                raise SetupError(f"method.{key}={value!r}: allowed are {', '.join(allowed)}")
        if self.skip_first < 0:
            raise SetupError(f"method.skip_first={self.skip_first} is negative; 0 leaves out no token")
        if not 0 < self.shrinkage <= 1:
            raise SetupError(f"method.shrinkage={self.shrinkage}: expected a number in (0, 1]; at 1 leace equals orth")
        if self.operation == "affine" and self.embeddings == "leave":
            raise SetupError(
                "method.operation=affine adds its constant to the embeddings, and method.embeddings=leave leaves them "
                "as they are; set method.embeddings=project, or method.operation=ablate"
            )
        if self.form == "weights":
            _check_foldable(model, self.embeddings)

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return u and w as the rows of one tensor (2, D), and the constant w^T (mean of desired), 0 for `ablate`.

        Raises SetupError without pairs, and if the features of the two sides have the same mean.
        """
        self.check(model)
        pairs = required_pairs(data, self.name)
        layer = layout.layer_index(model, self.layer)
        texts = encode_pairs(model, tokenizer, pairs)
        desired, undesired = (  # (N, D) each
            directions.pooled_features(model, side, [layer], read=self.read, skip_first=self.skip_first, site="input")[
                0
            ]
            for side in (texts.desired, texts.undesired)
        )
        difference = directions.mean_difference(undesired.double(), desired.double())  # (D,)
        length, usual = difference.norm(), torch.cat([desired, undesired]).norm(dim=-1).mean()
        if length <= directions.SAME * usual:
            raise SetupError(
                f"ablation: the features of desired and undesired texts at the input of block {layer} have the same "
                f"mean (the means differ by {length:.2g}, the features are {usual:.2g} long); give pairs whose texts "
                f"differ where method.read={self.read} looks"
            )
        writer = difference / length
        reader = writer
        if self.eraser == "leace":
            reader = whitened_reader(torch.cat([desired, undesired]), writer, self.shrinkage)
        clean = reader @ desired.double().mean(0)
        return {
            "directions": torch.stack([writer, reader]).float(),
            "offset": clean.float() if self.operation == "affine" else torch.zeros(()),
            INFO + "direction_norm": length.float(),
            INFO + "feature_norm": usual,
            INFO + "clean_projection": clean.float(),
            INFO + "reader_norm": reader.norm().float(),
            INFO + "cut_pairs": torch.tensor(texts.cut),
            **separation_facts(desired, undesired),
        }

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Remove the direction inside the `with`. Raises SetupError for an artefact of another model."""
        if strength == 0:
            yield Steering()
            return
        found = directions.fitted(model, artefact, "directions", self.name)
        offset = float(artefact["offset"]) if self.operation == "affine" else 0.0
        eraser = Erasure(found[0], found[1], offset, strength)
        if self.form == "hooks":
            with hooked(erasing_hooks(model, eraser, self.embeddings)):
                yield Steering()
            return
        _check_foldable(model, self.embeddings)
        new = erased_weights(model, eraser, self.embeddings)
        with untying.untied(model) if self.embeddings == "project" else nullcontext(), edited(new):
            yield Steering()


def erased_weights(model: PreTrainedModel, eraser: Erasure, embeddings: Embeddings) -> dict[nn.Parameter, Tensor]:
    """Return new values for all parameters that write to the stream, with the same effect as `erasing_hooks`."""
    new: dict[nn.Parameter, Tensor] = {}
    own = layout.of(model)
    for layer, block in enumerate(layout.blocks(model)):
        for kind, names in (("o", own.o), ("down", own.value)):
            for matrix in layout.stream_rows(model, layer, kind).parts:  # type: ignore[arg-type]
                edit = eraser.of_stream(matrix.read().float(), constant=False)  # (rows, D)
                new[matrix.parameter] = matrix.stored(edit, new.get(matrix.parameter))
            for name in names:
                for owner, _ in layout.resolved(block, name):
                    last = name.rpartition(".")[2]
                    bias = next((b for b in (getattr(owner, f"{last}_bias", None), getattr(owner, "bias", None))
                                 if isinstance(b, nn.Parameter)), None)  # fmt: skip
                    if bias is not None:
                        new[bias] = eraser.of_stream(bias.detach(), constant=False)
    if embeddings == "project":
        token = model.get_input_embeddings()
        for module in _embeddings(model):
            weight = module.weight
            assert isinstance(weight, nn.Parameter)
            edit = eraser.of_stream(weight.detach().float(), constant=False)  # (V, D)
            if module is token and eraser.offset:
                scale = _embedding_factor(model)
                edit = edit + (eraser.strength * eraser.offset / scale * eraser.writer).to(edit.device)
            new[weight] = edit.to(weight.dtype)
    return new


def _embeddings(model: PreTrainedModel) -> list[nn.Embedding]:
    """Return all embeddings that come before the blocks and are as wide as the stream: of tokens and of positions."""
    decoder: nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
    inside = {id(module) for module in layout.blocks(model).modules()}
    found = [one for one in decoder.modules() if isinstance(one, nn.Embedding) and id(one) not in inside]
    return [one for one in found if one.weight.shape[1] == layout.width(model)]


def _table(model: PreTrainedModel) -> nn.Parameter:
    """Return the weight (V, D) of the token embedding."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, nn.Parameter)
    return weight


_factors: "weakref.WeakKeyDictionary[PreTrainedModel, float]" = weakref.WeakKeyDictionary()


@torch.inference_mode()
def _embedding_factor(model: PreTrainedModel) -> float:
    """Read one token twice to find the factor by which a row of the token embedding is multiplied before block 0.

    Raises SetupError if the stream before block 0 is not a multiple of that row, because a norm or a matrix stands
    between.
    """
    if model in _factors:
        return _factors[model]
    token, block = model.get_input_embeddings(), layout.blocks(model)[0]
    weight = _table(model)
    number = weight[:1000].float().norm(dim=1).argmax()  # a padding token's row may be zeros
    row = weight[number].float()
    inner = float(token(number[None])[0].float() @ row / (row @ row))
    step = row.norm() * torch.nn.functional.normalize(torch.arange(1.0, len(row) + 1, device=row.device).sin(), dim=0)
    seen: list[Tensor] = []

    def keep(hidden: Tensor) -> Tensor:
        seen.append(hidden[0, 0].float())
        return hidden

    with hooked([Hook(block, "input", keep)]):
        layout_search.read_one_token(model, use_cache=False)
        with hooked([Hook(token, "output", lambda hidden: hidden + step.to(hidden))]):
            layout_search.read_one_token(model, use_cache=False)
    before, after = seen
    change = (after - before).to(step.device)
    outer = float(change @ step / (step @ step))
    roundings = 64 * float(torch.finfo(weight.dtype).eps) * float(after.abs().max() + before.abs().max())
    straight = (change - outer * step).abs().max() <= max(roundings, 1e-5 * float(change.abs().max()))
    if not straight or not outer * inner:
        raise SetupError(
            f"{model.config.model_type}: a norm or a matrix stands between the token embedding and the first block, so "
            "the embedding's weights cannot do what the hooks do; set method.form=hooks"
        )
    _factors[model] = inner * outer
    return _factors[model]


_foldable: "weakref.WeakKeyDictionary[PreTrainedModel, set[Embeddings]]" = weakref.WeakKeyDictionary()


def _check_foldable(model: PreTrainedModel, embeddings: Embeddings) -> None:
    """Raise SetupError if edited weights cannot, or do not, do what the hooks do; this is tried once for each model.

    A norm may follow what is written, an embedding may have another width than the stream, and an unknown part may
    write to the stream. So one token is read twice for a random direction: with the hooks, and with the edited weights.
    """
    if embeddings in _foldable.get(model, ()):
        return
    token = _table(model)
    if token.shape[1] != layout.width(model):
        raise SetupError(
            f"{model.config.model_type}: the token embedding is {token.shape[1]} wide and the stream "
            f"{layout.width(model)}, so the weights cannot do what the hooks do; set method.form=hooks"
        )
    if input_device(model).type == "meta":
        return  # checked as soon as the model has weights
    check_materialised(model, [token])
    normed = [
        f"{part} of block {layer}"
        for layer in range(len(layout.blocks(model)))
        for part in sites.PARTS
        if sites.is_normed(model, layer, part)
    ]
    if normed:
        raise SetupError(
            f"{model.config.model_type}: a norm stands between what {normed[0]} writes and the residual stream"
            f"{f', likewise in {len(normed) - 1} other places' if normed[1:] else ''}, so projecting its weights does "
            "not project the stream; set method.form=hooks"
        )
    drawn = torch.randn(layout.width(model), generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(drawn, dim=0)
    eraser = Erasure(unit, unit, 1.0 if embeddings == "project" else 0.0, 0.5)
    wanted = _one_token(model, erasing_hooks(model, eraser, embeddings))
    with edited(erased_weights(model, eraser, embeddings)):
        got = _one_token(model, [])
    _check_equal(wanted, got)
    _foldable.setdefault(model, set()).add(embeddings)


@torch.inference_mode()
def _one_token(model: PreTrainedModel, hooks: Sequence[Hook]) -> Tensor:
    """Return the output (D,) of the last block for one token, with these hooks."""
    last = len(layout.blocks(model)) - 1
    with hooked(hooks), record(model, [last]) as seen:
        layout_search.read_one_token(model, use_cache=False)
    return seen[last][0, 0].clone()


def _check_equal(wanted: Tensor, got: Tensor) -> None:
    """Raise SetupError if the effects of the weights and of the hooks differ by more than rounding."""
    difference, size = float((wanted - got).abs().max()), float(wanted.abs().max())
    if not difference <= min(ROUNDINGS * torch.finfo(wanted.dtype).eps, MOST) * size:
        raise SetupError(
            f"method.form=weights: the edited weights do not give what the hooks give (the stream differs by "
            f"{difference:.2g} of {size:.2g}): something else writes to the stream here; set method.form=hooks"
        )


def whitened_reader(features: Tensor, writer: Tensor, shrinkage: float) -> Tensor:
    """Return w (D,) = S^-1 u / (u^T S^-1 u), in double precision, with the shrunk covariance S of features (N, D).

    S is never formed. Its inverse is computed on the span of the centred rows; on the complement of this span, the
    inverse is a multiple of the identity.
    """
    rows = features.double() - features.double().mean(0)
    values, axes = torch.linalg.svd(rows, full_matrices=False)[1:]  # (K,), (K, D)
    spread = values.square() / (len(rows) - 1)  # (K,)
    floor = shrinkage * spread.sum() / rows.shape[1]
    along = axes @ writer.double()  # (K,)
    inverse = axes.T @ (along / ((1 - shrinkage) * spread + floor)) + (writer.double() - axes.T @ along) / floor  # (D,)
    reader: Tensor = inverse / (writer.double() @ inverse)
    return reader
