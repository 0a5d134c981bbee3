import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from vaegen_ray.evaluation.reconstruction import (
    mean_squared_errors,
    num_active_units,
    peak_signal_to_noise_ratios,
    structural_similarities,
)

IMAGES = torch.rand(7, 3, 16, 16, generator=torch.Generator().manual_seed(0))
NOISY = (IMAGES + 0.1 * torch.randn(IMAGES.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)


def test_psnr_of_images_agrees_with_torchmetrics() -> None:
    ours = peak_signal_to_noise_ratios(mean_squared_errors(IMAGES, NOISY))
    theirs = peak_signal_noise_ratio(NOISY, IMAGES, data_range=1.0, reduction="none", dim=(1, 2, 3))
    assert torch.allclose(ours.float(), theirs, rtol=1e-5)


def test_psnr_of_a_known_error_is_the_closed_form() -> None:
    assert float(peak_signal_to_noise_ratios(torch.tensor(0.01))) == pytest.approx(20)


def test_psnr_of_a_perfect_reconstruction_is_that_of_8_bits() -> None:
    assert float(peak_signal_to_noise_ratios(mean_squared_errors(IMAGES, IMAGES))[0]) == pytest.approx(58.92, abs=0.01)


def test_ssim_of_a_perfect_reconstruction_is_1() -> None:
    assert torch.allclose(structural_similarities(IMAGES, IMAGES), torch.ones(7).double(), atol=1e-6)


def test_active_units_of_a_collapsed_posterior_are_the_dimensions_that_vary() -> None:
    mean = torch.randn(100, 5, generator=torch.Generator().manual_seed(0))
    mean[:, 1] = 3.0
    mean[:, 3] *= 0.05
    assert num_active_units(mean) == 3


@pytest.mark.parametrize("shape", [(3, 1, 16, 16), (2, 5, 16, 40), (1, 3, 128, 128)])
def test_ssim_of_each_image_agrees_with_torchmetrics(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(2))
    others = images.roll(1, dims=-1)
    theirs = structural_similarity_index_measure(others, images, data_range=1.0, reduction="none")
    assert torch.allclose(structural_similarities(images, others), torch.as_tensor(theirs).double(), atol=1e-6)
