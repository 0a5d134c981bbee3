"""What a cluster that grows can hold: groups of nodes told to a real cluster, as KubeRay and `ray up` tell them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig

from tests.search.samples import base_tree, search_job
from tests.training.jobs import OBJECTIVES, run_job
from vaegen_ray.config.job import TrainJob
from vaegen_ray.errors import ClusterError
from vaegen_ray.on_ray.preflight import WorkerNeeds, autoscaler_places, check_placement, worker_needs
from vaegen_ray.on_ray.search import concurrent_trials

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]


def tell(*groups: NodeGroupConfig, **limits: int) -> None:
    """What an autoscaler tells of itself when it starts."""
    config = ClusterConfig(node_group_configs=groups, max_resources=limits)
    ray._private.worker.global_worker.gcs_client.report_cluster_config(config.SerializeToString())


@pytest.fixture
def spot() -> Iterator[NodeGroupConfig]:
    """Eight nodes at most, of eight processors and one GPU each; none is there yet."""
    group = NodeGroupConfig(name="spot", resources={"CPU": 8, "GPU": 1}, min_count=0, max_count=8)
    tell(group)
    yield group
    tell()


def job(dataset: Path, tmp_path: Path, **resources: Any) -> TrainJob:
    return run_job(dataset, tmp_path, OBJECTIVES["vae"], resources=resources)


@pytest.mark.usefixtures("spot")
def test_worker_asks_for_a_gpu_where_only_nodes_to_come_have_some(dataset: Path, tmp_path: Path) -> None:
    """On a cluster that scales from zero, jobs trained on the processors of GPU nodes."""
    assert worker_needs(job(dataset, tmp_path)) == WorkerNeeds(1, 1)
    tell()
    assert worker_needs(job(dataset, tmp_path)) == WorkerNeeds(1, 0)


def test_workers_are_fitted_into_nodes_not_into_their_sum(dataset: Path, tmp_path: Path, spot: NodeGroupConfig) -> None:
    """A worker of two GPUs was waited for half an hour where each node has one."""
    assert autoscaler_places(WorkerNeeds(1, 1)) == 8
    assert autoscaler_places(WorkerNeeds(3, 0)) == 16
    for needs in (WorkerNeeds(1, 2), WorkerNeeds(32, 0)):
        assert autoscaler_places(needs) == 0
        with pytest.raises(ClusterError, match=r"only 0: .* may grow to nodes of these kinds: 8 of 8 CPU and 1 GPU"):
            check_placement(job(dataset, tmp_path), needs)
    check_placement(job(dataset, tmp_path, workers=8), WorkerNeeds(1, 1))
    tell(spot, GPU=5)
    assert autoscaler_places(WorkerNeeds(1, 1)) == 5
    tell(NodeGroupConfig(name="endless", resources={"CPU": 4}, max_count=-1))
    assert autoscaler_places(WorkerNeeds(4, 0)) > 10**6


@pytest.mark.usefixtures("spot")
def test_search_runs_as_many_trials_at_once_as_the_cluster_may_grow_to_hold(tmp_path: Path) -> None:
    search = search_job(tmp_path, base_tree(), trials=100)
    assert concurrent_trials(search, WorkerNeeds(1, 1)) == 8
    assert concurrent_trials(search.model_copy(update={"max_concurrent": 3}), WorkerNeeds(1, 1)) == 3
