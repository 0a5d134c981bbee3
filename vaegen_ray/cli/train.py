"""`vaegen train`."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.loading import load_train_job
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.runs.lease import SUBMISSION
from vaegen_ray.search.open import is_trial_of_a_search, load_trial

if TYPE_CHECKING:
    from vaegen_ray.training.run import RunResult

JobFile = Annotated[
    str, typer.Argument(metavar="JOB", help="A job file (YAML), or a trial: STORAGE/SEARCH#best, STORAGE/SEARCH#7.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a setting of the job; repeatable.")
]


def train(
    job_file: JobFile,
    overrides: Overrides = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Short for --set resources.workers=N.")] = None,
    local: Annotated[  # noqa: FBT002 (typer's way to write a flag)
        bool, typer.Option("--local", help="Without Ray: in this process, or in those that torchrun started.")
    ] = False,
) -> None:
    """Train a job, or go on with it where it was: resume is the same command.

    One worker runs in this process, more on Ray Train.
    """
    settings = [*(overrides or [])] + ([f"resources.workers={workers}"] if workers is not None else [])
    job = load_trial(job_file, settings) if is_trial_of_a_search(job_file) else load_train_job(job_file, settings)
    # Imported only now: a mistake in the job should not cost the seconds that importing torch takes.
    from vaegen_ray.training.run import check_train_job, finished_result

    console = Console(markup=False)
    result = finished_result(job)
    if result is None:
        check_train_job(job)
        # torchrun takes `--local` for an option of its own, so its processes need not be told.
        # The driver of a submission sits on the head, which has no GPU and is to train nothing.
        wants_ray = job.resources.needs_ray or SUBMISSION in os.environ
        on_ray = wants_ray and not local and "TORCHELASTIC_RUN_ID" not in os.environ
        result = _train_on_ray(job, console) if on_ray else _train_here(job, console)
    if result is not None and os.environ.get("RANK", "0") == "0":
        print_result(job, result, console)
    if result is not None and result.stop_signal is not None:
        raise typer.Exit(128 + result.stop_signal)


def _train_here(job: TrainJob, console: Console) -> "RunResult | None":
    """Train in this process; the result on rank 0, None on the other ranks of torchrun."""
    from vaegen_ray.cli.progress import TrainingProgress
    from vaegen_ray.training.local_session import local_session
    from vaegen_ray.training.run import run_training

    with local_session() as session:
        if session.rank > 0:
            run_training(job, session, sys.argv)
            return None
        with TrainingProgress(job.training.total_images, console) as progress:
            session.on_report = progress.update
            return run_training(job, session, sys.argv)


def _train_on_ray(job: TrainJob, console: Console) -> "RunResult":
    from vaegen_ray.cli.progress import TrainingProgress
    from vaegen_ray.on_ray.train import train_on_ray

    with TrainingProgress(job.training.total_images, console) as progress:
        return train_on_ray(job, on_report=progress.update, command=sys.argv)


def print_result(job: TrainJob, result: "RunResult", console: Console) -> None:
    """Say how the run ended, what it scored, and where everything is."""
    from vaegen_ray.cli.evaluate import scores_table
    from vaegen_ray.training.loop import Ending

    run = RunDirectory.of(job)
    if result.ending is Ending.STOPPED:
        console.print(
            f"stopped at {result.position:,} of {job.training.total_images:,} images; the checkpoint is "
            f"{run.checkpoint(result.position)}. Run the same command again to go on.",
            soft_wrap=True,
        )
        return
    if result.was_complete_before:
        console.print(f"The run '{job.name}' is complete already; nothing was trained.", soft_wrap=True)
    console.print(scores_table(result.scores, f"{job.name}: against held-out images"))
    places = {"samples": run.picture("samples", result.position), "metrics": run.metrics, "model": run.final}
    if "reconstruction_psnr" in result.scores:
        places["reconstructions"] = run.picture("reconstructions", result.position)
    for name, place in sorted(places.items(), reverse=True):
        console.print(f"{name + ':':17}{place}", soft_wrap=True, highlight=False)
