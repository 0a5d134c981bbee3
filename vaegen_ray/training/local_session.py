"""A run without Ray: in this process, or in each of the processes that torchrun started."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist

from vaegen_ray.errors import TrainingError

PROCESS_GROUP_TIMEOUT = timedelta(hours=2)
"""Nodes may differ by that much in the time to fill their caches."""

OnReport = Callable[[int, Mapping[str, float]], None]


class LocalSession:
    """One rank. SIGTERM and Ctrl-C ask it to save and leave; a second Ctrl-C leaves at once."""

    def __init__(self, rank: int, num_ranks: int, device: torch.device) -> None:
        self.rank, self.num_ranks, self.device = rank, num_ranks, device
        self.evaluates_beside = False
        self.stop_signal: int | None = None
        """The signal that asked to stop."""
        self.fence: None = None
        """This process takes the run's lease."""
        self.on_report: OnReport | None = None
        """Takes rank 0's metrics."""

    def report(self, position: int, metrics: Mapping[str, float]) -> None:
        """Hand the metrics to whoever watches."""
        if self.on_report is not None:
            self.on_report(position, metrics)

    def report_scores(self, position: int, scores: Mapping[str, float]) -> None:
        """Hand the scores to whoever watches."""
        self.report(position, scores)

    def should_stop(self) -> bool:
        """Whether a signal has come."""
        return self.stop_signal is not None

    @property
    def reason_to_stop(self) -> str:
        """The signal."""
        return "" if self.stop_signal is None else by_signal(self.stop_signal)

    def stop(self, signal_number: int, _frame: FrameType | None = None) -> None:
        """Ask the loop to save and leave (a signal handler)."""
        self.stop_signal = signal_number
        signal.signal(signal.SIGINT, signal.default_int_handler)


def by_signal(number: int) -> str:
    """The reason to stop where a signal asked for it."""
    return f"a stop that was asked for ({signal.Signals(number).name})"


@contextmanager
def local_session() -> Iterator[LocalSession]:
    """The session of this process; under torchrun, of its rank, with a process group.

    Signals are taken over for the time of the session.
    """
    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    rank, rank_of_node = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
    device = _device(rank_of_node)
    session = LocalSession(rank, num_ranks, device)
    if num_ranks > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PROCESS_GROUP_TIMEOUT)
    before = {number: signal.signal(number, session.stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield session
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if dist.is_initialized():
            dist.destroy_process_group()


def _device(rank_of_node: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if rank_of_node >= torch.cuda.device_count():
        raise TrainingError(
            f"torchrun --nproc-per-node: must be at most the {torch.cuda.device_count()} GPUs of this machine, "
            f"got rank {rank_of_node} of the node; start fewer processes"
        )
    torch.cuda.set_device(rank_of_node)
    return torch.device("cuda", rank_of_node)
