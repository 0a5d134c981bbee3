"""The nearest-training-image check finds copies, and only copies."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.evaluation.samples import random_pictures, tiny_generator, tiny_job
from vaegen_ray.evaluation.inference import images_of_bytes, prior_latents
from vaegen_ray.evaluation.memorisation import memorisation
from vaegen_ray.evaluation.shares import Share
from vaegen_ray.models.generator import Generator
from vaegen_ray.randomness import derived_seed

CPU = torch.device("cpu")
ALONE = Share(0, 0, 1, lambda rows: rows, lambda tensor: tensor)


class Repeats(nn.Module):
    """A decoder that gives an image of a set for each of the latents that the check draws."""

    def __init__(self, images_BCHW: Tensor) -> None:
        super().__init__()
        job = tiny_job()
        seed = derived_seed(job.seed, "memorisation")
        self.latents, self.images = prior_latents(len(images_BCHW), job.model.latent_shape, seed), images_BCHW

    def forward(self, latents_BZ: Tensor) -> Tensor:
        return self.images[torch.cdist(latents_BZ, self.latents).argmin(dim=1)]


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
