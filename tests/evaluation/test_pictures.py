import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.samples import tiny_generator, tiny_job
from vaegen_ray.errors import JobError
from vaegen_ray.evaluation.inference import decoded, prior_latents
from vaegen_ray.evaluation.pictures import (
    image_grid,
    interpolation_grid,
    png_bytes,
    reconstruction_grid,
    sample_grid,
    save_picture,
    spherical_interpolation,
)
from vaegen_ray.storage import Location

CPU = torch.device("cpu")


def tile(grid: Image.Image, row: int, column: int, size: int = 32) -> np.ndarray:
    step = size + 1
    return np.asarray(grid)[row * step : row * step + size, column * step : column * step + size]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_grid_of_grey_and_colour_images_holds_their_values(channels: int, mode: str) -> None:
    images = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, channels, 32, 32)
    grid = image_grid(images, columns=3)
    assert (grid.mode, grid.size) == (mode, (3 * 33 - 1, 2 * 33 - 1))
    assert [int(tile(grid, i // 3, i % 3).max()) for i in range(6)] == [0, 64, 128, 191, 255, 0]


def test_grid_of_other_channels_shows_them_as_grey_tiles() -> None:
    images = torch.stack([torch.full((32, 32), -1.0), torch.full((32, 32), 1.0)]).expand(2, 2, 32, 32)
    grid = image_grid(images, columns=2)
    assert (grid.mode, grid.size) == ("L", (2 * 33 - 1, 64))
    assert np.asarray(grid)[:32, :32].max() == 0
    assert np.asarray(grid)[32:, :32].min() == 255


def test_grid_of_values_outside_the_range_is_clamped() -> None:
    assert np.asarray(image_grid(torch.full((1, 1, 16, 16), 1.7), columns=1)).min() == 255


def test_sample_grid_of_a_seed_is_the_same_each_time_and_leaves_the_mode() -> None:
    generator = tiny_generator(tiny_job(kind="gan")).train()
    first, again, other = (sample_grid(generator, 10, seed, CPU) for seed in (1, 1, 2))
    assert first.size == (4 * 33 - 1, 3 * 33 - 1)
    assert png_bytes(first) == png_bytes(again) != png_bytes(other)
    assert generator.training


def test_reconstruction_grid_stands_originals_above_reconstructions() -> None:
    generator = tiny_generator(tiny_job())
    images = torch.rand(10, 1, 32, 32) * 2 - 1
    grid = reconstruction_grid(generator, images, columns=8)
    assert grid.size == (8 * 33 - 1, 4 * 33 - 1)
    assert generator.encoder is not None
    with torch.no_grad():
        reconstructions = decoded(generator, generator.encoder(images)[0])
    both = torch.cat([images, reconstructions])
    for index, row, column in [(0, 0, 0), (9, 2, 1), (10, 1, 0), (19, 3, 1)]:
        assert np.array_equal(tile(grid, row, column), tile(image_grid(both[index : index + 1], 1), 0, 0))


def test_reconstruction_grid_of_a_gan_is_refused() -> None:
    with pytest.raises(JobError, match=r"model\.encoder: is needed .* a gan has none"):
        reconstruction_grid(tiny_generator(tiny_job(kind="gan")), torch.zeros(1, 1, 32, 32))


def test_interpolation_grid_begins_and_ends_at_its_latents() -> None:
    generator = tiny_generator(tiny_job())
    ends = prior_latents(2, (6,), seed=0)
    grid = interpolation_grid(generator, ends[0], ends[1], steps=5)
    assert grid.size == (5 * 33 - 1, 32)
    for end, column in ((ends[0], 0), (ends[1], 4)):
        expected = np.asarray(image_grid(decoded(generator, end[None]), 1)).astype(int)
        assert np.abs(tile(grid, 0, column).astype(int) - expected).max() <= 1


def test_spherical_interpolation_of_unequal_ends_turns_and_stretches_evenly() -> None:
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 4.0])
    middle = spherical_interpolation(a, b, 0.5)
    assert float(middle.norm()) == pytest.approx(3)
    assert float(middle[0]) == pytest.approx(float(middle[1]))


@pytest.mark.parametrize("b", [[0.0, 0.0], [2.0, 0.0], [-1.0, 0.0]], ids=["zero", "same", "opposite"])
def test_spherical_interpolation_along_a_line_is_the_line(b: list[float]) -> None:
    end = torch.tensor(b)
    assert torch.allclose(
        spherical_interpolation(torch.tensor([1.0, 0.0]), end, 0.25), torch.tensor([0.75 + b[0] / 4, 0.0])
    )


def test_picture_in_an_object_store_is_read_as_it_was_saved(s3_bucket: str) -> None:
    picture = image_grid(torch.rand(2, 3, 16, 16), columns=2)
    save_picture(picture, Location.of(s3_bucket) / "run" / "grid.png")
    stored = Image.open(io.BytesIO((Location.of(s3_bucket) / "run" / "grid.png").read_bytes()))
    assert np.array_equal(np.asarray(stored), np.asarray(picture))
