"""Control: a random direction, added at the place where CAA adds its mean difference.

A method that lowers toxicity no further than this control does, at the same perplexity, has found no direction for
toxicity: any push that blurs the model makes it less toxic, too. Draw several seeds.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import directions, layout, options
from methods.base import Artefact, FitData, Method, Steering, required_pairs
from methods.intervention import Hook, adding, hooked
from methods.tokens import encode_pairs


@dataclass(frozen=True, kw_only=True)
class RandomDirection(Method):
    """h <- h + strength * s * u at the output of one block, from the last prompt token on.

    u (D,) is uniform on the unit sphere, drawn only from `seed`. s is the mean residual norm at that block over the
    tokens of the pairs' continuations, so strength is the length of the added vector, in mean residual norms. The first
    token of a text, an attention sink with a norm unlike that of other tokens, is left out of s.

    Example:
        >>> from methods import FitData, RandomDirection, generating
        >>> from methods.intervention import record
        >>> method = RandomDirection(seed=1, layer=2)
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs))
        >>> with method.apply(model, artefact, 0.2), generating(model), record(model, [2]) as steered:
        ...     _ = model(**inputs)
        >>> round(float((steered[2] - stream[2])[0, -1].norm() / artefact["info.residual_norm"]), 3)
        0.2
    """

    name: ClassVar[str] = "random_direction"
    title: ClassVar[str] = "Random direction"
    family: ClassVar[str] = "activation"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    version: ClassVar[int] = 2  # texts tokenised whole, long ones cut from the left of the prompt
    strength_unit: ClassVar[str] = "mean residual norms"
    reads_labels: ClassVar[bool] = False

    seed: int = 0
    layer: int | float = 0.45
    strengths: Sequence[float] = (0.07, 0.12, 0.2, 0.3, 0.4)

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a layer that the model does not have."""
        options.check_types(self)
        layout.layer_index(model, self.layer)

    def residual_norms(self, facts: Mapping[str, Any]) -> float | None:
        """Return 1, since the strength itself is in mean residual norms."""
        del facts
        return 1.0

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Draw the direction and measure the norm. Raises SetupError without pairs."""
        self.check(model)
        pairs = required_pairs(data, self.name)
        layer = layout.layer_index(model, self.layer)
        texts = encode_pairs(model, tokenizer, pairs)
        both = texts.desired + texts.undesired
        norm = directions.mean_norm(model, both, layer, read="continuation", skip_first=1)
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(layout.width(model), generator=generator)  # (D,)
        return {
            f"layers.{layer}.direction": drawn / drawn.norm() * norm,
            "info.residual_norm": torch.tensor(norm),
            "info.cut_pairs": torch.tensor(texts.cut),
        }

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Add the direction inside the `with`. Raises SetupError for the artefact of another model."""
        layer = layout.layer_index(model, self.layer)
        vector = strength * directions.fitted(model, artefact, f"layers.{layer}.direction", self.name)
        hook = Hook(layout.blocks(model)[layer], "output", adding(vector, "generation", boundary=True))
        with hooked([hook] if strength else []):
            yield Steering()
