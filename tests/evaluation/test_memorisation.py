"""The nearest-training-image check finds copies, and only copies."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.evaluation.samples import random_pictures, tiny_generator, tiny_job
from vaegen_ray.evaluation.inference import images_of_bytes
from vaegen_ray.evaluation.memorisation import memorisation
from vaegen_ray.evaluation.shares import Share
from vaegen_ray.models.generator import Generator

CPU = torch.device("cpu")
ALONE = Share(0, 0, 1, lambda rows: rows, lambda tensor: tensor)


class Repeats(nn.Module):
    """A decoder that gives the images of a set, one after the other."""

    def __init__(self, images_BCHW: Tensor) -> None:
        super().__init__()
        self.images, self.next = images_BCHW, 0

    def forward(self, latents_BZ: Tensor) -> Tensor:
        first, self.next = self.next, self.next + len(latents_BZ)
        return self.images[first : self.next]


def generator_of(images: np.ndarray) -> Generator:
    generator = tiny_generator(tiny_job())
    generator.decoder = Repeats(images_of_bytes(images, CPU))  # type: ignore[assignment]
    return generator


@pytest.mark.parametrize("features", [None, {"network": "fashion_mnist_cnn"}], ids=["pixels", "features"])
def test_memorisation_finds_copies_of_training_images(features: dict[str, str] | None) -> None:
    job = tiny_job(evaluation={"images": 100, **({"features": features} if features else {})})
    train, held_out, others = (random_pictures(count, seed=seed) for count, seed in ((300, 0), (100, 1), (100, 2)))
    half = np.concatenate([train[:50], others[:50]])
    assert memorisation(generator_of(half), train, held_out, job, ALONE, CPU).memorised_fraction >= 0.5
    found = memorisation(generator_of(others), train, held_out, job, ALONE, CPU)
    assert found.memorised_fraction < 0.1


def test_memorisation_shows_each_copy_above_its_original() -> None:
    job = tiny_job(evaluation={"images": 100})
    train, held_out = random_pictures(300), random_pictures(100, seed=1)
    found = memorisation(generator_of(train[200:300]), train, held_out, job, ALONE, CPU)
    samples, originals = found.pairs_BCHW.chunk(2)
    assert torch.equal(samples, originals)
