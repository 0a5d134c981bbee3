"""What a submission sends: the same bytes for the same content, no secret, and no torch on the way."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.training.jobs import OBJECTIVES, run_job
from vaegen_ray.config.loading import dump_job
from vaegen_ray.on_ray.packing import packed
from vaegen_ray.on_ray.submit import absolute, request_of


def test_package_has_the_same_bytes_wherever_it_is_made(tmp_path: Path) -> None:
    job = dump_job(run_job(tmp_path, "s3://bucket/runs", OBJECTIVES["vae"]))
    program = (
        "import sys; from vaegen_ray.on_ray.packing import packed; sys.stdout.buffer.write(packed(sys.stdin.read()))"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", program],
        input=job.encode(),
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "TZ": "Asia/Tokyo", "PYTHONHASHSEED": "7"},
        capture_output=True,
        check=True,
    ).stdout
    assert elsewhere == packed(job)
    names = zipfile.ZipFile(io.BytesIO(elsewhere)).namelist()
    assert names == sorted(names)
    assert "vaegen_ray/training/loop.py" in names
    assert "job.json" in names
    assert not [name for name in names if "__pycache__" in name]


def test_other_settings_make_another_package(tmp_path: Path) -> None:
    one, other = (dump_job(run_job(tmp_path, "s3://b/r", OBJECTIVES["vae"], seed=seed)) for seed in (0, 1))
    assert packed(one) != packed(other)


def test_request_names_run_and_attempt_and_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "planted-token")
    job = run_job(tmp_path, "s3://bucket/runs", OBJECTIVES["vae"], resources={"stop_window_s": 300})
    request = request_of(job, 3, "http://head:8265")
    assert request["submission_id"] == "tiny-a3"
    assert request["metadata"]["vaegen_run"] == "s3://bucket/runs/tiny"
    assert request["env_vars"]["RAY_JOB_STOP_SIGNAL"] == "SIGTERM"
    assert int(request["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) > 300
    assert "planted" not in str(request)
    assert b"planted" not in packed(dump_job(job))


def test_local_paths_become_absolute_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = run_job("squares", "runs", OBJECTIVES["vae"])  # type: ignore[arg-type]
    assert absolute(job).storage == str(tmp_path / "runs")  # type: ignore[union-attr]
    assert absolute(job).data.source == str(tmp_path / "squares")  # type: ignore[union-attr]
    shipped = run_job("shipped:fashion_mnist", "s3://b/r", OBJECTIVES["vae"], model={"image_size": 32})  # type: ignore[arg-type]
    assert absolute(shipped) == shipped


def test_submitting_imports_no_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from vaegen_ray.on_ray import connection, submit\n"
        "from vaegen_ray.cli import runs\n"
        "from vaegen_ray.cli import submit as verb\n"
        "connection._client('http://127.0.0.1:9', None) if False else None\n"
        "from ray.job_submission import JobSubmissionClient\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
