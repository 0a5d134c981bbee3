"""What a trial's process does: an ordinary run in the search's directory, which tells Tune its scores."""

import gc
import random
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
import ray.tune
import torch

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.config.search import SearchJob, Settings
from vaegen_ray.config.space import trial_job
from vaegen_ray.errors import LeaseLostError, StorageError, TransientError, VaegenError
from vaegen_ray.on_ray.on_node import enter
from vaegen_ray.on_ray.reports import report_of
from vaegen_ray.on_ray.session import keep_to_share
from vaegen_ray.on_ray.stop_requests import pass_on
from vaegen_ray.on_ray.train import out_of_memory, train_on_ray
from vaegen_ray.runs.lease import Fence
from vaegen_ray.search.directory import SearchDirectory, trial_name
from vaegen_ray.search.forks import fork_of, num_beginnings
from vaegen_ray.storage import Location
from vaegen_ray.tracking.json_lines import evaluations, read_metrics
from vaegen_ray.training.lineage import begin_from, has_checkpoint, newest_checkpoint
from vaegen_ray.training.loop import Ending
from vaegen_ray.training.run import RunResult, run_training

STOP_POLL_S = {True: 2.0, False: 10.0}
"""Where the search's directory is local, and where it is in an object store, which counts requests."""
KEPT_FOR_COPIES = 3
"""Checkpoints of a trial of a population."""


@dataclass(frozen=True)
class Copied:
    """A state of another trial that this one goes on from (population-based training)."""

    trial: int
    position: int


def job_of_trial(search: SearchJob, config: Mapping[str, Any]) -> TrainJob:
    """The train job of a trial; ``config`` has its ``number`` and ``settings``, in a population also ``changes``."""
    settings: Settings = config["settings"]
    storage = SearchDirectory.of(search).trials.url
    job = trial_job(search, settings, name=trial_name(config["number"]), storage=storage)
    if search.scheduler.kind != "pbt":
        return job
    # Another trial may copy the newest evaluated state, and this one may have gone on from it meanwhile.
    intervals = {"checkpoint_every_images": job.evaluation.every_images, "keep_checkpoints": KEPT_FOR_COPIES}
    training = job.training.model_copy(update=intervals)
    return TrainJob.model_validate(
        {**job.model_dump(), "training": training.model_dump(), "changes": config.get("changes", ())}
    )


def run_trial(
    search: SearchJob, working_directory: str, fence: Fence | None, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Train a trial to its end, and return its last report.

    What another attempt would meet again is a report of a failure; what it may not, such as a store that does not
    answer, is raised, and Tune begins another attempt, which resumes.
    """
    enter(working_directory)
    try:
        job = job_of_trial(search, config)
        result = _train(search, job, fence, config)
    except (StorageError, TransientError, LeaseLostError):
        raise
    except VaegenError as error:
        return report_of(0, {}, ending="failed", reason=str(error))
    except Exception as error:
        if (reason := out_of_memory(error)) is None:
            raise
        return report_of(0, {}, ending="failed", reason=reason)
    finally:
        _leave_nothing()
    if result.ending is Ending.STOPPED:
        return report_of(result.position, {}, ending="interrupted")
    return report_of(result.position, result.scores, ending="complete")


def _leave_nothing() -> None:
    """The process may serve another trial."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()  # It compiles a function eight times at most, and later trials would train eagerly.
    if torch.cuda.is_available():
        gc.collect()  # Compiled networks hold themselves.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _train(search: SearchJob, job: TrainJob, fence: Fence | None, config: Mapping[str, Any]) -> RunResult:
    places, run = SearchDirectory.of(search), RunDirectory.of(job)
    copied = config.get("copied")
    if copied is not None:
        _copy_state(places, run, job, Copied(**copied))
    if job.resources.needs_ray:
        return _train_on_workers(job, places)
    session = TuneSession(places.stop_request, job, fence)
    try:
        if search.scheduler.kind == "pbt":
            return _train_in_legs(job, session, copied_at=copied["position"] if copied is not None else 0)
        if num_beginnings(search) is not None:
            _begin_from_fork(places, job, session)
        return run_training(job, session, sys.argv)
    finally:
        session.close()


# ---------------------------------------------------------------------------- one worker


class TuneSession:
    """The only rank of a run, in the process of a Tune trial, or of a run of a comparison."""

    def __init__(self, stop_request: Location | None, job: TrainJob, fence: Fence | None) -> None:
        """``fence`` is the search's; None where the run takes its own lease."""
        self.rank, self.num_ranks, self.fence = 0, 1, fence
        gpus = job.resources.gpus_per_worker
        # Ray does not hide the GPUs of a node from a process that asked for none.
        self.device = torch.device("cuda" if torch.cuda.is_available() and gpus != 0 else "cpu")
        keep_to_share(self.device, gpus)
        self.stop_signal: int | None = None
        self.scores: dict[str, float] = {}
        """Of the newest evaluation."""
        self.reports_rungs, self.evaluates_beside = True, False
        self._end = job.training.final_position
        self._stop, self._finished = threading.Event(), threading.Event()
        if stop_request is not None:
            threading.Thread(target=self._watch_for_stop, args=(stop_request,), name="stop-watch", daemon=True).start()

    def report(self, position: int, metrics: Mapping[str, float]) -> None:
        """Metrics are in the run directory."""

    def report_scores(self, position: int, scores: Mapping[str, float]) -> None:
        """Tell Tune of a rung; waits for its decision, and does not return where that is to stop."""
        self.scores = dict(scores)
        if self.reports_rungs and 0 < position < self._end:
            ray.tune.report(report_of(position, scores))

    def should_stop(self) -> bool:
        """Whether the search was asked to stop."""
        return self._stop.is_set()

    @property
    def reason_to_stop(self) -> str:
        """What was asked to stop is the search, or the comparison."""
        return "a stop that was asked for" if self.should_stop() else ""

    def close(self) -> None:
        """Listen no more."""
        self._finished.set()

    def _watch_for_stop(self, stop_request: Location) -> None:
        # Hundreds of trials do not ask one store in the same moment.
        while not self._finished.wait(STOP_POLL_S[stop_request.is_local] * (0.5 + random.random())):
            try:
                if stop_request.exists():
                    self._stop.set()
                    return
            except StorageError:
                continue  # Object stores recover; the next look sees it.


def _begin_from_fork(places: SearchDirectory, job: TrainJob, session: TuneSession) -> None:
    """Take over the phase that this trial has in common with others, or train it for all of them.

    The searcher lets one trial of those that share a beginning go ahead, until it has put that state in its place.
    """
    fork, run = fork_of(job), RunDirectory.of(job)
    if fork is None or newest_checkpoint(run) > fork.position:
        return
    shared = RunDirectory(places.forks / fork.key)
    if has_checkpoint(shared, fork.position):
        if not has_checkpoint(run, fork.position):
            begin_from(shared, run, job, fork.position)
        return
    if run_training(job, session, sys.argv, until=fork.position).position >= fork.position:
        shared.root.remove()  # A process that was killed here may have begun it.
        begin_from(run, shared, job, fork.position)


def _train_in_legs(job: TrainJob, session: TuneSession, copied_at: int) -> RunResult:
    """Train from evaluation to evaluation, with a checkpoint at each before Tune hears of it: another may copy it.

    A process that goes on at an evaluation reports it again, because its predecessor may have been lost while it
    waited for the others; not one that has just copied this state.
    """
    session.reports_rungs = False
    every, run = job.evaluation.every_images, RunDirectory.of(job)
    assert every is not None
    begin = newest_checkpoint(run)
    if begin > copied_at and begin % every == 0 and (scores := _scores_at(run, begin)):
        ray.tune.report(report_of(begin, scores))
    while True:
        position = newest_checkpoint(run)
        result = run_training(job, session, sys.argv, until=(position // every + 1) * every)
        if result.ending is Ending.COMPLETE or session.should_stop():
            return result
        ray.tune.report(report_of(result.position, session.scores))


def _scores_at(run: RunDirectory, position: int) -> dict[str, float]:
    """Of the evaluation at ``position``; empty where it was not recorded."""
    lines = read_metrics(run) if run.metrics.exists() else []
    found = [line for line in evaluations(lines) if line["position"] == position]
    return _scores_of_line(found[-1]) if found else {}


def _scores_of_line(line: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in line.items() if isinstance(value, float) and name != "time_s"}


def _copy_state(places: SearchDirectory, run: RunDirectory, job: TrainJob, copied: Copied) -> None:
    """Make ``run`` a run of ``job`` that has come to the copied state; nothing where it is one already."""
    if newest_checkpoint(run) >= copied.position and run.load_job().changes == job.changes:
        return
    run.root.remove()
    begin_from(places.run(copied.trial), run, job, copied.position)


# ---------------------------------------------------------------------------- several workers


def _train_on_workers(job: TrainJob, places: SearchDirectory) -> RunResult:
    """Nest Ray Train.

    This process holds none of the workers' resources, and the search begins only as many trials as the cluster
    holds, so that no trial can wait for another's workers.
    """
    run, reported = RunDirectory.of(job), [0]

    def look() -> None:
        pass_on(places.stop_request, run.stop_request)
        for line in evaluations(read_metrics(run) if run.metrics.exists() else []):
            position = int(line["position"])
            if reported[0] < position < job.training.final_position:
                reported[0] = position
                ray.tune.report(report_of(position, _scores_of_line(line)))

    return train_on_ray(job, command=sys.argv, meanwhile=look, evaluates_beside=False)
