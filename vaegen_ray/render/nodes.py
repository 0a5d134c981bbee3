"""What a job asks of a cluster's nodes, and what it may name there."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from vaegen_ray.config.compare import CompareJob
from vaegen_ray.config.job import Resources, TrainJob
from vaegen_ray.config.loading import AnyJob
from vaegen_ray.config.places import READ, places
from vaegen_ray.config.prepare import PrepareJob
from vaegen_ray.config.search import SearchJob
from vaegen_ray.errors import JobError
from vaegen_ray.storage import Location

TRIALS_AT_ONCE = 8
"""Of a search that does not say how many; what the cluster has room for decides in the end."""
NODES_OF_PREPARE = 4
CPUS_OF_PREPARE = 4
ROOTED = ("/", "~", "shipped:")
OUTSIDE = ("storage", "destination", "data.source", "source.path", "warm_start")
"""Keys of what has to be there before the nodes are, or after them."""


@dataclass(frozen=True)
class Nodes:
    """Nodes of one worker each."""

    fewest: int
    most: int
    cpus: int
    gpus: int
    driver_trains: bool = False
    """The process that runs the verb is the only worker."""
    stop_window_s: float = Resources().stop_window_s
    max_duration_s: float | None = None


def nodes_of(job: AnyJob) -> Nodes:
    """The nodes that ``job`` can use; a GPU for each worker where it leaves that open."""
    if isinstance(job, PrepareJob):
        return Nodes(1, NODES_OF_PREPARE, CPUS_OF_PREPARE, 0)
    train = job.base if isinstance(job, SearchJob | CompareJob) else job
    resources = train.resources
    trials = 1 if isinstance(job, TrainJob) else min(job.max_concurrent or TRIALS_AT_ONCE, _runs(job))
    gpus = 1.0 if resources.gpus_per_worker is None else resources.gpus_per_worker
    return Nodes(
        fewest=resources.fewest_workers,
        most=resources.most_workers * trials,
        cpus=math.ceil(resources.cpus_per_worker),
        gpus=math.ceil(gpus),
        driver_trains=isinstance(job, TrainJob) and not resources.needs_ray,
        stop_window_s=resources.stop_window_s,
        max_duration_s=resources.max_duration_s,
    )


def _runs(job: SearchJob | CompareJob) -> int:
    return job.trials if isinstance(job, SearchJob) else len(job.variants) * len(job.seeds)


def check_paths(job: AnyJob) -> None:
    """Refuse paths that begin in the directory of whoever renders, for the job's processes begin elsewhere."""
    for key, path in _paths(job):
        if path and not path.startswith(ROOTED) and "://" not in path:
            raise JobError(
                f"{key}: must be a URL such as s3://bucket/prefix, or a path that all nodes share and that begins with "
                f"'/', got '{path}'; use --set {key}=s3://bucket/{path}"
            )


def check_urls(job: AnyJob) -> None:
    """Refuse folders for what outlives the nodes, where these have no disk but their own."""
    for key, path in _paths(job):
        is_outside = key.removeprefix("base.").split("[")[0] in OUTSIDE
        if path and is_outside and not path.startswith("shipped:") and Location.of(path).is_local:
            name = Location.of(path).name
            raise JobError(
                f"{key}: must be a URL such as s3://bucket/prefix, because pods have no disk but their own, which goes "
                f"with them, got '{path}'; use --set {key}=s3://bucket/{name}"
            )


def _paths(job: AnyJob) -> Iterator[tuple[str, str | None]]:
    if isinstance(job, PrepareJob):
        yield "destination", job.destination
        yield "source.path", getattr(job.source, "path", None)
        yield "source.root", getattr(job.source, "root", None)
        return
    if not isinstance(job, TrainJob):
        yield "storage", job.storage
    if isinstance(job, SearchJob):
        yield from ((f"warm_start[{index}]", place) for index, place in enumerate(job.warm_start))
    train, prefix = (job.base, "base.") if isinstance(job, SearchJob | CompareJob) else (job, "")
    keys = READ if prefix else (*READ, "storage")
    yield from ((f"{prefix}{key}", place) for key, place in places(train, (*keys, "data.cache")).items())
