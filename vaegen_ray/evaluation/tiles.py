"""Encoding and decoding of images larger than a KL autoencoder was trained on: in tiles that overlap and fade over.

What a tile costs does not depend on the image, and the attention of a tile sees as many positions as in training.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from vaegen_ray.errors import DataError
from vaegen_ray.evaluation.inference import evaluation_mode
from vaegen_ray.models.generator import Generator

OVERLAP_FRACTION = 0.25
"""Of a tile's side, over which it fades into the next."""


def posterior_in_tiles(generator: Generator, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of images whose sides are multiples of the down factor; else DataError.

    Each image passes alone. A side of at most the training size is not cut. Of images so small that the model's
    `can_normalise` says no, the code says nothing.
    """
    factor, (height, width) = generator.down_factor, images_BCHW.shape[2:]
    if height % factor or width % factor:
        raise DataError(
            f"image: must have sides that are multiples of {factor} pixels, the model's down factor, got {height} x "
            f"{width}; pad or crop it"
        )

    def encode(image: Tensor) -> Tensor:
        return torch.cat(generator.posterior(image), dim=1)

    tile = generator.latent_shape[-1]
    parts = [_blended(image[None], encode, tile=tile, scale_in=factor, scale_out=1) for image in images_BCHW]
    mean, log_variance = torch.cat(parts).chunk(2, dim=1)
    return mean, log_variance


def decode_in_tiles(generator: Generator, latents_BCHW: Tensor) -> Tensor:
    """The images of latent codes of any size."""
    tile, factor = generator.latent_shape[-1], generator.down_factor
    parts = [
        _blended(latent[None], generator.decoder, tile=tile, scale_in=1, scale_out=factor) for latent in latents_BCHW
    ]
    return torch.cat(parts)


def reconstruction_in_tiles(generator: Generator, images_BCHW: Tensor) -> Tensor:
    """The decoded posterior means of images of any size on the generator's device.

    What a side lacks to a multiple of the down factor repeats its edge, and is cut off again.
    """
    height, width = images_BCHW.shape[2:]
    factor = generator.down_factor
    padded = functional.pad(images_BCHW, (0, -width % factor, 0, -height % factor), mode="replicate")
    with evaluation_mode(generator):
        mean, _ = posterior_in_tiles(generator, padded)
        return decode_in_tiles(generator, mean)[:, :, :height, :width]


def _blended(
    whole_1CHW: Tensor, network: Callable[[Tensor], Tensor], *, tile: int, scale_in: int, scale_out: int
) -> Tensor:
    """``network`` of each tile, averaged by weights that fall towards a tile's edges.

    Lengths are positions of a latent code, of which each is ``scale_in`` values of a side before ``network`` and
    ``scale_out`` behind it.
    """
    height, width = (side // scale_in for side in whole_1CHW.shape[2:])
    rows, columns = min(tile, height), min(tile, width)
    if (rows, columns) == (height, width):
        return network(whole_1CHW)
    weight_HW = _ramp(rows * scale_out)[:, None] * _ramp(columns * scale_out)[None, :]
    weight_HW = weight_HW.to(whole_1CHW.device)
    total: Tensor | None = None
    weights = torch.zeros(height * scale_out, width * scale_out, device=whole_1CHW.device)
    for top in _starts(height, rows):
        for left in _starts(width, columns):
            before = (_places(top, rows, scale_in), _places(left, columns, scale_in))
            behind = (_places(top, rows, scale_out), _places(left, columns, scale_out))
            out = network(whole_1CHW[:, :, *before]).float()
            if total is None:
                total = out.new_zeros(1, out.shape[1], *weights.shape)
            total[:, :, *behind] += out * weight_HW
            weights[behind] += weight_HW
    assert total is not None
    return total / weights


def _places(start: int, length: int, scale: int) -> slice:
    return slice(start * scale, (start + length) * scale)


def _starts(length: int, tile: int) -> list[int]:
    """Where tiles begin: evenly, the last one flush with the end; each overlaps the next wherever two positions can."""
    longest_step = max(int(tile * (1 - OVERLAP_FRACTION)), 1)
    num_steps = -(-(length - tile) // longest_step)
    return [(length - tile) * index // max(num_steps, 1) for index in range(num_steps + 1)]


def _ramp(size: int) -> Tensor:
    """Weights along a side: one in the middle, falling in a straight line over the overlap, never zero."""
    distance = torch.minimum(torch.arange(size), torch.arange(size).flip(0)) + 1.0
    return (distance / (size * OVERLAP_FRACTION)).clamp(max=1.0)
