"""Metrics and pictures on an MLflow server (the extra `mlflow`)."""

import importlib
import time
from collections.abc import Mapping
from typing import Any

from PIL.Image import Image

from vaegen_ray.config.job import Mlflow, TrainJob
from vaegen_ray.config.settings import flat
from vaegen_ray.errors import JobError
from vaegen_ray.storage import Location


def import_mlflow() -> Any:
    """The package, which has no types; JobError where it is not installed."""
    try:
        return importlib.import_module("mlflow")
    except ImportError as error:
        raise JobError(
            "tracking.mlflow: needs the package mlflow, which is not installed; `uv sync --extra mlflow`, or "
            "`pip install 'vaegen_ray[mlflow]'`"
        ) from error


class MlflowTracker:
    """One MLflow run for all starts of a run of ours: its id is kept in ``id_file``.

    Steps are positions. MLflow keeps what an earlier start wrote beyond the position at which this one
    begins; the same positions are written again as they are reached.
    """

    def __init__(self, settings: Mlflow, job: TrainJob, id_file: Location) -> None:
        mlflow = import_mlflow()
        self._entities = mlflow.entities
        self._client = mlflow.MlflowClient(tracking_uri=settings.tracking_uri)
        if id_file.exists():
            self._run_id = id_file.read_text().strip()
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            self._run_id = self._create_run(settings.experiment, job)
            id_file.write_text(self._run_id + "\n")

    def scalars(self, record: Mapping[str, float], position: int) -> None:
        """One batch of metrics."""
        now_ms = int(time.time() * 1000)
        metric = self._entities.Metric
        self._client.log_batch(
            self._run_id, metrics=[metric(name, value, now_ms, position) for name, value in record.items()]
        )

    def image(self, name: str, picture: Image, position: int) -> None:
        """A PNG file ``<name>/images-<position>.png`` among the run's artifacts."""
        self._client.log_image(self._run_id, picture, artifact_file=f"{name}/images-{position:012d}.png")

    def flush(self) -> None:
        """Nothing: each call above returns when the server has it."""

    def close(self) -> None:
        """Mark the MLflow run as finished; a resume opens it again."""
        self._client.set_terminated(self._run_id)

    def _create_run(self, experiment_name: str, job: TrainJob) -> str:
        experiment = self._client.get_experiment_by_name(experiment_name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(experiment_name)
        run_id = str(self._client.create_run(experiment_id, run_name=job.name).info.run_id)
        parameters = [self._entities.Param(key, str(value)) for key, value in flat(job.model_dump(mode="json")).items()]
        self._client.log_batch(run_id, params=parameters)
        return run_id
