"""The generator: encoder and decoder."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from vaegen_ray.config.base import Count, Section

SMALLEST_FEATURE_MAP_PIXELS = 4
"""Side of the feature map between the convolutions and the latent vector."""


class Network(Section):
    """Widths and depths of a convolutional network whose width doubles as its resolution halves."""

    width: Count = 32
    """Channels at the full resolution."""

    max_width: Count = 256
    """Channels at most, at any resolution."""

    depth: Annotated[int, Field(ge=0, strict=True)] = 1
    """Residual blocks at each resolution, beside the convolution that leads to the next."""

    @model_validator(mode="after")
    def _width_has_an_effect(self) -> Self:
        if self.width > self.max_width:
            raise ValueError(f"width: must be at most max_width ({self.max_width}), got {self.width}")
        return self

    def widths(self, image_size: int) -> list[int]:
        """Channels at each resolution, from ``image_size`` down to 4 pixels."""
        num_halvings = (image_size // SMALLEST_FEATURE_MAP_PIXELS).bit_length() - 1
        return [min(self.width * 2**i, self.max_width) for i in range(num_halvings + 1)]


class ConvolutionalModel(Section):
    """Encoder and decoder of residual convolutions around a latent vector."""

    kind: Literal["convolutional"]

    image_size: Annotated[int, Field(ge=16, le=256, strict=True)]
    """Side of the square images, in pixels: 16, 32, 64, 128 or 256."""

    channels: Count
    """Channels of an image: 1 for grey, 3 for colour, or any other number."""

    latent_dim: Count = 128
    """Dimensions of the latent vector."""

    encoder: Network | None = None
    """Absent for the objective `gan`, which has no encoder."""

    decoder: Network = Network()

    @field_validator("image_size")
    @classmethod
    def _is_power_of_two(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError("must be a power of two from 16 to 256; resize the images with `vaegen prepare`")
        return value

    @property
    def values_per_image(self) -> int:
        """N = C * H * W: every reconstruction and KL term of the objective is divided by it."""
        return self.channels * self.image_size**2
