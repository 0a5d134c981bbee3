"""Discriminators of patches: PatchGAN, and heads on the features of a fixed network."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from vaegen_ray.config.objective import FrozenFeaturesDiscriminator as FrozenFeaturesSettings
from vaegen_ray.config.objective import PatchDiscriminator as PatchSettings
from vaegen_ray.models.blocks import group_norm, normalise_spectrally
from vaegen_ray.models.lpips import NETWORKS, Trunk

SLOPE = 0.2
MOST_DOUBLINGS = 3


class PatchDiscriminator(nn.Module):
    """Isola et al. 2017, section 3.2.2, with group normalisation or spectral normalisation instead of batch's.

    No layer mixes images, so real and generated may share a forward pass.
    """

    def __init__(self, settings: PatchSettings, *, channels: int) -> None:
        super().__init__()
        widths = [channels, *(settings.width * 2 ** min(i, MOST_DOUBLINGS) for i in range(settings.layers + 1))]
        self.stages = nn.ModuleList(
            _stage(into, out, stride=2 if i < settings.layers else 1, norm=settings.norm == "group" and i > 0)
            for i, (into, out) in enumerate(pairwise(widths))
        )
        # No bias: see the convolutional discriminator.
        self.to_logits = nn.Conv2d(widths[-1], 1, 4, padding=1, bias=False)
        if settings.norm == "spectral":
            normalise_spectrally(self)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits_BP of P patches and the feature maps."""
        features: list[Tensor] = []
        hidden = images_BCHW
        for stage in self.stages:
            hidden = stage(hidden)
            features.append(hidden)
        return self.to_logits(hidden).flatten(1), features


class FrozenFeaturesDiscriminator(nn.Module):
    """A head of two 1x1 convolutions on each stage of a fixed network (after Sauer et al. 2021, without its mixing)."""

    def __init__(self, settings: FrozenFeaturesSettings) -> None:
        super().__init__()
        _, _, widths = NETWORKS[settings.network]
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, settings.width, 1),
                nn.LeakyReLU(SLOPE),
                nn.Conv2d(settings.width, 1, 1, bias=False),
            )
            for width in widths
        )

    def forward(self, images_BCHW: Tensor, trunk: Trunk) -> tuple[Tensor, list[Tensor]]:
        """Return logits_BP of the positions of all stages, each stage as weighty as any other, and the feature maps.

        ``trunk`` is not this module's own: its weights are no part of a checkpoint.
        """
        features = [_standardised(feature) for feature in trunk(images_BCHW)]
        logits = [head(feature).flatten(1) for head, feature in zip(self.heads, features, strict=True)]
        most = max(stage.shape[1] for stage in logits)
        return torch.cat([_resampled(stage, most) for stage in logits], dim=1), features


def _stage(channels_in: int, channels_out: int, *, stride: int, norm: bool) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, 4, stride=stride, padding=1)
    return nn.Sequential(convolution, *([group_norm(channels_out)] if norm else []), nn.LeakyReLU(SLOPE))


def _standardised(features_BCHW: Tensor) -> Tensor:
    """Features of about unit size over an image: a classifier's grow from stage to stage."""
    return functional.layer_norm(features_BCHW.float(), features_BCHW.shape[1:])


def _resampled(logits_BP: Tensor, count: int) -> Tensor:
    """As many positions as the largest stage has, by repeating the nearest."""
    return functional.interpolate(logits_BP.unsqueeze(1), size=count, mode="nearest").squeeze(1)
