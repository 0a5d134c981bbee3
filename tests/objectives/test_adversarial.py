"""Adversarial losses: values, known equalities, and the direction of every gradient."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from vaegen_ray.objectives.adversarial import (
    AdversarialLoss,
    accuracy,
    cross_entropies,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    paired,
)

LOSSES = ["hinge", "non_saturating", "least_squares", "relativistic"]
REAL = torch.tensor([0.5, -2.0, 1.5], dtype=torch.float64)
FAKE = torch.tensor([-0.5, 0.3, -2.0, 0.1, 0.9, -0.7], dtype=torch.float64)


def logits() -> tuple[Tensor, Tensor]:
    """Logits of three real and six fake images, as leaves."""
    return REAL.clone().requires_grad_(), FAKE.clone().requires_grad_()


@pytest.mark.parametrize(
    ("loss", "real", "fake", "expected"),
    [
        ("hinge", [0.1, -0.1], [-3.0, -1.0], 0.75),
        ("non_saturating", [0.1, -0.1], [-3.0, -1.0], 0.75),
        ("least_squares", [1.01, 0.6], [0.2, 0.4], 1.0),
        ("relativistic", [12.0, -3.0], [5.0, -4.0], 1.0),
        ("relativistic", [12.0, -5.0], [5.0, -4.0], 0.5),
    ],
)
def test_accuracy_is_by_what_the_loss_asks_for(
    loss: AdversarialLoss, real: list[float], fake: list[float], expected: float
) -> None:
    assert float(accuracy(loss, torch.tensor(real), torch.tensor(fake))) == expected


@pytest.mark.parametrize(
    ("loss", "expected"), [("hinge", 1.0), ("non_saturating", 2 * math.log(2)), ("least_squares", 0.5),
                           ("relativistic", math.log(2))],
)  # fmt: skip
def test_discriminator_loss_of_an_undecided_discriminator_is_known(loss: str, expected: float) -> None:
    assert float(discriminator_loss(loss, torch.zeros(4), torch.zeros(8))) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [("hinge", 0.0), ("non_saturating", math.log(2)), ("least_squares", 0.5), ("relativistic", math.log(2))],
)
def test_generator_loss_of_an_undecided_discriminator_is_known(loss: str, expected: float) -> None:
    assert float(generator_loss(loss, torch.zeros(4), torch.zeros(8))) == pytest.approx(expected)


def test_hinge_of_taming_transformers() -> None:
    expected = 0.5 * (torch.mean(torch.relu(1.0 - REAL)) + torch.mean(torch.relu(1.0 + FAKE)))
    assert torch.equal(discriminator_loss("hinge", REAL, FAKE), expected)
    assert torch.equal(generator_loss("hinge", None, FAKE), -torch.mean(FAKE))


def test_non_saturating_is_binary_cross_entropy_with_true_and_flipped_labels() -> None:
    expected = bce(REAL, torch.ones_like(REAL)) + bce(FAKE, torch.zeros_like(FAKE))
    torch.testing.assert_close(discriminator_loss("non_saturating", REAL, FAKE), expected)
    torch.testing.assert_close(generator_loss("non_saturating", None, FAKE), bce(FAKE, torch.ones_like(FAKE)))


def test_least_squares_has_labels_one_and_zero() -> None:
    assert float(discriminator_loss("least_squares", torch.ones(3), torch.zeros(3))) == 0
    assert float(discriminator_loss("least_squares", torch.zeros(3), torch.ones(3))) == 1
    assert float(generator_loss("least_squares", None, torch.ones(3))) == 0
    assert float(generator_loss("least_squares", None, torch.full((3,), 3.0))) == 2


def test_relativistic_pairs_each_block_of_fakes_with_the_reals_in_order() -> None:
    terms = [math.log1p(math.exp(float(FAKE[i] - REAL[i % 3]))) for i in range(6)]
    assert float(discriminator_loss("relativistic", REAL, FAKE)) == pytest.approx(sum(terms) / 6)
    assert torch.equal(paired(REAL, FAKE), torch.cat([REAL, REAL]))


def test_relativistic_generator_and_discriminator_swap_roles() -> None:
    assert torch.equal(
        generator_loss("relativistic", REAL, FAKE[:3]), discriminator_loss("relativistic", FAKE[:3], REAL)
    )


def test_relativistic_loss_does_not_see_a_common_shift() -> None:
    shifted = discriminator_loss("relativistic", REAL + 3, FAKE + 3)
    torch.testing.assert_close(discriminator_loss("relativistic", REAL, FAKE), shifted)


@pytest.mark.parametrize("loss", LOSSES)
def test_discriminator_gradient_raises_real_and_lowers_fake_logits(loss: str) -> None:
    real, fake = torch.zeros(3, requires_grad=True), torch.zeros(6, requires_grad=True)
    if loss == "least_squares":
        fake = torch.full((6,), 0.5, requires_grad=True)
    by_real, by_fake = torch.autograd.grad(discriminator_loss(loss, real, fake), (real, fake))
    assert (by_real < 0).all()
    assert (by_fake > 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_generator_gradient_raises_fake_logits(loss: str) -> None:
    _, fake = logits()
    (by_fake,) = torch.autograd.grad(generator_loss(loss, REAL, fake), fake)
    assert (by_fake < 0).all()


@pytest.mark.parametrize("loss", LOSSES)
def test_real_and_fake_count_equally_however_many_fakes_there_are(loss: str) -> None:
    once = discriminator_loss(loss, REAL, FAKE[:3])
    torch.testing.assert_close(discriminator_loss(loss, REAL, FAKE[:3].repeat(2)), once)


def test_non_saturating_generator_learns_most_where_it_is_caught() -> None:
    fake = torch.tensor([-20.0, 0.0, 20.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(generator_loss("non_saturating", None, fake), fake)
    torch.testing.assert_close(-3 * gradient, torch.tensor([1.0, 0.5, 0.0]))


def test_losses_of_large_logits_are_finite() -> None:
    for loss in LOSSES:
        large = torch.tensor([1e4, -1e4])
        assert discriminator_loss(loss, large, -large).isfinite()
        assert generator_loss(loss, large, -large).isfinite()


def test_cross_entropies_are_those_of_the_labels() -> None:
    real_cost, fake_cost = cross_entropies(REAL, FAKE)
    torch.testing.assert_close(real_cost, bce(REAL, torch.ones_like(REAL)))
    torch.testing.assert_close(fake_cost, bce(FAKE, torch.zeros_like(FAKE)))


def test_feature_matching_averages_layers_of_any_size_alike() -> None:
    real = [torch.zeros(2, 3, 8, 8), torch.zeros(2, 5, 4, 4)]
    fake = [torch.full((2, 3, 8, 8), 2.0), torch.full((2, 5, 4, 4), -4.0)]
    assert float(feature_matching_loss(real, fake)) == 3.0


def test_feature_matching_reaches_the_fakes() -> None:
    fake = torch.ones(2, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(feature_matching_loss([torch.zeros(2, 3, 4, 4)], [fake]), fake)
    torch.testing.assert_close(gradient, torch.full_like(fake, 1 / fake.numel()))
