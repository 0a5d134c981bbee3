"""What is done to training images: shifts and mirrors, exactly as drawn."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.training.jobs import OBJECTIVES, images_of, job_with
from vaegen_ray.data.augmentation import horizontal_flip, random_crop
from vaegen_ray.training.local_session import LocalSession
from vaegen_ray.training.loop import make_batch


def test_flip_mirrors_the_drawn_images_only() -> None:
    images = torch.arange(2 * 3 * 2 * 4, dtype=torch.uint8).view(2, 3, 2, 4)
    flipped = horizontal_flip(images, torch.tensor([False, True]))
    assert torch.equal(flipped[0], images[0])
    assert torch.equal(flipped[1, :, :, 0], images[1, :, :, 3])
    assert torch.equal(horizontal_flip(flipped, torch.tensor([False, True])), images)


def noise(*shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


@pytest.mark.parametrize(("draw", "shift"), [(0.0, -3), (0.43, 0), (0.5, 0), (0.999, 3)])
def test_crop_is_that_of_the_image_padded_by_its_mirror(draw: float, shift: int) -> None:
    images = noise(2, 3, 8, 8)
    padded = functional.pad(images.float(), (3, 3, 3, 3), mode="reflect").to(torch.uint8)
    top = left = 3 - shift
    cropped = random_crop(images, 3, torch.full((2, 2), draw))
    assert torch.equal(cropped, padded[:, :, top : top + 8, left : left + 8])


def test_crop_draws_each_shift_equally_often_and_each_image_for_itself() -> None:
    column = torch.arange(9, dtype=torch.uint8).view(1, 1, 1, 9).expand(6000, 1, 9, 9)
    draws = torch.rand(6000, 2, generator=torch.Generator().manual_seed(0))
    # The middle of a picture of column numbers tells where it came from.
    shifts = 4 - random_crop(column, 2, draws)[:, 0, 4, 4].int()
    counts = torch.bincount(shifts + 2)
    assert len(counts) == 5
    assert counts.min() > 1000


def test_crop_keeps_the_channels_last_memory() -> None:
    images = noise(2, 8, 8, 3).permute(0, 3, 1, 2)
    assert random_crop(images, 2, torch.rand(2, 2)).is_contiguous(memory_format=torch.channels_last)


def test_augmented_batch_is_the_same_for_one_rank_and_for_two() -> None:
    job = job_with(OBJECTIVES["vae"], data={"source": "unused", "random_crop_pixels": 3})
    images = torch.from_numpy(images_of(job, 8)).permute(0, 3, 1, 2)

    def batch(rank: int, num_ranks: int, position: int = 64) -> Tensor:
        share = images.chunk(num_ranks)[rank]
        return make_batch(job, LocalSession(rank, num_ranks, torch.device("cpu")), position, share).images_BCHW

    assert torch.equal(torch.cat([batch(0, 2), batch(1, 2)]), batch(0, 1))
    assert torch.equal(batch(0, 1), batch(0, 1))
    assert not torch.equal(batch(0, 1), batch(0, 1, position=72))
