"""Logistic regression on pooled features, as the methods that probe share it."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor


class Logistic(NamedTuple):
    """p(positive | x) = sigmoid(weight @ x + bias), weight (D,) in fp32."""

    weight: Tensor
    bias: float
    converged: bool

    def margins(self, features: Tensor, positive: Tensor) -> Tensor:
        """(N,) log odds of the right class of each of the features (N, D); above 0 where the guess is right."""
        odds = features @ self.weight + self.bias
        return torch.where(positive, odds, -odds)


def sides(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Features of both classes as one (N, D), and which of them are positive, (N,)."""
    return torch.cat([positive, negative]), torch.arange(len(positive) + len(negative)) < len(positive)


def logistic(features: Tensor, positive: Tensor, max_iter: int = 1000) -> Logistic:
    """Logistic regression with scikit-learn's default penalty (C = 1), by L-BFGS in double precision.

    features: (N, D). positive: (N,) true for one class. A fit that has not converged says so instead of a warning.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(max_iter=max_iter).fit(features.double().numpy(), positive.numpy())
    weight = torch.from_numpy(model.coef_[0].copy()).float()
    return Logistic(weight, float(model.intercept_[0]), bool(model.n_iter_.max() < max_iter))
