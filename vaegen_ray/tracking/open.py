"""The trackers of a run, as its job asks."""

from collections.abc import Callable

from vaegen_ray.config.job import Tracking, TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.tracking.json_lines import JsonLines
from vaegen_ray.tracking.mlflow import MlflowTracker, import_mlflow
from vaegen_ray.tracking.tensorboard import TensorBoardTracker
from vaegen_ray.tracking.tracker import Tracker, Trackers
from vaegen_ray.tracking.wandb import WandbTracker, import_wandb


def check_tracking(settings: Tracking) -> None:
    """Raise JobError now, before anything is launched, where a package that the job asks for is missing."""
    if settings.mlflow is not None:
        import_mlflow()
    if settings.wandb is not None:
        import_wandb()


def open_trackers(job: TrainJob, run: RunDirectory, position: int, check_writer: Callable[[], None]) -> Trackers:
    """All trackers of ``run``, to go on at ``position`` images (0 for a new run). Call it on rank 0 only."""
    lines = JsonLines(run.metrics, position, check_writer)
    trackers: list[Tracker] = [lines, TensorBoardTracker(run.tensorboard, position)]
    if job.tracking.mlflow is not None:
        trackers.append(MlflowTracker(job.tracking.mlflow, job, run.root / "mlflow_run_id"))
    if job.tracking.wandb is not None:
        trackers.append(WandbTracker(job.tracking.wandb, job, run.root / "wandb_run_id"))
    return Trackers(trackers)
