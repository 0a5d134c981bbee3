"""The page to read first: what training does, from the first image to the last."""

import enum
from collections.abc import Iterator

from torch import Tensor

from vaegen_ray.config.job import TrainJob
from vaegen_ray.data.augmentation import horizontal_flip, random_crop
from vaegen_ray.data.batches import to_float
from vaegen_ray.objectives.objective import Batch
from vaegen_ray.randomness import Draws
from vaegen_ray.schedules import ema_decay, learning_rate_factor
from vaegen_ray.training.collectives import StopVote, mean_over_ranks
from vaegen_ray.training.guard import FiniteGuard
from vaegen_ray.training.precision import DTYPES
from vaegen_ray.training.recorder import Recorder
from vaegen_ray.training.session import Session
from vaegen_ray.training.state import TrainState


class Ending(enum.Enum):
    """Why the loop ended."""

    COMPLETE = "complete"
    """It has come to the end that it was given."""
    STOPPED = "stopped"


def train(
    job: TrainJob, session: Session, state: TrainState, batches: Iterator[Tensor], recorder: Recorder, end: int
) -> Ending:
    """Train until ``end`` images were used, or until somebody asks to stop.

    ``batches`` begins at ``state.position`` and gives this rank's uint8 images of each step. Unless it raises, the
    state is saved before it returns.
    """
    guard = FiniteGuard(session.device)
    vote = StopVote()
    while state.position < end and not recorder.has_converged:
        if vote.cast(session.should_stop()):
            vote.close()
            recorder.checkpoint(state, guard)
            return Ending.STOPPED
        batch = take_step(job, session, state, recorder.next_images(batches), guard)
        recorder.after_step(state, batch, guard)
    vote.close()
    if state.position < job.training.total_images:
        recorder.checkpoint(state, guard)
    return Ending.COMPLETE


def take_step(job: TrainJob, session: Session, state: TrainState, images: Tensor, guard: FiniteGuard) -> Batch:
    """Train on this rank's uint8 ``images`` of the step that begins at ``state.position``, which moves on.

    Each phase in turn computes and applies the gradients of its own parameters; the generator's images are made once
    and shared. Returns what was computed, with the step's metrics.
    """
    batch = make_batch(job, session, state.position, images)
    factor = learning_rate_factor(job.optimizer.schedule, state.position, job.training.total_images)
    for phase in state.phases:
        phase.update(batch, learning_rate_factor=factor, guard=guard)
    state.position += job.training.images_per_step
    decay = ema_decay(job.training.ema.half_life_images, state.position, job.training.images_per_step)
    state.ema.follow(state.objective.generator, decay)
    return batch


def make_batch(job: TrainJob, session: Session, position: int, images: Tensor) -> Batch:
    """This rank's share of the step that begins at ``position``: floats on the device, with their draws."""
    images_per_rank = job.training.images_per_step // session.num_ranks
    first = session.rank * images_per_rank
    draws = Draws(job.seed, position, job.training.images_per_step, first, first + images_per_rank, session.device)
    images = images.to(session.device, non_blocking=True)
    if job.data.random_crop_pixels is not None:
        images = random_crop(images, job.data.random_crop_pixels, draws.uniform("crop", 2))
    images_BCHW = to_float(images)
    if job.data.horizontal_flip:
        images_BCHW = horizontal_flip(images_BCHW, draws.uniform("flip") < 0.5)
    return Batch(
        images_BCHW=images_BCHW,
        draws=draws,
        position=position,
        num_portions=job.portions(session.num_ranks),
        mean_over_ranks=mean_over_ranks,
        precision=DTYPES[job.training.precision],
    )
