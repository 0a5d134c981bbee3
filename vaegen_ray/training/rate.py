"""How fast a job trains here, before it is trained."""

import time
from contextlib import closing

import torch

from vaegen_ray.config.job import TrainJob
from vaegen_ray.data.batches import ImageBatches
from vaegen_ray.data.placement import Images, training_images
from vaegen_ray.data.plain_parquet import open_dataset
from vaegen_ray.models.arithmetic import use_exact_arithmetic
from vaegen_ray.training.guard import FiniteGuard
from vaegen_ray.training.loop import take_step
from vaegen_ray.training.precision import compile_networks
from vaegen_ray.training.session import Session
from vaegen_ray.training.state import TrainState

WARM_UP_STEPS = 5
LEAST_STEPS = 20
LEAST_S = 5.0


def images_per_second(job: TrainJob, session: Session) -> float:
    """Of training steps alone, one rank, everything switched on; writes nothing. Takes about five seconds."""
    use_exact_arithmetic()
    dataset = open_dataset(job.data, job.model)
    with closing(training_images(dataset, job.data, session.device)) as images:
        return _images_per_second(job, session, images)


def _images_per_second(job: TrainJob, session: Session, images: Images) -> float:
    state, guard = TrainState(job, session.device), FiniteGuard(session.device)
    guard.looks_at_every_step = False  # A job that diverges is measured, too: its run will say so.
    state.position = _everything_switched_on(job)
    compile_networks(state.objective, job, session.device)
    steps, begun_s = 0, time.perf_counter()
    with ImageBatches(
        images, seed=job.seed, images_per_step=job.training.images_per_step, position=state.position
    ) as batches:
        while steps < WARM_UP_STEPS + LEAST_STEPS or time.perf_counter() - begun_s < LEAST_S:
            take_step(job, session, state, next(batches), guard)
            steps += 1
            if steps == WARM_UP_STEPS:
                begun_s = now(session.device)
    return (steps - WARM_UP_STEPS) * job.training.images_per_step / (now(session.device) - begun_s)


def _everything_switched_on(job: TrainJob) -> int:
    """Where a step begins in the middle of the run, or later where the adversarial term, as dear as the rest, does."""
    position, step = job.training.total_images // 2, job.training.images_per_step
    if job.objective.kind != "vae":
        adversarial = job.objective.adversarial
        position = max(position, adversarial.start_images + adversarial.ramp_images)
    return -(-position // step) * step


def now(device: torch.device) -> float:
    """Seconds on a clock, read when ``device`` has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
