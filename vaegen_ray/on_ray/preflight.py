"""What can be refused before workers are asked for: a group that can never be placed waits for ever."""

import math
import os
import uuid
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from vaegen_ray.config.job import TrainJob
from vaegen_ray.errors import ClusterError
from vaegen_ray.storage import Location

UNLIMITED = 10**9
"""Nodes, where a group of the autoscaler has no limit."""


@dataclass(frozen=True)
class WorkerNeeds:
    """What one worker takes of a node."""

    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.cpus:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")

    def as_ray(self) -> dict[str, float]:
        """Ray's names."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    def fit_into(self, node: dict[str, float]) -> int:
        """How many such workers a node of these resources holds."""
        counts = [math.floor(node.get(name, 0.0) / amount + 1e-9) for name, amount in self.as_ray().items()]
        return min(counts)


def worker_needs(job: TrainJob) -> WorkerNeeds:
    """The job's wishes; where it leaves GPUs open, one each if the cluster has any."""
    gpus = job.resources.gpus_per_worker
    if gpus is None:
        kinds = [*node_resources(), *(resources for resources, _ in _node_groups())]
        gpus = 1.0 if any(node.get("GPU", 0) for node in kinds) else 0.0
    return WorkerNeeds(job.resources.cpus_per_worker, gpus)


def node_resources() -> list[dict[str, float]]:
    """Total resources of each living node."""
    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def check_placement(job: TrainJob, needs: WorkerNeeds) -> None:
    """Raise ClusterError when the cluster can never hold the workers, its autoscaler included."""
    nodes = node_resources()
    placeable, workers = places_in(nodes, needs), job.resources.fewest_workers
    if placeable >= workers:
        return
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    raise ClusterError(
        f"resources.workers: the cluster can never place {workers} workers of {needs} each, only {placeable}: "
        f"it has {len(nodes)} node(s) with {cpus:g} CPU and {gpus:g} GPU in all{_growth()}; "
        f"use --workers {max(placeable, 1)}, lower resources.cpus_per_worker or gpus_per_worker, or add nodes"
    )


def places_in(nodes: list[dict[str, float]], needs: WorkerNeeds) -> int:
    """How many such workers ``nodes``, all that there are, hold, or those that the cluster may grow to."""
    return max(sum(needs.fit_into(node) for node in nodes), autoscaler_places(needs))


def room_for(needs: WorkerNeeds) -> int:
    """How many such workers could begin now: of what is free, on nodes that are not about to be taken away."""
    from ray._private.state import available_resources_per_node

    draining = draining_nodes()
    living = {node["NodeID"] for node in ray.nodes() if node["Alive"]} - draining
    free: dict[str, dict[str, float]] = available_resources_per_node()
    return sum(needs.fit_into(resources) for node, resources in free.items() if node in living)


def _growth() -> str:
    groups = [f"{count} of {WorkerNeeds(each.get('CPU', 0), each.get('GPU', 0))}" for each, count in _node_groups()]
    return f", and may grow to nodes of these kinds: {', '.join(groups)}" if groups else ""


def autoscaler_places(needs: WorkerNeeds) -> int:
    """How many such workers the cluster may grow to hold; 0 without an autoscaler.

    Node by node: a worker of two GPUs fits into no number of nodes with one.
    """
    from ray._private.state import state

    placeable = sum(needs.fit_into(resources) * count for resources, count in _node_groups())
    config: Any = state.get_cluster_config()
    limits = dict(config.max_resources) if config is not None else {}
    return min([placeable, *(int(limits[name] // amount) for name, amount in needs.as_ray().items() if name in limits)])


def _node_groups() -> list[tuple[dict[str, float], int]]:
    """What a node of each group of the autoscaler has, and how many of them there may be."""
    from ray._private.state import state

    config: Any = state.get_cluster_config()
    return [
        (dict(group.resources), count)
        for group in (config.node_group_configs if config is not None else ())
        if (count := UNLIMITED if group.max_count == -1 else group.max_count) > 0
    ]


def draining_nodes() -> set[str]:
    """Ids of the nodes that will be taken away, and on which nothing new is placed."""
    from ray._private.state import state

    return set(state.get_draining_nodes())


def nodes_without(path: str) -> list[str]:
    """The addresses of the other nodes with processors that see nothing at ``path``."""
    here = ray.get_runtime_context().get_node_id()
    sees = ray.remote(num_cpus=0)(os.path.exists)
    answers = {
        node["NodeManagerAddress"]: sees.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(path)
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != here and node["Resources"].get("CPU", 0) > 0
    }
    return [address for address, answer in answers.items() if not ray.get(answer)]


def check_storage_is_shared(root: Location, key: str = "storage") -> None:
    """Raise ClusterError when a node does not see the files that this process writes to ``root``, the job's ``key``."""
    if not root.is_local:
        return
    probe = root / f".vaegen-probe-{uuid.uuid4().hex}"
    probe.write_bytes(b"")
    try:
        blind = nodes_without(probe.url)
    finally:
        probe.remove()
    if blind:
        raise ClusterError(
            f"{key}: must be a place that all nodes share, got {root}, which {', '.join(blind)} cannot see; "
            "use s3://bucket/prefix or a network folder"
        )
