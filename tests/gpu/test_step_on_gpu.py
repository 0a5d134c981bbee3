"""The step on an accelerator: as on a CPU, and without a number that the host would have to wait for."""

import copy
from pathlib import Path

import pytest
import torch

from tests.models.lpips_weights import save_random_lpips
from tests.training.jobs import OBJECTIVES, images_of, job_with, take_steps
from vaegen_ray.errors import TrainingError
from vaegen_ray.models.arithmetic import use_exact_arithmetic
from vaegen_ray.training.guard import FiniteGuard
from vaegen_ray.training.local_session import LocalSession
from vaegen_ray.training.loop import make_batch
from vaegen_ray.training.state import TrainState

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(), reason="needs an NVIDIA GPU; run `pytest -m gpu` on a machine with one"
    ),
]
CPU = torch.device("cpu")


@pytest.fixture
def gpu() -> LocalSession:
    use_exact_arithmetic()
    return LocalSession(0, 1, torch.device("cuda", 0))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_ten_steps_on_a_gpu_are_finite_and_repeatable(name: str, gpu: LocalSession) -> None:
    job = job_with(OBJECTIVES[name])
    runs = []
    for _ in range(2):
        state = TrainState(job, gpu.device)
        runs.append(take_steps(job, gpu, state, until=80)[-1]["generator_loss"])
    assert runs[0] == pytest.approx(runs[1], rel=1e-3)


def test_first_losses_on_a_gpu_are_those_of_a_cpu_where_no_noise_is_drawn(gpu: LocalSession) -> None:
    """Random numbers differ between devices; the discriminator's loss on the same images must not."""
    objective = {**OBJECTIVES["gan"], "adversarial": {"balance": {"kind": "fixed", "weight": 1.0}}}
    job = job_with(objective, data={"horizontal_flip": False})
    losses = []
    for session in (LocalSession(0, 1, CPU), gpu):
        state = TrainState(job, session.device)
        images = torch.from_numpy(images_of(job, 8)).permute(0, 3, 1, 2)
        batch = make_batch(job, session, 0, images)
        batch.shown[0] = -batch.images_BCHW
        state.objective.discriminator_backward(batch)
        losses.append(float(batch.metrics["discriminator_loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("images_fraction", [None, 0.5, 1.0], ids="lpips of {}".format)
def test_step_does_not_wait_for_the_gpu(images_fraction: float | None, gpu: LocalSession, tmp_path: Path) -> None:
    objective = dict(OBJECTIVES["vae_gan"])
    if images_fraction is not None:
        weights = str(save_random_lpips(tmp_path, "squeezenet"))
        objective["perceptual"] = {"network": "squeezenet", "weights": weights, "images_fraction": images_fraction}
    job = job_with(objective, model={"image_size": 32, "channels": 3}, training={"total_images": 800})
    state, guard = TrainState(job, gpu.device), FiniteGuard(gpu.device)
    images = torch.from_numpy(images_of(job, 8)).permute(0, 3, 1, 2)
    for step in range(6):
        torch.cuda.set_sync_debug_mode("error" if step > 2 else "default")
        try:
            batch = make_batch(job, gpu, state.position, images.pin_memory())
            for phase in state.phases:
                phase.update(batch, learning_rate_factor=1.0, guard=guard)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        state.position += 8
    guard.check()


def test_non_finite_step_on_a_gpu_is_skipped_and_found_later(gpu: LocalSession) -> None:
    job = job_with(OBJECTIVES["vae"])
    state, guard = TrainState(job, gpu.device), FiniteGuard(gpu.device)
    before = copy.deepcopy(dict(state.objective.named_parameters()))
    batch = make_batch(job, gpu, 0, torch.from_numpy(images_of(job, 8)).permute(0, 3, 1, 2))
    batch.images_BCHW[:] = float("nan")
    state.phases[0].update(batch, learning_rate_factor=1.0, guard=guard)
    assert all(torch.equal(before[name], value) for name, value in state.objective.named_parameters())
    with pytest.raises(TrainingError, match="not finite at image 0"):
        guard.check()


def test_bfloat16_on_a_gpu_stays_near_float32(gpu: LocalSession) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        job = job_with(OBJECTIVES["vae_gan, adaptive"], training={"precision": precision})
        losses.append(take_steps(job, gpu, TrainState(job, gpu.device), until=24)[-1]["generator_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
