"""What a search will cost, and what can be known of its space before the first trial."""

from dataclasses import dataclass

from vaegen_ray.config.objective import FixedScale, GaussianReconstruction
from vaegen_ray.config.search import Choice, SearchJob
from vaegen_ray.search.forks import least_shared_images, num_beginnings

KL_WEIGHT = "objective.kl.weight"
SCALE = "objective.reconstruction.scale.value"

SQUARED_RANGE = 4.0
"""Variances of images in [-1, 1] over those of images in [0, 1]."""


@dataclass(frozen=True)
class SearchPlan:
    """Images that a search uses at most."""

    trials: int
    images_per_trial: int
    rungs: int
    """Evaluations of a trial before its end, at which it may be stopped."""
    shared_images: int
    """Length of the phase that trials of one beginning have in common, at least; 0 where some share none."""
    beginnings: int
    """How many such phases are trained, at most; the other trials begin from them."""

    @property
    def most_images(self) -> int:
        """If no trial is stopped early."""
        return self.trials * self.images_per_trial - self.saved_images

    @property
    def saved_images(self) -> int:
        """What training each common phase once saves, at least."""
        return max(0, self.trials - self.beginnings) * self.shared_images


def plan_search(job: SearchJob) -> SearchPlan:
    """Count the images of ``job``."""
    training, every = job.base.training, job.base.evaluation.every_images
    return SearchPlan(
        trials=job.trials,
        images_per_trial=training.final_position,
        rungs=(training.total_images - 1) // every if every is not None else 0,
        shared_images=least_shared_images(job),
        beginnings=num_beginnings(job) or job.trials,
    )


def largest_useful_kl_weight(job: SearchJob, largest_eigenvalue: float) -> float | None:
    """The KL weight above which a linear VAE's posterior collapses, and no code is used.

    beta sigma^2 must stay below the largest eigenvalue of the covariance of the images in [-1, 1]
    (arXiv:2510.01621; for the linear case Lucas et al. 2019, section 4). ``largest_eigenvalue`` is that of the images
    in [0, 1], as ``dataset.json`` has it. The least sigma of the space counts. None where the likelihood is no
    Gaussian of a given scale.
    """
    objective = job.base.objective
    if objective.kind == "gan" or not isinstance(objective.reconstruction, GaussianReconstruction):
        return None
    scale = objective.reconstruction.scale
    if not isinstance(scale, FixedScale):
        return None
    axis = job.space.get(SCALE)
    sigma = scale.value
    if axis is not None:
        sigma = min(float(value) for value in axis.values) if isinstance(axis, Choice) else float(axis.low)
    return SQUARED_RANGE * largest_eigenvalue / sigma**2
