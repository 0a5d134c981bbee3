"""The session of a Ray Train worker."""

import logging
import threading
from collections.abc import Mapping

import ray
import ray.train
import ray.train.torch
import torch

from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import StorageError
from vaegen_ray.on_ray.preflight import draining_nodes
from vaegen_ray.runs.lease import Fence
from vaegen_ray.training.local_session import by_signal

logger = logging.getLogger(__name__)

STOP_POLL_S = 1.0
DRAIN_POLL_S = 1.0

GPU_MEMORY_MARGIN = 0.95
"""Of its fraction of a GPU's memory, what a process's tensors may take; CUDA itself needs the rest."""


def keep_to_share(device: torch.device, gpus: float | None) -> None:
    """Have this process want for memory itself, where it would take that of others on the same GPU."""
    if device.type == "cuda" and gpus is not None and gpus < 1:
        torch.cuda.set_per_process_memory_fraction(gpus * GPU_MEMORY_MARGIN)


class RaySession:
    """One worker of Ray Train, which has set up torch's process group.

    Nothing is reported to Ray: it keeps no metric without a checkpoint, and its `report` is a barrier of
    seconds. Metrics and checkpoints are in the run directory, where the driver reads them too.
    """

    def __init__(self, run: RunDirectory, fence: Fence, *, evaluates_beside: bool = False) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.num_ranks = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        self.fence, self.evaluates_beside = fence, evaluates_beside
        self.stop_signal: int | None = None
        """The signal that the driver was sent."""
        self._run = run
        self._reason_to_move = ""
        self._moves, self._finished = threading.Event(), threading.Event()
        if self.rank == 0:
            threading.Thread(target=self._watch_for_stop, name="stop-watch", daemon=True).start()
        if context.get_local_rank() == 0:
            threading.Thread(target=self._watch_for_drain, name="drain-watch", daemon=True).start()

    def report(self, position: int, metrics: Mapping[str, float]) -> None:
        """The driver reads the run directory."""

    def report_scores(self, position: int, scores: Mapping[str, float]) -> None:
        """The driver reads the run directory."""

    def should_stop(self) -> bool:
        """Whether the driver has asked for it (rank 0 listens for all), or this node is about to be taken away."""
        return self.stop_signal is not None or self._moves.is_set()

    @property
    def reason_to_stop(self) -> str:
        """A signal to the driver, a node that goes, or room for more workers."""
        return by_signal(self.stop_signal) if self.stop_signal is not None else self._reason_to_move

    def close(self) -> None:
        """Listen no more."""
        self._finished.set()

    def _watch_for_stop(self) -> None:
        while not self._finished.wait(STOP_POLL_S):
            try:
                if self._run.stop_request.exists():
                    self.stop_signal = int(self._run.stop_request.read_text())
                    return
                if not self._moves.is_set() and self._run.move_request.exists():
                    self._reason_to_move = "a pause to go on with more workers"
                    self._moves.set()
            except (StorageError, ValueError):
                continue  # Object stores recover; the next look sees it.

    def _watch_for_drain(self) -> None:
        """Ask to leave, with a checkpoint, once Ray has been told that this node will go: a spot instance reclaimed.

        Ray Train's own way would train on until the node is gone, and lose what came after the checkpoint.
        """
        here = ray.get_runtime_context().get_node_id()
        while not self._finished.wait(DRAIN_POLL_S):
            try:
                drains = here in draining_nodes()
            except Exception:  # A head that begins again answers later.
                logger.debug("Ray does not say which nodes are to go", exc_info=True)
                continue
            if drains:
                self._reason_to_move = "a preemption: a node was about to be taken away"
                self._moves.set()
                return
