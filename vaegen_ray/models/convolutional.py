"""The convolutional encoder and decoder around a latent vector of Z dimensions."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from vaegen_ray.config.model import SMALLEST_FEATURE_MAP_PIXELS, Network
from vaegen_ray.models.blocks import Downsample, ResidualBlock, Upsample, group_norm

SIDE = SMALLEST_FEATURE_MAP_PIXELS
LOG_VARIANCE_RANGE = (-30.0, 20.0)
"""Clamp of the posterior's log variance, as in latent diffusion: keeps exp() and the KL finite."""


class Encoder(nn.Module):
    """Images in [-1, 1] to the mean and log variance of a Gaussian posterior."""

    def __init__(self, network: Network, *, image_size: int, channels: int, latent_dim: int) -> None:
        super().__init__()
        widths = network.widths(image_size)
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 3, padding=1)]
        for width, next_width in pairwise(widths):
            layers += [ResidualBlock(width) for _ in range(network.depth)]
            layers.append(Downsample(width, next_width))
        layers += [ResidualBlock(widths[-1]) for _ in range(network.depth)]
        self.layers = nn.Sequential(*layers)
        self.norm = group_norm(widths[-1])
        self.to_posterior = nn.Linear(widths[-1] * SIDE**2, 2 * latent_dim)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean_BZ and log_variance_BZ."""
        hidden = functional.silu(self.norm(self.layers(images_BCHW)))
        mean_BZ, log_variance_BZ = self.to_posterior(hidden.flatten(1)).chunk(2, dim=1)
        return mean_BZ, log_variance_BZ.clamp(*LOG_VARIANCE_RANGE)


class Decoder(nn.Module):
    """Latent vectors to images; the last layer is linear, so values may leave [-1, 1] a little."""

    def __init__(self, network: Network, *, image_size: int, channels: int, latent_dim: int) -> None:
        super().__init__()
        widths = network.widths(image_size)[::-1]
        layers: list[nn.Module] = [nn.Linear(latent_dim, widths[0] * SIDE**2), nn.Unflatten(1, (-1, SIDE, SIDE))]
        layers += [ResidualBlock(widths[0]) for _ in range(network.depth)]
        for width, next_width in pairwise(widths):
            layers.append(Upsample(width, next_width))
            layers += [ResidualBlock(next_width) for _ in range(network.depth)]
        self.body = nn.Sequential(*layers, group_norm(widths[-1]), nn.SiLU())
        """From latents to the input of the last layer, which the adaptive balance needs."""
        self.to_images = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, latents_BZ: Tensor) -> Tensor:
        """Return images_BCHW."""
        images: Tensor = self.to_images(self.body(latents_BZ))
        return images
