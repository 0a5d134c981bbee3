"""The one place that knows what a run directory contains, and whose it is."""

import re
from dataclasses import dataclass
from typing import Any

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.loading import dump_job, load_resolved
from vaegen_ray.config.sentences import shown
from vaegen_ray.config.settings import flat
from vaegen_ray.errors import JobError
from vaegen_ray.storage import Location

FREE_TO_CHANGE = (
    "storage",
    "resources.",
    "tracking.",
    "data.cache",  # And data.cache_bytes.
    "data.placement",
    "training.report_every_images",
    "training.checkpoint_every_images",
    "training.keep_checkpoints",
    "training.accumulation_steps",
    "evaluation.features.weights",
    "evaluation.lpips.weights",
    "objective.perceptual.weights",
    "objective.discriminator.weights",
    "watchdog.",
)
"""Settings that a run may change between two starts: no step computes anything else for them.

The watchdog's, whose rules look at reports, may stop a run or roll it back.
"""

MOST_DIFFERENCES = 8
"""Listed of two jobs that claim the same directory."""


@dataclass(frozen=True)
class RunDirectory:
    """``<storage>/<name>/`` on a local disk or in an object store."""

    root: Location

    @classmethod
    def of(cls, job: TrainJob) -> "RunDirectory":
        """The directory of ``job``."""
        return cls(Location.of(job.storage) / job.name)

    @property
    def job_file(self) -> Location:
        """The resolved job."""
        return self.root / "job.json"

    @property
    def provenance(self) -> Location:
        """Revision, versions, hardware, command, and the dataset's fingerprint."""
        return self.root / "provenance.json"

    @property
    def metrics(self) -> Location:
        """One JSON object a line, in the order of the position."""
        return self.root / "metrics.jsonl"

    @property
    def incidents(self) -> Location:
        """What the watchdog noticed, and what it did about it."""
        return self.root / "incidents.json"

    @property
    def evaluations(self) -> Location:
        """Models that wait for their evaluation beside training, or whose scores wait to be taken."""
        return self.root / "evaluations"

    def evaluation(self, position: int) -> Location:
        """The folder of the model at ``position`` images."""
        return self.evaluations / f"images-{position:012d}"

    @property
    def best(self) -> Location:
        """The model of the best evaluation, where the job asks for it."""
        return self.root / "best"

    @property
    def tensorboard(self) -> Location:
        """Event files."""
        return self.root / "tensorboard"

    @property
    def samples(self) -> Location:
        """Grids of generated images and of reconstructions."""
        return self.root / "samples"

    def picture(self, name: str, position: int) -> Location:
        """A grid of `samples` or `reconstructions` drawn at ``position`` images."""
        return self.samples / f"{name}-{position:012d}.png"

    def forget_pictures_after(self, position: int) -> None:
        """Remove the grids of what the run is rolled back by: it will not come again."""
        for name in self.samples.names():
            drawn_at = re.fullmatch(r"[a-z]+-(\d{12})\.png", name)
            if drawn_at is not None and int(drawn_at[1]) > position:
                (self.samples / name).remove()

    @property
    def checkpoints(self) -> Location:
        """One folder a checkpoint."""
        return self.root / "checkpoints"

    @property
    def final(self) -> Location:
        """The trained model: EMA weights and what is needed to load them."""
        return self.root / "final"

    @property
    def scores(self) -> Location:
        """The final scores against held-out images; written last of all, so it marks a complete run."""
        return self.final / "scores.json"

    @property
    def stop_request(self) -> Location:
        """Asks the workers to save and stop; holds the number of the signal that asked."""
        return self.root / "stop"

    @property
    def move_request(self) -> Location:
        """Asks the workers to save and leave, because others will go on; an empty file.

        Not the file that asks to stop: to take that away could take away what somebody has just asked.
        """
        return self.root / "move"

    @property
    def published(self) -> Location:
        """The config of the published model that the run began with, which an export needs."""
        return self.root / "published.json"

    @property
    def lock(self) -> Location:
        """Held by the process that trains, where the directory is local."""
        return self.root / ".lock"

    @property
    def lease(self) -> Location:
        """Who may write this run: one file for each driver that it had."""
        return self.root / "lease"

    @property
    def logs(self) -> Location:
        """One folder for each attempt of a submission, with what its processes printed."""
        return self.root / "logs"

    @property
    def ray(self) -> Location:
        """Ray Train's own records."""
        return self.root / "ray"

    def checkpoint(self, position: int) -> Location:
        """The folder of the checkpoint at ``position`` images."""
        return self.checkpoints / f"images-{position:012d}"

    def checkpoint_positions(self) -> list[int]:
        """Positions of all checkpoint folders, finished or not, in ascending order."""
        matches = (re.fullmatch(r"images-(\d{12})", name) for name in self.checkpoints.names())
        return sorted(int(match.group(1)) for match in matches if match)

    def is_complete(self) -> bool:
        """Whether the run has reached its end."""
        return self.scores.exists()

    def load_job(self) -> TrainJob:
        """The job whose run this is."""
        return load_resolved(self.job_file, TrainJob, "a run")

    def claim(self, job: TrainJob) -> None:
        """Make this the directory of ``job``.

        Raises JobError, naming what differs, when the directory holds another job, and StorageError when
        it cannot be written.
        """
        self.root.check_writable()
        self.check_is_of(job)
        self.job_file.write_text(dump_job(job))

    def check_is_of(self, job: TrainJob) -> None:
        """Raise JobError, naming what differs, when the directory holds another job."""
        check_kind(self.root, self.job_file)
        if self.job_file.exists():
            differences = job_differences(self.load_job(), job)
            if differences:
                raise JobError(
                    f"name: {self.root} holds the run of another job ({_listed(differences)}); "
                    f"give this one another name (--set name={job.name}-2) or remove that directory"
                )
        elif self.checkpoint_positions():
            raise JobError(
                f"name: {self.root} holds checkpoints but no job.json; give this job another name "
                f"(--set name={job.name}-2) or remove that directory"
            )


OWNERS = {"job.json": "a train run", "search.json": "a search", "compare.json": "a comparison"}
"""The file that says whose directory it is, by kind."""


def check_kind(root: Location, job_file: Location) -> None:
    """Raise JobError where ``root`` is the directory of a job of another kind than ``job_file`` is the file of."""
    for name, owner in OWNERS.items():
        if (root / name) != job_file and (root / name).exists():
            raise JobError(f"name: {root} is the directory of {owner}; give this job another name, or remove it")


def job_differences(old: TrainJob, new: TrainJob) -> dict[str, tuple[Any, Any]]:
    """Settings that differ and that change what is computed: key to (old, new).

    Of sections of another kind only the kinds: their other keys have nothing to do with each other.
    """
    before, after = flat(old.model_dump(mode="json")), flat(new.model_dump(mode="json"))
    differences = {
        key: (before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(FREE_TO_CHANGE)
    }
    of_other_kind = tuple(key.removesuffix("kind") for key in differences if key.endswith(".kind"))
    return {
        key: values
        for key, values in differences.items()
        if not any(key.startswith(section) and key != f"{section}kind" for section in of_other_kind)
    }


def _listed(differences: dict[str, tuple[Any, Any]]) -> str:
    sentences = [f"{key}: {shown(old)} there, {shown(new)} here" for key, (old, new) in differences.items()]
    hidden = len(sentences) - MOST_DIFFERENCES
    return "; ".join(sentences[:MOST_DIFFERENCES]) + (f"; and {hidden} more" if hidden > 0 else "")
