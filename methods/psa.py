"""Private steering, PSA (arXiv 2501.18532): a mean difference that is differentially private in the pairs."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import directions, options, vectors
from methods.base import Artefact, FitData, Method, Steering, required_background, required_pairs
from methods.errors import SetupError
from methods.intervention import adding, hooked
from methods.tokens import encode, encode_pairs

PSAScope = Literal["all", "prompt", "generation"]
Mechanism = Literal["analytic", "classical"]
SIGMAS = (1e-6, 1e6)  # the least and the largest sigma; beyond them a budget or a vector is not finite in fp32
MOST_EPSILON = 1e9  # the largest epsilon that can be asked for, for the same reason
STEPS = 200  # of a bisection in double precision; each step halves the interval


@dataclass(frozen=True, kw_only=True)
class PSA(Method):
    """h_t <- h_t + strength * n_l * v_l at the output of each block l from `first_layer` to `last_layer`.

        d_i = a_l(desired_i) - a_l(undesired_i),   (D,)
        v_l = 1/N sum over pairs of d_i / max(C_l, |d_i|) + noise of standard deviation sigma in each coordinate

    a_l(text) is the block's output (resid_post) at the last token, or averaged over the tokens that `read` names
    (section 5.1; algorithm 1). Each pair contributes a vector of length 1 or less, so replacing one pair moves the
    mean by at most 2 / N, and the noise hides that: v_l is (epsilon, delta)-differentially private for data sets that
    differ in one pair, and so is everything that is computed from it. With one vector for each of S blocks, the total
    budget is (S epsilon, S delta), by basic composition. The noise is drawn once, in `fit`.

    C_l and n_l, the unit of the strength, must not come from the pairs, so they are taken from public texts: the
    background. n_l is the mean length of the stream at their tokens, and C_l = clip * n_l; the paper does not say how C
    is chosen, so this rule is ours. With a small `clip`, every pair has length 1. Without the noise, v_l is at most 1
    long. The noise has a length of about sigma sqrt(D): with the paper's sigma of 0.02, that is 0.5 at width 576 and
    1.3 at width 4096.

    sigma, epsilon: exactly one of them is given. `sigma`, as in the paper's runs, is the noise itself; `epsilon` is
    the budget of all blocks together, from which sigma is computed by `mechanism`. `delta` is the delta of one block;
    null means 1 / (5 N). `analytic` solves the exact condition of the Gaussian mechanism (arXiv 1805.06083, theorem 8).
    `classical` is the paper's sigma = 2 sqrt(2 ln(1.25 / delta)) / (N epsilon), which is proved only if epsilon is
    below 1 at each single block; otherwise `classical` is refused.

    The record holds totals over all blocks: `info.epsilon` by the exact condition, `info.epsilon_classical` by the
    paper's formula, for comparison with its figures, and `info.delta`.

    Limits of the guarantee: a reader who knows `seed`, from which the noise is drawn, can subtract the noise, so keep
    the seed secret if you publish a vector; torch's normal numbers are pseudo-random and in float32; N is treated as
    public; `info.cut_pairs`, and the refusal of a pair, reveal something about single texts.

    Example:
        >>> from methods import PSA, FitData
        >>> method = PSA(first_layer=1, last_layer=2, sigma=None, epsilon=8.0)
        >>> artefact = method.fit(model, tokenizer, FitData(pairs=pairs, background=background))
        >>> with method.apply(model, artefact, 0.1):
        ...     moved = (model(**inputs).logits != logits).any(-1)[0]
        >>> round(float(artefact["info.epsilon"]), 2), bool(moved.all())  # the budget of both blocks together
        (8.0, True)
    """

    name: ClassVar[str] = "psa"
    title: ClassVar[str] = "PSA"
    cite: ClassVar[str] = "2501.18532"
    family: ClassVar[str] = "activation"
    needs: ClassVar[frozenset[str]] = frozenset({"pairs", "background"})
    version: ClassVar[int] = 1
    strength_unit: ClassVar[str] = vectors.UNIT

    first_layer: int | float = 0.35
    last_layer: int | float = 0.48
    read: directions.Read = "last"
    clip: float = 0.5
    sigma: float | None = 0.02
    epsilon: float | None = None
    delta: float | None = None
    mechanism: Mechanism = "analytic"
    scope: PSAScope = "all"
    seed: int = 0
    strengths: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5)

    def check(self, model: PreTrainedModel) -> None:
        """Raises SetupError for layers that the model does not have, and for a setting that is not allowed."""
        options.check_types(self)
        vectors.block_range(model, self.first_layer, self.last_layer)
        options.check_choice("read", self.read, get_args(directions.Read))
        options.check_choice("mechanism", self.mechanism, get_args(Mechanism))
        options.check_choice("scope", self.scope, get_args(PSAScope))
        if not 0 < self.clip < math.inf:
            raise SetupError(f"method.clip={self.clip}: expected a number above 0, in mean residual norms")
        if (self.sigma is None) == (self.epsilon is None):
            raise SetupError(
                f"method.sigma={self.sigma} and method.epsilon={self.epsilon}: give one of them, and null for the other"
            )
        if self.sigma is not None and self.sigma != 0 and not SIGMAS[0] <= self.sigma <= SIGMAS[1]:
            raise SetupError(
                f"method.sigma={self.sigma}: expected a standard deviation from {SIGMAS[0]:g} to {SIGMAS[1]:g}, or "
                "0 for no "
                "noise and no privacy"
            )
        if self.epsilon is not None and not 0 < self.epsilon <= MOST_EPSILON:
            raise SetupError(f"method.epsilon={self.epsilon}: expected a number above 0, up to {MOST_EPSILON:g}")
        if self.delta is not None and not 0 < self.delta < 1:
            raise SetupError(f"method.delta={self.delta}: expected a number between 0 and 1, or null for 1 / (5 N)")

    def residual_norms(self, facts: Mapping[str, Any]) -> float | None:
        """Return the mean length of the private vectors over the blocks, which is in mean residual norms."""
        lengths = facts["direction_norm"]
        return sum(lengths) / len(lengths) if isinstance(lengths, list) else float(lengths)

    def fit(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: FitData) -> Artefact:
        """Return the private vector of each block, and the total budget. One pass reads all blocks.

        Raises SetupError if there are no pairs or no background texts, if the mechanism cannot give `epsilon`, and, if
        there is no noise, for pairs whose mean difference is zero.
        """
        self.check(model)
        pairs = required_pairs(data, self.name)
        background = required_background(data, "psa takes its clipping norm and its unit from public texts")
        layers = vectors.block_range(model, self.first_layer, self.last_layer)
        public, cut_background = encode(model, tokenizer, [""] * len(background), background)
        norms = directions.residual_norms(model, public, layers)  # (L,)
        texts = encode_pairs(model, tokenizer, pairs)
        desired, undesired = (  # (L, N, D) each
            directions.pooled_features(model, side, layers, read=self.read) for side in (texts.desired, texts.undesired)
        )
        count = len(pairs.prompt)
        sigma, delta = self.noise(count, len(layers))
        mean = clipped_mean(desired - undesired, self.clip * norms)  # (L, D)
        if sigma == 0 and bool((mean.norm(dim=-1) <= directions.SAME).any()):
            raise SetupError(
                "psa: the desired and undesired texts do not differ where method.read looks, so their mean difference "
                "is zero; give pairs whose texts differ there"
            )
        private = mean + sigma * torch.stack([drawn(self.seed, layer, mean.shape[1]) for layer in layers])
        budget = {} if sigma == 0 else spent(sigma, delta, count, len(layers))
        return {
            **vectors.kept(layers, private, norms),
            "info.direction_norm": private.norm(dim=-1),
            "info.sigma": torch.tensor(sigma),
            **{f"info.{name}": torch.tensor(value) for name, value in budget.items()},
            "info.cut_pairs": torch.tensor(texts.cut),
            "info.cut_background": torch.tensor(cut_background),
        }

    def noise(self, count: int, blocks: int) -> tuple[float, float]:
        """Return sigma and delta of one block for `count` pairs. Raises SetupError if `classical` does not apply."""
        delta = 1 / (5 * count) if self.delta is None else self.delta
        if self.sigma is not None:
            return self.sigma, delta
        assert self.epsilon is not None
        each = self.epsilon / blocks
        if self.mechanism == "analytic":
            return analytic_sigma(each, delta, count), delta
        if each >= 1:
            raise SetupError(
                f"method.epsilon={self.epsilon} is {each:.3g} at each of {blocks} blocks, and the classical bound is "
                "proved only below 1; set method.mechanism=analytic, a smaller epsilon, or more blocks"
            )
        return classical(delta, count) / each, delta

    @contextmanager
    def apply(self, model: PreTrainedModel, artefact: Artefact, strength: float) -> Iterator[Steering]:
        """Add the vectors inside the `with`. Raises SetupError for an artefact of another model or of other layers."""
        layers = vectors.block_range(model, self.first_layer, self.last_layer)
        found = vectors.fitted(model, artefact, layers, self.name)
        maps = {layer: adding(strength * vector, self.scope) for layer, vector in found.items()} if strength else {}
        with hooked(vectors.hooks(model, maps)):
            yield Steering()


def clipped_mean(differences: Tensor, norms: Tensor) -> Tensor:
    """Return the mean over pairs of d / max(C, |d|), (L, D), from differences (L, N, D) and clipping norms C (L,)."""
    lengths = differences.norm(dim=-1, keepdim=True)  # (L, N, 1)
    return (differences / torch.maximum(lengths, norms[:, None, None])).mean(1)


def drawn(seed: int, layer: int, width: int) -> Tensor:
    """Return standard normal numbers (D,) that depend only on this seed and this block."""
    digest = hashlib.sha256(f"psa\x00{seed}\x00{layer}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(width, generator=generator)


def classical(delta: float, count: int) -> float:
    """Return sigma times epsilon of one block by the classical bound: 2 sqrt(2 ln(1.25 / delta)) / N."""
    return 2 * math.sqrt(2 * math.log(1.25 / delta)) / count


def spent(sigma: float, delta: float, count: int, blocks: int) -> dict[str, float]:
    """Return the budget of all blocks: epsilon by the exact condition, epsilon by the classical formula, and delta."""
    return {
        "epsilon": blocks * analytic_epsilon(sigma, delta, count),
        "epsilon_classical": blocks * classical(delta, count) / sigma,
        "delta": blocks * delta,
    }


def lost(epsilon: float, sigma: float, count: int) -> float:
    """Return the smallest delta with which this noise makes the mean of N vectors (epsilon, delta)-private.

    The vectors have length 1 or less. By theorem 8 of arXiv 1805.06083 this delta is

        Phi(s / (2 sigma) - epsilon sigma / s) - e^epsilon Phi(-s / (2 sigma) - epsilon sigma / s),   s = 2 / N
    """
    ratio = 2 / count / sigma
    ends = torch.tensor([ratio / 2 - epsilon / ratio, -ratio / 2 - epsilon / ratio], dtype=torch.double)
    near, far = torch.special.log_ndtr(ends).tolist()
    return math.exp(near) - math.exp(min(far + epsilon, 0.0))


def analytic_epsilon(sigma: float, delta: float, count: int) -> float:
    """Return the smallest epsilon of one block for this noise; 0 if the noise suffices for epsilon 0."""
    return _smallest(lambda epsilon: lost(epsilon, sigma, count) <= delta)


def analytic_sigma(epsilon: float, delta: float, count: int) -> float:
    """Return the smallest noise of one block for this budget."""
    return _smallest(lambda sigma: sigma > 0 and lost(epsilon, sigma, count) <= delta)


def _smallest(enough: Callable[[float], bool]) -> float:
    """Return the smallest number >= 0 that is enough; all larger numbers must be enough, too."""
    if enough(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while not enough(high):
        low, high = high, 2 * high
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
