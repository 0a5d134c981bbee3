"""The evaluator of a run on Ray: an actor with resources of its own, off the training path."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import torch

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.loading import dump_job
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.data.cache import NodeCache
from vaegen_ray.data.plain_parquet import open_dataset
from vaegen_ray.errors import StorageError
from vaegen_ray.on_ray.on_node import enter, train_job_from
from vaegen_ray.on_ray.preflight import WorkerNeeds, node_resources
from vaegen_ray.on_ray.session import keep_to_share
from vaegen_ray.training.beside import CLOSED, STATE, measure_published

logger = logging.getLogger(__name__)

RESTARTS, MOST_CANCEL_S = 3, 30.0


def _measure(job_text: str, working_directory: str, gpus: float) -> None:
    """Measure what the run publishes, until the task is cancelled with its run."""
    job = train_job_from(job_text)
    enter(working_directory)
    device = torch.device("cuda" if torch.cuda.is_available() and ray.get_gpu_ids() else "cpu")
    keep_to_share(device, gpus)
    dataset = open_dataset(job.data, job.model)
    held_out = dataset.decoded("held_out", NodeCache.of(job.data), job.evaluation.images)
    fingerprint = dataset.metadata.fingerprint
    measure_published(job, RunDirectory.of(job), held_out, fingerprint, device, is_over=lambda: False)


def evaluator_needs(job: TrainJob, worker: WorkerNeeds) -> WorkerNeeds | None:
    """What the evaluator takes; None where the job wants none, or the cluster has no room for it beside the workers."""
    settings = job.resources.evaluator
    if settings is None or job.evaluation.every_images is None:
        return None
    needs = WorkerNeeds(settings.cpus, worker.gpus if settings.gpus is None else settings.gpus)
    left = job.resources.most_workers
    for node in node_resources():
        here = min(worker.fit_into(node), left)
        left -= here
        room = {name: node.get(name, 0.0) - here * amount for name, amount in worker.as_ray().items()}
        if needs.fit_into({**node, **room}) >= 1 and left == 0:
            return needs
    return None


@contextmanager
def evaluator(job: TrainJob, needs: WorkerNeeds) -> Iterator[None]:
    """An evaluator for the time of the run. Where it is lost for good, the run is told, and evaluates in line."""
    run, is_over = RunDirectory.of(job), threading.Event()
    task: Any = ray.remote(num_cpus=needs.cpus, num_gpus=needs.gpus, max_retries=RESTARTS, max_calls=1)(_measure)
    # Of an earlier start; until the new evaluator is there, the run goes on in line.
    (run.evaluations / STATE).remove()
    handle = task.remote(dump_job(job), os.getcwd(), needs.gpus)

    def watch() -> None:
        try:
            ray.get(handle)
        except Exception as error:  # noqa: BLE001 (of Ray or of the dataset: the run goes on without it)
            if not is_over.is_set():
                logger.warning("%s: the evaluator beside the run has ended: %s", run.root, error)
                try:
                    (run.evaluations / STATE).write_text(CLOSED)
                except StorageError:
                    return  # The run meets the same store.

    watcher = threading.Thread(target=watch, name="evaluator", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        ray.cancel(handle, force=True)
        # Ray ends the whole process where a thread asks it for something after its shutdown.
        watcher.join(MOST_CANCEL_S)
        (run.evaluations / STATE).remove()
