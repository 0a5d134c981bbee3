"""What `plan` counts, of jobs with terms that act at some steps or on some images."""

from pathlib import Path
from typing import Any

import pytest

from tests.models.lpips_weights import save_random_lpips
from tests.training.jobs import KL_AUTOENCODER, OBJECTIVES, job_with
from vaegen_ray.training.plan import Plan, plan


def plan_with_lpips(folder: Path, **perceptual: Any) -> Plan:
    weights = str(save_random_lpips(folder, "squeezenet"))
    section = {"network": "squeezenet", "weights": weights, **perceptual}
    return plan(job_with({**OBJECTIVES["vae_gan, adaptive"], "perceptual": section}, model=KL_AUTOENCODER))


@pytest.mark.parametrize("every_steps", [2, 3, 5])
def test_plan_of_a_lazy_perceptual_term_counts_a_step_that_has_it(every_steps: int, tmp_path: Path) -> None:
    lazy, eager = plan_with_lpips(tmp_path, every_steps=every_steps), plan_with_lpips(tmp_path)
    assert lazy.step_flops_per_image == eager.step_flops_per_image
    assert lazy.activation_bytes_per_image == eager.activation_bytes_per_image


def test_plan_counts_lpips_of_the_images_that_it_sees(tmp_path: Path) -> None:
    eighth, quarter, half, whole = (
        plan_with_lpips(tmp_path, images_fraction=fraction).step_flops_per_image for fraction in (0.125, 0.25, 0.5, 1.0)
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
    job = job_with(objective, model=KL_AUTOENCODER)
    assert plan(job).step_flops_per_image > 3 * plan(job).forward_flops_per_image


def test_plan_of_a_frozen_encoder_has_no_gradients_and_moments_of_it() -> None:
    plans = [
        plan(
            job_with(
                OBJECTIVES["vae_gan, adaptive"], model={**KL_AUTOENCODER, "start_from": "x", "freeze_encoder": frozen}
            )
        )
        for frozen in (True, False)
    ]
    frozen, trained = plans
    encoder_bytes = 4 * trained.parameters["encoder"]
    assert trained.checkpoint_bytes - frozen.checkpoint_bytes == 2 * encoder_bytes
    assert trained.state_bytes - frozen.state_bytes == 3 * encoder_bytes
