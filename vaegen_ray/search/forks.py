"""Trials that share their beginning: what acts only after the adversarial start cannot matter before it."""

import hashlib
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
    step = job.training.images_per_step
    position = -(-job.objective.adversarial.start_images // step) * step
    if not 0 < position < job.training.total_images or any(change.at_images <= position for change in job.changes):
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
    before = [axis for name, axis in job.space.items() if not name.startswith(ACTS_AFTER_ADVERSARIAL_START)]
    if len(before) == len(job.space) or not all(isinstance(axis, Choice) for axis in before):
        return None
    return math.prod(len(axis.values) for axis in before if isinstance(axis, Choice))
