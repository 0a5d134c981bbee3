"""What is kept of a run while it trains: metrics, pictures, scores and checkpoints, each when it is due."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.data.batches import to_float
from vaegen_ray.evaluation.evaluate import evaluate
from vaegen_ray.evaluation.pictures import (
    interpolations_grid,
    reconstruction_grid,
    sample_grid,
    save_picture,
    traversal_grid,
)
from vaegen_ray.models.convolutional import Generator
from vaegen_ray.objectives.objective import Batch
from vaegen_ray.runs.lease import BEAT_S, Fence
from vaegen_ray.tracking.tracker import Tracker
from vaegen_ray.training.checkpoint import save_checkpoint
from vaegen_ray.training.collectives import gather_rows, is_rank_0, sum_over_ranks
from vaegen_ray.training.guard import FiniteGuard
from vaegen_ray.training.incidents import RollBack, record_stop, record_warning
from vaegen_ray.training.reporting import Activity, MetricMeans, Rate, TimeSpent, peak_memory_bytes
from vaegen_ray.training.session import Session
from vaegen_ray.training.state import TrainState
from vaegen_ray.training.watchdog import Incident, Watchdog


class Recorder:
    """Writes on rank 0; on the other ranks it takes part in the collectives only."""

    def __init__(
        self,
        job: TrainJob,
        session: Session,
        run: RunDirectory,
        tracker: Tracker | None,
        held_out: NDArray[np.uint8],
        fence: Fence | None,
        fingerprint: str | None = None,
    ) -> None:
        """``tracker`` and ``fence`` are of rank 0, None on the others.

        Under the ``fingerprint`` of the dataset the features of its images are kept in storage.
        """
        self.job, self.session, self.run = job, session, run
        self.tracker, self.held_out, self.fence = tracker, held_out, fence
        self._fingerprint = fingerprint
        self._fence_checked_s = time.monotonic()
        self.saved_at: int | None = None
        """Position of the newest checkpoint that this process wrote or began from."""
        self._means = MetricMeans()
        self._rate: Rate | None = None
        self._time = TimeSpent()
        self._watchdog = Watchdog(job)

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
        if self.tracker is not None:
            self._check_fence_now_and_then()
            self.tracker.scalars(metrics, state.position)
        if is_rank_0():
            self.session.report(state.position, metrics)
        self._watch(metrics, state.position)

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Scores of the moving average against held-out images, and its pictures."""
        with self._clock_stopped("evaluation"):
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
            if self.tracker is not None:
                self.tracker.scalars(scores, state.position)
                self._draw(generator, state.position, self.tracker)
        if is_rank_0():
            self.session.report_scores(state.position, scores)
        self._watch(scores, state.position)
        return scores

    def checkpoint(self, state: TrainState, guard: FiniteGuard) -> None:
        """Save the state, once it is known to be finite and the same on all ranks."""
        guard.check()
        state.check_replicas()
        if state.position == self.saved_at:
            return  # Written in place again, a kill could take the run's only checkpoint.
        self.saved_at = state.position
        with self._clock_stopped("checkpoint"):
            if self.tracker is not None:
                self.tracker.flush()
            if self.fence is not None:
                self.fence.check()
                keep = self.job.training.keep_checkpoints
                save_checkpoint(state, self.run, keep=keep, fence=self.fence.number)

    def _check_fence_now_and_then(self) -> None:
        """Not at each report, for it asks the store."""
        if self.fence is not None and time.monotonic() - self._fence_checked_s > BEAT_S:
            self._fence_checked_s = time.monotonic()
            self.fence.check()

    def rolled_back(self, tracker: Tracker | None, position: int, incident: Incident) -> None:
        """Go on from ``position``, with a tracker that has forgotten what came after it."""
        self.tracker, self.saved_at = tracker, position or None
        self._means, self._rate, self._time = MetricMeans(), None, TimeSpent()
        self._watchdog = Watchdog(self.job)
        if tracker is not None:
            evidence = {"rolled_back_from_images": float(incident.position)} | _evidence(incident)
            tracker.scalars(evidence, position)

    def close(self) -> None:
        """Close the tracker."""
        if self.tracker is not None:
            self.tracker.close()

    def _watch(self, metrics: Mapping[str, float], position: int) -> None:
        """Do what the watchdog's rules ask for; raises RollBack or CollapsedError, on all ranks alike.

        A run that has come to its end is only warned of: its result is there.
        """
        for incident in self._watchdog.look(position, metrics):
            if self.tracker is not None:
                self.tracker.scalars(_evidence(incident), position)
            action = self.job.watchdog.rules()[incident.rule].action
            if action == "roll_back" and position < self.job.training.total_images:
                raise RollBack(incident)
            if action == "stop" and position < self.job.training.total_images:
                raise record_stop(self.run, incident)
            if is_rank_0():
                record_warning(self.run, incident)

    def _draw(self, generator: Generator, position: int, tracker: Tracker) -> None:
        """Save the grids of this position; the same latents and the same held-out images every time."""
        count, device = self.job.evaluation.grid_images, self.session.device
        grids = {"samples": sample_grid(generator, count, self.job.seed, device)}
        originals = to_float(torch.from_numpy(self.held_out[:count].copy()).permute(0, 3, 1, 2)).to(device)
        if generator.encoder is not None:
            grids["reconstructions"] = reconstruction_grid(generator, originals)
        if position >= self.job.training.total_images:
            grids["interpolations"] = interpolations_grid(generator, originals, self.job.seed)
            grids["traversals"] = traversal_grid(generator, originals, self.job.seed)
        for name, grid in grids.items():
            save_picture(grid, self.run.picture(name, position))
            tracker.image(name, grid, position)

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
