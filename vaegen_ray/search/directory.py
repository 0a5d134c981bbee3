"""The one place that knows what a search's directory contains."""

from dataclasses import dataclass

from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.config.search import SearchJob
from vaegen_ray.storage import Location

TIME_BUDGET = "time budget"
"""What the request to stop says where it comes from the search's own time budget."""


@dataclass(frozen=True)
class SearchDirectory:
    """``<storage>/<name>/`` on a local disk or in an object store."""

    root: Location

    @classmethod
    def of(cls, job: SearchJob) -> "SearchDirectory":
        """The directory of ``job``."""
        return cls(Location.of(job.storage) / job.name)

    @property
    def job_file(self) -> Location:
        """The resolved job."""
        return self.root / "search.json"

    @property
    def log(self) -> Location:
        """Segments of the append-only record of all trials."""
        return self.root / "log"

    @property
    def study(self) -> Location:
        """Optuna's journal."""
        return self.root / "study.journal"

    @property
    def trials(self) -> Location:
        """The ``storage`` of the trials' train jobs: one run directory each."""
        return self.root / "trials"

    @property
    def forks(self) -> Location:
        """States at the adversarial start that trials share."""
        return self.root / "forks"

    @property
    def stop_request(self) -> Location:
        """Asks the search to stop, its trials with a checkpoint each."""
        return self.root / "stop"

    @property
    def lock(self) -> Location:
        """Held by the process that searches, where the directory is local."""
        return self.root / ".lock"

    @property
    def lease(self) -> Location:
        """Who may drive this search: one file for each driver that it had."""
        return self.root / "lease"

    @property
    def logs(self) -> Location:
        """One folder for each attempt of a submission, with what its processes printed."""
        return self.root / "logs"

    def run(self, number: int) -> RunDirectory:
        """The run of a trial."""
        return RunDirectory(self.trials / trial_name(number))


def trial_name(number: int) -> str:
    """The name of a trial's run."""
    return f"trial-{number:05d}"
