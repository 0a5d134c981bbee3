"""`vaegen render`."""

from typing import Annotated

import typer

from vaegen_ray import __version__
from vaegen_ray.cli.train import Overrides
from vaegen_ray.config.loading import load_job
from vaegen_ray.render import kuberay, slurm

app = typer.Typer(help="Print what runs a job on a cluster's own scheduler.", no_args_is_help=True)

JobFile = Annotated[str, typer.Argument(metavar="JOB", help="A job file (YAML) of any kind.")]


@app.command("kuberay")
def kuberay_command(
    job_file: JobFile,
    overrides: Overrides = None,
    image: Annotated[str, typer.Option(help="Made from cluster/image/Dockerfile.")] = f"vaegen_ray:{__version__}",
    queue: Annotated[
        str | None, typer.Option(help="A local queue of Kueue, which decides when the job starts.")
    ] = None,
) -> None:
    """Print a RayJob for this job: vaegen render kuberay JOB | kubectl apply -f -."""
    typer.echo(kuberay.render(load_job(job_file, overrides or []), image, queue), nl=False)


@app.command("slurm")
def slurm_command(job_file: JobFile, overrides: Overrides = None) -> None:
    """Print a batch script for this job: vaegen render slurm JOB > train.sbatch && sbatch train.sbatch."""
    typer.echo(slurm.render(load_job(job_file, overrides or [])), nl=False)
