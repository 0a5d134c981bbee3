"""Latents in, images out, and back, without touching the generator's mode or anything random."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaegen_ray.data.batches import to_float
from vaegen_ray.errors import JobError
from vaegen_ray.evaluation.shares import images_per_batch
from vaegen_ray.models.generator import Generator


@contextmanager
def evaluation_mode(generator: Generator) -> Iterator[None]:
    """Evaluate without gradients, and leave ``generator`` in the mode in which it was."""
    was_training = generator.training
    generator.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        generator.train(was_training)


def prior_latents(count: int, latent_shape: Sequence[int], seed: int) -> Tensor:
    """Draws of the standard normal prior on the CPU, of shape (count, *latent_shape), the same on every machine."""
    return torch.randn(count, *latent_shape, generator=torch.Generator().manual_seed(seed))


def images_of_bytes(pixels_BHWC: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Images in [-1, 1], float32, of shape (B, C, H, W)."""
    # A copy, because torch does not take the read-only pages of a mapped dataset.
    return to_float(torch.from_numpy(np.array(pixels_BHWC)).to(device).permute(0, 3, 1, 2))


def device_of(generator: Generator) -> torch.device:
    """Where its weights are."""
    return next(generator.parameters()).device


def decoded(generator: Generator, latents_BZ: Tensor) -> Tensor:
    """The images of latents on the generator's device, clamped to [-1, 1], on the CPU."""
    with evaluation_mode(generator):
        parts = torch.split(latents_BZ, images_per_batch(generator.image_size))
        return torch.cat([generator.decoder(part).float().clamp(-1, 1).cpu() for part in parts])


def posterior_means(generator: Generator, images_BCHW: Tensor) -> Tensor:
    """The latents of images in [-1, 1], of shape (B, *latent_shape), on the generator's device.

    Raises JobError for a generator without an encoder.
    """
    if generator.encoder is None:
        raise JobError(
            "model.encoder: is needed to find the latent code of an image, a gan has none; use the run of a vae or "
            "vae_gan, or prior samples"
        )
    images_BCHW = images_BCHW.to(device_of(generator))
    with evaluation_mode(generator):
        parts = torch.split(images_BCHW, images_per_batch(generator.image_size))
        return torch.cat([generator.encoder(part)[0].float() for part in parts])
