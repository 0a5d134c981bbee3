"""All scores of a generator against held-out images, the same for any number of ranks."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaegen_ray.config.job import TrainJob
from vaegen_ray.errors import DataError, DivergedError
from vaegen_ray.evaluation.descriptions import Describer
from vaegen_ray.evaluation.inference import evaluation_mode, images_of_bytes, prior_latents
from vaegen_ray.evaluation.real_statistics import RealStatistics
from vaegen_ray.evaluation.reconstruction import (
    mean_squared_errors,
    num_active_units,
    peak_signal_to_noise_ratios,
    structural_similarities,
)
from vaegen_ray.evaluation.shares import Share, images_per_batch
from vaegen_ray.models.generator import Generator
from vaegen_ray.models.lpips import Lpips
from vaegen_ray.objectives.kl import kl_to_standard_normal
from vaegen_ray.objectives.perceptual import load_lpips
from vaegen_ray.randomness import derived_seed


def evaluate(
    generator: Generator,
    held_out: NDArray[np.uint8],
    job: TrainJob,
    *,
    device: torch.device,
    rank: int = 0,
    num_ranks: int = 1,
    gather: Callable[[Tensor], Tensor] = lambda rows: rows,
    total: Callable[[Tensor], Tensor] | None = None,
    samples: int | None = None,
    fingerprint: str | None = None,
    split: str = "held_out",
) -> dict[str, float]:
    """Compare reconstructions and prior samples with the first ``job.evaluation.images`` of ``held_out`` (NHWC).

    A collective: every rank calls it, handles a share, and returns the same scores. ``gather`` concatenates the
    rows of all ranks, equally many each, in the order of ranks; ``total`` sums over them. ``samples`` are generated,
    by default as many as there are real images; with more, as many real images as there are up to that number are
    compared. Features of the real images are kept in storage under the dataset's ``fingerprint``, where it is given.
    Reconstructions decode the posterior's mean. Leaves the mode of ``generator`` and the global random state as they
    were.

    Raises DataError where there are fewer than two images, DivergedError where a score is not finite.
    """
    num_images = min(samples or job.evaluation.images, len(held_out))
    num_samples = samples or num_images
    if min(num_images, num_samples) < 2:
        raise DataError(
            f"evaluation.images: must be at least 2, as must the held-out images, got {num_samples} of "
            f"{len(held_out)}; raise it, or prepare the dataset with more held-out images"
        )
    total = total or (lambda tensor: gather(tensor[None]).sum(0))
    share = Share(num_images, rank, num_ranks, gather, total)
    with evaluation_mode(generator):
        describer = Describer(job, min(num_images, num_samples), device)
        kept = RealStatistics.of(job, fingerprint, split, num_images, device) if fingerprint is not None else None
        real = describer.describe(
            "real", lambda indices: images_of_bytes(held_out[indices.numpy()], device), share, kept
        )
        scores: dict[str, float] = {}
        if generator.encoder is not None:
            lpips = load_lpips(job.evaluation.lpips, device) if job.evaluation.lpips is not None else None
            reconstructions = Reconstructions(generator, held_out, device, lpips)
            described = describer.describe("reconstruction", reconstructions, share)
            scores |= reconstructions.scores(share, job.model.values_per_image)
            scores |= describer.distances("reconstruction", real, described)
        latents_NZ = prior_latents(num_samples, generator.latent_shape, derived_seed(job.seed, "evaluation"))
        generated = describer.describe(
            "sample",
            lambda indices: generator.decoder(latents_NZ[indices].to(device)),
            replace(share, num_images=num_samples),
        )
        scores |= describer.distances("sample", real, generated)
        scores |= describer.spread("sample", real, generated)
    return _finite(scores)


class Reconstructions:
    """Reconstructs held-out images by their indices, and remembers how well."""

    def __init__(
        self, generator: Generator, held_out: NDArray[np.uint8], device: torch.device, lpips: Lpips | None
    ) -> None:
        self._generator, self._held_out, self._device, self._lpips = generator, held_out, device, lpips
        names = ("mse", "ssim", "kl", "mean", *(("lpips",) if lpips is not None else ()))
        self._values: dict[str, list[Tensor]] = {name: [] for name in names}

    def __call__(self, indices: Tensor) -> Tensor:
        """Reconstructions of shape (B, C, H, W)."""
        images = images_of_bytes(self._held_out[indices.numpy()], self._device)
        mean, log_variance = self._generator.posterior(images)
        reconstructions: Tensor = self._generator.decoder(mean)
        pair = (images + 1) / 2, (reconstructions.clamp(-1, 1) + 1) / 2
        self._values["mse"].append(mean_squared_errors(*pair))
        self._values["ssim"].append(structural_similarities(*pair))
        self._values["kl"].append(kl_to_standard_normal(mean.double(), log_variance.double()).flatten(1).sum(dim=1))
        self._values["mean"].append(mean.flatten(1))
        if self._lpips is not None:
            count = images_per_batch(self._generator.image_size)
            parts = zip(images.split(count), reconstructions.clamp(-1, 1).split(count), strict=True)
            self._values["lpips"].append(torch.cat([self._lpips(*part).double() for part in parts]))
        return reconstructions

    def scores(self, share: Share, values_per_image: int) -> dict[str, float]:
        """Means over the images of all ranks."""
        values = {name: share.all_rows(batches) for name, batches in self._values.items()}
        scores = {
            "reconstruction_mse": float(values["mse"].mean()),
            "reconstruction_psnr": float(peak_signal_to_noise_ratios(values["mse"]).mean()),
            "reconstruction_ssim": float(values["ssim"].mean()),
            "kl_nats": float(values["kl"].mean()),
            "rate_bits_per_dimension": float(values["kl"].mean()) / math.log(2) / values_per_image,
            "active_units": float(num_active_units(values["mean"])),
        }
        return scores | ({"reconstruction_lpips": float(values["lpips"].mean())} if "lpips" in values else {})


def _finite(scores: dict[str, float]) -> dict[str, float]:
    for name, value in scores.items():
        if not math.isfinite(value):
            raise DivergedError(f"evaluation.{name}: must be finite, got {value}; the generator has diverged")
    return scores
