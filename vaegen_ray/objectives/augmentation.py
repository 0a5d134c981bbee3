"""DiffAugment (Zhao et al. 2020): differentiable augmentation of all that the discriminator sees.

The random numbers are arguments, drawn by position, so that an image and its reconstruction get the same.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vaegen_ray.randomness import Draws

NUM_DRAWS = 7
SHIFT_FRACTION = 0.125
CUTOUT_FRACTION = 0.5


def augment(images_BCHW: Tensor, policies: Sequence[str], draws_BD: Tensor) -> Tensor:
    """Apply the policies in the order color, translation, cutout; ``draws_BD`` are 7 uniform numbers an image."""
    if "color" in policies:
        images_BCHW = color(images_BCHW, draws_BD[:, 0], draws_BD[:, 1], draws_BD[:, 2])
    if "translation" in policies:
        images_BCHW = translate(images_BCHW, draws_BD[:, 3], draws_BD[:, 4])
    if "cutout" in policies:
        images_BCHW = cutout(images_BCHW, draws_BD[:, 5], draws_BD[:, 6])
    return images_BCHW


def draw(draws: Draws, purpose: str) -> Tensor:
    """The uniform numbers of :func:`augment` for each image, shape (images, 7)."""
    return draws.uniform(f"augment {purpose}", NUM_DRAWS)


def color(images_BCHW: Tensor, brightness_B: Tensor, saturation_B: Tensor, contrast_B: Tensor) -> Tensor:
    """Brightness + U(-0.5, 0.5); saturation x U(0, 2) about the grey value; contrast x U(0.5, 1.5) about the mean."""
    images_BCHW = images_BCHW + _per_image(brightness_B - 0.5)
    grey = images_BCHW.mean(dim=1, keepdim=True)
    images_BCHW = grey + (images_BCHW - grey) * _per_image(2 * saturation_B)
    mean = images_BCHW.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (images_BCHW - mean) * _per_image(0.5 + contrast_B)


def translate(images_BCHW: Tensor, vertical_B: Tensor, horizontal_B: Tensor) -> Tensor:
    """Shift by up to an eighth of the side in each direction; what comes in is mid grey (0)."""
    size = images_BCHW.shape[-1]
    reach = round(size * SHIFT_FRACTION)
    rows = _shifted_index(vertical_B, reach, size)
    columns = _shifted_index(horizontal_B, reach, size)
    padded = functional.pad(images_BCHW, (1, 1, 1, 1))
    image = torch.arange(len(images_BCHW), device=images_BCHW.device)[:, None, None]
    shifted_BHWC = padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]]
    return shifted_BHWC.permute(0, 3, 1, 2)


def cutout(images_BCHW: Tensor, vertical_B: Tensor, horizontal_B: Tensor) -> Tensor:
    """Set a square of half the side, centred anywhere, to mid grey (0)."""
    size = images_BCHW.shape[-1]
    side = round(size * CUTOUT_FRACTION)
    pixels = torch.arange(size, device=images_BCHW.device)

    def covered(centre_B: Tensor) -> Tensor:
        first = (centre_B * (size + 1 - side % 2)).floor() - side // 2
        return (pixels >= first[:, None]) & (pixels < first[:, None] + side)

    hole_BHW = covered(vertical_B)[:, :, None] & covered(horizontal_B)[:, None, :]
    return images_BCHW * (~hole_BHW)[:, None].to(images_BCHW.dtype)


def _shifted_index(uniform_B: Tensor, reach: int, size: int) -> Tensor:
    """Source index, in an image padded by one pixel, of each row; shape (B, size)."""
    shift_B = (uniform_B * (2 * reach + 1)).floor().long() - reach
    index = torch.arange(size, device=uniform_B.device) + shift_B[:, None] + 1
    return index.clamp(0, size + 1)


def _per_image(values_B: Tensor) -> Tensor:
    return values_B[:, None, None, None]
