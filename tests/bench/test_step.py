"""`vaegen bench step`: both formulations are the same step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.lpips_weights import save_random_lpips
from tests.training.jobs import KL_AUTOENCODER, OBJECTIVES, job_with
from vaegen_ray.bench.step import Ours, Reference, measure_step, with_adaptive_balance
from vaegen_ray.config.job import TrainJob
from vaegen_ray.errors import JobError
from vaegen_ray.objectives.objective import Batch
from vaegen_ray.training.loop import make_batch

CPU = torch.device("cpu")


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    """The autoencoder with LPIPS, of the whole batch, and an adversary that begins late."""
    perceptual = {"network": "squeezenet", "weights": str(save_random_lpips(tmp_path, "squeezenet")), "weight": 0.5}
    objective = {**OBJECTIVES["vae_gan, adaptive"], "kl": {"weight": 0.01}, "perceptual": perceptual}
    objective["adversarial"] = {**objective["adversarial"], "start_images": 40}
    return job_with(objective, model=KL_AUTOENCODER)


def gradients_of(formulation: Ours | Reference) -> dict[str, torch.Tensor]:
    parameters = formulation.state.objective.named_parameters()
    return {name: parameter.grad.clone() for name, parameter in parameters if parameter.grad is not None}


def gradients_of_our_step(ours: Ours) -> list[dict[str, torch.Tensor]]:
    """Of the generator's phase and of the discriminator's, before each optimizer clears them."""
    found = []
    for phase in ours.state.phases:

        def backward(batch: Batch, inner: Callable[[Batch], None] = phase.backward) -> None:
            inner(batch)
            found.append(gradients_of(ours))

        phase.backward = backward
    ours.step()
    return found


def test_reference_takes_the_gradients_of_our_step(job: TrainJob) -> None:
    job = with_adaptive_balance(job)
    reference = Reference(job, CPU)
    # It takes no step of an optimizer here: both show the same reconstructions to the discriminator.
    for backward, expected in zip(
        (reference.backward_generator, reference.backward_discriminator),
        gradients_of_our_step(Ours(job, CPU)),
        strict=True,
    ):
        reference.objective.zero_grad()
        backward(make_batch(job, reference.session, 0, reference.images))
        found = gradients_of(reference)
        assert found.keys() == expected.keys()
        whole = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
        assert whole > 0
        for name, gradient in expected.items():
            assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6 * whole, name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_formulations_are_timed_and_as_published_where_the_job_is_not(precision: str, job: TrainJob) -> None:
    training = job.training.model_copy(update={"precision": precision})
    times = measure_step(job.model_copy(update={"training": training}), device=CPU, steps=2)
    assert min(times.ours_s, times.reference_s) > 0
    assert (times.published_s is None) == (precision == "float32")
    # Two steps on a machine that does other things besides.
    assert 0.1 < sum(times.parts_s.values()) / times.ours_s < 10
    assert times.images == job.training.images_per_step
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("objective", "model", "key"),
    [
        (OBJECTIVES["gan"], {}, "objective.kind"),
        (OBJECTIVES["vae"], {}, "objective.kind"),
        ({"preset": "larsen"}, {}, "objective.reconstruction.kind"),
        (
            OBJECTIVES["vae_gan, adaptive"],
            {**KL_AUTOENCODER, "freeze_encoder": True, "start_from": "x"},
            "model.freeze_encoder",
        ),
    ],
    ids=["gan", "vae", "larsen", "frozen encoder"],
)
def test_job_that_the_reference_cannot_do_is_refused_by_key(
    objective: dict[str, Any], model: dict[str, Any], key: str
) -> None:
    with pytest.raises(JobError, match=rf"{key}: must be .* for `bench step`"):
        measure_step(job_with(objective, model=model), device=CPU, steps=1)


def test_step_in_portions_is_timed_a_portion_at_a_time(job: TrainJob) -> None:
    """Whole, the steps of the shipped jobs for 256 pixels fit on no GPU in the reference's formulation."""
    portions = job.training.model_copy(update={"accumulation_steps": 2})
    timed = with_adaptive_balance(job.model_copy(update={"training": portions})).training
    assert (timed.images_per_step, timed.accumulation_steps) == (job.training.images_per_step // 2, 1)


def test_step_of_several_workers_is_timed_as_one_of_them_takes_it(job: TrainJob) -> None:
    """The reference took it whole, and ours in as many portions as there were workers."""
    resources = job.resources.model_copy(update={"workers": 2})
    timed = with_adaptive_balance(job.model_copy(update={"resources": resources}))
    assert (timed.training.images_per_step, timed.portions(1)) == (job.training.images_per_step // 2, 1)


def test_watchdog_of_what_the_reference_does_not_have_is_no_hindrance() -> None:
    rule = {"action": "roll_back", "multiply": {"objective.adversarial.balance.share": 0.5}}
    watched = job_with(OBJECTIVES["vae_gan"], model=KL_AUTOENCODER, watchdog={"dead_generator": rule})
    assert with_adaptive_balance(watched).objective.kind == "vae_gan"
