"""What `plan` counts, of jobs with terms that act at some steps or on some images."""

from typing import Any

import pytest

from tests.training.jobs import KL_AUTOENCODER, OBJECTIVES, job_with
from vaegen_ray.training.plan import Plan, plan


def plan_with_lpips(**perceptual: Any) -> Plan:
    """Needs no weights: nothing but shapes is counted."""
    section = {"network": "squeezenet", **perceptual}
    return plan(job_with({**OBJECTIVES["vae_gan, adaptive"], "perceptual": section}, model=KL_AUTOENCODER))


def test_plan_counts_no_more_checkpoints_than_steps() -> None:
    often, seldom = (
        plan(job_with(OBJECTIVES["vae"], training={"total_images": 80, "checkpoint_every_images": images}))
        for images in (1, 16)
    )
    assert (often.num_checkpoints, often.total_steps, seldom.num_checkpoints) == (10, 10, 5)


@pytest.mark.parametrize("every_steps", [2, 3, 5])
def test_plan_of_a_lazy_perceptual_term_counts_a_step_that_has_it(every_steps: int) -> None:
    lazy, eager = plan_with_lpips(every_steps=every_steps), plan_with_lpips()
    assert lazy.step_flops_per_image == eager.step_flops_per_image
    assert lazy.activation_bytes_per_image == eager.activation_bytes_per_image


def test_plan_counts_lpips_of_the_images_that_it_sees() -> None:
    eighth, quarter, half, whole = (
        plan_with_lpips(images_fraction=fraction).step_flops_per_image for fraction in (0.125, 0.25, 0.5, 1.0)
    )
    assert whole > half > quarter > eighth
    assert whole - half == pytest.approx(2 * (half - quarter), abs=2)
    assert half - quarter == pytest.approx(2 * (quarter - eighth), abs=2)


@pytest.mark.parametrize(
    "discriminator",
    [
        {"kind": "patch", "width": 4, "layers": 1, "norm": "spectral"},
        {"width": 4, "max_width": 8, "spectral_norm": True},
    ],
    ids=["patch", "convolutional"],
)
def test_plan_of_a_discriminator_with_spectral_normalisation_has_its_costs(discriminator: dict[str, Any]) -> None:
    objective = {**OBJECTIVES["vae_gan, adaptive"], "discriminator": discriminator}
    costs = plan(job_with(objective, model=KL_AUTOENCODER))
    assert costs.step_flops_per_image > 3 * costs.forward_flops_per_image


def test_plan_of_a_frozen_encoder_has_no_gradients_and_moments_of_it() -> None:
    frozen, trained = (
        plan(
            job_with(
                OBJECTIVES["vae_gan, adaptive"],
                model={**KL_AUTOENCODER, "start_from": "x", "freeze_encoder": is_frozen},
            )
        )
        for is_frozen in (True, False)
    )
    encoder_bytes = 4 * trained.parameters["encoder"]
    assert trained.checkpoint_bytes - frozen.checkpoint_bytes == 2 * encoder_bytes
    assert trained.state_bytes - frozen.state_bytes == 3 * encoder_bytes


@pytest.mark.parametrize("name", OBJECTIVES)
def test_plan_of_every_objective_counts_its_step(name: str) -> None:
    costs = plan(job_with(OBJECTIVES[name]))
    assert costs.step_flops_per_image > 2 * costs.forward_flops_per_image > 0
