"""Keeps a run of many workers going: when to begin with how many, and what to do when they are gone.

Workers leave in three ways: at the end; with a checkpoint, because a node is about to be taken away or there is room
for more of them; or without, because a process or a node died. After the last two they begin again, as many as the
cluster has room for. Ray Train could do some of that, but it resizes without a checkpoint, counts resources that others
use, and waits for ever for what never comes.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import ray.train
from ray.exceptions import RayActorError

from vaegen_ray.config.job import ElasticWorkers, TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import NoRoomError, StorageError, TrainingError, VaegenError, WorkersLostError
from vaegen_ray.on_ray.metrics import count_preemption
from vaegen_ray.on_ray.preflight import WorkerNeeds, autoscaler_places, room_for
from vaegen_ray.training.lineage import newest_checkpoint
from vaegen_ray.training.loop import Ending
from vaegen_ray.training.run import RunResult

logger = logging.getLogger(__name__)

LOOK_S = 0.5
SETTLE_S = 10.0
"""Room for fewer workers than the most is taken after so long: what others let go of shows with a delay."""
SAY_S = 60.0
PATIENCE_S = 1800.0
"""Without room for the fewest workers for so long, the run ends, to be tried again."""

Fit = Callable[[int], RunResult]
"""Train with so many workers until they leave; ray.train.TrainingFailedError when they are lost."""


@dataclass
class Supervisor:
    """Of one run."""

    job: TrainJob
    needs: WorkerNeeds
    workers: int = 0
    """At present; 0 while there are none."""
    _failures: int = 0
    _last_failure: tuple[str, int] | None = None
    _began_at: int = 0
    """Position of the checkpoint from which the present workers began."""
    _next_look_s: float = 0.0
    _had_room: bool = False
    _has_asked: bool = False

    def run(self, fit: Fit) -> RunResult:
        """Train until the run is complete or was asked to stop."""
        run = RunDirectory.of(self.job)
        while True:
            if (count := self._wait_for_room(run)) is None:
                return self._stopped(run)
            run.move_request.remove()
            self._next_look_s = time.monotonic() + self._grow_every_s
            self._began_at, self._had_room, self._has_asked = newest_checkpoint(run), False, False
            self.workers = count
            try:
                result = fit(count)
            except ray.train.TrainingFailedError as error:
                self._note(error, newest_checkpoint(run))
                continue
            finally:
                self.workers = 0
            if result.ending is Ending.COMPLETE or result.stop_signal is not None:
                return result
            if stop_signal(run) is not None:
                return self._stopped(run)
            if not self._has_asked:
                count_preemption(self.job.name)
            logger.warning("the workers have saved at %s images and left; beginning again", f"{result.position:,}")

    def look(self) -> None:
        """To be called about every second while workers train: asks them to leave when there is room for more."""
        is_full = self.workers in (0, self.job.worker_counts[0])
        if is_full or self._has_asked or time.monotonic() < self._next_look_s:
            return
        self._next_look_s = time.monotonic() + self._grow_every_s
        run = RunDirectory.of(self.job)
        more = _choose(self.job, self.workers + room_for(self.needs)) or 0
        # Only what is there at two looks, for a node may have come for somebody else; and only after a checkpoint, for
        # workers that are just starting do not yet hold what they asked for.
        if more > self.workers and self._had_room and self._has_trained(run) and stop_signal(run) is None:
            logger.warning("there is room for %d workers instead of %d", more, self.workers)
            with suppress(StorageError):  # Object stores recover; the next look asks again.
                run.move_request.write_text("")
                self._has_asked = True
        self._had_room = more > self.workers

    def _has_trained(self, run: RunDirectory) -> bool:
        try:
            return newest_checkpoint(run) > self._began_at
        except StorageError:
            return False  # Object stores recover; the next look sees it.

    @property
    def _grow_every_s(self) -> float:
        workers = self.job.resources.workers
        return workers.grow_every_s if isinstance(workers, ElasticWorkers) else float("inf")

    def _wait_for_room(self, run: RunDirectory) -> int | None:
        """As many workers as can begin now; None when the run was asked to stop while it waited."""
        begun_s = time.monotonic()
        said_s = begun_s + SETTLE_S
        _ask_autoscaler(self.job, self.needs)
        while True:
            room, now_s = room_for(self.needs), time.monotonic()
            count = _choose(self.job, room)
            if count is not None and (count == self.job.worker_counts[0] or now_s - begun_s > SETTLE_S):
                return count
            if stop_signal(run) is not None:
                return None
            wanted = f"{self.job.resources.fewest_workers} worker(s) of {self.needs}"
            if now_s - begun_s > PATIENCE_S:
                raise NoRoomError(
                    f"resources.workers: for {PATIENCE_S / 60:.0f} minutes there was no room for {wanted}, only for "
                    f"{room}; run the same command again when there is"
                )
            if count is None and now_s > said_s:
                said_s = now_s + SAY_S
                logger.warning("waiting for room for %s; there is some for %d", wanted, room)
            time.sleep(LOOK_S)

    def _note(self, error: ray.train.TrainingFailedError, position: int) -> None:
        """Count a failure; raise what ends the run."""
        was_preempted, raised = _cause(error)
        if was_preempted:
            count_preemption(self.job.name)
            return
        if isinstance(raised, VaegenError):
            raise raised from error
        problem = None if raised is None else _in_words(raised)
        if problem is not None and (problem, position) == self._last_failure:
            raise TrainingError(
                f"failed twice in the same way after the checkpoint at {position:,} images, so another attempt would "
                f"too: {problem}"
            ) from error
        self._failures += 1
        self._last_failure = (problem, position) if problem is not None else None
        limit = self.job.resources.max_failures
        if self._failures > limit:
            raise WorkersLostError(
                f"the workers failed more often than resources.max_failures ({limit}) allows: {problem or error}"
            ) from error
        logger.warning(
            "workers failed (%d of at most %d times): %s; beginning again at %s images",
            self._failures,
            limit,
            problem or str(error).splitlines()[-1],
            f"{position:,}",
        )

    def _stopped(self, run: RunDirectory) -> RunResult:
        return RunResult(Ending.STOPPED, newest_checkpoint(run), {}, stop_signal=stop_signal(run))


def stop_signal(run: RunDirectory) -> int | None:
    """The signal that somebody asked the run to stop by."""
    try:
        request = run.stop_request.read_text() if run.stop_request.exists() else ""
    except StorageError:
        return None  # Object stores recover; the next look sees it.
    return int(request) if request.isdigit() else None


def _choose(job: TrainJob, room: int) -> int | None:
    """The most workers, of those that divide the global batch, for which there is room."""
    return next((count for count in job.worker_counts if count <= room), None)


def _ask_autoscaler(job: TrainJob, needs: WorkerNeeds) -> None:
    """Have an autoscaler, if there is one, make room for the most workers."""
    if autoscaler_places(needs) < job.resources.fewest_workers:
        return
    from ray.autoscaler.sdk import request_resources

    request_resources(bundles=[needs.as_ray()] * job.resources.most_workers)


def _cause(error: ray.train.TrainingFailedError) -> tuple[bool, BaseException | None]:
    """Whether a node was taken away, and else what the job's code raised; None where processes just died.

    Of several, one of our own first: it is what another attempt would meet again.
    """
    if any(isinstance(cause, RayActorError) and cause.preempted for cause in _failures(error)):
        return True, None
    # What one rank raised breaks the connections of the others; a store that is away is not the job's fault.
    own = [
        cause
        for cause in raised_by_workers(error)
        if not isinstance(cause, StorageError) and (isinstance(cause, VaegenError) or "onnection" not in str(cause))
    ]
    return False, min(own, key=lambda cause: not isinstance(cause, VaegenError), default=None)


def raised_by_workers(error: ray.train.TrainingFailedError) -> list[BaseException]:
    """What the code of the workers raised; nothing for those that just died."""
    # Ray Train keeps it, with the traceback, in an exception of its own.
    return [getattr(cause, "_base_exc", cause) for cause in _failures(error) if not isinstance(cause, RayActorError)]


def _failures(error: ray.train.TrainingFailedError) -> list[BaseException]:
    failures = getattr(error, "worker_failures", {}).values()
    return [getattr(failure, "health_check_failure", failure) for failure in failures]


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
