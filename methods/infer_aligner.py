"""InferAligner (arXiv 2401.11206), our reading: a vector is added after prompts that are judged to be harmful."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from methods import directions, layout, options, vectors
from methods.base import Artefact, FitData, Method, Steering, required_pairs
from methods.broken import reading
from methods.errors import SetupError, loading_failure
from methods.intervention import adding, hooked
from methods.placement import input_device
from methods.separation import separation_facts
from methods.tokens import EncodedPairs, encode, encode_pairs
from methods.verdicts import Verdict, extremes

Aim = Literal["desired", "harm"]


@dataclass(frozen=True, kw_only=True)
class InferAligner(Method):
    """h_t <- h_t + strength * n_l * g_l * theta_l at the output of each block l, from the last prompt token on.

        m+_l, m-_l = mean over pairs of a_l(desired), of a_l(undesired),   (D,)
        u_l = (m-_l - m+_l) / |m-_l - m+_l|,   b_l = (m+_l + open_at (m-_l - m+_l)) . u_l
        g_l = 1 if the block's output h at the last token of the prompt has h . u_l > b_l, else 0
        theta_l = u_l of the aligned model, with the sign that `aim` says

    a_l(text) is the block's output (resid_post) at the last token. u_l, the detector, comes from the model that is
    steered; theta_l, the vector, comes from a safety-aligned model of the same shape, which reads the same tokens. A
    prompt is judged once at each block, and the verdict there decides whether that block steers what follows. n_l is
    the mean length of the stream at block l of the model that is steered.

    The authors' repository has no code of the method, and its gate bias, layers and strength are not known to us: the
    midpoint, the middle third and the unit of the strength are choices of ours. The following options are ours, too:
    open_at: where a gate opens, from the desired texts' mean (0) to the undesired ones' (1).
    aligned: folder or hub id of the aligned model, which has to be on this machine already; the id of a result contains
    this text and `aligned_revision`, not the folder's content. With null, theta_l comes from the steered model itself.
    aim: `desired` turns theta_l to the side of the desired texts. `harm` turns it to the undesired ones, as the paper
    does with an aligned model: a model that recognises harm more clearly should refuse it. Use `harm` only with
    `aligned`.
    boundary: whether the last prompt token is moved as well. The token is judged at each block as it arrives there, so
    with true a block judges a stream to which the blocks below have already added their vectors; with false the
    unsteered model is judged, and the first new token is predicted without steering. The paper adds at all positions.
    Here the tokens before the last one of a prompt are not moved, since they may have been read, and shared with other
    prompts, before there is a verdict.

    In the record, `info.right` is the share of the fit's texts that each gate judges correctly, and `info.open` is the
    share of the fit's prompts for which each gate is open. `info.never_opens` says that no gate opens for any prompt or
    text of the fit, and `info.always_open` that every gate opens for all of them.

    Example:
        >>> from methods import FitData, InferAligner, generating
        >>> from methods.intervention import record
        >>> method = InferAligner(first_layer=2, last_layer=3, open_at=-9.0)  # so low that every prompt opens the gates
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs))
        >>> with method.apply(model, artefact, 0.2), generating(model), record(model, [2]) as steered:
        ...     _ = model(**inputs)
        >>> (steered[2] - stream[2])[0, -1].allclose(0.2 * artefact["layers.2.direction"], atol=1e-5)
        True
    """

    name: ClassVar[str] = "infer_aligner"
    title: ClassVar[str] = "InferAligner (our reading)"
    cite: ClassVar[str] = "2401.11206"
    family: ClassVar[str] = "activation"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = vectors.UNIT

    first_layer: int | float = 0.34
    last_layer: int | float = 0.66
    aligned: str | None = None
    aligned_revision: str | None = None
    aim: Aim = "desired"
    open_at: float = 0.5
    boundary: bool = True
    strengths: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5)

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for layers that the model does not have, and for a setting that is not allowed."""
        options.check_types(self)
        vectors.block_range(model, self.first_layer, self.last_layer)
        options.check_choice("aim", self.aim, get_args(Aim))
        if not math.isfinite(self.open_at):
            raise SetupError(f"method.open_at={self.open_at}: expected a number; 0.5 is midway between the two means")
        if self.aligned is None and self.aligned_revision is not None:
            raise SetupError(f"method.aligned_revision={self.aligned_revision} without method.aligned; give both")

    def residual_norms(self, facts: Mapping[str, Any]) -> float | None:
        """Return 1, the value where a gate is open, since the strength itself is in mean residual norms."""
        del facts
        return 1.0

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return detector, bias and vector of each block. One pass reads the texts, a shorter one the prompts.

        Raises SetupError without pairs, if the means of both sides are the same, and for an aligned model that cannot
        be loaded, or has another shape or vocabulary.
        """
        self.check(model)
        pairs = required_pairs(data, self.name)
        texts = encode_pairs(model, tokenizer, pairs)
        layers = vectors.block_range(model, self.first_layer, self.last_layer)
        desired, undesired = _features(model, texts, layers)  # (L, N, D) each
        detectors = _unit(desired, undesired, layers, "the model")  # (L, D), towards the undesired
        begins, ends = (  # (L,) each
            (side.mean(1) * detectors).sum(-1) for side in (desired, undesired)
        )
        biases = begins + self.open_at * (ends - begins)
        towards = detectors
        if self.aligned is not None:
            other = self._other(self.aligned, model, tokenizer)
            towards = _unit(*_features(other, texts, layers), layers, "the aligned model")
        found = vectors.kept(
            layers,
            towards if self.aim == "harm" else -towards,
            directions.residual_norms(model, texts.desired, layers),
        )
        for layer, detector, bias in zip(layers, detectors, biases, strict=True):
            found[f"layers.{layer}.detector"], found[f"layers.{layer}.bias"] = detector.clone(), bias.clone()
        prompts = [prompt for prompt in pairs.prompt if prompt]
        if prompts:
            asked = encode(model, tokenizer, prompts, [""] * len(prompts))[0]
            at_prompts = directions.pooled_features(model, asked, layers, read="last")  # (L, N, D)
            found["info.open"] = _opened(at_prompts, detectors, biases)
        opened = [_opened(side, detectors, biases) for side in (desired, undesired)]  # (L,) each
        return {
            **found,
            **extremes(torch.cat([*opened, *([found["info.open"]] if prompts else [])])),
            "info.right": (1 - opened[0] + opened[1]) / 2,
            "info.cut_pairs": torch.tensor(texts.cut),
            **separation_facts(desired, undesired),
        }

    def _other(self, aligned: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
        """Return the aligned model. Raises SetupError if it is not on disk, or has another shape or vocabulary."""
        revision = self.aligned_revision or "main"
        if not Path(aligned).is_dir() and not _is_downloaded(aligned, revision):
            raise SetupError(
                f"method.aligned={aligned}: this machine has no folder and no downloaded model of this name (revision "
                f"{revision}); expected the folder of a model, or a hub id ORG/NAME that was downloaded before "
                "(`hf download ORG/NAME`)"
            )

        def told(error: BaseException) -> SetupError:
            why = loading_failure(error) if isinstance(error, Exception) else str(error)
            return SetupError(
                f"method.aligned={aligned} cannot be loaded: {why}; give the folder of a model, or a hub id that was "
                "downloaded before (`hf download`)"
            )

        with reading(told, Exception):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                aligned,
                revision=revision,
                dtype=model.dtype,
                local_files_only=True,
                trust_remote_code=False,
            )
        other: PreTrainedModel = loaded.eval().to(input_device(model))
        shapes = [(layout.width(one), len(layout.blocks(one))) for one in (model, other)]
        if shapes[0] != shapes[1]:
            raise SetupError(
                f"method.aligned={aligned} has width {shapes[1][0]} and {shapes[1][1]} blocks, the model has "
                f"width {shapes[0][0]} and {shapes[0][1]} blocks; give an aligned model of the same shape"
            )
        rows, own = (_vocabulary(one) for one in (other, model))
        if rows != own:
            raise SetupError(
                f"method.aligned={aligned} has embeddings of {rows} tokens, and the model has {own}, so the two may "
                "read different tokens; give an aligned model with the same tokenizer, of equally many tokens"
            )
        _check_tokenizer(aligned, revision, tokenizer)
        return other

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Judge and steer inside the `with`. Raises SetupError for an artefact of another model or of other layers."""
        layers = vectors.block_range(model, self.first_layer, self.last_layer)
        found = vectors.fitted(model, artefact, layers, self.name)
        maps = {}
        for layer, vector in found.items() if strength else ():
            detector = directions.fitted(model, artefact, f"layers.{layer}.detector", self.name)
            verdict = Verdict(_judge(detector, float(artefact[f"layers.{layer}.bias"])))
            moved = vectors.within(adding(strength * vector, "all"), "generation", boundary=self.boundary)
            maps[layer] = vectors.where_open(verdict, moved)
        with hooked(vectors.hooks(model, maps)):
            yield Steering()


def _vocabulary(model: PreTrainedModel) -> int:
    """Return the number of tokens that a model has embeddings of."""
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def _is_downloaded(name: str, revision: str) -> bool:
    """Return whether the hub's cache on this machine holds the config of a model."""
    try:
        return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    except HFValidationError:  # such as a path
        return False


def _check_tokenizer(aligned: str, revision: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises SetupError if the aligned model has another tokenizer. Without tokenizer files nothing is checked."""
    auto: Any = AutoTokenizer
    try:
        theirs = auto.from_pretrained(aligned, revision=revision, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        return
    own, other = tokenizer.get_vocab(), theirs.get_vocab()
    if differing := sum(other.get(token) != number for token, number in own.items()):
        raise SetupError(
            f"method.aligned={aligned} has another tokenizer: {differing} of the model's {len(own)} tokens are absent "
            "or have other numbers there, so it would read other texts; give an aligned model with the same tokenizer"
        )


def _features(model: PreTrainedModel, texts: EncodedPairs, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the features (L, N, D) of the desired and of the undesired texts, each at its last token."""
    desired, undesired = (
        directions.pooled_features(model, side, layers, read="last") for side in (texts.desired, texts.undesired)
    )
    return desired, undesired


def _unit(desired: Tensor, undesired: Tensor, layers: Sequence[int], whose: str) -> Tensor:
    """Return the directions (L, D), of length 1, from the mean of desired to that of undesired features (L, N, D).

    Raises SetupError if both have the same mean.
    """
    difference = directions.mean_difference(undesired, desired)  # (L, D)
    lengths = difference.norm(dim=-1)  # (L,)
    feature = torch.cat([desired, undesired], 1).norm(dim=-1).mean(-1)  # (L,)
    for layer, length, size in zip(layers, lengths.tolist(), feature.tolist(), strict=True):
        if length <= directions.SAME * size:
            raise SetupError(
                f"infer_aligner: desired and undesired texts have the same mean at block {layer} of {whose} (the "
                f"means differ by {length:.2g}, the features are {size:.2g} long); give pairs whose texts end "
                "differently"
            )
    return functional.normalize(difference, dim=-1)


def _opened(features: Tensor, detectors: Tensor, biases: Tensor) -> Tensor:
    """Return the share (L,) of the features (L, N, D) at which the gate of their block opens."""
    return ((features * detectors[:, None]).sum(-1) > biases[:, None]).float().mean(-1)


def _judge(detector: Tensor, bias: float) -> Any:
    """Return a function that gives 1 where the stream (B, D) lies beyond `bias` along the detector (D,), else 0."""

    def judge(hidden: Tensor) -> Tensor:
        return (hidden @ detector.to(hidden) > bias).float()

    return judge
