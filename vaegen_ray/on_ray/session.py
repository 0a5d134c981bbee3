"""The session of a Ray Train worker."""

import threading
from collections.abc import Mapping

import ray.train
import ray.train.torch
import torch

from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import StorageError

STOP_POLL_S = 1.0


class RaySession:
    """One worker of Ray Train, which has set up torch's process group.

    Nothing is reported to Ray: it keeps no metric without a checkpoint, and its `report` is a barrier of
    seconds. Metrics and checkpoints are in the run directory, where the driver reads them too.
    """

    def __init__(self, run: RunDirectory) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.num_ranks = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        self.stop_signal: int | None = None
        """The signal that the driver was sent."""
        self._run = run
        self._finished = threading.Event()
        if self.rank == 0:
            threading.Thread(target=self._watch_for_stop, name="stop-watch", daemon=True).start()

    def report(self, position: int, metrics: Mapping[str, float]) -> None:
        """The driver reads the run directory."""

    def report_scores(self, position: int, scores: Mapping[str, float]) -> None:
        """The driver reads the run directory."""

    def should_stop(self) -> bool:
        """Whether the driver has asked for it (rank 0 listens for all)."""
        return self.stop_signal is not None

    def close(self) -> None:
        """Listen no more."""
        self._finished.set()

    def _watch_for_stop(self) -> None:
        while not self._finished.wait(STOP_POLL_S):
            try:
                if self._run.stop_request.exists():
                    self.stop_signal = int(self._run.stop_request.read_text())
                    return
            except (StorageError, ValueError):
                continue  # Object stores recover; the next look sees it.
