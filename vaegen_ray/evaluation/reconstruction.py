"""How near a reconstruction is to its image, and how much the latent code says: one value an image."""

import torch
from torch import Tensor
from torch.nn import functional

SMALLEST_MSE = 1 / 12 / 255**2
"""The error of rounding to 8 bits, in images in [0, 1]: a PSNR above 58.9 dB says nothing about a stored picture,
and the cap keeps the score of a perfect reconstruction finite."""

ACTIVE_VARIANCE = 0.01
"""Burda et al. 2016, section 5.2."""

WINDOW_DEVIATION = 1.5
WINDOW_RADIUS = 5
LUMINANCE_CONSTANT = 0.01**2
CONTRAST_CONSTANT = 0.03**2
"""Of SSIM (Wang et al. 2004, section III.C), for images in [0, 1]: a window of 11 by 11 pixels, C1 and C2."""


def mean_squared_errors(images_BCHW: Tensor, reconstructions_BCHW: Tensor) -> Tensor:
    """Mean over the values of each image, of images in [0, 1], in float64."""
    return (images_BCHW - reconstructions_BCHW).double().square().mean(dim=(1, 2, 3))


def peak_signal_to_noise_ratios(mean_squared_errors_B: Tensor) -> Tensor:
    """Decibels, of each image in [0, 1]; at most 58.9."""
    return -10 * mean_squared_errors_B.clamp(min=SMALLEST_MSE).log10()


def structural_similarities(images_BCHW: Tensor, reconstructions_BCHW: Tensor) -> Tensor:
    """SSIM of each image in [0, 1], at least 6 pixels wide, in float64: Wang et al. 2004, eq. 13.

    Averaged over channels and all pixels, those at the border with the image mirrored there.
    """
    x, y = images_BCHW, reconstructions_BCHW
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = map(_windowed_means, (x, y, x * x, y * y, x * y))
    variance_x, variance_y = (mean_xx - mean_x**2).clamp(min=0), (mean_yy - mean_y**2).clamp(min=0)
    covariance = mean_xy - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + LUMINANCE_CONSTANT) / (mean_x**2 + mean_y**2 + LUMINANCE_CONSTANT)
    contrast = (2 * covariance + CONTRAST_CONSTANT) / (variance_x + variance_y + CONTRAST_CONSTANT)
    return (luminance * contrast).double().mean(dim=(1, 2, 3))


def _windowed_means(values_BCHW: Tensor) -> Tensor:
    """Around each pixel, weighted by the Gaussian window."""
    offsets = torch.arange(-WINDOW_RADIUS, WINDOW_RADIUS + 1, dtype=values_BCHW.dtype, device=values_BCHW.device)
    window = torch.exp(-((offsets / WINDOW_DEVIATION) ** 2) / 2)
    column = (window / window.sum()).view(1, 1, -1, 1)
    padded = functional.pad(values_BCHW, 4 * (WINDOW_RADIUS,), mode="reflect")
    flat = padded.flatten(0, 1).unsqueeze(1)
    return functional.conv2d(functional.conv2d(flat, column), column.mT).view_as(values_BCHW)


def num_active_units(mean_BZ: Tensor) -> int:
    """Latent dimensions whose posterior mean varies over images by more than 0.01 (Burda et al. 2016)."""
    return int((mean_BZ.double().var(dim=0) > ACTIVE_VARIANCE).sum())
