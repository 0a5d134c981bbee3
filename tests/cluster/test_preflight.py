"""What the cluster finds wrong with a job before it is submitted: each with its sentence, on a real cluster."""

import itertools
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.cluster.conftest import LocalCluster
from tests.faults.proxy import FaultyProxy
from tests.training.jobs import OBJECTIVES, run_job
from vaegen_ray.config.run_directory import RunDirectory

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]


@pytest.fixture(scope="module")
def job_file(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("job") / "tiny.yaml"
    job = run_job(dataset, "s3://cluster/preflight", OBJECTIVES["vae"], resources={"workers": 2})
    path.write_text(yaml.safe_dump(job.model_dump(mode="json")))
    return str(path)


def test_all_that_is_wrong_is_told_at_once_and_nothing_is_submitted(cluster: LocalCluster, job_file: str) -> None:
    output = cluster.done(
        "submit", job_file, "--set", "resources.gpus_per_worker=1", "--set", "storage=s3://no-such-bucket/runs",
        "--set", "data.source=/only/on/my/laptop", code=1,
    )  # fmt: skip
    assert "the cluster can never place 2 workers of 1 CPU and 1 GPU each, only 0" in output
    assert "3 node(s) with 2 CPU and 0 GPU in all" in output
    assert "storage: s3://no-such-bucket/runs/tiny must be writable" in output
    assert "there is no such file, folder or bucket" in output
    for node in ("127.0.0.2", "127.0.0.3"):
        assert f"there is nothing at /only/on/my/laptop, on the node {node}" in output
    assert "tiny-a1" not in cluster.done(
        "list", "s3://cluster/preflight", "--address", cluster.environment["RAY_ADDRESS"]
    )


def test_too_many_workers_and_a_bucket_that_cannot_be_written_are_told(
    cluster: LocalCluster, proxy: FaultyProxy, job_file: str
) -> None:
    proxy.schedule("PUT /cluster/readonly/", itertools.repeat("denied"))
    output = cluster.done(
        "submit", job_file, "--set", "resources.workers=4", "--set", "storage=s3://cluster/readonly", code=1
    )
    proxy.heal()
    assert "the cluster can never place 4 workers of 1 CPU each, only 2" in output
    assert "use --workers 2" in output
    assert "storage: s3://cluster/readonly/tiny must be writable, cannot write: permission denied" in output


def test_name_of_another_run_is_refused_before_anything_is_submitted(
    cluster: LocalCluster, job_file: str, dataset: Path, tmp_path: Path
) -> None:
    """Where that run was complete, the submission counted as done."""
    other = run_job(dataset, tmp_path, OBJECTIVES["vae"], seed=7)
    RunDirectory.of(other).claim(other)
    output = cluster.done("submit", job_file, "--set", f"storage={tmp_path}", code=1)
    assert f"{tmp_path}/tiny holds the run of another job (seed: 7 there, 0 here" in output


def test_wrong_token_is_refused_before_anything_is_sent(cluster: LocalCluster, job_file: str) -> None:
    output = cluster.done("submit", job_file, code=1, RAY_AUTH_TOKEN="of-another-cluster")
    assert "refuses the token of RAY_AUTH_TOKEN (40" in output


def test_cluster_that_is_not_there_is_a_passing_failure(cluster: LocalCluster, job_file: str) -> None:
    output = cluster.done("submit", job_file, "--address", "http://127.0.0.1:9", code=os.EX_TEMPFAIL)
    assert "no dashboard answers at http://127.0.0.1:9" in output


def test_dry_run_shows_what_would_be_submitted(cluster: LocalCluster, job_file: str) -> None:
    output = cluster.done("submit", job_file, "--dry-run")
    assert "submission_id: tiny-a1" in output
    assert "nothing was submitted" in output
    assert "tiny-a1" not in cluster.done(
        "list", "s3://cluster/preflight", "--address", cluster.environment["RAY_ADDRESS"]
    )


def test_dashboard_listens_to_this_machine_only(cluster: LocalCluster) -> None:
    port = cluster.environment["RAY_ADDRESS"].rsplit(":", 1)[1]
    listening = subprocess.run(["ss", "-ltn"], capture_output=True, text=True, check=False).stdout
    if not listening:
        pytest.skip("needs `ss`, of the package iproute2")
    addresses = [line.split()[3] for line in listening.splitlines() if line.split()[3].endswith(f":{port}")]
    assert addresses == [f"127.0.0.1:{port}"]
