"""The generator: encoder and decoder."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from vaegen_ray.config.base import Count, Flag, Section, Text

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

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of one latent code: (Z,)."""
        return (self.latent_dim,)


class KlAutoencoderModel(Section):
    """The autoencoder of latent diffusion (Rombach et al. 2022), whose latent code is a small picture.

    The layers and the default widths are those of `AutoencoderKL` in the library diffusers.
    """

    kind: Literal["kl_autoencoder"]

    image_size: Annotated[int, Field(ge=16, le=1024, strict=True)]
    """Side of the square images, in pixels: a multiple of the down factor."""

    channels: Count = 3
    """Channels of an image."""

    latent_channels: Count = 4
    """Channels of the latent code."""

    widths: Annotated[tuple[Count, ...], Field(min_length=2, max_length=6)] = (128, 256, 512, 512)
    """Channels at each resolution, from the image's down; each but the last halves it. Three give the down factor 4
    (`kl-f4`), four give 8, five give 16."""

    depth: Count = 2
    """Residual blocks at each resolution of the encoder; the decoder has one more."""

    norm_groups: Count = 32
    """Of every group normalisation."""

    mid_attention: Flag = True
    """Self-attention between the blocks at the lowest resolution."""

    latent_convolutions: Flag = True
    """A 1x1 convolution behind the encoder and another before the decoder, as in Stable Diffusion 1 and 2."""

    start_from: Text | None = None
    """Folder (local or s3://) of a published `AutoencoderKL`, `config.json` and safetensors, to start from."""

    freeze_encoder: Flag = False
    """Train the decoder alone, so that latents and what was trained on them stay valid."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        uneven = [width for width in self.widths if width % self.norm_groups]
        if uneven:
            raise ValueError(
                f"norm_groups: must divide every width, got {self.norm_groups} and the width {uneven[0]}; "
                "change model.norm_groups or model.widths"
            )
        if self.image_size % self.down_factor:
            raise ValueError(
                f"image_size: must be a multiple of {self.down_factor}, the down factor of {len(self.widths)} widths, "
                f"got {self.image_size}"
            )
        if not self.can_normalise(self.image_size, self.image_size):
            raise ValueError(
                f"norm_groups: must leave each group several values, where the latent code is 1 x 1 and the width "
                f"{self.widths[-1]} it leaves one, which normalisation makes 0; lower model.norm_groups, or raise "
                "model.image_size"
            )
        if self.freeze_encoder and self.start_from is None:
            raise ValueError(
                "freeze_encoder: needs model.start_from, else the encoder stays at its random start; give both or none"
            )
        return self

    @property
    def down_factor(self) -> int:
        """Pixels of an image's side for each of the latent code's."""
        return int(2 ** (len(self.widths) - 1))

    def can_normalise(self, height: int, width: int) -> bool:
        """Whether each group has several values at the lowest resolution of an image of so many pixels.

        Of a single one group normalisation makes 0, whatever it was.
        """
        positions = -(-height // self.down_factor) * -(-width // self.down_factor)
        return self.widths[-1] // self.norm_groups * positions > 1

    @property
    def values_per_image(self) -> int:
        """N = C * H * W: every reconstruction and KL term of the objective is divided by it."""
        return self.channels * self.image_size**2

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Of one latent code: (channels, height, width)."""
        side = self.image_size // self.down_factor
        return (self.latent_channels, side, side)


Model = Annotated[ConvolutionalModel | KlAutoencoderModel, Field(discriminator="kind")]
