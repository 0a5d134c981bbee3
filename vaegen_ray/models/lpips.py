"""LPIPS (Zhang et al. 2018, version 0.1): the distance of two images in the features of a classification network."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

NETWORKS = {
    "vgg16": ("vgg16", (4, 9, 16, 23, 30), (64, 128, 256, 512, 512)),
    "alexnet": ("alexnet", (2, 5, 8, 10, 12), (64, 192, 384, 256, 256)),
    "squeezenet": ("squeezenet1_1", (2, 5, 8, 10, 11, 12, 13), (64, 128, 256, 384, 384, 512, 512)),
}
"""Name to torchvision's name, the end of each stage among its layers, and the channels of each stage."""

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
"""Turn images in [-1, 1] into ImageNet's standardised images."""

EPSILON = 1e-10
"""Added to the length of a feature vector, as in the published code."""


class Trunk(nn.Module):
    """The layers of a classification network up to the last stage that LPIPS looks at."""

    shift: Tensor
    scale: Tensor

    def __init__(self, network: str) -> None:
        super().__init__()
        from torchvision import models  # Costs seconds to import.

        name, ends, self.widths = NETWORKS[network]
        layers = list(models.get_model(name, weights=None).features)
        self.stages = [layers[first:last] for first, last in pairwise((0, *ends))]
        self.features = nn.Sequential(*layers[: ends[-1]])
        # On the CPU also where the layers are built without numbers.
        self.register_buffer("shift", torch.tensor(SHIFT, device="cpu").view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE, device="cpu").view(1, 3, 1, 1), persistent=False)

    def forward(self, images_BCHW: Tensor) -> list[Tensor]:
        """The feature maps of each stage, of grey or colour images in [-1, 1]."""
        hidden = (images_BCHW.expand(-1, 3, -1, -1) - self.shift) / self.scale
        features = []
        for stage in self.stages:
            for layer in stage:
                hidden = layer(hidden)
            features.append(hidden)
        return features


class Lpips(nn.Module):
    """Trunk and heads, with the weights of the published metric."""

    def __init__(self, network: str) -> None:
        super().__init__()
        self.trunk = Trunk(network)
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in self.trunk.widths)

    def forward(self, images_BCHW: Tensor, others_BCHW: Tensor) -> Tensor:
        """The distance of each image in [-1, 1] from its other, shape B, in float32."""
        return self.distance(self.trunk(images_BCHW), self.trunk(others_BCHW))

    def distance(self, features: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """The distance of images by their features, which may serve several calls; shape B. Not for autocast."""
        stages = [
            head((_unit_length(one.float()) - _unit_length(other.float())).square()).mean(dim=(1, 2, 3))
            for head, one, other in zip(self.heads, features, others, strict=True)
        ]
        return torch.stack(stages).sum(0)


def _unit_length(features_BCHW: Tensor) -> Tensor:
    """Feature vectors of length one; a vector of zeros stays, with a finite gradient.

    The square root's slope is infinite at zero, which has ended many a training with NaN.
    """
    squared = features_BCHW.square().sum(dim=1, keepdim=True)
    length = torch.where(squared > 0, squared, 1.0).sqrt()
    return features_BCHW / (length + EPSILON)
