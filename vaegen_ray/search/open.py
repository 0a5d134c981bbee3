"""A search by its directory, and its trials as jobs: ``STORAGE/NAME``, ``STORAGE/NAME#best``, ``STORAGE/NAME#7``."""

import json
import re
from collections.abc import Sequence
from typing import Any

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.loading import job_of, with_overrides
from vaegen_ray.config.search import SearchJob
from vaegen_ray.errors import CheckpointError, JobError
from vaegen_ray.runs.lease import newest_holder
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.log import read_trials
from vaegen_ray.search.trials import Trials, TrialState
from vaegen_ray.storage import Location

FOLLOW_FROM_THE_LENGTH = ("report_every_images", "checkpoint_every_images", "keep_checkpoints")
TRIAL_OF_A_SEARCH = re.compile(r"(?P<search>.+)#(?P<trial>best|\d+)")


def load_search(directory: SearchDirectory) -> SearchJob:
    """The job of a search's directory."""
    if not directory.job_file.exists():
        raise JobError(f"{directory.root}: must be the directory of a search, found no search.json there")
    try:
        tree = json.loads(directory.job_file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{directory.job_file}: is damaged ({error}); restore it") from error
    job = job_of(tree, str(directory.job_file))
    if not isinstance(job, SearchJob):
        raise JobError(f"{directory.root}: must be the directory of a search, holds kind '{job.kind}'")
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
    # These follow from the number of images, which may be another now.
    training = {key: value for key, value in tree["training"].items() if key not in FOLLOW_FROM_THE_LENGTH}
    return {**tree, "name": f"{search.name}-{number}", "storage": search.storage, "training": training}
