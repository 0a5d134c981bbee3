"""`vaegen prepare`: make a dataset in the project's format."""

import importlib.util
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vaegen_ray.cli.console import counting_bar
from vaegen_ray.config.loading import load_prepare_job
from vaegen_ray.config.prepare import PrepareJob

if TYPE_CHECKING:
    from vaegen_ray.data.prepare import PrepareSummary
    from vaegen_ray.data.prepare import Progress as OnProgress

JobFile = Annotated[str, typer.Argument(metavar="JOB", help="Job file of kind `prepare`.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the job, such as image.size=32."),
]


def prepare_command(
    job_file: JobFile,
    overrides: Overrides = None,
    local: Annotated[bool, typer.Option("--local", help="Without Ray: in this process.")] = False,  # noqa: FBT002
) -> None:
    """Convert images from a folder, tar shards, Parquet or torchvision into a dataset that `vaegen train` reads.

    On Ray where it is installed; with or without it the files are the same. Killed, the same command goes on.
    """
    job = load_prepare_job(job_file, overrides or ())
    with counting_bar() as progress:
        bar = progress.add_task(job.name, total=None)
        summary = _prepare(job, lambda done, total: progress.update(bar, completed=done, total=total), local=local)
    # Not rich's markup: the names of images may hold brackets.
    Console().print(str(summary), markup=False, highlight=False, soft_wrap=True)


def _prepare(job: PrepareJob, on_progress: "OnProgress", *, local: bool) -> "PrepareSummary":
    if local or importlib.util.find_spec("ray") is None:
        from vaegen_ray.data.prepare import prepare

        return prepare(job, on_progress)
    from vaegen_ray.on_ray.prepare import prepare_on_ray

    return prepare_on_ray(job, on_progress)
