"""Metrics and pictures on Weights & Biases (the extra `wandb`)."""

import importlib
from collections.abc import Mapping
from typing import Any

from PIL.Image import Image

from vaegen_ray.config.job import TrainJob, WandB
from vaegen_ray.errors import JobError
from vaegen_ray.storage import Location


def import_wandb() -> Any:
    """The package, imported only on request; JobError where it is not installed."""
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise JobError(
            "tracking.wandb: needs the package wandb, which is not installed; `uv sync --extra wandb`, or "
            "`pip install 'vaegen_ray[wandb]'`"
        ) from error


class WandbTracker:
    """One W&B run for all starts of a run of ours: its id is kept in ``id_file``.

    The horizontal axis is the metric ``position``, because W&B's own step may never fall, and after a resume
    the position does.
    """

    def __init__(self, settings: WandB, job: TrainJob, id_file: Location) -> None:
        self._wandb = import_wandb()
        run_id = id_file.read_text().strip() if id_file.exists() else self._wandb.util.generate_id()
        self._run = self._wandb.init(
            project=settings.project,
            entity=settings.entity,
            id=run_id,
            name=job.name,
            resume="allow",
            config=job.model_dump(mode="json"),
        )
        self._run.define_metric("position")
        self._run.define_metric("*", step_metric="position")
        id_file.write_text(run_id + "\n")

    def scalars(self, record: Mapping[str, float], position: int) -> None:
        """One point a metric."""
        self._run.log({**record, "position": position})

    def image(self, name: str, picture: Image, position: int) -> None:
        """One picture under ``name``."""
        self._run.log({name: self._wandb.Image(picture), "position": position})

    def flush(self) -> None:
        """Nothing: W&B writes to its own process, which outlives a kill of this one."""

    def close(self) -> None:
        """Wait until everything is uploaded."""
        self._run.finish()
