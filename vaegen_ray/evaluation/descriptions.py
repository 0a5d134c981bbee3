"""What the distances between sets of images need to know of a set, gathered from all ranks."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vaegen_ray.config.job import TrainJob
from vaegen_ray.errors import DivergedError
from vaegen_ray.evaluation.features import load_feature_network
from vaegen_ray.evaluation.frechet import RunningSums, frechet_distance
from vaegen_ray.evaluation.kernel_distance import kernel_distance
from vaegen_ray.evaluation.manifolds import coverage
from vaegen_ray.evaluation.real_statistics import FeatureStatistics, RealStatistics
from vaegen_ray.evaluation.scores import MOST_FEATURES_KEPT
from vaegen_ray.evaluation.shares import Share
from vaegen_ray.evaluation.sliced_wasserstein import PatchPositions, laplacian_pyramid, sliced_wasserstein_distance
from vaegen_ray.randomness import derived_seed

IMAGES_PER_FEATURE_BATCH = 64
"""The first layers of Inception hold 20 MB an image."""

ImagesOf = Callable[[Tensor], Tensor]
"""Indices to images, of shape (B, C, H, W)."""


@dataclass(frozen=True)
class Description:
    """A set of images: the patches of each pyramid level, its spread, and features where the job names a network."""

    levels: list[Tensor]
    """Each of shape (images, patches, 49 * C)."""
    variance: float
    """Summed over the values of an image."""
    features: FeatureStatistics | None


class Describer:
    """Describes sets of images and measures the distance of two of them."""

    def __init__(self, job: TrainJob, num_compared: int, device: torch.device) -> None:
        """``num_compared`` images of each set give patches; all give features."""
        settings = job.evaluation.features
        self._network = load_feature_network(settings, device) if settings is not None else None
        self._seed = derived_seed(job.seed, "evaluation", "distances")
        self._positions = PatchPositions(self._seed, num_compared)
        self._num_compared = num_compared
        self._image_size = job.model.image_size

    def describe(self, name: str, images_of: ImagesOf, share: Share, kept: RealStatistics | None = None) -> Description:
        """Describe the images that ``images_of`` returns for their indices; clamped to [-1, 1].

        Images count as a picture would store them, in 8 bits. ``kept`` has the features of the set, or keeps them.
        Raises DivergedError on every rank where an image is not finite on any.
        """
        finite, levels, features = [], [], []
        known = kept.load(share) if kept is not None and self._network is not None else None
        needs_features = self._network is not None and known is None
        num_patched = share.rows_of(min(self._num_compared, share.num_images))
        of_features, of_pixels, done = RunningSums(), _PixelSums(), 0
        for indices in share.batches(self._image_size):
            counted, wrapped = indices < share.num_images, indices % share.num_images
            images = images_of(wrapped)
            finite.append(images.isfinite().flatten(1).all(dim=1).float())
            images = _as_stored(images)
            of_pixels.add(images[counted.to(images.device)])
            if (patched := max(min(num_patched - done, len(images)), 0)) > 0:
                places = indices[:patched] % self._num_compared
                pyramid = laplacian_pyramid(images[:patched])
                levels.append([self._positions.cut(level, places) for level in pyramid])
            if needs_features and self._network is not None:
                rows = torch.cat([self._network(part) for part in torch.split(images, IMAGES_PER_FEATURE_BATCH)])
                of_features.add(rows[counted.to(rows.device)])
                if done < share.rows_of(MOST_FEATURES_KEPT):
                    features.append(rows)
            done += len(images)
        self._check_finite(name, share.all_rows(finite))
        if needs_features:
            rows = share.all_rows(features, MOST_FEATURES_KEPT)
            known = FeatureStatistics(of_features.gaussian(share.total), rows)
            if kept is not None:
                kept.save(known, share)
        patches = [share.all_rows(list(level), self._num_compared) for level in zip(*levels, strict=True)]
        return Description(patches, of_pixels.variance(share.total), known)

    def distances(self, name: str, real: Description, other: Description) -> dict[str, float]:
        """The distances of ``other`` from ``real``, as ``<name>_swd``, and with features ``_fid`` and ``_kid``."""
        scores = {f"{name}_swd": float(sliced_wasserstein_distance(real.levels, other.levels, self._seed))}
        if real.features is not None and other.features is not None:
            rows = real.features.rows, other.features.rows
            scores[f"{name}_fid"] = float(frechet_distance(real.features.gaussian, other.features.gaussian))
            scores[f"{name}_kid"] = float(kernel_distance(*rows, self._seed))
        return scores

    def spread(self, name: str, real: Description, other: Description) -> dict[str, float]:
        """How much of the variety of ``real`` is in ``other``, and the other way round."""
        scores = {f"{name}_diversity": (other.variance / max(real.variance, 1e-12)) ** 0.5}
        if real.features is not None and other.features is not None:
            found = coverage(real.features.rows, other.features.rows)
            parts = ("precision", "recall", "density", "coverage")
            scores |= {f"{name}_{part}": getattr(found, part) for part in parts}
        return scores

    def _check_finite(self, name: str, finite_N: Tensor) -> None:
        num_bad = int((finite_N == 0).sum())
        if num_bad:
            raise DivergedError(
                f"evaluation.{name}: images must be finite, got nan or inf in {num_bad} of {len(finite_N)}; the "
                "generator has diverged, go back to an earlier checkpoint or lower the learning rate"
            )


class _PixelSums:
    """Of images: count, sum and sum of squares of each value."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None

    def add(self, images_BCHW: Tensor) -> None:
        values = images_BCHW.double().flatten(1)
        counts = torch.full_like(values[:1].sum(0), float(len(values))) if len(values) else values.sum(0)
        sums = torch.stack([counts, values.sum(0), values.square().sum(0)])
        self._sums = sums if self._sums is None else self._sums + sums

    def variance(self, total: Callable[[Tensor], Tensor]) -> float:
        assert self._sums is not None
        counts, sums, squares = total(self._sums)
        return float((squares / counts - (sums / counts).square()).clamp(min=0).sum())


def _as_stored(images_BCHW: Tensor) -> Tensor:
    return (images_BCHW.clamp(-1, 1) * 127.5 + 127.5).round() / 127.5 - 1
