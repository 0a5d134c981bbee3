"""Images on an accelerator: those of the host, gathered there."""

import numpy as np
import pytest
import torch

from tests.data.samples import random_pixels
from vaegen_ray.data.batches import ImageBatches
from vaegen_ray.data.placement import DeviceImages, HostImages, Images

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs an NVIDIA GPU; run `pytest -m gpu` on a machine with one"
    ),
]


def test_batches_from_the_memory_of_a_gpu_are_those_of_the_host() -> None:
    pixels, gpu = np.stack([random_pixels(number) for number in range(40)]), torch.device("cuda", 0)

    def batches(images: Images) -> list[torch.Tensor]:
        with ImageBatches(images, seed=3, images_per_step=6) as batches:
            return [next(batches).to(gpu, non_blocking=True) for _ in range(20)]

    on_gpu, on_host = batches(DeviceImages(pixels, gpu)), batches(HostImages(pixels, pin_memory=True))
    assert all(torch.equal(one, other) for one, other in zip(on_gpu, on_host, strict=True))
    assert on_gpu[0].is_contiguous(memory_format=torch.channels_last)
