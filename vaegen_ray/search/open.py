"""A search by its directory, and its trials as jobs: ``STORAGE/NAME``, ``STORAGE/NAME#best``, ``STORAGE/NAME#7``."""

import re
from collections.abc import Sequence
from typing import Any

from vaegen_ray.config.compare import without_intervals
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.loading import job_of, load_resolved, with_overrides
from vaegen_ray.config.search import SearchJob
from vaegen_ray.errors import JobError
from vaegen_ray.runs.lease import newest_holder
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.log import read_trials
from vaegen_ray.search.trials import Trials, TrialState
from vaegen_ray.storage import Location

SET_FOR_POPULATIONS = ("checkpoint_every_images", "keep_checkpoints")
"""By the search, which copies trials; alone a trial has those of the base job."""
TRIAL_OF_A_SEARCH = re.compile(r"(?P<search>.+)#(?P<trial>best|\d+)")


def load_search(directory: SearchDirectory) -> SearchJob:
    """The job of a search's directory."""
    job = load_resolved(directory.job_file, SearchJob, "a search")
    if job.name != directory.root.name:
        raise JobError(
            f"{directory.root}: holds the search '{job.name}', whose trials know it by that name; rename the directory "
            "back"
        )
    # The job's own `storage` may begin in another working directory, or be where the search was before.
    return job.model_copy(update={"storage": directory.root.parent.url})


def current_trials(directory: SearchDirectory) -> Trials:
    """The trials of the log; what runs there is interrupted, where nobody drives the search."""
    trials = read_trials(directory)
    if trials.by_state[TrialState.RUNNING] and newest_holder(directory.lease) is None:
        trials.interrupt()
    return trials


def is_trial_of_a_search(path: str) -> bool:
    """Whether ``path`` names a trial: a search's directory, `#`, and `best` or the trial's number."""
    return TRIAL_OF_A_SEARCH.fullmatch(path) is not None


def load_trial(path: str, overrides: Sequence[str] = ()) -> TrainJob:
    """The train job of the trial that ``path`` names, with ``key=value`` overrides, as a run beside the search."""
    job = job_of(with_overrides(_trial_tree(path), overrides), path)
    assert isinstance(job, TrainJob)
    return job


def _trial_tree(path: str) -> dict[str, Any]:
    match = TRIAL_OF_A_SEARCH.fullmatch(path)
    assert match is not None
    directory = SearchDirectory(Location.of(match["search"]))
    search, trials = load_search(directory), read_trials(directory)
    if match["trial"] == "best":
        from vaegen_ray.search.leaderboard import leaderboard  # Needs NumPy, which no check of a job waits for.

        number = leaderboard(search, trials).best
        if number is None:
            raise JobError(f"{path}: no trial of {directory.root} is fully trained yet; see `vaegen leaderboard`")
    else:
        number = int(match["trial"])
        if number not in trials.by_number:
            raise JobError(f"{path}: must name one of the trials 0 to {len(trials) - 1}; see `vaegen leaderboard`")
    tree = directory.run(number).load_job().model_dump(mode="json")
    own = search.base.training.model_dump(mode="json")
    training = {**tree["training"], **{key: own[key] for key in SET_FOR_POPULATIONS}}
    job = {**tree, "name": f"{search.name}-{number}", "storage": search.storage, "training": training}
    return without_intervals(job)
