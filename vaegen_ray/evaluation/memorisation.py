"""Whether a generator repeats its training images: the nearest training image of each sample.

How near is near is told by held-out images, which nobody could memorise: a sample counts as memorised where it is
nearer to a training image than 99 % of the held-out images are. Without memory that is 1 % of good samples.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vaegen_ray.config.job import TrainJob
from vaegen_ray.evaluation.features import load_feature_network
from vaegen_ray.evaluation.inference import decoded, evaluation_mode, images_of_bytes, prior_latents
from vaegen_ray.evaluation.shares import Share, images_per_batch
from vaegen_ray.models.generator import Generator
from vaegen_ray.randomness import derived_seed

MOST_SAMPLES = 1000
QUANTILE = 0.01
COARSE_PIXELS = 16
SHOWN = 16
"""Samples in the picture: those nearest to a training image."""


@dataclass(frozen=True)
class Memorisation:
    """What was found."""

    memorised_fraction: float
    pairs_BCHW: Tensor
    """The nearest samples, then the training image of each."""


def memorisation(
    generator: Generator,
    train: NDArray[np.uint8],
    held_out: NDArray[np.uint8],
    job: TrainJob,
    share: Share,
    device: torch.device,
) -> Memorisation:
    """Compare up to 1000 samples and held-out images with all training images. A collective over ``share``'s ranks.

    Distances are Euclidean, between features where the job names a network, else between pixels at 16 pixels.
    """
    settings = job.evaluation.features
    network = load_feature_network(settings, device) if settings is not None else CoarsePixels()
    count = min(MOST_SAMPLES, len(held_out))
    with evaluation_mode(generator):
        latents = prior_latents(count, generator.latent_shape, derived_seed(job.seed, "memorisation")).to(device)
        # A few images at a time: a thousand of 1,024 pixels would take 12 GB.
        indices_B = torch.arange(count).split(images_per_batch(generator.image_size))
        samples = [_features(network, generator.decoder(latents[at]).float().clamp(-1, 1)) for at in indices_B]
        real = [_features(network, images_of_bytes(held_out[at.numpy()], device)) for at in indices_B]
        known = torch.cat(samples + real)
        nearest = torch.full((2 * count,), torch.inf, dtype=torch.float64, device=device)
        places = torch.zeros(2 * count, dtype=torch.long, device=device)
        everything = Share(len(train), share.rank, share.num_ranks, share.gather, share.total)
        for indices in everything.batches(job.model.image_size):
            indices = indices % len(train)
            rows = _features(network, images_of_bytes(train[indices.numpy()], device))
            found, at = torch.cdist(known, rows).min(dim=1)
            closer = found < nearest
            nearest = torch.where(closer, found, nearest)
            places = torch.where(closer, indices.to(device)[at], places)
    all_nearest = share.gather(nearest[None])
    nearest, rank = all_nearest.min(dim=0)
    places = share.gather(places[None])[rank, torch.arange(2 * count, device=device)]
    threshold = torch.quantile(nearest[count:], QUANTILE)
    order = nearest[:count].argsort()[:SHOWN]
    originals = images_of_bytes(train[places[order].cpu().numpy()], device)
    fraction = float((nearest[:count] < threshold).double().mean())
    return Memorisation(fraction, torch.cat([decoded(generator, latents[order]), originals.cpu()]))


class CoarsePixels(nn.Module):
    """Pixels, averaged to a coarse grid."""

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Shape (B, C * 256) at most."""
        size = min(COARSE_PIXELS, images_BCHW.shape[-1])
        return functional.adaptive_avg_pool2d(images_BCHW, size).flatten(1)


def _features(network: nn.Module, images_BCHW: Tensor) -> Tensor:
    return torch.cat([network(part) for part in images_BCHW.split(64)]).double()
