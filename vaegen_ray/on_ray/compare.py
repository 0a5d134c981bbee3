"""A comparison: its runs as Ray tasks, side by side, each an ordinary run in the comparison's directory.

What has ended is a file in the comparison's directory, and what has not is in the runs' checkpoints; so the same
command goes on after any kill.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray

from vaegen_ray.compare.directory import CompareDirectory, Outcome, runs_of
from vaegen_ray.config.compare import CompareJob
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.loading import dump_job
from vaegen_ray.config.run_directory import RunDirectory, check_kind, job_differences
from vaegen_ray.config.settings import flat
from vaegen_ray.errors import (
    CollapsedError,
    DivergedError,
    JobError,
    LeaseLostError,
    StorageError,
    TrainingError,
    TransientError,
    VaegenError,
)
from vaegen_ray.on_ray.cluster import cluster
from vaegen_ray.on_ray.on_node import enter, train_job_from
from vaegen_ray.on_ray.preflight import WorkerNeeds, check_placement, check_storage_is_shared, worker_needs
from vaegen_ray.on_ray.search import PROCESS_OF_A_NESTED_TRIAL
from vaegen_ray.on_ray.stop_requests import is_asked_to_stop, pass_on, stop_on_signal
from vaegen_ray.on_ray.train import out_of_memory, train_on_ray
from vaegen_ray.on_ray.trial import TuneSession
from vaegen_ray.runs.lease import sole_writer
from vaegen_ray.runs.status import OVER
from vaegen_ray.storage import Location
from vaegen_ray.training.loop import Ending
from vaegen_ray.training.rate import images_per_second
from vaegen_ray.training.run import check_inputs, finished_result, run_training

IS_DRIVEN = (
    "name: {root} is being driven by another process{holder}; watch it with `vaegen watch`, or give this comparison "
    "another name"
)
LOCK_TIMEOUT_S = 5.0
POLL_S = 1.0

Run = tuple[str, int]
"""Variant and seed."""


@dataclass(frozen=True)
class Progress:
    """How far a comparison has come."""

    running: tuple[Run, ...]
    ended: Mapping[Run, Outcome]
    num_runs: int
    is_stopping: bool


def run_comparison(job: CompareJob, on_progress: Callable[[Progress], None] = lambda _: None) -> bool:
    """Run or go on with ``job`` on the cluster of ``$RAY_ADDRESS``, or on a new local one; blocks until it ends.

    Returns whether every run has ended. SIGTERM and Ctrl-C make the runs save a checkpoint and leave; the same
    command then goes on.
    """
    directory = CompareDirectory.of(job)
    with ExitStack() as stack:
        stack.enter_context(sole_writer(directory.root, directory.lock, directory.lease, LOCK_TIMEOUT_S, IS_DRIVEN))
        check_is_of(job)
        ended = _ended(job, directory)
        waiting = [run for run in runs_of(job) if run not in ended]
        if not waiting:
            (directory.root / OVER).write_text("")
            return True
        (directory.root / OVER).remove()  # Of fewer seeds or variants.
        directory.root.check_writable()
        # What an earlier start left; one that is written from here on, while Ray starts, is meant for this one.
        directory.stop_request.remove()
        for variant in job.variants:
            check_inputs(directory.train_job(job, variant, job.seeds[0], {}))
        stack.enter_context(cluster())
        check_storage_is_shared(directory.root)
        directory.job_file.write_text(dump_job(job))
        stack.enter_context(stop_on_signal(directory.stop_request))
        images = _images(job, directory)
        jobs = {run: directory.train_job(job, *run, images) for run in waiting}
        needs = {run: worker_needs(train_job) for run, train_job in jobs.items()}
        for run, train_job in jobs.items():
            check_placement(train_job, needs[run])
        _drive(job, directory, jobs, needs, ended, on_progress)
        is_over = len(ended) == len(runs_of(job))
        if is_over:
            (directory.root / OVER).write_text("")
        return is_over


def _drive(
    job: CompareJob,
    directory: CompareDirectory,
    jobs: Mapping[Run, TrainJob],
    needs: Mapping[Run, WorkerNeeds],
    ended: dict[Run, Outcome],
    on_progress: Callable[[Progress], None],
) -> None:
    """Keep as many runs going as the job allows; Ray holds back those for which there is no room."""
    waiting = list(jobs)
    running: dict[Any, Run] = {}
    lost: list[str] = []
    while True:
        is_stopping = is_asked_to_stop(directory.stop_request)
        while waiting and not is_stopping and len(running) < (job.max_concurrent or len(jobs)):
            run = waiting.pop(0)
            running[_begin(job, directory, jobs[run], needs[run])] = run
        on_progress(Progress(tuple(running.values()), dict(ended), len(runs_of(job)), is_stopping))
        if not running:
            break
        done, _ = ray.wait(list(running), timeout=POLL_S)
        for task in done:
            run = running.pop(task)
            try:
                outcome = ray.get(task)
            except Exception as error:  # noqa: BLE001 (of Ray or of storage, after all attempts: the other runs go on)
                lost.append(f"{'-'.join(map(str, run))} ({str(error).strip().splitlines()[-1]})")
                continue
            if outcome is not None:
                directory.record(*run, outcome)
                ended[run] = outcome
    if lost:
        raise TrainingError(f"{directory.root}: lost {', '.join(lost)}; give the command again to go on with them")


def _begin(job: CompareJob, directory: CompareDirectory, train_job: TrainJob, needs: WorkerNeeds) -> Any:
    resources = PROCESS_OF_A_NESTED_TRIAL if train_job.resources.needs_ray else needs.as_ray()
    task: Any = ray.remote(  # type: ignore[call-overload]  # the stub lacks a list of exceptions
        num_cpus=resources.get("CPU", 0),
        num_gpus=resources.get("GPU", 0),
        max_retries=job.max_failures,
        retry_exceptions=[StorageError, TransientError],
        max_calls=1,  # So that the peak of memory is the run's own, and a GPU's memory is given back.
    )(run_one)
    return task.remote(dump_job(train_job), directory.root.url, os.getcwd(), list(sys.argv))


def run_one(train_job: str, comparison: str, working_directory: str, command: list[str]) -> Outcome | None:
    """Train a run to its end; None where it was asked to stop before. Raises what another attempt may not meet."""
    enter(working_directory)
    job = train_job_from(train_job)
    try:
        return _trained(job, CompareDirectory(Location.of(comparison)), command)
    except (StorageError, TransientError, LeaseLostError):
        raise
    except VaegenError as error:
        return Outcome(_ending_of(error), str(error))
    except Exception as error:
        if (reason := out_of_memory(error)) is None:
            raise
        return Outcome("failed", reason)


def _trained(job: TrainJob, directory: CompareDirectory, command: list[str]) -> Outcome | None:
    if finished_result(job) is not None:
        return Outcome("complete")
    if directory.stop_request.exists():
        return None  # It waited for room while the comparison was asked to stop.
    if job.resources.needs_ray:
        run = RunDirectory.of(job)
        look = partial(pass_on, directory.stop_request, run.stop_request)
        result = train_on_ray(job, command=command, meanwhile=look, evaluates_beside=False)
    else:
        session = TuneSession(directory.stop_request, job, None)
        session.reports_rungs = False
        try:
            result = run_training(job, session, command)
        finally:
            session.close()
    return Outcome("complete") if result.ending is Ending.COMPLETE else None


def _ending_of(error: VaegenError) -> Any:
    if isinstance(error, CollapsedError):
        return "collapsed"
    return "diverged" if isinstance(error, DivergedError) else "failed"


# ---------------------------------------------------------------------------- before


def check_is_of(job: CompareJob) -> None:
    """Raise JobError, naming what differs, when the directory holds another comparison.

    Variants and seeds may be added.
    """
    directory = CompareDirectory.of(job)
    check_kind(directory.root, directory.job_file)
    if not directory.job_file.exists():
        if directory.runs.names():
            raise JobError(
                f"name: {directory.root} holds runs but no compare.json; restore it, or give this comparison another "
                "name"
            )
        return
    old = directory.load()
    differences = [f"base.{key}" for key in job_differences(old.base, job.base) if key not in ("name", "seed")]
    for variant in old.variants.keys() & job.variants.keys():
        before, after = flat(old.variants[variant]), flat(job.variants[variant])
        differences += [
            f"variants.{variant}.{key}" for key in sorted(before.keys() | after.keys())
            if before.get(key) != after.get(key)
        ]  # fmt: skip
    differences += ["budget"] if old.budget != job.budget else []
    if differences:
        raise JobError(
            f"name: {directory.root} holds another comparison, which differs in {', '.join(differences[:6])}; give "
            f"this one another name (--set name={job.name}-2) or remove that directory"
        )


def _images(job: CompareJob, directory: CompareDirectory) -> dict[str, int]:
    """Images of each variant that the seconds of the budget give, measured alone, one after the other, and kept."""
    if job.budget is None or job.budget.seconds is None:
        return {}
    images = directory.measured_images()
    for variant in job.variants:
        if variant not in images:
            train_job = directory.train_job(job, variant, job.seeds[0], {})
            needs = worker_needs(train_job)
            check_placement(train_job, needs)
            measure = ray.remote(num_cpus=needs.cpus, num_gpus=needs.gpus, max_retries=job.max_failures, max_calls=1)(
                _measured_rate
            )
            rate = ray.get(measure.remote(dump_job(train_job), os.getcwd())) * train_job.resources.most_workers
            step = train_job.training.images_per_step
            images[variant] = max(round(rate * job.budget.seconds / step), 1) * step
            directory.images.write_text(json.dumps(images) + "\n")
    return images


def _measured_rate(train_job: str, working_directory: str) -> float:
    enter(working_directory)
    job = train_job_from(train_job)
    session = TuneSession(None, job, None)
    try:
        return images_per_second(job, session)
    finally:
        session.close()


def _ended(job: CompareJob, directory: CompareDirectory) -> dict[Run, Outcome]:
    outcomes = {run: directory.outcome(*run) for run in runs_of(job)}
    return {run: outcome for run, outcome in outcomes.items() if outcome is not None}
