"""Linear probes of pooled features, shared by the methods that use probes."""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from methods.base import UNDESIRED


class Logistic(NamedTuple):
    """A logistic probe: p(positive | x) = sigmoid(weight @ x + bias), with weight (D,) in fp32."""

    weight: Tensor
    bias: float
    converged: bool

    def margins(self, features: Tensor, positive: Tensor) -> Tensor:
        """Return the log odds (N,) of the right class of each of the features (N, D); above 0 if the guess is right."""
        odds = features @ self.weight + self.bias
        return torch.where(positive, odds, -odds)


def sides(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Return features of both classes as one (N, D), and which of them are positive, (N,)."""
    return torch.cat([positive, negative]), torch.arange(len(positive) + len(negative)) < len(positive)


def logistic(features: Tensor, positive: Tensor, max_iter: int = 1000) -> Logistic:
    """Fit a logistic regression with scikit-learn's default penalty (C = 1), by L-BFGS in double precision.

    features: (N, D). positive: (N,), true for the positive class. The result says whether the fit converged; no warning
    is shown.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(max_iter=max_iter).fit(features.double().numpy(), positive.numpy())
    weight = torch.from_numpy(model.coef_[0].copy()).float()
    return Logistic(weight, float(model.intercept_[0]), bool(model.n_iter_.max() < max_iter))


class Probe(NamedTuple):
    """A linear classifier of pooled features: logits are weight @ x + bias, weight (2, D), bias (2,)."""

    weight: Tensor
    bias: Tensor
    moved: float = math.nan  # 1 - cosine between the undesired row as trained and as drawn; NaN if none was drawn

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        """Return the share of features (N, D) put into their class; NaN for none."""
        guess = (features @ self.weight.T + self.bias).argmax(-1)  # (N,)
        return float((guess == labels).float().mean())

    def loss(self, features: Tensor, labels: Tensor, label: int) -> Tensor:
        """Return the mean negative log-likelihood of `label` over the features (N, D) of that class; NaN for none."""
        logits = features[labels == label] @ self.weight.T + self.bias  # (n, 2)
        return -logits.log_softmax(-1)[:, label].mean()


def linear_probe(
    features: Tensor, labels: Tensor, steps: int, learning_rate: float, batch_size: int, generator: torch.Generator
) -> Probe:
    """Train a linear layer D -> 2 with Adam on the log-likelihood of both classes.

    It follows arXiv 2407.08770 (section 3.2, Table 14); the initial weights are drawn as nn.Linear draws them.
    """
    width = features.shape[1]
    drawn = (torch.rand(2, width + 1, generator=generator) * 2 - 1) / math.sqrt(width)  # the bias is the last column
    inputs = torch.cat([features, torch.ones(len(features), 1)], dim=-1)  # (N, D + 1)
    with torch.inference_mode(False), torch.enable_grad():
        weight = drawn.clone().requires_grad_()
        optimiser = torch.optim.Adam([weight], lr=learning_rate)
        queue = torch.empty(0, dtype=torch.long)
        for _ in range(steps):
            if not len(queue):
                queue = torch.randperm(len(labels), generator=generator)  # another epoch
            batch, queue = queue[:batch_size], queue[batch_size:]
            optimiser.zero_grad()
            functional.cross_entropy(inputs[batch] @ weight.T, labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    trained = weight.detach()
    moved = 1 - functional.cosine_similarity(trained[UNDESIRED, :width], drawn[UNDESIRED, :width], dim=0)
    return Probe(trained[:, :width], trained[:, width], float(moved))


def logistic_probe(features: Tensor, labels: Tensor) -> Probe:
    """Fit a logistic regression with scikit-learn's default penalty; w, its coefficients, and -w are the probe's rows.

    w is the undesired row. The softmax of the two logits depends on the difference of the rows, here 2 w, so the probe
    makes the same decisions as the regression, with other probabilities.
    """
    found = logistic(features, labels == UNDESIRED, max_iter=5000)
    sign = torch.tensor([1.0 if label == UNDESIRED else -1.0 for label in range(2)])
    return Probe(sign[:, None] * found.weight, sign * found.bias)
