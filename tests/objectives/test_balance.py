"""Balances: the weight against autograd's own gradients, and the table of the gate."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.lpips_weights import save_random_lpips
from tests.objectives.reference import Reference, image_gradient_norm
from tests.objectives.steps import FIXED, AnyObjective, gradients, make_batch, noise_images, train_job, twin, vae_gan
from tests.objectives.variants import ADAPTIVE
from vaegen_ray.config.objective import AdaptiveBalance, EquilibriumBalance, FixedBalance, GradientShareBalance
from vaegen_ray.objectives.balance import (
    GradientSizes,
    adaptive_weight,
    constant_weight,
    gradient_share_weight,
    held_back,
    last_layer_gradients,
)
from vaegen_ray.objectives.build import build_objective


def sizes(reconstruction: float, adversarial: float) -> GradientSizes:
    """Two norms."""
    return GradientSizes(torch.tensor(reconstruction), torch.tensor(adversarial))


def test_last_layer_gradients_are_those_of_autograd() -> None:
    layer = torch.nn.Conv2d(4, 3, 3, padding=1).double()
    features = torch.randn(5, 4, 8, 8, dtype=torch.float64)
    at_images = {name: torch.randn(5, 3, 8, 8, dtype=torch.float64) for name in ("reconstruction", "adversarial")}
    found = last_layer_gradients(features, layer.weight, at_images)
    assert list(found) == list(at_images)
    for name, gradient in at_images.items():
        (expected,) = torch.autograd.grad(layer(features), layer.weight, gradient)
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_gradient_share_weight_gives_the_share(share: float) -> None:
    norms = sizes(3.0, 0.2)
    weight = gradient_share_weight(GradientShareBalance(kind="gradient_share", share=share), norms)
    weighted = weight * norms.adversarial
    assert float(weighted / (norms.reconstruction + weighted)) == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize(("reconstruction", "expected"), [(1.0, 50.0), (0.0, 0.0)])
def test_gradient_share_weight_without_an_adversarial_gradient_is_finite(
    reconstruction: float, expected: float
) -> None:
    balance = GradientShareBalance(kind="gradient_share", share=0.5, max_weight=50.0)
    assert float(gradient_share_weight(balance, sizes(reconstruction, 0.0))) == expected


def test_adaptive_weight_is_the_published_formula() -> None:
    a, b = torch.randn(3, 4, 3, 3), torch.randn(3, 4, 3, 3)
    expected = 0.8 * torch.clamp(torch.norm(a) / (torch.norm(b) + 1e-4), 0.0, 1e4)
    torch.testing.assert_close(adaptive_weight(AdaptiveBalance(kind="adaptive", weight=0.8), a, b), expected)
    capped = AdaptiveBalance(kind="adaptive", weight=0.8, max_ratio=0.5)
    torch.testing.assert_close(adaptive_weight(capped, a, b), torch.tensor(0.4))


@pytest.mark.parametrize("kind", [FixedBalance, EquilibriumBalance])
def test_constant_weight_is_that_of_the_job(kind: type[FixedBalance | EquilibriumBalance]) -> None:
    name = "fixed" if kind is FixedBalance else "equilibrium"
    assert float(constant_weight(kind(kind=name, weight=0.3), like=torch.zeros(()))) == pytest.approx(0.3)


@pytest.mark.parametrize("shows", ["reconstructions", "generated", "both"])
@pytest.mark.parametrize("share", [0.2, 0.7])
def test_gradient_share_is_what_autograd_measures_at_the_images(share: float, shows: str) -> None:
    settings = {"balance": {"kind": "gradient_share", "share": share}, "shows": shows}
    job = train_job(vae_gan(settings))
    objective = build_objective(job)
    batch = make_batch(noise_images())
    gradients(objective, "generator", batch)
    reference = Reference(job, objective, batch)
    mean, log_variance = reference.networks.generator.encoder(reference.images)
    latents = mean + (log_variance / 2).exp() * batch.draws.normal("posterior", 4).double()
    images = reference.networks.generator.decoder(torch.cat([latents, reference.prior()]))
    side = reference.nll(images[:8]) / reference.num_values
    term = batch.metrics["adversarial_weight"].double() * reference.adversarial(reference.shown(images[:8], images[8:]))
    a, b = (image_gradient_norm(loss, images) for loss in (side, term))
    assert b / (a + b) == pytest.approx(share, rel=1e-5)


@pytest.mark.parametrize("likelihood", ["laplace", "gaussian"])
@pytest.mark.parametrize("shows", ["reconstructions", "both"])
def test_adaptive_weight_is_that_of_autograd_through_the_last_layer(shows: str, likelihood: str) -> None:
    reconstruction = {"kind": likelihood}
    job = train_job(vae_gan({"balance": ADAPTIVE, "shows": shows, "loss": "hinge"}, reconstruction=reconstruction))
    objective = build_objective(job)
    batch = make_batch(noise_images())
    gradients(objective, "generator", batch)
    expected = latent_diffusion_weight(Reference(job, objective, batch))
    assert float(batch.metrics["adversarial_weight"]) == pytest.approx(0.8 * expected, rel=2e-6)


@pytest.mark.parametrize("balance", [ADAPTIVE, {"kind": "gradient_share", "share": 0.3}])
def test_weight_with_lpips_at_every_third_step_is_that_of_every_step_and_holds_between(
    balance: dict[str, Any], tmp_path: Path
) -> None:
    """Else lambda would rise and fall with the term, which is three times as strong where it is."""
    perceptual = {"network": "squeezenet", "weights": str(save_random_lpips(tmp_path, "squeezenet")), "weight": 5.0}
    settings = {"balance": balance, "loss": "hinge"}
    every, third = (
        build_objective(
            train_job(vae_gan(settings, perceptual={**perceptual, "every_steps": every_steps}), image_size=32)
        )
        for every_steps in (1, 3)
    )
    third.load_state_dict(every.state_dict(), strict=False)

    def weight(objective: AnyObjective, step: int) -> float:
        images = torch.nn.functional.interpolate(noise_images(seed=step), size=32)
        batch = make_batch(images, position=8 * step)
        gradients(objective, "generator", batch)
        return float(batch.metrics["adversarial_weight"])

    of_every_step = [weight(every, step) for step in range(7)]
    assert len(set(of_every_step)) == 7
    decided = [of_every_step[step] for step in (0, 0, 0, 3, 3, 3, 6)]
    assert [weight(third, step) for step in range(7)] == pytest.approx(decided, rel=1e-5)
    third.held_weight.fill_(float("nan"))
    assert weight(third, 7) > 0  # Of the likelihood alone: the adversary has just begun.


def latent_diffusion_weight(reference: Reference) -> float:
    """calculate_adaptive_weight of latent diffusion, on the mean-reduced likelihood of our unit."""
    generator = twin(reference.objective).generator
    reference.networks.generator = generator
    mean, log_variance = generator.encoder(reference.images)
    latents = mean + (log_variance / 2).exp() * reference.batch.draws.normal("posterior", 4).double()
    reconstructions, generated = generator.decoder(latents), generator.decoder(reference.prior())
    nll_loss = reference.nll(reconstructions) / reference.num_values
    g_loss = reference.adversarial(reference.shown(reconstructions, generated))
    last_layer: Tensor = generator.decoder.to_images.weight
    nll_grads = torch.autograd.grad(nll_loss, last_layer, retain_graph=True)[0]
    g_grads = torch.autograd.grad(g_loss, last_layer, retain_graph=True)[0]
    return float(torch.clamp(torch.norm(nll_grads) / (torch.norm(g_grads) + 1e-4), 0.0, 1e4))


@pytest.mark.parametrize(
    ("real_cost", "fake_cost", "waiting"),
    [
        (0.68, 0.68, set()),
        (0.34, 0.34, set()),
        (1.02, 1.02, set()),
        (0.30, 0.68, {"discriminator"}),
        (0.68, 0.30, {"discriminator"}),
        (0.10, 0.10, {"discriminator"}),
        (1.10, 0.68, {"decoder"}),
        (0.68, 1.10, {"decoder"}),
        (2.00, 2.00, {"decoder"}),
        (0.30, 1.10, set()),
        (1.10, 0.30, set()),
    ],
)
def test_gate_holds_back_the_side_that_is_too_far_ahead(real_cost: float, fake_cost: float, waiting: set[str]) -> None:
    balance = EquilibriumBalance(kind="equilibrium", weight=1.0, equilibrium=0.68, margin=0.35)
    assert held_back(balance, real_cost, fake_cost) == waiting


def test_fixed_weight_reaches_the_metrics() -> None:
    objective = build_objective(train_job(vae_gan({"balance": FIXED})))
    batch = make_batch(noise_images())
    gradients(objective, "generator", batch)
    assert float(batch.metrics["adversarial_weight"]) == pytest.approx(0.3)
