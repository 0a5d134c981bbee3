"""The sliced Wasserstein distance between two sets of images: needs no weights, any size, any channels.

Follows Karras et al. 2018 (section 5): random patches of 7 x 7 pixels from each level of a Laplacian pyramid,
so that coarse shapes and fine texture are judged apart. Random directions over whole images would hardly see
blur, because the energy of natural images lies in the low frequencies. Two departures. Patches are divided
by the deviation of the *real* patches, not each set by its own, which would hide a lack of contrast at a
level: that is what blur is. And a fixed total of patches is shared out over the images, so that cost and
memory do not grow with their number.
"""

import torch
from torch import Tensor
from torch.nn import functional

from vaegen_ray.randomness import derived_seed

PATCH_PIXELS = 7
COARSEST_PIXELS = 16
NUM_DIRECTIONS = 128
TOTAL_PATCHES = 2**15
"""Of a level, shared out over the images of a set: at least 4 and at most 64 an image."""

BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
"""The filter of Burt & Adelson 1983, as in Karras et al. 2018."""


def laplacian_pyramid(images_BCHW: Tensor) -> list[Tensor]:
    """Of images in [-1, 1], finest level first; each is what halving loses, the last is the image at 16 pixels."""
    levels = []
    while images_BCHW.shape[-1] > COARSEST_PIXELS:
        halved = _blurred(images_BCHW)[:, :, ::2, ::2]
        size = images_BCHW.shape[-1]
        levels.append(images_BCHW - _doubled(halved)[:, :, :size, :size])  # An odd size loses half a pixel, rounded up.
        images_BCHW = halved
    return [*levels, images_BCHW]


def patches_per_image(num_images: int) -> int:
    """How many patches of a level each of ``num_images`` gives."""
    return min(max(TOTAL_PATCHES // num_images, 4), 64)


class PatchPositions:
    """Where the patches of each image lie: from the seed and the image's index, whoever measures it."""

    def __init__(self, seed: int, num_images: int) -> None:
        shape = (num_images, patches_per_image(num_images), 2)
        generator = torch.Generator().manual_seed(derived_seed(seed, "patch positions"))
        self._fractions_NP2 = torch.rand(shape, generator=generator)

    def cut(self, level_BCHW: Tensor, indices_B: Tensor) -> Tensor:
        """The patches of a level of the images with these indices, of shape (B, patches, 49 * C)."""
        fractions = self._fractions_NP2[indices_B].to(level_BCHW.device)
        corners = (fractions * (level_BCHW.shape[-1] - PATCH_PIXELS + 1)).long()
        offsets = torch.arange(PATCH_PIXELS, device=level_BCHW.device)
        rows = (corners[:, :, 0, None] + offsets)[:, :, :, None]
        columns = (corners[:, :, 1, None] + offsets)[:, :, None, :]
        images = torch.arange(len(level_BCHW), device=level_BCHW.device)[:, None, None, None]
        return level_BCHW.permute(0, 2, 3, 1)[images, rows, columns].flatten(2)


def sliced_wasserstein_distance(real_levels: list[Tensor], other_levels: list[Tensor], seed: int) -> Tensor:
    """Averaged over levels and 128 directions of unit length, in standard deviations of the real patches' values.

    Each level holds as many patches in both sets, of shape (images, patches, 49 * C), a pixel's channels
    together. The distance along a direction is the mean absolute difference of the sorted projections: W1, as
    in Karras et al. 2018.
    """
    distances = [
        _level_distance(real, other, derived_seed(seed, "directions", level))
        for level, (real, other) in enumerate(zip(real_levels, other_levels, strict=True))
    ]
    return torch.stack(distances).mean()


def _level_distance(real: Tensor, other: Tensor, seed: int) -> Tensor:
    real_PD, other_PD = real.flatten(0, 1), other.flatten(0, 1)
    num_channels = real_PD.shape[1] // PATCH_PIXELS**2
    real_channels = real_PD.reshape(len(real_PD), -1, num_channels)
    deviation = real_channels.double().std(dim=(0, 1)).float().clamp(min=1e-6)
    directions_DS = torch.randn(real_PD.shape[1], NUM_DIRECTIONS, generator=torch.Generator().manual_seed(seed))
    directions_DS = (directions_DS / directions_DS.norm(dim=0)).to(real_PD.device)
    directions_DS = directions_DS / deviation.repeat(PATCH_PIXELS**2)[:, None]
    return (_sorted(real_PD @ directions_DS) - _sorted(other_PD @ directions_DS)).abs().mean()


def _sorted(projections_PS: Tensor) -> Tensor:
    # Rows in memory: sorting along the strided dimension takes twice as long.
    return projections_PS.T.contiguous().sort(dim=1).values


def _blurred(images_BCHW: Tensor) -> Tensor:
    weights = torch.tensor(BINOMIAL, device=images_BCHW.device)
    kernel = torch.outer(weights, weights).expand(images_BCHW.shape[1], 1, -1, -1)
    return functional.conv2d(functional.pad(images_BCHW, (2, 2, 2, 2), mode="reflect"), kernel, groups=kernel.shape[0])


def _doubled(images_BCHW: Tensor) -> Tensor:
    height, width = images_BCHW.shape[-2:]
    spread = images_BCHW.new_zeros(*images_BCHW.shape[:2], 2 * height, 2 * width)
    spread[:, :, ::2, ::2] = images_BCHW
    return _blurred(spread) * 4
