"""`vaegen validate`."""

from typing import Annotated

import typer
from rich.console import Console

from vaegen_ray.cli.train import Overrides
from vaegen_ray.config.loading import load_job
from vaegen_ray.errors import JobError


def validate(
    job_files: Annotated[list[str], typer.Argument(metavar="JOB...", help="Job files (YAML).")],
    overrides: Overrides = None,
) -> None:
    """Check job files: every key, type, range and rule between keys. Starts nothing."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    problems = []
    for job_file in job_files:
        try:
            job = load_job(job_file, overrides or [])
        except JobError as error:
            problems.append(str(error))
        else:
            console.print(f"{job_file}: a valid {job.kind} job named '{job.name}'")
    if problems:
        raise JobError("\n".join(problems))
