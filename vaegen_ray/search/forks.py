"""Trials that share their beginning: what acts only after the adversarial start cannot matter before it."""

import hashlib
import itertools
import json
import math
from dataclasses import dataclass

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.run_directory import FREE_TO_CHANGE
from vaegen_ray.config.search import Choice, SearchJob
from vaegen_ray.config.settings import flat

ACTS_AFTER_ADVERSARIAL_START = (
    "objective.adversarial.balance.",
    "objective.adversarial.ramp_images",
    "objective.adversarial.feature_matching",
    "objective.adversarial.reaches_encoder",
)
"""Settings of the generator's adversarial term; those of the discriminator act from the first step."""

NOT_OF_THE_STATE = ("name", "changes", "evaluation.", *FREE_TO_CHANGE)
"""Settings that no parameter depends on, or, like ``changes``, that are looked at by their position."""


@dataclass(frozen=True)
class Fork:
    """The phase that trials have in common."""

    key: str
    """The same for trials with the same beginning."""
    position: int
    """Where their ways part, in images: the step that begins here is the first to differ."""


def fork_of(job: TrainJob) -> Fork | None:
    """The common phase that ``job`` begins with; None where the adversarial term acts from the first step."""
    if job.objective.kind == "vae":
        return None
    position = _end_of_phase(job, job.objective.adversarial.start_images, job.training.images_per_step)
    if position == 0:
        return None
    settings = flat(job.model_dump(mode="json"))
    common = {
        path: value
        for path, value in settings.items()
        if not path.startswith((*ACTS_AFTER_ADVERSARIAL_START, *NOT_OF_THE_STATE))
    }
    text = json.dumps(common, sort_keys=True)
    return Fork(hashlib.sha256(text.encode()).hexdigest()[:16], position)


def num_beginnings(job: SearchJob) -> int | None:
    """How many different beginnings the trials of a search have at most; None where hardly two share one.

    Trials share a beginning only where no axis that acts before the adversarial start is continuous. Trials of a
    population, and those of several workers, each train their own.
    """
    if job.base.resources.needs_ray or job.scheduler.kind == "pbt":
        return None
    before = {name: axis for name, axis in job.space.items() if not name.startswith(ACTS_AFTER_ADVERSARIAL_START)}
    if len(before) == len(job.space) or not all(isinstance(axis, Choice) for axis in before.values()):
        return None
    # Where an axis that acts later decides, the base's value may stand in the place of a drawn one.
    return math.prod(
        len(axis.values) + (not axis.when.keys() <= before.keys())
        for axis in before.values()
        if isinstance(axis, Choice)
    )


def least_shared_images(job: SearchJob) -> int:
    """How many images trials with the same beginning share at least; 0 where some may share none."""
    base = job.base
    if num_beginnings(job) is None or base.objective.kind == "vae" or "objective.kind" in job.space:
        return 0
    starts = _possible(job, "objective.adversarial.start_images", base.objective.adversarial.start_images)
    steps = _possible(job, "training.images_per_step", base.training.images_per_step)
    return min(_end_of_phase(base, start, step) for start, step in itertools.product(starts, steps))


def _possible(job: SearchJob, name: str, of_base: int) -> list[int]:
    """The counts that a trial may have there."""
    axis = job.space.get(name)
    if not isinstance(axis, Choice):
        return [of_base]
    return [*map(int, axis.values), *([of_base] if axis.when else [])]


def _end_of_phase(job: TrainJob, start_images: int, images_per_step: int) -> int:
    """Where the first step begins in which the adversarial term acts; 0 where nothing before it can be shared."""
    position = -(-start_images // images_per_step) * images_per_step
    is_within = position < job.training.total_images and all(change.at_images > position for change in job.changes)
    return position if is_within else 0
