"""How well contrast pairs agree on a direction, and how well it separates pairs that it was not made from.

Both numbers are known as soon as a direction is fitted, from the activations that the fit has read anyway. In arXiv
2505.22637 the behaviours whose pairs agree, and whose two sides lie further apart along the direction, are steered more
reliably. So both numbers partly predict, before any text is sampled, what steering will do.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from methods.base import INFO, Artefact
from methods.directions import SAME

FOLDS = 5
FEWEST_FOR_FOLDS = 10  # pairs; with fewer, each pair is a fold


class Separation(NamedTuple):
    """The result of `separation`; NaN for a number that cannot be computed."""

    mean_cosine: float
    d_prime: float


def separation(desired: Tensor, undesired: Tensor) -> Separation:
    """Return how N pairs agree and how far their sides are apart, from activations at one layer, (N, D) each.

        d_i = desired_i - undesired_i;   mean_cosine = mean over i of cos(d_i, mean of all d_j but d_i)
        d_prime = (mean of p+ - mean of p-) / sqrt((var p+ + var p-) / 2)

    Both are computed in double precision. The paper takes the cosine to the mean of all differences. That mean contains
    d_i itself, so N pairs of pure noise have a cosine of 1 / sqrt(N), .32 for ten pairs; without d_i it is 0 in
    expectation, whatever N and D are. A pair whose two activations are equal counts as 0.

    p+ and p- are the N projections of the desired and of the undesired activations, each on the unit direction of the
    mean difference of the pairs outside its own fold. There are five folds of neighbouring pairs, in the order in which
    the pairs are given; if there are fewer than ten pairs, each pair is a fold. First the mean of all 2N activations is
    subtracted, which does not change the difference between the sides. It is subtracted because the folds have
    different directions: the component that all activations share, which is much larger than that difference, would
    otherwise look like a spread within a side. Variances are sample variances (N - 1).

    Both are NaN for fewer than two pairs; d_prime is NaN if the projections within the sides do not differ.
    """
    if len(desired) < 2:
        return Separation(math.nan, math.nan)
    sides = torch.stack([desired, undesired]).double()  # (2, N, D)
    return Separation(mean_cosine(sides[0] - sides[1]), d_prime(*held_out_projections(sides)))


def mean_cosine(differences: Tensor) -> float:
    """Return the mean cosine of each of N differences, (N, D), with the mean of the others."""
    others = differences.sum(0) - differences  # (N, D), N - 1 times the mean
    return float(functional.cosine_similarity(differences, others, dim=-1).mean())


def held_out_projections(sides: Tensor) -> Tensor:
    """Return the projections (2, N) of both sides' activations (2, N, D), each on the direction of the other folds."""
    sides = sides - sides.mean((0, 1))
    count, difference = sides.shape[1], sides[0] - sides[1]  # (N, D)
    found = []
    for fold in torch.arange(count).tensor_split(FOLDS if count >= FEWEST_FOR_FOLDS else count):
        direction = functional.normalize(difference.sum(0) - difference[fold].sum(0), dim=0)  # (D,)
        found.append(sides[:, fold] @ direction)  # (2, n)
    return torch.cat(found, dim=1)


def d_prime(desired: Tensor, undesired: Tensor) -> float:
    """Return the distance of the means of two sets of projections, (N,) each, in units of the spread within a set."""
    distance = float(desired.mean() - undesired.mean())
    spread = math.sqrt(float(desired.var() + undesired.var()) / 2)
    return math.nan if spread <= SAME * abs(distance) else distance / spread


def separation_facts(desired: Tensor, undesired: Tensor) -> Artefact:
    """Return the numbers of `separation` as facts for a record, without those that are NaN.

    desired, undesired: pooled activations, (N, D) each; or those of several layers, (L, N, D) each, for which the
    numbers are means over the layers.
    """
    layers = zip(desired, undesired, strict=True) if desired.dim() == 3 else [(desired, undesired)]
    found = torch.tensor([separation(*layer) for layer in layers]).mean(0)  # (2,)
    return {
        INFO + name: value.clone() for name, value in zip(Separation._fields, found, strict=True) if value.isfinite()
    }
