"""Encoding and decoding of images larger than a KL autoencoder was trained on: in tiles that overlap and fade over.

What a tile costs does not depend on the image, and the attention of a tile sees as many positions as in training.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vaegen_ray.models.generator import Generator

OVERLAP_FRACTION = 0.25
"""Of a tile's side, over which it fades into the next."""


def posterior_in_tiles(generator: Generator, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of images whose sides are multiples of the down factor, at least as large as in training.

    Each image passes alone. An image of the training size is not cut.
    """
    factor = generator.down_factor
    side = generator.latent_shape[-1] * factor

    def encode(image: Tensor) -> Tensor:
        return torch.cat(generator.posterior(image), dim=1)

    parts = [_blended(image[None], encode, tile=side, scale=1 / factor, step=factor) for image in images_BCHW]
    mean, log_variance = torch.cat(parts).chunk(2, dim=1)
    return mean, log_variance


def decode_in_tiles(generator: Generator, latents_BCHW: Tensor) -> Tensor:
    """The images of latent codes at least as large as in training."""
    tile, factor = generator.latent_shape[-1], generator.down_factor
    parts = [_blended(latent[None], generator.decoder, tile=tile, scale=factor, step=1) for latent in latents_BCHW]
    return torch.cat(parts)


def _blended(whole_1CHW: Tensor, network: Callable[[Tensor], Tensor], *, tile: int, scale: float, step: int) -> Tensor:
    """``network`` of each tile, ``scale`` times as large, averaged by weights that fall towards a tile's edges."""
    height, width = whole_1CHW.shape[2:]
    if (height, width) == (tile, tile):
        return network(whole_1CHW)
    size = round(tile * scale)
    ramp = _ramp(size).to(whole_1CHW.device)
    weight_HW = ramp[:, None] * ramp[None, :]
    total: Tensor | None = None
    weights = torch.zeros(round(height * scale), round(width * scale), device=whole_1CHW.device)
    for top in _starts(height, tile, step):
        for left in _starts(width, tile, step):
            out = network(whole_1CHW[:, :, top : top + tile, left : left + tile]).float()
            if total is None:
                total = out.new_zeros(1, out.shape[1], *weights.shape)
            rows = slice(round(top * scale), round(top * scale) + size)
            columns = slice(round(left * scale), round(left * scale) + size)
            total[:, :, rows, columns] += out * weight_HW
            weights[rows, columns] += weight_HW
    assert total is not None
    return total / weights


def _starts(length: int, tile: int, step: int) -> Iterator[int]:
    """Where tiles begin: evenly, on multiples of ``step``, the last one flush with the end."""
    num_tiles = max(-(-round(length - tile * OVERLAP_FRACTION) // round(tile * (1 - OVERLAP_FRACTION))), 1)
    for index in range(num_tiles):
        yield round((length - tile) * index / max(num_tiles - 1, 1) / step) * step


def _ramp(size: int) -> Tensor:
    """Weights along a side: one in the middle, falling in a straight line over the overlap, never zero."""
    distance = torch.minimum(torch.arange(size), torch.arange(size).flip(0)) + 1.0
    return (distance / (size * OVERLAP_FRACTION)).clamp(max=1.0)
