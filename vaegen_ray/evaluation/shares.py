"""Which images of a set a rank handles, and how what it found meets that of the others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_PIXELS_PER_BATCH = 2**22


def images_per_batch(image_size: int, most: int = 64) -> int:
    """How many images of so many pixels a network is given at once, so that activations of the largest models fit.

    64 images of 256 pixels, fewer of larger ones, at most ``most`` of smaller ones.
    """
    return min(most, max(MOST_PIXELS_PER_BATCH // image_size**2, 1))


@dataclass(frozen=True)
class Share:
    """The images of a rank: every ``num_ranks``-th, as many on every rank, so that collectives have equal shapes.

    So the first rows of all ranks are the first images, whatever the number of ranks. The last ranks wrap around to
    the first images where the division leaves a remainder; these are counted nowhere.
    """

    num_images: int
    rank: int
    num_ranks: int
    gather: Callable[[Tensor], Tensor]
    """Concatenates the rows of all ranks in the order of ranks."""
    total: Callable[[Tensor], Tensor]
    """Sums equally shaped tensors over the ranks."""

    def batches(self, image_size: int) -> Sequence[Tensor]:
        """Indices of this rank's images, in portions that fit the memory; from ``num_images`` on they wrap around."""
        indices = torch.arange(self.rows_of(self.num_images)) * self.num_ranks + self.rank
        return torch.split(indices, images_per_batch(image_size, most=256))

    def rows_of(self, num_images: int) -> int:
        """How many rows of each rank hold the first ``num_images`` images."""
        return -(-num_images // self.num_ranks)

    def all_rows(self, batches: list[Tensor], most: int | None = None) -> Tensor:
        """The rows of all images, or of the first ``most``, in their order, given those of this rank's batches."""
        num_images = min(self.num_images, most or self.num_images)
        rows = torch.cat(batches)[: self.rows_of(num_images)]
        by_rank = self.gather(rows).unflatten(0, (self.num_ranks, len(rows)))
        return by_rank.transpose(0, 1).flatten(0, 1)[:num_images]
