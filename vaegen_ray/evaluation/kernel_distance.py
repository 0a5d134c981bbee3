"""The kernel distance between two sets of features: KID, where the features are those of FID's network."""

import torch
from torch import Tensor

MOST_AT_ONCE = 4000
NUM_SUBSETS = 100
SUBSET_SIZE = 1000


def kernel_distance(first_BD: Tensor, second_BD: Tensor, seed: int) -> Tensor:
    """The squared MMD under the cubic kernel, without bias (Bińkowski et al. 2018, section 4 and eq. 4).

    Of all rows of the smaller set, and as many of the larger, where there are up to 4000, which has the least variance;
    else averaged, as there, over 100 subsets of 1000 rows. What is drawn is drawn from ``seed``. Both estimate the same
    number. May be slightly negative.
    """
    smaller = min(len(first_BD), len(second_BD))
    num_subsets, subset_size = (1, smaller) if smaller <= MOST_AT_ONCE else (NUM_SUBSETS, SUBSET_SIZE)
    generator = torch.Generator().manual_seed(seed)

    def drawn(rows_BD: Tensor) -> Tensor:
        chosen = torch.randperm(len(rows_BD), generator=generator)[:subset_size]
        return rows_BD[chosen.to(rows_BD.device)].double()

    distances = [_squared_discrepancy(drawn(first_BD), drawn(second_BD)) for _ in range(num_subsets)]
    return torch.stack(distances).mean()


def _squared_discrepancy(first_BD: Tensor, second_BD: Tensor) -> Tensor:
    """Of two sets of as many rows: the U-statistic, in which no row is compared with itself."""
    num_pairs = len(first_BD) * (len(first_BD) - 1)
    within = [_cubic_kernel(rows, rows) for rows in (first_BD, second_BD)]
    sums = [kernel.sum() - kernel.trace() for kernel in within]
    return (sums[0] + sums[1]) / num_pairs - 2 * _cubic_kernel(first_BD, second_BD).mean()


def _cubic_kernel(first_BD: Tensor, second_BD: Tensor) -> Tensor:
    return (first_BD @ second_BD.T / first_BD.shape[1] + 1) ** 3
