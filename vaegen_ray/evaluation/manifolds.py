"""How two sets of features cover each other, judged by balls around each feature that reach its nearest others."""

from dataclasses import dataclass

import torch
from torch import Tensor

PRECISION_NEIGHBOURS = 3
"""Kynkäänniemi et al. 2019, section 2."""
DENSITY_NEIGHBOURS = 5
"""Naeem et al. 2020, section 4."""
ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class Coverage:
    """What samples and real images have in common; fractions, but for the density, which may exceed 1."""

    precision: float
    """Of the samples, those inside a ball of a real image."""
    recall: float
    """Of the real images, those inside a ball of a sample."""
    density: float
    """Balls of real images that hold a sample, on average, over the number of neighbours."""
    coverage: float
    """Of the real images, those whose ball holds a sample."""


def coverage(real_BD: Tensor, samples_BD: Tensor) -> Coverage:
    """Precision and recall (Kynkäänniemi et al. 2019, eq. 1 and 2), density and coverage (Naeem et al. 2020, eq. 5, 6).

    Sets of fewer images than neighbours use all that there are. Distances are Euclidean.
    """
    real, samples = real_BD.double(), samples_BD.double()
    real_radii, density_radii = _radii(real, PRECISION_NEIGHBOURS, DENSITY_NEIGHBOURS)
    (sample_radii,) = _radii(samples, PRECISION_NEIGHBOURS)
    neighbours = min(DENSITY_NEIGHBOURS, len(real) - 1)
    in_real = torch.zeros(len(samples), dtype=torch.bool, device=real.device)
    in_samples, covered, balls = [], [], 0
    for start in range(0, len(real), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        distances = torch.cdist(real[rows], samples)
        in_real |= (distances <= real_radii[rows, None]).any(dim=0)
        in_samples.append((distances <= sample_radii).any(dim=1))
        inside = distances <= density_radii[rows, None]
        covered.append(inside.any(dim=1))
        balls += int(inside.sum())
    return Coverage(
        precision=float(in_real.double().mean()),
        recall=float(torch.cat(in_samples).double().mean()),
        density=balls / (neighbours * len(samples)),
        coverage=float(torch.cat(covered).double().mean()),
    )


def _radii(points_BD: Tensor, *neighbours: int) -> list[Tensor]:
    """Of each point, the distance to its k-th nearest other point, for each k of ``neighbours``: shape (B,) each."""
    places = [min(k, len(points_BD) - 1) for k in neighbours]  # The nearest, at 0, is the point itself.
    nearest = torch.cat(
        [
            torch.cdist(part, points_BD).topk(max(places) + 1, dim=1, largest=False).values
            for part in points_BD.split(ROWS_AT_ONCE)
        ]
    )
    return [nearest[:, place] for place in places]
