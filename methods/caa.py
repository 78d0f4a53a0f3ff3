"""Contrastive activation addition (arXiv 2312.06681), of free text or of multiple-choice answers."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import directions, layout, options
from methods.base import Artefact, FitData, Method, Steering, required_pairs
from methods.errors import SetupError
from methods.intervention import Hook, adding, hooked
from methods.separation import separation_facts
from methods.tokens import Text, encode_pairs

CAARead = Literal["all", "continuation", "last", "letter"]
CAAScope = Literal["generation", "prompt", "all"]


@dataclass(frozen=True, kw_only=True)
class CAA(Method):
    """h_t <- h_t + strength * v at the output of block `layer`, from the last prompt token on.

        v = mean over pairs of (a(desired) - a(undesired)),   (D,)

    a(text) is the block's output (resid_post) averaged over the tokens that `read` names. The paper's pairs differ in
    one token, the letter of an answer, and are read at that token (section 3); ours differ in a whole continuation, of
    which `continuation` reads every token, `last` only the last. `all` includes the prompt and thus the first
    token: an attention sink, whose weight in a mean depends on the length of the text; `skip_first: 1` leaves it out.
    `letter` is the paper's own position, the second to last token of a text that ends in an answer like "(A)"; `fit`
    checks for every text that this token is the letter. The texts of pairs=ab end in such an answer. Strength is the
    paper's multiplier; a positive one moves toward `desired`.

    norm: with None, v keeps its length; a number rescales v to that length. The authors' code (normalize_vectors.py)
    rescales the vectors of all behaviours at a layer to their mean length, so that a multiplier means the same for each
    of them: `pairs.norm_over` does so on the command line, and `matched_norms` for given vectors. `info.direction_norm`
    is the length before any rescaling by `norm`.

    scope: `generation` is the paper's (all tokens after the prompt); `prompt` and `all` are there for comparison.
    boundary: whether `generation` begins at the last prompt token, from which the first new token is chosen. The
    authors' code now begins there (`>=`); its first versions began one token later (`>`), which was reported as a bug
    (github nrimsky/CAA, issue 3, January 2024); False begins one token later, too. We do not know which of the two gave
    the numbers of the paper's fourth version. After a chat template, steering the last prompt token matters little; in
    a continuation of 20 tokens, steering it changes a twentieth of what is judged, and in the likelihood of one token,
    steering it changes everything.

    Example:
        >>> from methods import CAA, FitData, generating
        >>> from methods.intervention import record
        >>> method = CAA(layer=2)
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs))
        >>> with method.apply(model, artefact, 2.0), generating(model), record(model, [2]) as steered:
        ...     _ = model(**inputs)
        >>> (steered[2] - stream[2])[0, -1].allclose(2.0 * artefact["layers.2.direction"], atol=1e-5)
        True
    """

    name: ClassVar[str] = "caa"
    title: ClassVar[str] = "CAA"
    cite: ClassVar[str] = "2312.06681"
    family: ClassVar[str] = "activation"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    version: ClassVar[int] = 2  # texts tokenised whole, long ones cut from the left of the prompt
    strength_unit: ClassVar[str] = "multiplier of the mean difference"

    layer: int | float = 0.45
    read: CAARead = "continuation"
    skip_first: int = 0
    norm: float | None = None
    scope: CAAScope = "generation"
    boundary: bool = True
    strengths: Sequence[float] = (1, 1.5, 2, 3, 4)

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for a layer that the model does not have, and for a setting that is not allowed."""
        options.check_types(self)
        layout.layer_index(model, self.layer)
        for key, value, allowed in (
            ("read", self.read, get_args(CAARead)),
            ("scope", self.scope, get_args(CAAScope)),
        ):
            if value not in allowed:
                raise SetupError(f"method.{key}={value!r}: allowed are {', '.join(allowed)}")
        if self.skip_first < 0:
            raise SetupError(f"method.skip_first={self.skip_first} is negative; 0 leaves out no token")
        if self.norm is not None and not 0 < self.norm < float("inf"):
            raise SetupError(
                f"method.norm={self.norm}: expected a length above 0, or null to leave the vector as it is"
            )

    def residual_norms(self, facts: Mapping[str, Any]) -> float | None:
        """Return the length of the vector divided by the mean length of the stream at its block."""
        residual = facts.get("residual_norm")
        return (self.norm or facts["direction_norm"]) / residual if residual else None

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the mean difference, (D,), and how well the pairs agree on it at that block (`methods.separation`).

        Raises SetupError without pairs, and if the two sides' features have the same mean.
        """
        self.check(model)
        pairs = required_pairs(data, self.name)
        layer = layout.layer_index(model, self.layer)
        texts = encode_pairs(model, tokenizer, pairs)
        sides, read = [texts.desired, texts.undesired], self.read
        if read == "letter":
            sides = [
                [_to_letter(tokenizer, *one) for one in zip(pairs.prompt, answers, side, strict=True)]
                for answers, side in zip((pairs.desired, pairs.undesired), sides, strict=True)
            ]
            read = "last"
        desired, undesired = (
            directions.pooled_features(model, side, [layer], read=read, skip_first=self.skip_first)[0]  # (N, D)
            for side in sides
        )
        direction = directions.mean_difference(desired, undesired)  # (D,)
        length = direction.norm()
        feature_norm = torch.cat([desired, undesired]).norm(dim=-1).mean()
        if length <= directions.SAME * feature_norm:
            raise SetupError(
                f"caa: the features of desired and undesired texts at block {layer} have the same mean (the means "
                f"differ by {length:.2g}, the features are {feature_norm:.2g} long); give pairs whose texts differ "
                f"where method.read={self.read} looks"
            )
        return {
            f"layers.{layer}.direction": direction if self.norm is None else direction * (self.norm / length),
            "info.direction_norm": length,
            "info.feature_norm": feature_norm,
            "info.residual_norm": directions.residual_norm(model, texts.desired, layer),
            "info.cut_pairs": torch.tensor(texts.cut),
            **separation_facts(desired, undesired),
        }

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Add the direction inside the `with`. Raises SetupError for an artefact of another model or layer."""
        layer = layout.layer_index(model, self.layer)
        vector = strength * directions.fitted(model, artefact, f"layers.{layer}.direction", self.name)
        hook = Hook(layout.blocks(model)[layer], "output", adding(vector, self.scope, boundary=self.boundary))
        with hooked([hook] if strength else []):
            yield Steering()


def _to_letter(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, text: Text) -> Text:
    """Return the text without its last token, which in a causal model cannot change the earlier ones.

    Raises SetupError if the token before it is not the letter of the last "(X)" in the text.
    """
    whole = prompt + answer
    named = re.findall(r"\(([A-Z])\)", whole)
    found = str(tokenizer.decode(text.tokens[-2:-1]))
    if not named or found.strip() != named[-1]:
        end = [tokenizer.decode([token]) for token in text.tokens[-4:]]
        wanted = f'the letter of its last "({named[-1]})"' if named else 'an answer letter, but it names none as "(A)"'
        raise SetupError(
            f"method.read=letter: the last token but one of the text that ends in {whole[-40:]!r} should be {wanted}; "
            f"it is {found!r} (the text has {len(text.tokens)} tokens, which end in {end}). Give the prompts "
            "another format, in which the letter is a token of its own with one token after it, or set another "
            "method.read"
        )
    return text._replace(tokens=text.tokens[:-1])


def matched_norms(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each behaviour's vector at one layer, (D,), rescaled to the mean length of them all.

        v_b <- v_b / |v_b| * mean over behaviours of |v|

    This is normalize_vectors.py of nrimsky/CAA; a single vector keeps its length. Raises SetupError if there is no
    vector, and for a vector of length 0, which has no direction.

    Example:
        >>> import torch
        >>> from methods import matched_norms
        >>> matched_norms({"refusal": torch.tensor([3.0, 0.0]), "corrigibility": torch.tensor([0.0, 1.0])})
        {'refusal': tensor([2., 0.]), 'corrigibility': tensor([0., 2.])}
    """
    lengths = {behaviour: float(vector.norm()) for behaviour, vector in vectors.items()}
    zero = [behaviour for behaviour, length in lengths.items() if length == 0]
    if zero or not lengths:
        raise SetupError(
            f"matched_norms: {', '.join(zero) + ' of length 0' if zero else 'no vector'}; give vectors that were fitted"
        )
    mean = sum(lengths.values()) / len(lengths)
    return {behaviour: vector * (mean / lengths[behaviour]) for behaviour, vector in vectors.items()}
