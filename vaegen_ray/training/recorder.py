"""What is kept of a run while it trains: metrics, pictures, scores and checkpoints, each when it is due."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.evaluation.evaluate import evaluate
from vaegen_ray.evaluation.trained_model import save_trained_model
from vaegen_ray.models.generator import Generator
from vaegen_ray.objectives.objective import Batch
from vaegen_ray.runs.lease import BEAT_S, Fence
from vaegen_ray.runs.records import read_incidents
from vaegen_ray.storage import Location
from vaegen_ray.tracking.json_lines import read_metrics
from vaegen_ray.tracking.tracker import Tracker
from vaegen_ray.training.beside import Published, copy_model
from vaegen_ray.training.best import BestEvaluation
from vaegen_ray.training.checkpoint import save_checkpoint
from vaegen_ray.training.collectives import from_rank_0, gather_rows, is_rank_0, sum_over_ranks, together
from vaegen_ray.training.grids import save_grids
from vaegen_ray.training.guard import FiniteGuard
from vaegen_ray.training.incidents import RollBack, record_stop, record_warning
from vaegen_ray.training.reporting import Activity, MetricMeans, Rate, TimeSpent, peak_memory_bytes
from vaegen_ray.training.session import Session
from vaegen_ray.training.state import TrainState
from vaegen_ray.training.watchdog import Incident, Watchdog, rollback_factors, watchdog_after


class Recorder:
    """Writes on rank 0; on the other ranks it takes part in the collectives only.

    What cannot be written fails on all ranks alike: left alone, the others would wait, or fail with less to say.
    """

    def __init__(
        self,
        job: TrainJob,
        session: Session,
        run: RunDirectory,
        tracker: Tracker | None,
        held_out: NDArray[np.uint8],
        fence: Fence | None,
        fingerprint: str | None = None,
        own_tracker: Tracker | None = None,
    ) -> None:
        """``tracker`` and ``fence`` are of rank 0, None on the others; ``own_tracker`` is of this rank, whichever.

        Under the ``fingerprint`` of the dataset the features of its images are kept in storage.
        """
        self.job, self.session, self.run = job, session, run
        self.tracker, self.held_out, self.fence = tracker, held_out, fence
        self._fingerprint, self._own_tracker = fingerprint, own_tracker
        self._fence_checked_s = time.monotonic()
        self.saved_at: int | None = None
        """Position of the newest checkpoint that this process wrote or began from."""
        self._means = MetricMeans()
        self._rate: Rate | None = None
        self._time = TimeSpent()
        self._watchdog = Watchdog(job)
        self._published: Published | None = None
        self._best: BestEvaluation | None = None
        self._is_over = False
        """Whether nothing is trained any more."""

    def begin(self, position: int) -> None:
        """Go on at ``position``: with what an earlier start noticed and evaluated, and what it left to be evaluated."""
        if self.session.evaluates_beside:
            self._published = Published(self.job, self.run, position)
        if self.job.evaluation.best is not None:
            pending = self._published.pending if self._published is not None else ()
            self._best = BestEvaluation(self.job.evaluation.best, self.run, position, pending)
        self._watchdog = from_rank_0(
            lambda: watchdog_after(self.job, read_metrics(self.run), position, read_incidents(self.run))
        )
        self.saved_at = position or None

    def next_images(self, batches: Iterator[Tensor]) -> Tensor:
        """The images of the next step; the time that they keep the step waiting is input's."""
        with self._time.on("input"):
            return next(batches)

    def after_step(self, state: TrainState, batch: Batch, guard: FiniteGuard) -> None:
        """Do what has become due with this step."""
        training = self.job.training
        self._means.add(batch.metrics)
        if self._rate is None:
            self._rate = Rate(state.position)  # The first step warms up, and would spoil the rate.
        is_last = state.position >= training.total_images
        if is_last or self._is_due(training.report_every_images, state.position):
            self.report(state, guard)
        if not is_last and self._is_due(self.job.evaluation.every_images, state.position):
            if self._published is not None:
                self._evaluate_beside(state)
            else:
                self.evaluate(state)
        if is_last or self._is_due(training.checkpoint_every_images, state.position):
            self.checkpoint(state, guard)

    def report(self, state: TrainState, guard: FiniteGuard) -> None:
        """Write a line of metrics: means since the last line."""
        guard.check()
        metrics = self._means.take()
        if self._rate is not None and state.position > self._rate.position:
            metrics["images_per_s"] = self._rate.take(state.position)
        metrics["learning_rate"] = float(state.phases[0].optimizer.param_groups[0]["lr"])
        metrics |= self._time.take()
        metrics["peak_memory_bytes"] = peak_memory_bytes(self.session.device)
        from_rank_0(self._check_fence_now_and_then)
        together(partial(self._record, metrics, state.position))
        if is_rank_0():
            self.session.report(state.position, metrics)
        self._is_over = state.position >= self.job.training.total_images
        self._watch(metrics, state.position)

    def evaluate(self, state: TrainState, *, is_last: bool = False) -> dict[str, float]:
        """Scores of the moving average against held-out images, and its pictures."""
        self._is_over = is_last
        with self._clock_stopped("evaluation"):
            self._take_published()
            generator = state.ema.generator
            scores = evaluate(
                generator,
                self.held_out,
                self.job,
                device=self.session.device,
                rank=self.session.rank,
                num_ranks=self.session.num_ranks,
                gather=gather_rows,
                total=sum_over_ranks,
                fingerprint=self._fingerprint,
            )
            # Computed on unlike devices they may differ in the last bit, and what they decide is decided by all.
            scores = from_rank_0(partial(dict, scores))
            from_rank_0(partial(self._save_grids, generator, state.position, is_last=is_last))
            self._count_in(
                scores, state.position, lambda best: save_trained_model(generator, self.job, best, state.position)
            )
        return scores

    def _save_grids(self, generator: Generator, position: int, *, is_last: bool) -> None:
        if self.tracker is None:
            return
        device = self.session.device
        grids = save_grids(generator, self.held_out, self.job, self.run, position, device, is_last=is_last)
        for name, grid in grids.items():
            self.tracker.image(name, grid, position)

    def _evaluate_beside(self, state: TrainState) -> None:
        """Take the scores of the model before, and publish this one; in line where nobody measures."""
        assert self._published is not None
        with self._clock_stopped("evaluation"):
            self._take_published()
            if self._published.is_open():
                self._published.publish(state.ema.generator, state.position)
                return
        self.evaluate(state)

    def _take_published(self) -> None:
        """Count in the scores of all models that were published, waiting for them where they are not there."""
        if self._published is None:
            return
        for position, scores in self._published.take():
            folder = self.run.evaluation(position)
            self._count_in(scores, position, partial(copy_model, folder))
            from_rank_0(partial(self._forget_published, position))

    def _forget_published(self, position: int) -> None:
        if self.tracker is not None and self._published is not None:
            self.tracker.flush()  # With the folder its scores would be gone.
            self._published.forget(position)

    def _count_in(self, scores: dict[str, float], position: int, save_model: Callable[[Location], None]) -> None:
        """Everything that an evaluation decides; ``save_model`` writes its model into a folder."""
        together(partial(self._record, scores, position))
        if is_rank_0():
            self.session.report_scores(position, scores)
        if self._best is not None and position > 0 and self._best.is_better(scores):
            from_rank_0(partial(self._keep_best, self._best, position, scores, save_model))
        self._watch(scores, position)

    def _keep_best(
        self, best: BestEvaluation, position: int, scores: dict[str, float], save_model: Callable[[Location], None]
    ) -> None:
        save_model(self.run.best)
        best.keep_scores(position, scores)

    @property
    def has_converged(self) -> bool:
        """Whether the evaluations have been no better for as long as the job has patience."""
        return self._best is not None and self._best.is_over

    def checkpoint(self, state: TrainState, guard: FiniteGuard) -> None:
        """Save the state, once it is known to be finite and the same on all ranks."""
        guard.check()
        state.check_replicas()
        if state.position == self.saved_at:
            return  # Written in place again, a kill could take the run's only checkpoint.
        self.saved_at = state.position
        with self._clock_stopped("checkpoint"):
            from_rank_0(partial(self._save_checkpoint, state))

    def _save_checkpoint(self, state: TrainState) -> None:
        if self.tracker is not None:
            self.tracker.flush()
        if self.fence is not None:
            self.fence.check()
            keep = self.job.training.keep_checkpoints
            spare_at = self._watchdog.oldest_good_position()
            save_checkpoint(state, self.run, keep=keep, fence=self.fence.number, spare_at=spare_at)

    def _record(self, metrics: Mapping[str, float], position: int) -> None:
        """Give ``metrics`` to the trackers."""
        for tracker in (self.tracker, self._own_tracker):
            if tracker is not None:
                tracker.scalars(metrics, position)

    def _check_fence_now_and_then(self) -> None:
        """Not at each report, for it asks the store."""
        if self.fence is not None and time.monotonic() - self._fence_checked_s > BEAT_S:
            self._fence_checked_s = time.monotonic()
            self.check_fence()

    @property
    def rollback_factors(self) -> dict[str, float]:
        """What the rollbacks so far multiply: dotted path to factor; the same on all ranks."""
        return rollback_factors(self._watchdog.incidents)

    def check_fence(self) -> None:
        """Raise LeaseLostError where somebody else writes the run now; asks on rank 0."""
        if self.fence is not None:
            self.fence.check()

    def rolled_back(self, tracker: Tracker | None, position: int, incident: Incident) -> None:
        """Go on from ``position``, with a tracker that has forgotten what came after it."""
        self.tracker = tracker
        self.begin(position)
        self._means, self._rate, self._time = MetricMeans(), None, TimeSpent()
        evidence = {"rolled_back_from_images": float(incident.position)} | _evidence(incident)
        from_rank_0(lambda: tracker.scalars(evidence, position) if tracker is not None else None)

    def close(self) -> None:
        """Close the tracker."""
        if self.tracker is not None:
            self.tracker.close()

    def _watch(self, metrics: Mapping[str, float], position: int) -> None:
        """Do what the watchdog's rules ask for; raises RollBack or CollapsedError, on all ranks alike.

        A run that has come to its end is only warned of: its result is there.
        """
        for incident in self._watchdog.look(position, metrics):
            from_rank_0(partial(self._keep_evidence, incident, position))
            action = "warn" if self._is_over else self.job.watchdog.rules()[incident.rule].action
            if action == "roll_back":
                raise RollBack(incident)
            if action == "stop":
                raise from_rank_0(partial(record_stop, self.run, incident))
            from_rank_0(partial(record_warning, self.run, incident))

    def _keep_evidence(self, incident: Incident, position: int) -> None:
        if self.tracker is not None:
            self.tracker.scalars(_evidence(incident), position)

    def _is_due(self, every_images: int | None, position: int) -> bool:
        """Whether the step that ended at ``position`` has crossed a multiple of ``every_images``."""
        if every_images is None:
            return False
        return position // every_images > (position - self.job.training.images_per_step) // every_images

    @contextmanager
    def _clock_stopped(self, activity: Activity) -> Iterator[None]:
        """Time that is not training's stays out of the images a second."""
        if self._rate is not None:
            self._rate.stop()
        with self._time.on(activity):
            yield
        if self._rate is not None:
            self._rate.go_on()


def _evidence(incident: Incident) -> dict[str, float]:
    """As metrics: ``watchdog_<rule>`` is the number that broke it."""
    return {f"watchdog_{incident.rule}": next(iter(incident.evidence.values()))}
