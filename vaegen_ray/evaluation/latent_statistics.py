"""Mean and standard deviation of latent codes over a dataset: what latent diffusion scales its latents by."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vaegen_ray.evaluation.inference import evaluation_mode
from vaegen_ray.models.generator import Generator


@dataclass(frozen=True)
class LatentStatistics:
    """Of posterior samples, each channel over all images and places."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    shift_factor: float
    """Mean of all values: a diffusion model sees (z - shift_factor) * scaling_factor."""
    scaling_factor: float
    """The inverse of the standard deviation of all values."""
    images: int

    def to_json(self) -> dict[str, Any]:
        """For a description of the model."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> "LatentStatistics":
        """From what :meth:`to_json` gave."""
        return cls(**{**tree, "mean": tuple(tree["mean"]), "std": tuple(tree["std"])})


def latent_statistics(
    generator: Generator, batches: Iterable[Tensor], sum_over_ranks: Callable[[Tensor], Tensor] = lambda sums: sums
) -> LatentStatistics:
    """The statistics of the images in [-1, 1] of ``batches``, a share of them on each rank, without drawing samples.

    A sample's variance about the mean of all is that of the posterior's mean plus the posterior's own.
    """
    channels = generator.latent_shape[0]
    sums = torch.zeros(2 * channels + 2, dtype=torch.float64, device=next(generator.parameters()).device)
    with evaluation_mode(generator):
        for images_BCHW in batches:
            mean, log_variance = (part.double() for part in generator.posterior(images_BCHW))
            second_moment = mean.square() + log_variance.exp()
            sums[:channels] += mean.sum(dim=(0, 2, 3))
            sums[channels:-2] += second_moment.sum(dim=(0, 2, 3))
            sums[-2] += mean[:, 0].numel()
            sums[-1] += len(mean)
    sums = sum_over_ranks(sums)
    means, seconds = sums[:channels] / sums[-2], sums[channels:-2] / sums[-2]
    shift = means.mean()
    return LatentStatistics(
        mean=tuple(means.tolist()),
        std=tuple((seconds - means.square()).clamp(min=0).sqrt().tolist()),
        shift_factor=float(shift),
        scaling_factor=float((seconds.mean() - shift.square()).clamp(min=1e-12).rsqrt()),
        images=int(sums[-1]),
    )
