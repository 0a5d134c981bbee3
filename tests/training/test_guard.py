"""A number that is not finite stops the run before any optimizer steps."""

import copy

import pytest
import torch

from tests.training.jobs import OBJECTIVES, images_of, job_with
from vaegen_ray.errors import DivergedError
from vaegen_ray.training.guard import FiniteGuard
from vaegen_ray.training.local_session import LocalSession
from vaegen_ray.training.loop import make_batch
from vaegen_ray.training.state import TrainState

CPU = torch.device("cpu")


def poisoned_step(state: TrainState, guard: FiniteGuard, value: float = float("nan")) -> None:
    job = job_with(OBJECTIVES["vae_gan"])
    images = torch.from_numpy(images_of(job, 8)).permute(0, 3, 1, 2)
    batch = make_batch(job, LocalSession(0, 1, CPU), state.position, images)
    batch.images_BCHW[0, 0, 0, 0] = value
    for phase in state.phases:
        phase.update(batch, learning_rate_factor=1.0, guard=guard)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_step_with_a_non_finite_image_raises_and_steps_nothing(value: float) -> None:
    state = TrainState(job_with(OBJECTIVES["vae_gan"]), CPU)
    before = copy.deepcopy(state.tensors())
    with pytest.raises(DivergedError, match=r"not finite at image 0 on rank\(s\) \[0\]: .*reconstruction=(nan|inf)"):
        poisoned_step(state, FiniteGuard(CPU), value)
    assert all(torch.equal(before[name], tensor) for name, tensor in state.tensors().items())


def test_host_that_looks_late_finds_the_parameters_of_the_last_good_step() -> None:
    """On an accelerator the host looks at reports only; until then the device must skip every update."""
    state = TrainState(job_with(OBJECTIVES["vae_gan"]), CPU)
    guard = FiniteGuard(CPU)
    guard.looks_at_every_step = False
    before = copy.deepcopy(dict(state.objective.named_parameters()))
    poisoned_step(state, guard)
    state.position = 8
    poisoned_step(state, guard, value=0.5)
    assert all(torch.equal(before[name], value) for name, value in state.objective.named_parameters())
    with pytest.raises(DivergedError, match="not finite at image 0 "):
        guard.check()
