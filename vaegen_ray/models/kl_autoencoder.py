"""The autoencoder of latent diffusion (Rombach et al. 2022): convolutions around a latent code with two dimensions.

Layers, arithmetic and the names of most modules are those of `AutoencoderKL` in the library diffusers, so that
weights go both ways (`evaluation/diffusers_format.py` has the few names that differ).
"""

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from vaegen_ray.config.model import KlAutoencoderModel
from vaegen_ray.models.blocks import doubled
from vaegen_ray.models.convolutional import LOG_VARIANCE_RANGE

EPSILON = 1e-6
"""Of every group normalisation."""


class ResnetBlock(nn.Module):
    """shortcut(x) + conv(silu(norm(conv(silu(norm(x)))))); the shortcut is a 1x1 convolution where channels change."""

    def __init__(self, channels_in: int, channels_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in, eps=EPSILON)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels_out, eps=EPSILON)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, features_BCHW: Tensor) -> Tensor:
        hidden = self.conv1(functional.silu(self.norm1(features_BCHW)))
        hidden = self.conv2(functional.silu(self.norm2(hidden)))
        return self.conv_shortcut(features_BCHW) + hidden


class Attention(nn.Module):
    """x + W softmax(q k / sqrt(C)) v over all positions, one head."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, eps=EPSILON)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, features_BCHW: Tensor) -> Tensor:
        batch, channels, height, width = features_BCHW.shape
        # The operations of diffusers in its order, on the same layouts in memory: in others the kernels add up in
        # another order. Float32 outputs differed by up to 3e-5.
        positions_BPC = self.group_norm(features_BCHW.flatten(2)).transpose(1, 2)
        heads = (layer(positions_BPC).unsqueeze(1) for layer in (self.to_q, self.to_k, self.to_v))
        attended_BPC = self.to_out(functional.scaled_dot_product_attention(*heads).squeeze(1))
        return attended_BPC.transpose(1, 2).reshape(batch, channels, height, width) + features_BCHW


class Downsampler(nn.Module):
    """A convolution with stride 2 over an image padded below and on the right only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        return self.conv(functional.pad(features_BCHW, (0, 1, 0, 1)))


class Upsampler(nn.Module):
    """A convolution over the image at twice its size, each pixel four times."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        return self.conv(doubled(features_BCHW))


class Stage(nn.Module):
    """The blocks of one resolution, and the step to the next where there is one."""

    def __init__(
        self, channels_in: int, channels_out: int, *, depth: int, groups: int, sampler: str, has_sampler: bool
    ) -> None:
        super().__init__()
        widths = [channels_in, *[channels_out] * depth]
        self.resnets = nn.ModuleList(ResnetBlock(into, out, groups) for into, out in pairwise(widths))
        step = Downsampler if sampler == "downsamplers" else Upsampler
        self.sampler_name = sampler
        self.add_module(sampler, nn.ModuleList([step(channels_out)] if has_sampler else []))

    def forward(self, features_BCHW: Tensor) -> Tensor:
        for block in self.resnets:
            features_BCHW = block(features_BCHW)
        for step in self.get_submodule(self.sampler_name).children():
            features_BCHW = step(features_BCHW)
        return features_BCHW


class MiddleBlock(nn.Module):
    """Two blocks with self-attention between them."""

    def __init__(self, channels: int, *, groups: int, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(channels, groups)] if attention else [])

    def forward(self, features_BCHW: Tensor) -> Tensor:
        features_BCHW = self.resnets[0](features_BCHW)
        for attention in self.attentions:
            features_BCHW = attention(features_BCHW)
        return self.resnets[1](features_BCHW)


class KlEncoder(nn.Module):
    """Images in [-1, 1] to the mean and log variance of a Gaussian posterior."""

    def __init__(self, model: KlAutoencoderModel) -> None:
        super().__init__()
        widths, groups = model.widths, model.norm_groups
        self.conv_in = nn.Conv2d(model.channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Stage(
                widths[max(index - 1, 0)],
                width,
                depth=model.depth,
                groups=groups,
                sampler="downsamplers",
                has_sampler=index < len(widths) - 1,
            )
            for index, width in enumerate(widths)
        )
        self.mid_block = MiddleBlock(widths[-1], groups=groups, attention=model.mid_attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPSILON)
        self.conv_out = nn.Conv2d(widths[-1], 2 * model.latent_channels, 3, padding=1)
        size = 2 * model.latent_channels
        self.to_posterior = nn.Conv2d(size, size, 1) if model.latent_convolutions else nn.Identity()

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance, each of shape (B, latent channels, H / down factor, W / down factor)."""
        hidden = self.conv_in(images_BCHW)
        for stage in self.down_blocks:
            hidden = stage(hidden)
        hidden = self.conv_out(functional.silu(self.conv_norm_out(self.mid_block(hidden))))
        mean, log_variance = self.to_posterior(hidden).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)


class KlDecoder(nn.Module):
    """Latent codes to images; the last layer is linear, so values may leave [-1, 1] a little."""

    def __init__(self, model: KlAutoencoderModel) -> None:
        super().__init__()
        self.body = _Body(model)
        """From latents to the input of the last layer, which the adaptive balance needs."""
        self.to_images = nn.Conv2d(model.widths[0], model.channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Return images_BCHW."""
        images: Tensor = self.to_images(self.body(latents))
        return images


class _Body(nn.Module):
    def __init__(self, model: KlAutoencoderModel) -> None:
        super().__init__()
        widths, groups, channels = model.widths[::-1], model.norm_groups, model.latent_channels
        self.from_latents = nn.Conv2d(channels, channels, 1) if model.latent_convolutions else nn.Identity()
        self.conv_in = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.mid_block = MiddleBlock(widths[0], groups=groups, attention=model.mid_attention)
        self.up_blocks = nn.ModuleList(
            Stage(
                widths[max(index - 1, 0)],
                width,
                depth=model.depth + 1,
                groups=groups,
                sampler="upsamplers",
                has_sampler=index < len(widths) - 1,
            )
            for index, width in enumerate(widths)
        )
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=EPSILON)

    def forward(self, latents: Tensor) -> Tensor:
        hidden = self.mid_block(self.conv_in(self.from_latents(latents)))
        for stage in self.up_blocks:
            hidden = stage(hidden)
        return functional.silu(self.conv_norm_out(hidden))
