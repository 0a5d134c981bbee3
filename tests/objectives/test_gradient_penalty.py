"""The zero-centred penalty where the gradient is known, and its second derivative."""

import pytest
import torch

from tests.objectives.steps import IMAGES_PER_STEP, gradients, make_batch, noise_images, train_job, vae_gan
from vaegen_ray.objectives.build import build_objective
from vaegen_ray.objectives.gradient_penalty import squared_gradient_norm


def test_penalty_of_a_linear_discriminator_is_its_squared_weight() -> None:
    weight = torch.randn(3, 4, 4, dtype=torch.float64, requires_grad=True)
    images = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    norm = squared_gradient_norm((images * weight).flatten(1).sum(1), images)
    torch.testing.assert_close(norm, weight.square().sum())
    (by_weight,) = torch.autograd.grad(norm, weight)
    torch.testing.assert_close(by_weight, 2 * weight)


def test_penalty_of_a_quadratic_discriminator_is_the_mean_over_images() -> None:
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    images = torch.randn(5, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    norm = squared_gradient_norm(0.5 * scale * images.square().flatten(1).sum(1), images)
    mean_square = images.detach().square().flatten(1).sum(1).mean()
    torch.testing.assert_close(norm, scale.detach() ** 2 * mean_square)
    (by_scale,) = torch.autograd.grad(norm, scale)
    torch.testing.assert_close(by_scale, 2 * scale.detach() * mean_square)


@pytest.mark.parametrize("side", ["r1", "r2"])
def test_penalty_of_the_objective_is_half_gamma_times_the_squared_norm(side: str) -> None:
    objective = build_objective(train_job(vae_gan({"gradient_penalty": {side: 4.0}})))
    batch = make_batch(noise_images())
    gradients(objective, "generator", batch)
    gradients(objective, "discriminator", batch)
    metrics = batch.metrics
    images = batch.images_BCHW if side == "r1" else batch.shown[0]
    images = images.clone().requires_grad_()
    logits, _ = objective.discriminator(images)
    squared_norm = torch.autograd.grad(logits.sum(), images)[0].square().sum() / len(images)
    torch.testing.assert_close(metrics[f"{side}_squared_gradient_norm"], squared_norm)
    difference = metrics["discriminator_total_loss"] - metrics["discriminator_loss"]
    torch.testing.assert_close(difference, 2.0 * squared_norm, rtol=1e-4, atol=1e-6)


def test_lazy_penalty_has_the_strength_of_the_constant_one_over_a_period() -> None:
    objective = build_objective(train_job(vae_gan({"gradient_penalty": {"r1": 1.0, "every_steps": 4}})))
    surplus = []
    for step in range(9):
        batch = make_batch(noise_images(), position=step * IMAGES_PER_STEP)
        gradients(objective, "generator", batch)
        gradients(objective, "discriminator", batch)
        metrics = batch.metrics
        surplus.append(float(metrics["discriminator_total_loss"] - metrics["discriminator_loss"]))
        assert ("r1_squared_gradient_norm" in metrics) == (step % 4 == 0)
        if step % 4 == 0:
            expected = 4 * 0.5 * float(metrics["r1_squared_gradient_norm"])
            assert surplus[-1] == pytest.approx(expected, rel=1e-3)
    assert [value > 0 for value in surplus] == [step % 4 == 0 for step in range(9)]
