"""What a process on a node begins with: the job as text, and the directory in which the command was given."""

import json
import os

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.loading import job_of


def enter(working_directory: str) -> bool:
    """Go where the paths of the job begin: Ray starts processes elsewhere. False where this node has no such place."""
    if not os.path.isdir(working_directory):
        return False
    os.chdir(working_directory)
    return True


def train_job_from(text: str) -> TrainJob:
    """The job of kind `train` that `dump_job` gave."""
    job = job_of(json.loads(text), "job")
    assert isinstance(job, TrainJob)
    return job
