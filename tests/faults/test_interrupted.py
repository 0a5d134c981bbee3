"""Real processes, real signals: a run that was interrupted goes on, and ends like one that was not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.training.jobs import OBJECTIVES, run_job
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.report.run import incidents

pytestmark = pytest.mark.slow

TRAINING = {"total_images": 1600, "report_every_images": 80, "checkpoint_every_images": 160}
WEIGHTS = "tiny/final/generator.safetensors"


def write_job(job: TrainJob, folder: Path) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json")))
    return path


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def vaegen(*arguments: str) -> subprocess.Popen[str]:
    return start(sys.executable, "-c", "from vaegen_ray.cli.main import main; main()", *arguments)


def wait_for_checkpoint(job: TrainJob, process: subprocess.Popen[str]) -> None:
    checkpoints = RunDirectory.of(job).checkpoints.local_path
    deadline = time.monotonic() + 240
    while not list(checkpoints.glob("*/manifest.json")):
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a run that nobody disturbed."""
    storage = tmp_path_factory.mktemp("undisturbed")
    job = run_job(dataset, storage, OBJECTIVES["vae_gan"], training=TRAINING)
    process = vaegen("train", str(write_job(job, storage)))
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    for word in (
        "samples:",
        "reconstructions:",
        "metrics:",
        "model:",
        "images/s",
        "generator_loss",
        "discriminator_loss",
    ):
        assert word in output
    return (storage / WEIGHTS).read_bytes()


def test_run_killed_with_sigkill_resumes_to_the_same_bits_and_then_says_it_is_complete(
    undisturbed: bytes, dataset: Path, tmp_path: Path
) -> None:
    job = run_job(dataset, tmp_path, OBJECTIVES["vae_gan"], training=TRAINING)
    path = str(write_job(job, tmp_path))
    first = vaegen("train", path)
    wait_for_checkpoint(job, first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not RunDirectory.of(job).is_complete(), "the run was over before it was killed"
    second = vaegen("train", path)
    output, _ = second.communicate(timeout=500)
    assert second.returncode == 0, output
    assert (tmp_path / WEIGHTS).read_bytes() == undisturbed
    assert "after the loss of its processes" in incidents(RunDirectory.of(job), job)["sentences"][0]
    third = vaegen("train", path)
    output, _ = third.communicate(timeout=500)
    assert third.returncode == 0
    assert "is complete already" in output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_asked_to_stop_saves_where_it_is_and_resumes_to_the_same_bits(
    undisturbed: bytes, dataset: Path, tmp_path: Path, number: signal.Signals
) -> None:
    job = run_job(dataset, tmp_path, OBJECTIVES["vae_gan"], training={**TRAINING, "checkpoint_every_images": 400})
    path = str(write_job(job, tmp_path))
    first = vaegen("train", path)
    wait_for_checkpoint(job, first)
    first.send_signal(number)
    output, _ = first.communicate(timeout=500)
    assert first.returncode == 128 + number, output
    assert "Run the same command again to go on" in output
    second = vaegen("train", path)
    output, _ = second.communicate(timeout=500)
    assert second.returncode == 0, output
    assert (tmp_path / WEIGHTS).read_bytes() == undisturbed
    assert f"after a stop that was asked for ({number.name})" in incidents(RunDirectory.of(job), job)["sentences"][0]


def test_two_processes_of_torchrun_train_without_ray(dataset: Path, tmp_path: Path) -> None:
    job = run_job(
        dataset, tmp_path, OBJECTIVES["vae_gan"], training={**TRAINING, "total_images": 160}, resources={"workers": 2}
    )
    program = tmp_path / "program.py"
    program.write_text("import sys\nsys.modules['ray'] = None\nfrom vaegen_ray.cli.main import main\nmain()\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--"]
    process = start(*torchrun, str(program), "train", str(write_job(job, tmp_path)), "--local")
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    assert output.count("samples:") == 1
    assert '"num_ranks": 2' in RunDirectory.of(job).provenance.read_text()
