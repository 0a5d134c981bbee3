"""A search submitted to a cluster of several nodes, one of which dies with a trial on it."""

import json
import time
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import LocalCluster, put
from tests.search.samples import base_tree, search_job
from tests.training.jobs import run_alone
from vaegen_ray.config.search import SearchJob
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.log import read_trials
from vaegen_ray.search.trials import TrialState
from vaegen_ray.training.lineage import newest_checkpoint

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

CHECKPOINT_EVERY = 1_000


@pytest.fixture(scope="module")
def job(store: dict[str, str], dataset: Path) -> SearchJob:  # noqa: ARG001
    """Two trials, one on each node, which train for a while."""
    base = base_tree(
        put(dataset, "s3://cluster/squares_of_trials"),
        training={"total_images": 12_000, "checkpoint_every_images": CHECKPOINT_EVERY},
        evaluation={"every_images": 6_000},
    )
    return search_job("s3://cluster/runs", base, name="on_nodes", trials=2, scheduler={"kind": "none"})


def test_trials_of_a_lost_node_go_on_from_their_checkpoints(
    cluster: LocalCluster, job: SearchJob, tmp_path: Path
) -> None:
    cluster.up()
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(job.model_dump(mode="json")))
    assert "submitted on_nodes-a1" in cluster.done("submit", str(file))
    directory = SearchDirectory.of(job)
    runs = [directory.run(number) for number in range(2)]
    until_s = time.monotonic() + 200
    while not all(newest_checkpoint(run) >= CHECKPOINT_EVERY for run in runs):
        assert time.monotonic() < until_s, cluster.done("logs", "on_nodes", "--storage", "s3://cluster/runs")
        time.sleep(0.3)
    cluster.kill("worker-1")
    output = cluster.done("submit", str(file), "--follow")
    assert "joined on_nodes-a1" in output
    trials = read_trials(directory)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2, output
    assert sorted(trial.attempts for trial in trials) == [1, 2], "one trial was on the lost node"
    lost = next(trial for trial in trials if trial.attempts == 2)
    first, second = json.loads(directory.run(lost.number).provenance.read_text())
    assert first["position"] == 0
    assert second["position"] >= CHECKPOINT_EVERY
    assert second["position"] % CHECKPOINT_EVERY == 0
    run = directory.run(lost.number)
    weights = run.final / "generator.safetensors"
    undisturbed = run_alone(run.load_job(), tmp_path).final / weights.name
    assert weights.read_bytes() == undisturbed.read_bytes()
