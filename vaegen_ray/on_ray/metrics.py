"""Metrics for those who operate a cluster: Ray's metrics, which each node exports to Prometheus as ``ray_<name>``."""

from collections.abc import Mapping

from PIL.Image import Image
from ray.util.metrics import Counter, Gauge, Histogram

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.metrics import evaluated_metrics

CHECKPOINT_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Bounds of the histogram. Ray makes its sum of the middles between them: use counts and quantiles."""

LOSS, SCORE = "vaegen_loss", "vaegen_score"
IMAGES_PER_S, POSITION = "vaegen_images_per_s", "vaegen_position_images"
STEP, DATA_WAIT, CHECKPOINT = "vaegen_step_s", "vaegen_data_wait_s", "vaegen_checkpoint_s"
PREEMPTIONS = "vaegen_preemptions_total"
NAMES = (LOSS, SCORE, IMAGES_PER_S, POSITION, STEP, DATA_WAIT, CHECKPOINT, PREEMPTIONS)


class RayMetrics:
    """A tracker of one worker: its own step and wait, and on rank 0 what all workers share.

    Seconds a step and waits are means over the steps of the newest line of metrics.
    """

    def __init__(self, job: TrainJob, rank: int) -> None:
        self._tags = {"run": job.name, "rank": str(rank)}
        self._is_rank_0, self._images_per_step = rank == 0, job.training.images_per_step
        self._last_position: int | None = None
        self._scores = set(evaluated_metrics(job))
        self._loss = Gauge(LOSS, "Loss, or another metric of training, by name", (*self._tags, "name"))
        self._score = Gauge(SCORE, "Score of an evaluation, by name", (*self._tags, "name"))
        self._position = Gauge(POSITION, "Images of the global sequence that have been used", (*self._tags,))
        self._images_per_s = Gauge(IMAGES_PER_S, "Images a second, all workers together", (*self._tags,))
        self._step = Gauge(STEP, "Seconds a step", (*self._tags,))
        self._wait = Gauge(DATA_WAIT, "Seconds of a step that this worker waited for images", (*self._tags,))
        bounds = list(CHECKPOINT_SECONDS)
        self._checkpoint = Histogram(CHECKPOINT, "Seconds to save a checkpoint", bounds, (*self._tags,))

    def scalars(self, record: Mapping[str, float], position: int) -> None:
        """Export the newest values; Prometheus asks for them when it likes."""
        if "training_s" in record:
            self._tell_times(record, position)
        if not self._is_rank_0:
            return
        self._position.set(position, self._tags)
        if "images_per_s" in record:
            self._images_per_s.set(record["images_per_s"], self._tags)
        gauge = self._score if record.keys() <= self._scores else self._loss
        for name, value in record.items():
            if not name.endswith(("_s", "_bytes")):
                gauge.set(value, {**self._tags, "name": name})

    def _tell_times(self, record: Mapping[str, float], position: int) -> None:
        """Of the steps since the last line; the first line's are unknown, for the run may have begun anywhere."""
        waited_s = record.get("input_s", 0.0)
        if self._last_position is not None and position > self._last_position:
            steps = (position - self._last_position) / self._images_per_step
            self._step.set((record["training_s"] + waited_s) / steps, self._tags)
            self._wait.set(waited_s / steps, self._tags)
        self._last_position = position
        if self._is_rank_0 and record.get("checkpoint_s"):
            self._checkpoint.observe(record["checkpoint_s"], self._tags)

    def image(self, name: str, picture: Image, position: int) -> None:
        """Nothing: Prometheus has numbers only."""

    def flush(self) -> None:
        """Nothing: Ray exports by itself."""

    def close(self) -> None:
        """Nothing is to be let go of; the values go with the process."""


def count_preemption(run: str) -> None:
    """Count that the workers of ``run`` had to leave because a node was taken away. Call it in the driver."""
    Counter(PREEMPTIONS, "Times that the workers left because a node was taken away", ("run",)).inc(1, {"run": run})
