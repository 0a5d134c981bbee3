"""`prepare` on Ray Data: the tasks of the chunks, spread over a cluster. They write the files that one machine would.

What goes through Ray are descriptions of chunks and counts. The images go from the source to the destination.
"""

import logging
import pickle
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import ray
import ray.data

from vaegen_ray.config.prepare import PrepareJob
from vaegen_ray.data.prepare import PrepareSummary, Progress, prepare
from vaegen_ray.data.tasks import OnImages, Task
from vaegen_ray.errors import ClusterError, StorageError, VaegenError
from vaegen_ray.on_ray.cluster import cluster
from vaegen_ray.on_ray.preflight import check_storage_is_shared, node_resources, nodes_without


def prepare_on_ray(job: PrepareJob, on_progress: Progress | None = None) -> PrepareSummary:
    """Make the dataset of ``job`` on the cluster of ``$RAY_ADDRESS``, or on a new local one.

    The cluster is asked for only when there is work to do. Lost workers are replaced by Ray.
    """
    with ExitStack() as stack:

        def run(tasks: Sequence[Task], on_images: OnImages) -> None:
            stack.enter_context(cluster())
            _check_places_are_shared(tasks[0], job)
            _run(tasks, on_images)

        return prepare(job, on_progress, run)


def _run(tasks: Sequence[Task], on_images: OnImages) -> None:
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # Ray warns that there are no progress bars.
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    cpus = cpus_per_task(len(tasks))
    # As bytes: Ray would make objects in columns to Arrow's pickled objects, one block of all of them.
    items = [{"task": pickle.dumps(task)} for task in tasks]
    done = ray.data.from_items(items, override_num_blocks=len(items)).map(partial(_do, num_threads=cpus), num_cpus=cpus)
    for row in done.iter_rows():
        if row["error"]:
            raise pickle.loads(row["error"])
        on_images(row["num_images"])


def _do(row: dict[str, Any], num_threads: int) -> dict[str, Any]:
    """Do a task. An error of ours is handed over as a value: Ray would wrap it, and show the stack of a worker."""
    task: Task = pickle.loads(row["task"])
    counts: list[int] = []
    error: Exception | None = None
    try:
        task(num_threads, counts.append)
    except VaegenError as failure:
        error = failure
    except OSError as failure:
        error = StorageError(f"chunk {task.chunk.number}: {failure}")
    return {"num_images": sum(counts), "error": pickle.dumps(error) if error else b""}


def cpus_per_task(num_tasks: int) -> int:
    """As many as the cluster has for each task, where it has more processors than there are tasks."""
    nodes = [int(node["CPU"]) for node in node_resources() if node.get("CPU", 0) >= 1]
    return max(1, min(sum(nodes) // num_tasks, *nodes)) if nodes else 1


def _check_places_are_shared(task: Task, job: PrepareJob) -> None:
    """Raise ClusterError when a node does not see the source, or what this process writes at the destination."""
    root = task.conversion.source.root
    if root.is_local and (blind := nodes_without(root.url)):
        key = "source.root" if job.source.kind == "torchvision" else "source.path"
        raise ClusterError(
            f"{key}: must be a place that all nodes share, got {root}, which {', '.join(blind)} cannot see; "
            "use s3://bucket/prefix or a network folder, or --local"
        )
    check_storage_is_shared(task.conversion.destination, key="destination")
