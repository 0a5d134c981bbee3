"""A search submitted to a cluster of several nodes, one of which dies with a trial on it."""

import json
import time
from pathlib import Path

import pytest
import torch
import yaml

from tests.cluster.conftest import LocalCluster
from tests.search.samples import base_tree, search_job
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.config.search import SearchJob
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.log import read_trials
from vaegen_ray.search.trials import TrialState
from vaegen_ray.storage import Location
from vaegen_ray.training.lineage import newest_checkpoint
from vaegen_ray.training.local_session import LocalSession
from vaegen_ray.training.run import run_training

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

CHECKPOINT_EVERY = 1_000


@pytest.fixture(scope="module")
def job(store: dict[str, str], dataset: Path) -> SearchJob:  # noqa: ARG001
    """Two trials, one on each node, which train for a while."""
    source = Location.of("s3://cluster/squares_of_trials")
    for path in sorted(dataset.rglob("*")):
        if path.is_file():
            (source / path.relative_to(dataset).as_posix()).write_bytes(path.read_bytes())
    base = base_tree(
        source.url,
        training={"total_images": 12_000, "checkpoint_every_images": CHECKPOINT_EVERY},
        evaluation={"every_images": 6_000},
    )
    return search_job("s3://cluster/runs", base, name="on_nodes", trials=2, scheduler={"kind": "none"})


def alone(run: RunDirectory, storage: Path) -> RunDirectory:
    """The trial's job, run by itself in this process, with as many threads as a trial."""
    job = run.load_job()
    again = job.model_validate({**job.model_dump(), "storage": str(storage)})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run_training(again, LocalSession(0, 1, torch.device("cpu")))
    torch.set_num_threads(threads)
    return RunDirectory.of(again)


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
    told = directory.run(lost.number).final / "generator.safetensors"
    assert told.read_bytes() == (alone(directory.run(lost.number), tmp_path).final / told.name).read_bytes()
