"""Images larger than in training, in tiles."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.models.test_kl_autoencoder import TINY, model_of
from vaegen_ray.errors import DataError
from vaegen_ray.evaluation.image_files import read_image_of_own_size
from vaegen_ray.evaluation.tiles import _starts, decode_in_tiles, posterior_in_tiles, reconstruction_in_tiles
from vaegen_ray.models.generator import Generator


@torch.no_grad()
def test_image_of_the_training_size_is_not_cut() -> None:
    generator = Generator(model_of(**TINY)).eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    for whole, tiled in zip(generator.posterior(images), posterior_in_tiles(generator, images), strict=True):
        torch.testing.assert_close(tiled, whole)


class Local(nn.Module):
    """A decoder without anything that reaches beyond a pixel: each latent becomes a square of its value."""

    def forward(self, latents: Tensor) -> Tensor:
        return latents[:, :3].repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize("size", [(16, 16), (17, 40), (25, 61)])
@torch.no_grad()
def test_tiles_of_what_has_no_context_are_the_whole(size: tuple[int, int]) -> None:
    generator = Generator(model_of(**TINY)).eval()
    generator.decoder = Local()
    latents = torch.randn(2, 4, *size)
    torch.testing.assert_close(decode_in_tiles(generator, latents), Local()(latents))


@torch.no_grad()
def test_tiles_of_a_network_with_context_are_near_the_whole_and_have_its_shape() -> None:
    torch.manual_seed(0)
    generator = Generator(model_of(**TINY, mid_attention=False)).eval()
    images = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 9) * 2 - 1, size=(64, 96), mode="bilinear")
    mean, log_variance = posterior_in_tiles(generator, images)
    whole, _ = generator.posterior(images)
    assert mean.shape == log_variance.shape == whole.shape == (1, 4, 32, 48)
    decoded = decode_in_tiles(generator, mean)
    assert decoded.shape == images.shape
    assert float((mean - whole).abs().mean()) < 0.3 * float(whole.std())


def test_tiles_of_every_size_cover_every_length_and_end_with_it() -> None:
    for tile, length in [(size, length) for size in range(1, 65) for length in range(size, 4 * size + 1)]:
        starts = _starts(length, tile)
        assert (starts[0], starts[-1]) == (0, length - tile)
        steps = [later - earlier for earlier, later in itertools.pairwise(starts)]
        assert all(0 < step <= max(tile * 3 // 4, 1) for step in steps), (tile, length, starts)


F8: dict[str, Any] = {"widths": (8, 8, 8, 8), "depth": 1, "norm_groups": 4}


@pytest.mark.parametrize(("image_size", "sides"), [(80, (11, 11)), (16, (5, 5)), (16, (3, 7)), (16, (1, 5))])
@torch.no_grad()
def test_images_of_latents_slightly_larger_than_a_tile_are_finite(image_size: int, sides: tuple[int, int]) -> None:
    generator = Generator(model_of(**F8, image_size=image_size)).eval()
    images = decode_in_tiles(generator, torch.randn(1, 4, *sides))
    assert tuple(images.shape[2:]) == (8 * sides[0], 8 * sides[1])
    assert bool(images.isfinite().all())
    mean, log_variance = posterior_in_tiles(generator, images)
    assert tuple(mean.shape[2:]) == sides
    assert bool((mean + log_variance).isfinite().all())


@pytest.mark.parametrize("size", [(8, 64), (24, 8), (8, 8)])
@torch.no_grad()
def test_side_below_the_training_size_is_not_cut(size: tuple[int, int]) -> None:
    generator = Generator(model_of(**{**TINY, "image_size": 16})).eval()
    mean, _ = posterior_in_tiles(generator, torch.rand(1, 3, *size) * 2 - 1)
    assert tuple(mean.shape[2:]) == (size[0] // 2, size[1] // 2)
    assert tuple(decode_in_tiles(generator, mean).shape[2:]) == size


def test_side_that_is_no_multiple_of_the_down_factor_is_refused() -> None:
    generator = Generator(model_of(**F8, image_size=16)).eval()
    with pytest.raises(DataError, match=r"multiples of 8 pixels, the model's down factor, got 24 x 30; pad or crop"):
        posterior_in_tiles(generator, torch.zeros(1, 3, 24, 30))


def test_picture_of_one_position_is_refused_where_normalisation_leaves_nothing_of_it(tmp_path: Path) -> None:
    """With one value a group, torch refuses it in its own words; with several there is nothing to refuse."""
    for name, size in (("small", (3, 5)), ("large", (3, 9))):
        Image.new("RGB", size, (10, 200, 90)).save(tmp_path / f"{name}.png")
    one, several = model_of(**{**F8, "norm_groups": 8}, image_size=16), model_of(**F8, image_size=16)
    with pytest.raises(DataError, match=r"small\.png: must have a side of more than 8 pixels for this .*, got 5 x 3"):
        read_image_of_own_size(str(tmp_path / "small.png"), one)
    for model, name, height in ((one, "large", 9), (several, "small", 5)):
        picture = read_image_of_own_size(str(tmp_path / f"{name}.png"), model)
        assert reconstruction_in_tiles(Generator(model).eval(), picture).shape == (1, 3, height, 3)


def test_reconstruction_of_an_image_of_any_size_has_its_size_and_ignores_the_edge_that_was_added() -> None:
    generator = Generator(model_of(**F8, image_size=16)).eval()
    image = torch.rand(1, 3, 37, 19) * 2 - 1
    reconstruction = reconstruction_in_tiles(generator, image)
    assert reconstruction.shape == image.shape
    assert not reconstruction.requires_grad
    by_hand = torch.cat([image, image[:, :, -1:].expand(-1, -1, 3, -1)], dim=2)
    by_hand = torch.cat([by_hand, by_hand[..., -1:].expand(-1, -1, -1, 5)], dim=3)
    torch.testing.assert_close(reconstruction, reconstruction_in_tiles(generator, by_hand)[..., :37, :19])
