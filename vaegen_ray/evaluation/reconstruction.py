"""How near a reconstruction is to its image, and how much the latent code says: one value an image."""

import torch
from torch import Tensor

SMALLEST_MSE = 1 / 12 / 255**2
"""The error of rounding to 8 bits, in images in [0, 1]: a PSNR above 58.9 dB says nothing about a stored picture,
and the cap keeps the score of a perfect reconstruction finite."""

ACTIVE_VARIANCE = 0.01
"""Burda et al. 2016, section 5.2."""


def mean_squared_errors(images_BCHW: Tensor, reconstructions_BCHW: Tensor) -> Tensor:
    """Mean over the values of each image, of images in [0, 1], in float64."""
    return (images_BCHW - reconstructions_BCHW).double().square().mean(dim=(1, 2, 3))


def peak_signal_to_noise_ratios(mean_squared_errors_B: Tensor) -> Tensor:
    """Decibels, of each image in [0, 1]; at most 58.9."""
    return -10 * mean_squared_errors_B.clamp(min=SMALLEST_MSE).log10()


def structural_similarities(images_BCHW: Tensor, reconstructions_BCHW: Tensor) -> Tensor:
    """SSIM of each image in [0, 1] (Wang et al. 2004: Gaussian window of deviation 1.5), averaged over channels."""
    from torchmetrics.functional.image import structural_similarity_index_measure  # Costs seconds to import.

    similarities = structural_similarity_index_measure(
        reconstructions_BCHW, images_BCHW, data_range=1.0, reduction="none"
    )
    return torch.as_tensor(similarities).double()


def num_active_units(mean_BZ: Tensor) -> int:
    """Latent dimensions whose posterior mean varies over images by more than 0.01 (Burda et al. 2016)."""
    return int((mean_BZ.double().var(dim=0) > ACTIVE_VARIANCE).sum())
