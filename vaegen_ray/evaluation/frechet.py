"""The Fréchet distance between two sets of features: FID, where the features are those of its network."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """The normal distribution that stands for a set of features, in float64."""

    mean: Tensor
    """Of shape (D,)."""
    covariance: Tensor
    """Of shape (D, D)."""

    @classmethod
    def of(cls, features_BD: Tensor) -> "Gaussian":
        """Mean and unbiased covariance of at least two rows."""
        sums = RunningSums()
        sums.add(features_BD)
        return sums.gaussian()


class RunningSums:
    """Count, sum and sum of products of rows, in float64: all that a Gaussian needs, in constant memory."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: Tensor | None = None
        self._products: Tensor | None = None

    def add(self, features_BD: Tensor) -> None:
        """Count in some rows; none must be given at least once, lest the width is unknown."""
        rows = features_BD.double()
        self._count += len(rows)
        sums, products = rows.sum(dim=0), rows.T @ rows
        self._sum = sums if self._sum is None else self._sum + sums
        self._products = products if self._products is None else self._products + products

    def gaussian(self, total: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Gaussian:
        """Mean and unbiased covariance of the rows of all ranks, whose tensors ``total`` sums."""
        assert self._sum is not None
        assert self._products is not None
        count = total(torch.tensor(float(self._count), dtype=torch.float64, device=self._sum.device))
        mean = total(self._sum) / count
        covariance = (total(self._products) - count * torch.outer(mean, mean)) / (count - 1)
        return Gaussian(mean, covariance)


def frechet_distance(first: Gaussian, second: Gaussian) -> Tensor:
    """The squared distance |m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2)): Heusel et al. 2017, eq. 6.

    The root's trace is taken of C1^(1/2) C2 C1^(1/2), which has the eigenvalues of C1 C2 and is symmetric: so
    they are real and not negative also where there are fewer images than features.
    """
    root = _square_root(first.covariance)
    eigenvalues = torch.linalg.eigvalsh(root @ second.covariance @ root)
    trace_of_root = eigenvalues.clamp(min=0).sqrt().sum()
    traces = first.covariance.trace() + second.covariance.trace()
    distance = (first.mean - second.mean).square().sum() + traces - 2 * trace_of_root
    # Equal sets give a rounding error of either sign.
    return torch.as_tensor(distance).clamp(min=0)


def _square_root(covariance_DD: Tensor) -> Tensor:
    eigenvalues, vectors = torch.linalg.eigh(covariance_DD)
    root: Tensor = (vectors * eigenvalues.clamp(min=0).sqrt()) @ vectors.T
    return root
