"""What the distances between sets of images need to know of a set, gathered from all ranks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vaegen_ray.config.job import TrainJob
from vaegen_ray.errors import TrainingError
from vaegen_ray.evaluation.features import load_feature_network
from vaegen_ray.evaluation.frechet import Gaussian, frechet_distance
from vaegen_ray.evaluation.kernel_distance import kernel_distance
from vaegen_ray.evaluation.sliced_wasserstein import PatchPositions, laplacian_pyramid, sliced_wasserstein_distance
from vaegen_ray.randomness import derived_seed

MOST_IMAGES_PER_BATCH = 256
MOST_PIXELS_PER_BATCH = 2**22
IMAGES_PER_FEATURE_BATCH = 64
"""The first layers of Inception hold 20 MB an image."""


@dataclass(frozen=True)
class Share:
    """The images of a rank: a contiguous range, as long on every rank, so that collectives have equal shapes.

    The last ranks wrap around to the first images where the division leaves a remainder; the rows of these
    are dropped when all ranks' rows meet.
    """

    num_images: int
    rank: int
    num_ranks: int
    gather: Callable[[Tensor], Tensor]
    """Concatenates the rows of all ranks in the order of ranks."""

    def batches(self, image_size: int) -> Sequence[Tensor]:
        """Indices of this rank's images, in portions that fit the memory."""
        rows_per_rank = -(-self.num_images // self.num_ranks)
        indices = (self.rank * rows_per_rank + torch.arange(rows_per_rank)) % self.num_images
        images_per_batch = min(MOST_IMAGES_PER_BATCH, max(MOST_PIXELS_PER_BATCH // image_size**2, 1))
        return torch.split(indices, images_per_batch)

    def all_rows(self, batches: list[Tensor]) -> Tensor:
        """The rows of all images, given those of this rank's batches."""
        return self.gather(torch.cat(batches))[: self.num_images]


@dataclass(frozen=True)
class Description:
    """A set of images: the patches of each pyramid level, and the features where the job names a network."""

    levels: list[Tensor]
    """Each of shape (images, patches, 49 * C)."""
    features: Tensor | None
    """Of shape (images, D)."""


class Describer:
    """Describes sets of images, equally large, and measures the distance of two such sets."""

    def __init__(self, job: TrainJob, share: Share, device: torch.device) -> None:
        settings = job.evaluation.features
        self._network = load_feature_network(settings, device) if settings is not None else None
        self._seed = derived_seed(job.seed, "evaluation", "distances")
        self._positions = PatchPositions(self._seed, share.num_images)
        self._share = share
        self._image_size = job.model.image_size

    def describe(self, name: str, images_of: Callable[[Tensor], Tensor]) -> Description:
        """Describe the images that ``images_of`` returns for their indices: shape (B, C, H, W), clamped to [-1, 1].

        Images count as a picture would store them, in 8 bits. Raises TrainingError on every rank where an
        image is not finite on any.
        """
        finite, features, levels = [], [], []
        for indices in self._share.batches(self._image_size):
            images = images_of(indices)
            finite.append(images.isfinite().flatten(1).all(dim=1).float())
            images = _as_stored(images)
            levels.append([self._positions.cut(level, indices) for level in laplacian_pyramid(images)])
            if self._network is not None:
                features += [self._network(part) for part in torch.split(images, IMAGES_PER_FEATURE_BATCH)]
        self._check_finite(name, self._share.all_rows(finite))
        return Description(
            levels=[self._share.all_rows(list(level)) for level in zip(*levels, strict=True)],
            features=self._share.all_rows(features) if features else None,
        )

    def distances(self, name: str, real: Description, other: Description) -> dict[str, float]:
        """The distances of ``other`` from ``real``, as ``<name>_swd``, and with features ``_fid`` and ``_kid``."""
        scores = {f"{name}_swd": float(sliced_wasserstein_distance(real.levels, other.levels, self._seed))}
        if real.features is not None and other.features is not None:
            gaussians = Gaussian.of(real.features), Gaussian.of(other.features)
            scores[f"{name}_fid"] = float(frechet_distance(*gaussians))
            scores[f"{name}_kid"] = float(kernel_distance(real.features, other.features, self._seed))
        return scores

    def _check_finite(self, name: str, finite_N: Tensor) -> None:
        num_bad = int((finite_N == 0).sum())
        if num_bad:
            raise TrainingError(
                f"evaluation.{name}: images must be finite, got nan or inf in {num_bad} of {len(finite_N)}; the "
                "generator has diverged, go back to an earlier checkpoint or lower the learning rate"
            )


def _as_stored(images_BCHW: Tensor) -> Tensor:
    return (images_BCHW.clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1
