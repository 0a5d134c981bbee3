"""Negative log-likelihoods of images, in nats, summed over the values of an image.

Each is `error * inverse_scale + normaliser`, where the error does not depend on the scale: so one gradient
of the error serves fixed, learned and batch-optimal scales.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Likelihood = Literal["laplace", "gaussian"]


def error_B(likelihood: Likelihood, reconstructions_BCHW: Tensor, images_BCHW: Tensor) -> Tensor:
    """Laplace: sum of |x' - x|. Gaussian: half the sum of (x' - x)^2. One number an image, shape B."""
    difference = (reconstructions_BCHW - images_BCHW).flatten(1)
    if likelihood == "laplace":
        return difference.abs().sum(1)
    return 0.5 * difference.square().sum(1)


def inverse_scale(likelihood: Likelihood, log_scale: Tensor) -> Tensor:
    """The multiplier of the error: 1/b for Laplace, 1/sigma^2 for Gaussian."""
    return torch.exp(-log_scale) if likelihood == "laplace" else torch.exp(-2 * log_scale)


def normaliser(likelihood: Likelihood, log_scale: Tensor, values_per_image: int) -> Tensor:
    """What does not depend on the images: N log(2b), or N (log sigma + log(2 pi)/2)."""
    constant = math.log(2) if likelihood == "laplace" else 0.5 * math.log(2 * math.pi)
    return values_per_image * (log_scale + constant)


def optimal_log_scale(likelihood: Likelihood, mean_error: Tensor, values_per_image: int) -> Tensor:
    """The log scale that maximises the likelihood of images with this mean error.

    Gaussian: sigma^2 = mean squared error (Rybkin et al. 2021, eq. 6); Laplace: b = mean absolute error.
    """
    mean_error = mean_error.clamp(min=1e-6 * values_per_image)  # A perfect batch has no finite optimum.
    if likelihood == "laplace":
        return torch.log(mean_error / values_per_image)
    return 0.5 * torch.log(2 * mean_error / values_per_image)


def bits_per_dimension(nats: Tensor, values_per_image: int) -> Tensor:
    """Bits a value of an 8-bit image, from the negative log-density in nats of images in [-1, 1]."""
    return nats / (values_per_image * math.log(2)) + math.log2(127.5)
