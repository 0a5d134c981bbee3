import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms.functional import gaussian_blur

from tests.evaluation.samples import random_pictures
from vaegen_ray.evaluation.sliced_wasserstein import (
    PatchPositions,
    laplacian_pyramid,
    patches_per_image,
    sliced_wasserstein_distance,
)


def fine_pictures(seed: int, channels: int = 1) -> Tensor:
    """Sharp-edged pictures: blocks of 4 pixels, black or white."""
    coarse = torch.rand(80, channels, 8, 8, generator=torch.Generator().manual_seed(seed)).round() * 2 - 1
    return functional.interpolate(coarse, (32, 32), mode="nearest")


def distance(first: Tensor, second: Tensor) -> float:
    positions = PatchPositions(0, len(first))
    indices = torch.arange(len(first))
    levels = [[positions.cut(level, indices) for level in laplacian_pyramid(images)] for images in (first, second)]
    return float(sliced_wasserstein_distance(levels[0], levels[1], seed=0))


def test_pyramid_of_64_pixels_has_levels_down_to_16() -> None:
    images = torch.rand(2, 3, 64, 64)
    assert [level.shape[-1] for level in laplacian_pyramid(images)] == [64, 32, 16]
    assert [level.shape[-1] for level in laplacian_pyramid(images[..., :16, :16])] == [16]


def test_pyramid_of_a_flat_image_is_zero_but_for_the_last_level() -> None:
    *fine, coarsest = laplacian_pyramid(torch.full((1, 2, 64, 64), 0.7))
    assert all(level.abs().max() < 1e-6 for level in fine)
    assert torch.allclose(coarsest, torch.tensor(0.7))


def test_patches_are_cut_where_the_image_has_them() -> None:
    level = torch.arange(2 * 16 * 16 * 3).reshape(2, 16, 16, 3).permute(0, 3, 1, 2).float()
    patches = PatchPositions(0, 2).cut(level, torch.arange(2)).reshape(2, -1, 7, 7, 3)
    corner = patches[1, 5, 0, 0, 0].int().item() - 16 * 16 * 3
    row, column = corner // 48, corner % 48 // 3
    assert torch.equal(patches[1, 5], level[1, :, row : row + 7, column : column + 7].permute(1, 2, 0))


def test_total_patches_are_bounded_for_many_images() -> None:
    assert patches_per_image(10) == 64
    assert patches_per_image(2000) == 16
    assert patches_per_image(50_000) == 4


def test_distance_of_a_set_from_itself_is_zero() -> None:
    images = fine_pictures(0)
    assert distance(images, images) == 0


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_distance_grows_with_blur(channels: int) -> None:
    real, others = fine_pictures(0, channels), fine_pictures(1, channels)
    distances = [distance(real, others)] + [
        distance(real, gaussian_blur(others, [9, 9], [s, s])) for s in (0.5, 1.0, 2.0)
    ]
    assert distances == sorted(distances)
    assert distances[1] > 2 * distances[0]


def test_distance_sees_a_loss_of_contrast() -> None:
    real, others = fine_pictures(0), fine_pictures(1)
    assert distance(real, 0.7 * others) > 3 * distance(real, others)


def test_distance_along_one_direction_is_that_of_the_sorted_values() -> None:
    # Patches of one constant value each project to that value times the direction's sum.
    first, second = torch.rand(50, 1, 1).expand(50, 1, 49), torch.rand(50, 1, 1).expand(50, 1, 49) + 1
    ours = float(sliced_wasserstein_distance([first], [second], seed=0))
    one_dimensional = (first[:, 0, 0].sort().values - second[:, 0, 0].sort().values).abs().mean() / first[:, 0, 0].std()
    # The sum of 49 values of a random unit vector has a mean size of sqrt(2 / pi).
    assert ours / float(one_dimensional) == pytest.approx((2 / torch.pi) ** 0.5, rel=0.2)


def test_patches_do_not_depend_on_who_cuts_them() -> None:
    level = torch.from_numpy(random_pictures(6)).permute(0, 3, 1, 2).float()
    positions, indices = PatchPositions(3, 6), torch.arange(6)
    parts = [positions.cut(level[part], indices[part]) for part in (slice(0, 2), slice(2, 6))]
    assert torch.equal(torch.cat(parts), positions.cut(level, indices))


@pytest.mark.parametrize("size", [17, 20, 34, 68, 100, 136, 200, 250])
def test_pyramid_of_a_size_that_halves_to_an_odd_number_adds_up_to_the_image(size: int) -> None:
    images = torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(size))
    levels = laplacian_pyramid(images)
    rebuilt = levels[-1]
    for level in reversed(levels[:-1]):
        side = level.shape[-1]
        assert rebuilt.shape[-1] == -(-side // 2)
        doubled = functional.interpolate(rebuilt, scale_factor=2, mode="bilinear")[..., :side, :side]
        rebuilt = level + doubled
    assert rebuilt.shape == images.shape
    assert 8 <= levels[-1].shape[-1] <= 16
    assert (rebuilt - images).abs().mean() < 0.1
