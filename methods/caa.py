"""Contrastive activation addition (arXiv 2312.06681), for free text instead of multiple-choice answers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import anatomy, directions
from methods.base import Artefact, FitData, Method, Steering, required_pairs
from methods.errors import SetupError
from methods.intervention import Hook, adding, hooked

CAAScope = Literal["generation", "prompt", "all"]


@dataclass(frozen=True, kw_only=True)
class CAA(Method):
    """h_t <- h_t + strength * v at the output of block `layer`, from the last prompt token on.

        v = mean over pairs of (a(desired) - a(undesired)),   (D,)

    a(text) is the block's output (resid_post) averaged over the tokens that `read` names. The paper's pairs differ in
    the one token of an answer letter and are read there (section 3); ours differ in a whole continuation, of which
    `continuation` reads every token, `last` only the last. `all` takes the prompt in as well, and with it the first
    token: an attention sink, whose weight in a mean depends on the length of the text; `skip_first: 1` leaves it out.
    v is not normalised: strength is the paper's multiplier, positive moves toward `desired`.

    scope: `generation` is the paper's (all tokens after the prompt); `prompt` and `all` are there for comparison.
    boundary: whether `generation` begins at the last prompt token. The authors' code masks `position > end of the
    instruction`, so that their first new token is chosen unsteered (github nrimsky/CAA). Behind a chat template that
    token matters little; for a text of 20 tokens it is a twentieth of what is judged, and in a likelihood of one
    token it is all. So the default is to include it.
    """

    name: ClassVar[str] = "caa"
    family: ClassVar[str] = "activation"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = "multiplier of the mean difference"

    layer: int | float = 0.45
    read: directions.Read = "continuation"
    skip_first: int = 0
    scope: CAAScope = "generation"
    boundary: bool = True
    strengths: Sequence[float] = (1, 1.5, 2, 3, 4)

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a layer that the model does not have, and for an unknown `read` or `scope`."""
        anatomy.layer_index(model, self.layer)
        for key, value, allowed in (
            ("read", self.read, get_args(directions.Read)),
            ("scope", self.scope, get_args(CAAScope)),
        ):
            if value not in allowed:
                raise SetupError(f"method.{key}={value!r}: allowed are {', '.join(allowed)}")
        if self.skip_first < 0:
            raise SetupError(f"method.skip_first={self.skip_first} is negative; 0 reads from the first token on")

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """The mean difference, (D,). Raises SetupError without pairs."""
        pairs = required_pairs(data, self.name)
        layer = anatomy.layer_index(model, self.layer)
        desired, undesired = (
            directions.pooled_features(
                model,
                directions.encode(tokenizer, pairs.prompt, continuations),
                [layer],
                read=self.read,
                skip_first=self.skip_first,
            )[0]  # (N, D)
            for continuations in (pairs.desired, pairs.undesired)
        )
        direction = directions.mean_difference(desired, undesired)  # (D,)
        features = torch.cat([desired, undesired])  # (2N, D)
        return {
            f"layers.{layer}.direction": direction,
            "info.direction_norm": direction.norm(),
            "info.feature_norm": features.norm(dim=-1).mean(),
        }

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Add the direction inside the block."""
        layer = anatomy.layer_index(model, self.layer)
        vector = strength * artefact[f"layers.{layer}.direction"]
        hook = Hook(anatomy.blocks(model)[layer], "output", adding(vector, self.scope, boundary=self.boundary))
        with hooked([hook] if strength else []):
            yield Steering()
