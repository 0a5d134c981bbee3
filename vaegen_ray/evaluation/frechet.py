"""The Fréchet distance between two sets of features: FID, where the features are those of its network."""

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
        features = features_BD.double()
        return cls(features.mean(dim=0), torch.cov(features.T).reshape(features.shape[1], -1))


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
