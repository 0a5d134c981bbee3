"""What Ray runs of a submission, in this process, where it cannot begin."""

import os
import socket
from pathlib import Path

import pytest
import s3fs

from tests.config.samples import tree_of
from vaegen_ray import store_failures
from vaegen_ray.config.loading import dump_job, job_of
from vaegen_ray.on_ray.driver import ATTEMPT, CLUSTER, main
from vaegen_ray.runs.lease import SUBMISSION


@pytest.fixture(autouse=True)
def _submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {ATTEMPT: "1", CLUSTER: "http://head:8265", SUBMISSION: "tiny-a1"}.items():
        monkeypatch.setenv(name, value)


def job_file(tmp_path: Path, storage: str) -> str:
    file = tmp_path / "job.json"
    file.write_text(dump_job(job_of(tree_of("vae") | {"storage": storage}, "job")))
    return str(file)


def test_driver_whose_store_is_away_ends_with_a_sentence_and_the_code_that_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:  # Bound, and not listened at.
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
        monkeypatch.setattr(store_failures, "NO_STORE_PATIENCE_S", 0.1)
        s3fs.S3FileSystem.clear_instance_cache()
        code = main(job_file(tmp_path, "s3://bucket/planted-secret"))
        s3fs.S3FileSystem.clear_instance_cache()
    printed = capsys.readouterr().out
    assert code == os.EX_TEMPFAIL
    assert "error: s3://bucket/***/tiny/logs/attempt-001/attempt.json: cannot write: no object store answers" in printed
    assert "planted-secret" not in printed


def test_driver_that_may_not_write_ends_with_the_code_that_is_not_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    assert main(job_file(tmp_path, f"{tmp_path}/file")) == 1
    assert capsys.readouterr().out.startswith(
        f"error: {tmp_path}/file/tiny/logs/attempt-001/attempt.json: cannot write"
    )
