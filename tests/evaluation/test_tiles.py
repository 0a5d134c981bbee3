"""Images larger than in training, in tiles."""

import pytest
import torch
from torch import Tensor, nn

from tests.models.test_kl_autoencoder import TINY, model_of
from vaegen_ray.evaluation.tiles import decode_in_tiles, posterior_in_tiles
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
