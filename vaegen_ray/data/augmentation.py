"""What is done to training images on their device, as a function of numbers drawn by (seed, position)."""

import torch
from torch import Tensor


def random_crop(images_BCHW: Tensor, pixels: int, draws_B2: Tensor) -> Tensor:
    """Shift each image by up to ``pixels`` down and right or up and left; at the edge it is continued by its mirror.

    That is a crop at random of the image padded on all sides. ``draws_B2`` are uniform in [0, 1); ``pixels`` is less
    than the image's side.
    """
    shifts_B2 = (draws_B2 * (2 * pixels + 1)).long() - pixels
    rows_BH = _mirrored(shifts_B2[:, 0], images_BCHW.shape[2])
    columns_BW = _mirrored(shifts_B2[:, 1], images_BCHW.shape[3])
    image = torch.arange(len(images_BCHW), device=images_BCHW.device)[:, None, None]
    cropped_BHWC = images_BCHW.permute(0, 2, 3, 1)[image, rows_BH[:, :, None], columns_BW[:, None, :]]
    return cropped_BHWC.permute(0, 3, 1, 2)


def horizontal_flip(images_BCHW: Tensor, draws_B: Tensor) -> Tensor:
    """Mirror the images whose draw, a boolean, is true, left to right."""
    return torch.where(draws_B[:, None, None, None], images_BCHW.flip(-1), images_BCHW)


def _mirrored(shift_B: Tensor, size: int) -> Tensor:
    """Source index of each row or column after a shift of less than ``size``; shape (B, size)."""
    index = (torch.arange(size, device=shift_B.device) - shift_B[:, None]).abs()
    return (size - 1) - ((size - 1) - index).abs()
