"""The kernel distance between two sets of features: KID, where the features are those of FID's network."""

import warnings

import torch
from torch import Tensor, nn

MOST_AT_ONCE = 4000
NUM_SUBSETS = 100
SUBSET_SIZE = 1000


def kernel_distance(first_BD: Tensor, second_BD: Tensor, seed: int) -> Tensor:
    """The squared MMD under the cubic kernel, without bias (Bińkowski et al. 2018, section 4 and eq. 4).

    Of all rows of the smaller set, and as many of the larger, where there are up to 4000, which has the least variance;
    else averaged, as there, over 100 subsets of 1000 rows. What is drawn is drawn from ``seed``. Both estimate the same
    number. May be slightly negative.
    """
    from torchmetrics.image.kid import KernelInceptionDistance  # With scipy's signals, which cost seconds to import.

    smaller = min(len(first_BD), len(second_BD))
    num_subsets, subset_size = (1, smaller) if smaller <= MOST_AT_ONCE else (NUM_SUBSETS, SUBSET_SIZE)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message=".*save all extracted features")
        # torchmetrics draws the subsets from the global CPU generator.
        torch.default_generator.manual_seed(seed)
        # Each rank has the rows of all already: gathered once more, pairs of equal rows would count.
        metric = KernelInceptionDistance(
            feature=nn.Identity(), subsets=num_subsets, subset_size=subset_size, sync_on_compute=False
        )
        metric.update(first_BD.double(), real=True)
        metric.update(second_BD.double(), real=False)
        mean, _ = metric.compute()
    return torch.as_tensor(mean)
