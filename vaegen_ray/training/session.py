"""Where a run runs: the seam between the training core and one process, torchrun, Ray Train or Ray Tune."""

from collections.abc import Mapping
from typing import Protocol

import torch

from vaegen_ray.runs.lease import Fence


class Session(Protocol):
    """One rank of a run. Checkpoints and metrics go to the run directory, the same for every session."""

    @property
    def rank(self) -> int:
        """This process among all; rank 0 writes files."""
        ...

    @property
    def num_ranks(self) -> int:
        """Processes that share each step. With more than one, torch's process group is ready."""
        ...

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        ...

    @property
    def fence(self) -> Fence | None:
        """What the driver holds of the run's lease, for rank 0 to write under; None where this is the driver."""
        ...

    @property
    def evaluates_beside(self) -> bool:
        """Whether somebody else evaluates the models that the run publishes while it trains."""
        ...

    def report(self, position: int, metrics: Mapping[str, float]) -> None:
        """Rank 0 hands over the newest metrics, finite numbers only: a progress bar, a scheduler."""
        ...

    def report_scores(self, position: int, scores: Mapping[str, float]) -> None:
        """Rank 0 hands over an evaluation, which is recorded already: a scheduler may end the run here."""
        ...

    def should_stop(self) -> bool:
        """Whether somebody asked this rank to save a checkpoint and leave: a signal, a preemption, a scheduler.

        May differ between ranks; the loop stops where any rank says so.
        """
        ...

    @property
    def reason_to_stop(self) -> str:
        """Why :meth:`should_stop` holds, in words that complete "started again after ..."; empty where it does not."""
        ...

    @property
    def stop_signal(self) -> int | None:
        """The signal that asked to stop; None where the workers are to go on elsewhere, or as another number."""
        ...
