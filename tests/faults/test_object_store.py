"""Training with data and run in a bucket whose server fails now and then, or for good."""

import itertools
from pathlib import Path

import pytest
import torch

from tests.faults.proxy import Fault, FaultyProxy
from tests.training.jobs import OBJECTIVES, run_job
from vaegen_ray import storage, store_failures
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import StorageError
from vaegen_ray.storage import Location
from vaegen_ray.tracking.json_lines import read_metrics
from vaegen_ray.training.local_session import LocalSession
from vaegen_ray.training.run import check_train_job, run_training

pytestmark = pytest.mark.s3

TRAINING = {"total_images": 160, "report_every_images": 16, "checkpoint_every_images": 40}
FAULTS: list[Fault] = ["slow_down", "internal_error", "reset", "lost", "truncate", "stall", "stall_body"]


@pytest.fixture
def job(s3_bucket: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainJob:
    """A job with data and run in the bucket, in whose run a read gives up after half a second."""
    monkeypatch.setattr(storage, "READ_TIMEOUT_S", 0.5)
    monkeypatch.setattr(storage, "ATTEMPTS_PER_REQUEST", 1)
    monkeypatch.setattr(storage, "FIRST_WAIT_S", 0.05)
    for file in dataset.iterdir():
        (Location.of(f"{s3_bucket}/squares") / file.name).upload(file)
    return run_job(
        Path("unused"),
        f"{s3_bucket}/runs",
        OBJECTIVES["vae_gan"],
        data={"source": f"{s3_bucket}/squares", "cache": str(tmp_path / "cache")},
        training=TRAINING,
    )


@pytest.fixture
def undisturbed(dataset: Path, tmp_path: Path) -> bytes:
    """The weights of the same run on this disk."""
    job = run_job(dataset, tmp_path / "undisturbed", OBJECTIVES["vae_gan"], training=TRAINING)
    run_training(job, LocalSession(0, 1, torch.device("cpu")))
    return weights_of(job)


def weights_of(job: TrainJob) -> bytes:
    return (RunDirectory.of(job).final / "generator.safetensors").read_bytes()


def train(job: TrainJob) -> None:
    check_train_job(job)
    run_training(job, LocalSession(0, 1, torch.device("cpu")))


def test_run_whose_store_fails_every_third_time_ends_with_the_same_weights(
    job: TrainJob, s3_proxy: FaultyProxy, undisturbed: bytes
) -> None:
    every_third = itertools.chain.from_iterable((None, None, fault) for fault in itertools.cycle(FAULTS))
    s3_proxy.schedule("", every_third)
    train(job)
    s3_proxy.heal()
    assert weights_of(job) == undisturbed
    assert {served.fault for served in s3_proxy.requests()} == {None, *FAULTS}
    assert {served.fault for served in s3_proxy.requests("PUT .*/checkpoints/")} > {None}
    positions = [line["position"] for line in read_metrics(RunDirectory.of(job))]
    assert positions == sorted(set(positions))
    assert positions[-1] == 160


def test_run_whose_store_goes_away_ends_in_a_sentence_and_goes_on_when_it_is_back(
    job: TrainJob, s3_proxy: FaultyProxy, undisturbed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_failures, "PATIENCE_S", 0.5)
    s3_proxy.schedule("PUT .*/checkpoints/.*80/manifest", ["slow_down"] * 1000)
    with pytest.raises(StorageError, match=r"80/manifest.json: cannot write: the store asks to slow down .* \(tried"):
        train(job)
    assert RunDirectory.of(job).checkpoint_positions() == [40, 80]
    s3_proxy.heal()
    s3_proxy.schedule("GET .*/checkpoints/.*40/", ["internal_error"] * 1000)
    with pytest.raises(StorageError, match=r"cannot read: the store failed .*; run the same command again later"):
        train(job)
    s3_proxy.heal()
    monkeypatch.setattr(store_failures, "PATIENCE_S", 60.0)
    s3_proxy.schedule("GET .*/checkpoints/.*40/", FAULTS)
    train(job)
    assert weights_of(job) == undisturbed
