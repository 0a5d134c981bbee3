"""Likelihoods against torch.distributions, the optimal scale against a search, bits against counting."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Laplace, Normal

from vaegen_ray.config.objective import GaussianReconstruction, LaplaceReconstruction
from vaegen_ray.objectives import autoencoding
from vaegen_ray.objectives.reconstruction import (
    bits_per_dimension,
    error_B,
    inverse_scale,
    normaliser,
    optimal_log_scale,
)

DISTRIBUTIONS = {"laplace": Laplace, "gaussian": Normal}
SECTIONS = {"laplace": LaplaceReconstruction, "gaussian": GaussianReconstruction}
N = 3 * 4 * 4


def pair() -> tuple[Tensor, Tensor]:
    """Reconstructions and images, float64."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 5, 3, 4, 4, generator=generator, dtype=torch.float64) * 2 - 1
    return first, second


def likelihood(kind: str, scale: dict[str, object]) -> autoencoding.Likelihood:
    """The module under test."""
    return autoencoding.Likelihood(SECTIONS[kind].model_validate({"kind": kind, "scale": scale}), N).double()


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_nll_is_minus_the_log_density_with_all_constants(kind: str, scale: float) -> None:
    reconstructions, images = pair()
    log_scale = torch.tensor(math.log(scale), dtype=torch.float64)
    nll_B = error_B(kind, reconstructions, images) * inverse_scale(kind, log_scale) + normaliser(kind, log_scale, N)
    expected = -DISTRIBUTIONS[kind](reconstructions, scale).log_prob(images).flatten(1).sum(1)
    torch.testing.assert_close(nll_B, expected)


@pytest.mark.parametrize("settings", [{"kind": "fixed", "value": 0.3}, {"kind": "learned", "initial": 0.3}])
@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_likelihood_uses_the_scale_of_the_job(kind: str, settings: dict[str, object]) -> None:
    reconstructions, images = pair()
    module = likelihood(kind, settings)
    found = module.nll(module.error_B(reconstructions, images).mean())
    expected = -DISTRIBUTIONS[kind](reconstructions, 0.3).log_prob(images).flatten(1).sum(1).mean()
    assert float(found) == pytest.approx(float(expected), rel=1e-6)  # The learned scale began as float32.


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_optimal_scale_has_the_least_nll(kind: str) -> None:
    reconstructions, images = pair()
    error = error_B(kind, reconstructions, images).mean()
    best = optimal_log_scale(kind, error, N)
    around = best + torch.linspace(-0.5, 0.5, 101, dtype=torch.float64)
    nlls = error * inverse_scale(kind, around) + normaliser(kind, around, N)
    assert int(nlls.argmin()) == 50


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_optimal_scale_of_a_perfect_batch_is_finite(kind: str) -> None:
    assert math.isfinite(float(optimal_log_scale(kind, torch.zeros(()), N)))


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_gradient_by_the_learned_scale_is_that_of_the_nll(kind: str) -> None:
    reconstructions, images = pair()
    module = likelihood(kind, {"kind": "learned", "initial": 0.7})
    parameter = module.learned_log_scale
    (found,) = torch.autograd.grad(module.scale_loss(module.error_B(reconstructions, images).mean()), parameter)
    log_prob = DISTRIBUTIONS[kind](reconstructions, parameter.exp()).log_prob(images)
    (expected,) = torch.autograd.grad(-log_prob.mean(), parameter)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
def test_error_weight_makes_the_error_gradient_that_of_the_nll_per_value(kind: str) -> None:
    reconstructions, images = pair()
    reconstructions.requires_grad_()
    module = likelihood(kind, {"kind": "batch_optimal"})
    error = module.error_B(reconstructions, images).mean()
    (found,) = torch.autograd.grad(module.error_weight(error.detach()) * error, reconstructions, retain_graph=True)
    (expected,) = torch.autograd.grad(module.nll(error) / N, reconstructions)
    torch.testing.assert_close(found, expected)


def test_bits_of_the_uniform_density_are_eight_less_the_missing_half_steps() -> None:
    # 255 steps of 2/255 span [-1, 1], where 256 levels have their centres.
    nats = torch.tensor(N * math.log(2.0))
    assert float(bits_per_dimension(nats, N)) == pytest.approx(math.log2(255), rel=1e-6)


def test_bits_of_a_narrow_gaussian_equal_those_of_its_256_bins() -> None:
    sigma, levels = 0.3, torch.arange(256, dtype=torch.float64) / 127.5 - 1
    density = Normal(torch.tensor(0.0, dtype=torch.float64), sigma)
    mass = density.cdf(levels + 1 / 255) - density.cdf(levels - 1 / 255)
    entropy_bits = float(-(mass * mass.log2()).sum() / mass.sum())
    nats = float(-(mass * density.log_prob(levels)).sum() / mass.sum())
    assert float(bits_per_dimension(torch.tensor(nats), 1)) == pytest.approx(entropy_bits, abs=1e-4)
