"""The files and folders that a train job names, by key: one list for all who move a job to other machines."""

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.settings import flat

READ = (
    "data.source",
    "model.start_from",
    "evaluation.features.weights",
    "evaluation.lpips.weights",
    "objective.perceptual.weights",
    "objective.discriminator.weights",
)
"""What every node reads."""
WRITTEN = ("storage", "data.cache")
SHIPPED = "shipped:"


def places(job: TrainJob, keys: tuple[str, ...] = READ + WRITTEN) -> dict[str, str]:
    """Of ``keys`` those that ``job`` sets, to what does not come with the package."""
    values = flat(job.model_dump(mode="json"))
    found = {key: values.get(key) for key in keys}
    return {key: place for key, place in found.items() if place and not place.startswith(SHIPPED)}


def relative_places(job: TrainJob) -> list[str]:
    """The keys of the job whose paths depend on the working directory."""
    return [key for key, place in places(job).items() if not place.startswith(("/", "~")) and "://" not in place]
