"""Parts that the networks share. Shapes: B images, C channels, H and W pixels."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import ParametrizationList, register_parametrization

GROUPS_AT_MOST = 32
CHANNELS_PER_GROUP = 4
"""At least: alone in its group a channel forgets its mean, and the bias before it has no gradient but rounding."""


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with at most 32 groups of at least 4 channels (Wu & He 2018)."""
    most = max(min(GROUPS_AT_MOST, channels // CHANNELS_PER_GROUP), 1)
    groups = next(count for count in range(most, 0, -1) if channels % count == 0)
    return nn.GroupNorm(groups, channels)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))): pre-activation (He et al. 2016), resolution kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = group_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        hidden = self.conv1(functional.silu(self.norm1(features_BCHW)))
        hidden = self.conv2(functional.silu(self.norm2(hidden)))
        return features_BCHW + hidden


class Downsample(nn.Module):
    """conv(silu(norm(x))) with stride 2: to half the size."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm = group_norm(channels_in)
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        return self.conv(functional.silu(self.norm(features_BCHW)))


class Upsample(nn.Module):
    """conv(nearest(silu(norm(x)))): to twice the size, free of the checkerboards of transposed convolutions."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm = group_norm(channels_in)
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        hidden = functional.silu(self.norm(features_BCHW))
        return self.conv(doubled(hidden))


def doubled(features_BCHW: Tensor) -> Tensor:
    """Features at twice their size, each pixel four times."""
    if not torch.compiler.is_compiling():
        return functional.interpolate(features_BCHW, scale_factor=2.0, mode="nearest")
    # Of interpolate's gradient the compiler makes additions to shared places, slow on a GPU and of varying order,
    # of this a plain sum. Without the compiler this is five to ten times slower than interpolate.
    B, C, H, W = features_BCHW.shape
    pixels_BHWC = features_BCHW.permute(0, 2, 3, 1)
    four_times = pixels_BHWC[:, :, None, :, None].expand(B, H, 2, W, 2, C)
    return four_times.reshape(B, 2 * H, 2 * W, C).permute(0, 3, 1, 2)


class SpectralNorm(nn.Module):
    """weight / sigma, with sigma its largest singular value by power iteration (Miyato et al. 2018, algorithm 1).

    A parametrization whose vectors move only when :meth:`follow` is called, once a step: with an iteration in every
    forward pass, as in torch's own, the result would depend on how often the discriminator looks at images.
    """

    left: Tensor
    right: Tensor

    def __init__(self, weight: Tensor, *, first_iterations: int = 15) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        self.register_buffer("left", functional.normalize(matrix.new_empty(matrix.shape[0]).normal_(), dim=0))
        self.register_buffer("right", functional.normalize(matrix.new_empty(matrix.shape[1]).normal_(), dim=0))
        for _ in range(first_iterations):
            self.follow(weight)

    def forward(self, weight: Tensor) -> Tensor:
        # Of the device `meta`, where costs are counted, autocast knows nothing.
        with torch.autocast("cpu" if weight.is_meta else weight.device.type, enabled=False):
            # Copies, because the vectors move between a forward pass and its backward pass.
            sigma = torch.dot(self.left.clone(), weight.flatten(1) @ self.right.clone())
            return weight / sigma

    @torch.no_grad()
    def follow(self, weight: Tensor) -> None:
        """One step of the power iteration."""
        matrix = weight.detach().flatten(1)
        self.right.copy_(functional.normalize(matrix.T @ self.left, dim=0))
        self.left.copy_(functional.normalize(matrix @ self.right, dim=0))


def normalise_spectrally(network: nn.Module) -> None:
    """Give every convolution and linear layer of ``network`` spectral normalisation."""
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            register_parametrization(module, "weight", SpectralNorm(module.weight))


def follow_spectral_norms(network: nn.Module) -> None:
    """Let spectral normalisation, where there is any, follow the weights; once a step."""
    for module in network.modules():
        if isinstance(module, ParametrizationList):
            norm = module[0]
            assert isinstance(norm, SpectralNorm)
            norm.follow(module.original)
