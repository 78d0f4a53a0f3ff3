"""Mean-centring (arXiv 2312.03813): the mean of the desired texts minus the mean of ordinary texts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import directions, layout, options
from methods.base import Artefact, FitData, Method, Steering, required_background, required_pairs
from methods.errors import SetupError
from methods.intervention import Hook, adding, hooked
from methods.separation import separation_facts
from methods.tokens import Text, encode

MeanCentringScope = Literal["generation", "prompt", "all"]


@dataclass(frozen=True, kw_only=True)
class MeanCentring(Method):
    """h_t <- h_t + strength * v at the output of block `layer`, at the final token of each decoding step.

        v = mean over target texts of a(text) - mean over background texts of a(text),   (D,)

    The target texts are the desired texts of the pairs; the undesired ones are not read. a(text) is the block's output
    (resid_post) averaged over tokens: for a target text, over the tokens that `read` names (all, in the paper); for a
    background text, over all. Activations of a decoder lie far from the origin, and the second mean takes out what
    every text has in common. Each text counts the same, however long it is.

    skip_first: the number of leading tokens left out of both means. The first token is an attention sink in most
    decoders, and it weighs more in the mean of a short text. So if target and background texts differ in length, a part
    of v comes from the sink; `info.target_norm` and `info.background_norm`, the lengths of the two means, show this.
    With skip_first=1, the sink is left out.
    normalise: whether v is scaled to unit length before the strength is applied. The paper does not say whether
    it scales v; its strengths are 60 to 80 for GPT-2 small and 3 for Llama-2-7B. If true, the strength is the length of
    the added vector, in the units of the stream.
    scope: the paper adds v at the final token position at every step. With a KV cache each token is the final one once,
    when it is read, and what was added to it stays in the cache. So the paper's scope is `generation` with `boundary`,
    which starts at the last prompt token, the final token of the first step. `boundary: false` starts at the first new
    token; `prompt` and `all` are there for comparison.

    Example:
        >>> from methods import FitData, MeanCentring, generating
        >>> from methods.intervention import record
        >>> method = MeanCentring(layer=2, normalise=True)
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs, background=background))
        >>> with method.apply(model, artefact, 3), generating(model), record(model, [2]) as steered:
        ...     _ = model(**inputs)
        >>> round(float((steered[2] - stream[2])[0, -1].norm()), 3)
        3.0
    """

    name: ClassVar[str] = "mean_centring"
    title: ClassVar[str] = "Mean-centring"
    cite: ClassVar[str] = "2312.03813"
    family: ClassVar[str] = "activation"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs", "background"})
    version: ClassVar[int] = 2  # texts tokenised whole, long ones cut from the left of the prompt
    strength_unit: ClassVar[str] = "lambda, multiplier of the centred mean"

    layer: int | float = 0.45
    read: directions.Read = "all"
    skip_first: int = 0
    normalise: bool = False
    scope: MeanCentringScope = "generation"
    boundary: bool = True
    max_tokens: int = 512
    strengths: Sequence[float] = (0.5, 1, 1.5, 2, 3)

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a layer that the model does not have, and for a setting that is not allowed."""
        options.check_types(self)
        layout.layer_index(model, self.layer)
        for key, value, allowed in (
            ("read", self.read, get_args(directions.Read)),
            ("scope", self.scope, get_args(MeanCentringScope)),
        ):
            if value not in allowed:
                raise SetupError(f"method.{key}={value!r}: allowed are {', '.join(allowed)}")
        if self.skip_first < 0:
            raise SetupError(f"method.skip_first={self.skip_first} is negative; 0 leaves out no token")
        if self.max_tokens < 1:
            raise SetupError(f"method.max_tokens={self.max_tokens}: a text needs at least 1 token")

    def residual_norms(self, facts: Mapping[str, Any]) -> float | None:
        """Return the length of the vector, divided by the mean length of the stream at its block."""
        residual = facts.get("residual_norm")
        return (1.0 if self.normalise else facts["direction_norm"]) / residual if residual else None

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the centred mean, (D,), and how well the texts agree on it at that block (`methods.separation`).

        To measure how well they agree, the first target and the first background text count as a pair, then the second
        of each, and so on until either list ends. Raises SetupError if there are no pairs or no background texts, or if
        the means of target and background texts are the same.
        """
        self.check(model)
        pairs = required_pairs(data, self.name)
        background = required_background(data, "mean_centring subtracts the mean of ordinary texts")
        layer = layout.layer_index(model, self.layer)

        def pooled(texts: list[Text], read: directions.Read) -> Tensor:  # (N, D)
            return directions.pooled_features(model, texts, [layer], read=read, skip_first=self.skip_first)[0]

        wanted, cut = encode(model, tokenizer, pairs.prompt, pairs.desired, self.max_tokens)
        usual, cut_background = encode(model, tokenizer, [""] * len(background), background, self.max_tokens)
        targets, ordinaries = pooled(wanted, self.read), pooled(usual, "all")  # (N, D) each, N may differ
        target, ordinary = targets.mean(0), ordinaries.mean(0)  # (D,)
        direction = target - ordinary
        length = direction.norm()
        if length <= directions.SAME * ordinary.norm():
            raise SetupError(
                f"mean_centring: desired and background texts have the same mean at block {layer} (the means "
                f"differ by {length:.2g}, that of the background is {ordinary.norm():.2g} long); give background texts "
                "other than the desired ones"
            )
        return {
            f"layers.{layer}.direction": direction / length if self.normalise else direction,
            "info.direction_norm": length,
            "info.target_norm": target.norm(),
            "info.background_norm": ordinary.norm(),
            "info.residual_norm": directions.residual_norm(model, wanted, layer),
            "info.cut_pairs": torch.tensor(cut),
            "info.cut_background": torch.tensor(cut_background),
            **separation_facts(targets[: len(ordinaries)], ordinaries[: len(targets)]),
        }

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Add the direction inside the `with`. Raises SetupError for an artefact of another model or layer."""
        layer = layout.layer_index(model, self.layer)
        vector = strength * directions.fitted(model, artefact, f"layers.{layer}.direction", self.name)
        hook = Hook(layout.blocks(model)[layer], "output", adding(vector, self.scope, boundary=self.boundary))
        with hooked([hook] if strength else []):
            yield Steering()
