"""The KL divergence and its penalties against torch.distributions, closed forms and autograd."""

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vaegen_ray.config.objective import CapacityPenalty, FreeBitsPenalty, Kl, PlainPenalty
from vaegen_ray.objectives.autoencoding import KlTerm
from vaegen_ray.objectives.kl import capacity, kl_to_standard_normal, penalty_slope, penalty_value, sample_posterior

PLAIN = PlainPenalty(kind="plain")
FREE_BITS = FreeBitsPenalty(kind="free_bits", nats_per_dimension=0.5)
CAPACITY = CapacityPenalty(kind="capacity", nats=10.0, growth_images=1000)
PENALTIES = {"plain": PLAIN, "free_bits": FREE_BITS, "capacity": CAPACITY}
KL_Z = torch.tensor([0.0, 0.2, 0.7, 3.0], dtype=torch.float64)


def test_kl_of_the_standard_normal_is_zero() -> None:
    assert torch.equal(kl_to_standard_normal(torch.zeros(2, 3), torch.zeros(2, 3)), torch.zeros(2, 3))


def test_kl_equals_that_of_torch_distributions() -> None:
    mean, log_variance = torch.randn(2, 50, 7, dtype=torch.float64).unbind()
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(kl_to_standard_normal(mean, log_variance), expected)


def test_kl_equals_the_mean_log_ratio_of_the_densities() -> None:
    mean, log_variance = torch.tensor([[0.7]]), torch.tensor([[-1.2]])
    noise = torch.randn(400_000, 1, generator=torch.Generator().manual_seed(0))
    samples = sample_posterior(mean, log_variance, noise)
    posterior = Normal(mean, (0.5 * log_variance).exp())
    monte_carlo = (posterior.log_prob(samples) - Normal(0.0, 1.0).log_prob(samples)).mean()
    assert float(monte_carlo) == pytest.approx(float(kl_to_standard_normal(mean, log_variance)), abs=5e-3)


def test_sample_of_the_posterior_has_its_mean_and_deviation() -> None:
    noise = torch.tensor([[-1.0], [0.0], [2.0]])
    samples = sample_posterior(torch.full((3, 1), 5.0), torch.full((3, 1), 4.0).log(), noise)
    torch.testing.assert_close(samples, torch.tensor([[3.0], [5.0], [9.0]]))


def test_plain_penalty_is_the_sum() -> None:
    assert float(penalty_value(PLAIN, KL_Z, 0)) == pytest.approx(3.9)


def test_free_bits_penalty_raises_each_dimension_to_the_floor() -> None:
    assert float(penalty_value(FREE_BITS, KL_Z, 0)) == pytest.approx(0.5 + 0.5 + 0.7 + 3.0)


@pytest.mark.parametrize(("position", "expected"), [(0, 0.0), (1, 0.01), (250, 2.5), (1000, 10.0), (5000, 10.0)])
def test_capacity_grows_in_a_line_and_stays(position: int, expected: float) -> None:
    assert capacity(CAPACITY, position) == pytest.approx(expected)


@pytest.mark.parametrize(("position", "expected"), [(0, 3.9), (250, 1.4), (1000, 6.1)])
def test_capacity_penalty_is_the_distance_from_the_capacity(position: int, expected: float) -> None:
    assert float(penalty_value(CAPACITY, KL_Z, position)) == pytest.approx(expected)


@pytest.mark.parametrize("position", [0, 250, 1000])
@pytest.mark.parametrize("name", PENALTIES)
def test_slope_is_the_derivative_of_the_penalty(name: str, position: int) -> None:
    kl_Z = KL_Z.clone().requires_grad_()
    (derivative,) = torch.autograd.grad(penalty_value(PENALTIES[name], kl_Z, position), kl_Z)
    assert torch.equal(penalty_slope(PENALTIES[name], KL_Z, position), derivative)


@pytest.mark.parametrize("name", PENALTIES)
def test_kl_term_of_shares_adds_up_to_the_gradient_of_the_whole(name: str) -> None:
    settings = Kl.model_validate({"weight": 3.0, "penalty": PENALTIES[name].model_dump()})
    term = KlTerm(settings, values_per_image=48)
    kl_BZ = torch.rand(8, 5, dtype=torch.float64, requires_grad=True)
    global_kl_Z = kl_BZ.detach().mean(0)
    shares = [term.loss(part, global_kl_Z, 100) / 4 for part in kl_BZ.split(2)]
    (found,) = torch.autograd.grad(sum(shares), kl_BZ)
    (expected,) = torch.autograd.grad(term.value(kl_BZ.mean(0), 100), kl_BZ)
    torch.testing.assert_close(found, expected)


def test_kl_term_is_beta_over_the_values_of_an_image() -> None:
    term = KlTerm(Kl(weight=3.0), values_per_image=48)
    assert float(term.value(KL_Z, 0)) == pytest.approx(3.0 / 48 * 3.9)
    assert float(term.loss(KL_Z[None], KL_Z, 0)) == pytest.approx(3.0 / 48 * 3.9)
