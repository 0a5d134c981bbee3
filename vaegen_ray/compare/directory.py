"""The one place that knows what a comparison's directory contains, and how its runs ended."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vaegen_ray.config.compare import CompareJob, run_name
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.loading import load_resolved
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.config.variants import variant_job
from vaegen_ray.errors import CheckpointError
from vaegen_ray.storage import Location

Ending = Literal["complete", "diverged", "collapsed", "failed"]
"""`diverged`: a number was not finite; `collapsed`: the watchdog stopped the run; `failed`: of anything else."""


@dataclass(frozen=True)
class Outcome:
    """How a run of a comparison ended, for good."""

    ending: Ending
    reason: str = ""


@dataclass(frozen=True)
class CompareDirectory:
    """``<storage>/<name>/`` on a local disk or in an object store."""

    root: Location

    @classmethod
    def of(cls, job: CompareJob) -> "CompareDirectory":
        """The directory of ``job``."""
        return cls(Location.of(job.storage) / job.name)

    @property
    def job_file(self) -> Location:
        """The resolved job."""
        return self.root / "compare.json"

    @property
    def runs(self) -> Location:
        """The ``storage`` of the runs: one run directory each."""
        return self.root / "runs"

    @property
    def outcomes(self) -> Location:
        """One file a run that has ended."""
        return self.root / "outcomes"

    @property
    def images(self) -> Location:
        """Images of each variant that a budget in seconds leaves it."""
        return self.root / "images.json"

    @property
    def stop_request(self) -> Location:
        """Asks the comparison to stop, its runs with a checkpoint each."""
        return self.root / "stop"

    @property
    def lock(self) -> Location:
        """Held by the process that drives the comparison, where the directory is local."""
        return self.root / ".lock"

    @property
    def lease(self) -> Location:
        """Who drives the comparison."""
        return self.root / "lease"

    def run(self, variant: str, seed: int) -> RunDirectory:
        """The run of a variant with a seed."""
        return RunDirectory(self.runs / run_name(variant, seed))

    def load(self) -> CompareJob:
        """The job; JobError where this is no comparison's directory."""
        job = load_resolved(self.job_file, CompareJob, "a comparison")
        # The job's own `storage` may begin in another working directory, or be where the comparison was before.
        return job.model_copy(update={"storage": self.root.parent.url, "name": self.root.name})

    def measured_images(self) -> dict[str, int]:
        """Images of each variant, where the budget is one of seconds and was measured; else empty."""
        try:
            return dict(json.loads(self.images.read_text())) if self.images.exists() else {}
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{self.images}: is damaged ({error}); restore it") from error

    def train_job(self, job: CompareJob, variant: str, seed: int, images: Mapping[str, int]) -> TrainJob:
        """The job of a run."""
        return variant_job(job, variant, seed, storage=self.runs.url, images=images.get(variant))

    def outcome(self, variant: str, seed: int) -> Outcome | None:
        """How the run ended; None where it has not."""
        file = self._outcome_file(variant, seed)
        if not file.exists():
            return None
        try:
            return Outcome(**json.loads(file.read_text()))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{file}: is damaged ({error}); remove it, and the run is judged again") from error

    def record(self, variant: str, seed: int, outcome: Outcome) -> None:
        """Keep how the run ended."""
        content = {"ending": outcome.ending, "reason": outcome.reason}
        self._outcome_file(variant, seed).write_text(json.dumps(content) + "\n")

    def _outcome_file(self, variant: str, seed: int) -> Location:
        return self.outcomes / f"{run_name(variant, seed)}.json"


def runs_of(job: CompareJob) -> list[tuple[str, int]]:
    """Variant and seed of every run, seed by seed, so that an unfinished comparison compares."""
    return [(variant, seed) for seed in job.seeds for variant in job.variants]
