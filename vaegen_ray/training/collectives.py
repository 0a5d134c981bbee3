"""What ranks tell each other; a run of one rank needs no process group."""

from collections.abc import Callable
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from vaegen_ray.errors import StorageError, VaegenError

T = TypeVar("T")


def num_ranks() -> int:
    """Ranks of the process group; 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_rank_0() -> bool:
    """Whether this process writes files and decides for all."""
    return num_ranks() == 1 or dist.get_rank() == 0


def mean_over_ranks(tensor: Tensor) -> Tensor:
    """The mean of equally shaped tensors, the same on all ranks."""
    return tensor if num_ranks() == 1 else sum_over_ranks(tensor) / num_ranks()


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of equally shaped tensors, the same on all ranks."""
    if num_ranks() == 1:
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate along the first dimension, in the order of ranks; lengths may differ."""
    if num_ranks() == 1:
        return rows
    lengths = [torch.zeros((), dtype=torch.long, device=rows.device) for _ in range(num_ranks())]
    dist.all_gather(lengths, torch.tensor(len(rows), device=rows.device))
    longest = max(int(length) for length in lengths)
    padded = rows.new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(length)] for part, length in zip(parts, lengths, strict=True)])


def gather_objects(value: T) -> list[T]:
    """The small picklable ``value`` of each rank, in the order of ranks."""
    if num_ranks() == 1:
        return [value]
    values: list[T | None] = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]  # all_gather_object has filled every place


def from_rank_0(action: Callable[[], T]) -> T:
    """Do ``action`` on rank 0 alone; its small picklable value, or its failure, on all ranks.

    ``action`` must have no collective in it: where it failed before, the others would wait there.
    """
    answers = [_attempted(action) if is_rank_0() else (None, None)]
    if num_ranks() > 1:
        dist.broadcast_object_list(answers, src=0)
    result, problem = answers[0]
    if problem is not None:
        raise problem
    return cast(T, result)


def sum_over_ranks_async(tensor: Tensor) -> dist.Work:
    """Begin to sum ``tensor`` in place over ranks; it may be read after ``wait()``."""
    return _started(dist.all_reduce(tensor, async_op=True))


def _started(work: dist.Work | None) -> dist.Work:
    assert work is not None  # None is for processes outside of the group.
    return work


def together(action: Callable[[], T]) -> T:
    """Do ``action`` on every rank; if it fails on any, raise that failure on all, so that none waits for another.

    ``action`` must have no collective in it.
    """
    result, problem = _attempted(action)
    failures = [failure for failure in gather_objects(problem) if failure is not None]
    if failures:
        raise failures[0]
    return cast(T, result)


def _attempted(action: Callable[[], T]) -> tuple[T | None, VaegenError | None]:
    try:
        return action(), None
    except VaegenError as error:
        return None, error
    except OSError as error:  # Of a tracker whose disk is full, for one.
        return None, StorageError(str(error))


class StopVote:
    """Whether any rank wants to stop, asked at every step and answered at the next.

    The answer travels beside the step, on the CPU, so it costs neither a wait nor a synchronisation of the
    accelerator; all ranks hear the same answer at the same step.
    """

    def __init__(self) -> None:
        self._group: dist.ProcessGroup | None = None
        if num_ranks() > 1:
            self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))
        self._pending: tuple[Tensor, dist.Work] | None = None

    def cast(self, wants_to_stop: bool) -> bool:  # noqa: FBT001 (a vote is a yes or a no)
        """Cast this step's vote; returns the result of the last step's."""
        if self._group is None:
            return wants_to_stop
        answer = False
        if self._pending is not None:
            votes, work = self._pending
            work.wait()
            answer = bool(votes.item())
        votes = torch.tensor(int(wants_to_stop))
        self._pending = votes, _started(dist.all_reduce(votes, group=self._group, async_op=True))
        return answer

    def close(self) -> None:
        """Wait for the last vote, so that no rank leaves while another still listens; there is none after it."""
        if self._pending is not None:
            self._pending[1].wait()
            self._pending = None
        if self._group is not None:
            dist.destroy_process_group(self._group)
