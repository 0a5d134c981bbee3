"""A search: Tune executes trials, Optuna chooses their settings, and the search's directory remembers.

Of Tune's own state nothing is kept. What happened is in our log; a trial's state is in its run directory. So an
interrupted search goes on by beginning again: unfinished trials first, each from its newest checkpoint.
"""

import logging
import os
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import ray
import ray.tune
from ray.tune import PlacementGroupFactory

from vaegen_ray.config.loading import dump_job
from vaegen_ray.config.places import relative_places
from vaegen_ray.config.run_directory import RunDirectory, check_kind
from vaegen_ray.config.search import SearchJob, Settings
from vaegen_ray.config.settings import flat
from vaegen_ray.config.space import point_settings, trial_job
from vaegen_ray.errors import ClusterError, JobError
from vaegen_ray.on_ray.cluster import cluster
from vaegen_ray.on_ray.population import PopulationScheduler
from vaegen_ray.on_ray.preflight import (
    WorkerNeeds,
    check_storage_is_shared,
    node_resources,
    nodes_without,
    places_in,
    worker_needs,
)
from vaegen_ray.on_ray.searcher import SECONDS_BETWEEN_LOOKS, OptunaSearcher
from vaegen_ray.on_ray.sole_search import sole_search_of_the_cluster
from vaegen_ray.on_ray.stop_requests import in_thread, is_asked_to_stop, stop_on_signal
from vaegen_ray.on_ray.study import open_database, open_study, reconcile
from vaegen_ray.on_ray.trial import run_trial
from vaegen_ray.on_ray.trial_scheduler import LogScheduler, Starts, starting_together
from vaegen_ray.runs.lease import Fence, sole_writer
from vaegen_ray.runs.status import OVER
from vaegen_ray.search.directory import TIME_BUDGET, SearchDirectory, trial_name
from vaegen_ray.search.forks import Fork, fork_of, num_beginnings
from vaegen_ray.search.leaderboard import is_over
from vaegen_ray.search.log import TrialLog, read_trials
from vaegen_ray.search.open import load_search
from vaegen_ray.search.trials import Trials
from vaegen_ray.storage import Location
from vaegen_ray.training.lineage import has_checkpoint
from vaegen_ray.training.run import check_inputs

IS_SEARCHED = (
    "name: {root} is being searched by another process{holder}; watch it with `vaegen leaderboard --watch`, stop it "
    "with `vaegen search stop`, or give this search another name"
)
LOCK_TIMEOUT_S = 5.0
TUNE_RECORDS = "tune-"
"""Prefix of the folder of Tune's own files, which goes when the search ends."""
PROCESS_OF_A_NESTED_TRIAL = {"CPU": 0.01}

TUNE_SETTINGS = {
    "TUNE_GLOBAL_CHECKPOINT_S": str(10**9),  # Tune's snapshots grow with the number of trials; ours do not.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # It names a folder that does not stay.
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "10",  # A stopped run closes its files before another uses its process.
}

OnProgress = Callable[["Progress"], None]


@dataclass(frozen=True)
class Progress:
    """How far a search has come."""

    job: SearchJob
    trials: Trials
    max_concurrent: int
    elapsed_s: float
    """Since this start."""
    is_stopping: bool
    """Whether the trials were asked to save and leave."""


def run_search(job: SearchJob, on_progress: OnProgress = lambda _: None) -> Trials:
    """Run or go on with ``job`` on the cluster of ``$RAY_ADDRESS``, or on a new local one; blocks until it ends.

    SIGTERM, Ctrl-C and ``vaegen search stop`` make the trials save a checkpoint and leave; the search then goes on
    with the same command.
    """
    directory = SearchDirectory.of(job)
    with ExitStack() as stack:
        fence = stack.enter_context(
            sole_writer(directory.root, directory.lock, directory.lease, LOCK_TIMEOUT_S, IS_SEARCHED)
        )
        if is_over(job, trials := check_is_of(job)):
            (directory.root / OVER).write_text("")
            return trials
        (directory.root / OVER).remove()  # Of fewer trials.
        directory.root.check_writable()
        # What an earlier start left; one that is written from here on, while Ray starts, is meant for this one.
        directory.stop_request.remove()
        check_inputs(job.base)
        check_warm_start(job)
        database = None if job.study is None else open_database(job.study)
        stack.enter_context(cluster())
        needs = worker_needs(job.base)
        max_concurrent = concurrent_trials(job, needs)
        check_storage_is_shared(directory.root)
        check_paths(job)
        stack.enter_context(sole_search_of_the_cluster(directory))
        _claim(job)
        log = TrialLog(directory, fence)
        stack.callback(log.close)
        study = open_study(job, directory, database)
        stack.callback(study.close)
        reconcile(log, study)
        begun_s = time.monotonic()

        searcher = OptunaSearcher(
            job,
            log,
            study,
            max_concurrent=max_concurrent,
            points=point_settings(job),
            problem=partial(_problem, job),
            may_begin=Forks(job, log.trials).may_begin,
        )
        stack.callback(searcher.close)

        def look() -> None:
            elapsed_s = time.monotonic() - begun_s
            is_stopping = is_asked_to_stop(directory.stop_request)
            if job.time_budget_s is not None and elapsed_s > job.time_budget_s and not is_stopping:
                directory.stop_request.write_text(TIME_BUDGET)
            if is_stopping:
                searcher.finish()
            on_progress(Progress(job, log.trials, max_concurrent, elapsed_s, is_stopping))

        with stop_on_signal(directory.stop_request):
            in_thread(partial(_tune, job, fence, log, searcher, needs, max_concurrent), look)
        look()
        if is_over(job, log.trials):
            (directory.root / OVER).write_text("")
        return log.trials


# ---------------------------------------------------------------------------- before


FREE_TO_CHANGE = ("trials", "time_budget_s", "max_concurrent", "max_failures", "storage", "base.resources.")
"""Settings that a search may change between two starts."""


def check_is_of(job: SearchJob) -> Trials:
    """The trials that are there already; JobError, naming what differs, when the directory holds another search."""
    directory = SearchDirectory.of(job)
    check_kind(directory.root, directory.job_file)
    if directory.job_file.exists():
        old, new = (flat(search.model_dump(mode="json")) for search in (load_search(directory), job))
        keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        differences = [key for key in keys if not key.startswith(FREE_TO_CHANGE)]
        if differences:
            listed = "; ".join(f"{key}: {old.get(key)!r} there, {new.get(key)!r} here" for key in differences[:6])
            raise JobError(
                f"name: {directory.root} holds another search ({listed}); give this one another name "
                f"(--set name={job.name}-2), and let it learn from that one's trials (--set "
                f"'warm_start=[{directory.root}]')"
            )
    elif directory.trials.names():
        raise JobError(
            f"name: {directory.root} holds trials but no search.json; restore it, give this search another name, or "
            "remove that directory"
        )
    trials = read_trials(directory)
    if job.trials < trials.num_counted:
        raise JobError(
            f"trials: must be at least {trials.num_counted}, the trials that {directory.root} has already, got "
            f"{job.trials}; `vaegen search resume {directory.root}` goes on"
        )
    return trials


def _claim(job: SearchJob) -> None:
    """Make the search's directory that of ``job``, and remove what a killed driver left there of Tune's."""
    directory = SearchDirectory.of(job)
    directory.job_file.write_text(dump_job(job))
    for name in directory.root.names():
        if name.startswith(TUNE_RECORDS):
            (directory.root / name).remove()


def check_warm_start(job: SearchJob) -> None:
    """Refuse earlier searches that are not there, or whose scores cannot be compared."""
    for index, place in enumerate(job.warm_start):
        earlier = load_search(SearchDirectory(Location.of(place)))
        for key, there, here in (
            ("data.source", earlier.base.data.source, job.base.data.source),
            ("model.image_size", earlier.base.model.image_size, job.base.model.image_size),
            ("training.total_images", earlier.base.training.total_images, job.base.training.total_images),
            ("evaluation.images", earlier.base.evaluation.images, job.base.evaluation.images),
            ("evaluation.features", earlier.base.evaluation.features, job.base.evaluation.features),
        ):
            if there != here:
                raise JobError(
                    f"warm_start[{index}]: {place} must be a search of the same {key}, or its scores tell nothing: "
                    f"{there!r} there, {here!r} here; leave it out"
                )


def check_paths(job: SearchJob) -> None:
    """Refuse paths of the base job that begin in this directory where another node does not have it."""
    relative = relative_places(job.base)
    if relative and (blind := nodes_without(os.getcwd())):
        raise ClusterError(
            f"base.{' and base.'.join(relative)}: must be absolute or s3:// here, because {', '.join(blind)} has no "
            f"{os.getcwd()}, the directory in which the command was given"
        )


def concurrent_trials(job: SearchJob, needs: WorkerNeeds) -> int:
    """How many trials run at once: as many as the cluster can hold with all their workers, at most ``max_concurrent``.

    ClusterError where it cannot hold one.
    """
    workers, nodes = job.base.resources.fewest_workers, node_resources()
    processes = 0.0 if workers == 1 else PROCESS_OF_A_NESTED_TRIAL["CPU"]
    places = places_in(nodes, WorkerNeeds(needs.cpus + processes, needs.gpus))
    if places < workers:
        cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
        raise ClusterError(
            f"base.resources: the cluster can never place one trial of {workers} worker(s) of {needs} each: it has "
            f"{len(nodes)} node(s) with {cpus:g} CPU and {gpus:g} GPU in all; ask for less, or add nodes"
        )
    at_once = min(places // workers, job.max_concurrent or places, job.trials)
    if job.scheduler.kind == "pbt" and at_once < job.trials:
        raise ClusterError(
            f"trials: must be at most {at_once}, as many as run at once, with the scheduler 'pbt', whose trials learn "
            f"from each other, got {job.trials}; lower it, raise max_concurrent, or ask for less in base.resources"
        )
    return at_once


# ---------------------------------------------------------------------------- the search itself


def _tune(
    job: SearchJob, fence: Fence, log: TrialLog, searcher: OptunaSearcher, needs: WorkerNeeds, max_concurrent: int
) -> None:
    directory = SearchDirectory.of(job)
    nested = job.base.resources.needs_ray
    os.environ.update(TUNE_SETTINGS, **starting_together(max_concurrent))
    logging.getLogger("ray.tune.analysis.experiment_analysis").setLevel(logging.ERROR)  # It misses files nobody wrote.
    records = directory.root / f"{TUNE_RECORDS}{uuid.uuid4().hex[:8]}"
    try:
        ray.tune.run(
            partial(run_trial, job, os.getcwd(), fence),
            name="records",
            storage_path=records.url,
            search_alg=searcher,
            scheduler=PopulationScheduler(job, log, lambda: searcher.is_stopping)
            if job.scheduler.kind == "pbt"
            else LogScheduler(job, log),
            num_samples=-1,
            max_concurrent_trials=max_concurrent,
            max_failures=job.max_failures,
            resources_per_trial=PlacementGroupFactory([PROCESS_OF_A_NESTED_TRIAL if nested else needs.as_ray()]),
            reuse_actors=not nested,
            callbacks=[Starts(log)],
            raise_on_failed_trial=False,
            trial_dirname_creator=lambda trial: f"{trial.trial_id}",
            verbose=0,
        )
    finally:
        records.remove()
        log.flush()


def _problem(job: SearchJob, settings: Settings) -> str | None:
    """Why ``settings`` make no valid job; None where they do."""
    try:
        trial_job(job, settings, name=trial_name(0), storage=job.storage)
    except JobError as error:
        return str(error)
    return None


class Forks:
    """Lets one trial of those that share a beginning go ahead, and the others wait until its state is there."""

    def __init__(self, job: SearchJob, trials: Trials) -> None:
        self._job, self._trials = job, trials
        self._directory = SearchDirectory.of(job)
        self._is_forked = num_beginnings(job) is not None
        self._next_looks_s: dict[str, float] = {}
        self._forks: dict[int, Fork | None] = {}
        self._builders: dict[str, int] = {}
        self._finished: set[str] = set()

    def may_begin(self, number: int, settings: Settings) -> bool:
        """Whether the trial may begin now."""
        if not self._is_forked:
            return True
        if number not in self._forks:
            storage = self._directory.trials.url
            self._forks[number] = fork_of(trial_job(self._job, settings, name=trial_name(number), storage=storage))
        fork = self._forks[number]
        if fork is None or fork.key in self._finished:
            return True
        builder = self._builders.setdefault(fork.key, number)
        if builder != number and self._trials[builder].state.is_over:
            builder = self._builders[fork.key] = number
        return builder == number or self._is_there(fork)

    def _is_there(self, fork: Fork) -> bool:
        """Look into the storage, for each fork once in a while however many trials wait for it."""
        if time.monotonic() >= self._next_looks_s.get(fork.key, 0.0):
            self._next_looks_s[fork.key] = time.monotonic() + SECONDS_BETWEEN_LOOKS
            if has_checkpoint(RunDirectory(self._directory.forks / fork.key), fork.position):
                self._finished.add(fork.key)
        return fork.key in self._finished
