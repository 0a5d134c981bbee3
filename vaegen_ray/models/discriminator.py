"""A convolutional discriminator that also returns its feature maps."""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from vaegen_ray.config.model import SMALLEST_FEATURE_MAP_PIXELS
from vaegen_ray.config.objective import ConvolutionalDiscriminator as DiscriminatorSettings
from vaegen_ray.models.blocks import normalise_spectrally

SLOPE = 0.2


class _Block(nn.Module):
    """x + conv(lrelu(conv(lrelu(x)))), without normalisation (Huang et al. 2024, R3GAN)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        hidden = self.conv1(functional.leaky_relu(features_BCHW, SLOPE))
        return features_BCHW + self.conv2(functional.leaky_relu(hidden, SLOPE))


class Discriminator(nn.Module):
    """Images to one logit each; no layer mixes images, so real and generated may share a forward pass."""

    def __init__(self, settings: DiscriminatorSettings, *, image_size: int, channels: int) -> None:
        super().__init__()
        widths = settings.widths(image_size)
        self.from_images = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(_Block(width) for _ in range(settings.depth)),
                nn.LeakyReLU(SLOPE),
                nn.Conv2d(width, next_width, 4, stride=2, padding=1),
            )
            for width, next_width in pairwise(widths)
        )
        # No bias: the hinge loss inside its margin, and the relativistic loss everywhere, give a common offset of
        # the logits no gradient but rounding, which Adam would amplify.
        self.to_logit = nn.Linear(widths[-1] * SMALLEST_FEATURE_MAP_PIXELS**2, 1, bias=False)
        if settings.spectral_norm:
            normalise_spectrally(self)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits_B and the feature maps, from the image's resolution down to 4 pixels."""
        features = [self.from_images(images_BCHW)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        hidden = functional.leaky_relu(features[-1], SLOPE)
        return self.to_logit(hidden.flatten(1)).squeeze(1), features
