"""A run in an object store is like a run on a disk."""

import json
from pathlib import Path

import pytest
import torch

from tests.training.jobs import OBJECTIVES, run_job
from tests.training.test_resume import _StopsAt
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import JobError, LeaseLostError, StorageError
from vaegen_ray.evaluation.scores import read_record
from vaegen_ray.tracking.json_lines import read_metrics
from vaegen_ray.training.local_session import LocalSession
from vaegen_ray.training.loop import Ending
from vaegen_ray.training.run import check_train_job, finished_result, run_training

CPU = torch.device("cpu")


class _TakenOver(LocalSession):
    """Another driver takes the run over, and writes it, after a few steps."""

    def __init__(self, run: RunDirectory) -> None:
        super().__init__(0, 1, CPU)
        self._run, self._looks = run, 0

    def should_stop(self) -> bool:
        self._looks += 1
        if self._looks == 6:
            record = json.loads((self._run.lease / "000001.json").read_text())
            (self._run.lease / "000002.json").write_text(json.dumps({**record, "token": "another"}))
            self._run.metrics.write_text('{"position": 8, "of": "the successor"}\n')
        return False


@pytest.mark.s3
def test_driver_that_lost_its_run_leaves_the_metrics_of_its_successor(dataset: Path, s3_bucket: str) -> None:
    """On its way out it had flushed its own, which took the place of all that the other had written."""
    job = run_job(dataset, Path("unused"), OBJECTIVES["vae"]).model_copy(update={"storage": f"{s3_bucket}/runs"})
    run = RunDirectory.of(job)
    with pytest.raises(LeaseLostError, match="was taken over by"):
        run_training(job, _TakenOver(run))
    assert run.metrics.read_text() == '{"position": 8, "of": "the successor"}\n'
    assert not run.is_complete()


@pytest.mark.s3
def test_run_on_s3_stops_resumes_and_is_readable_from_there_alone(
    s3_bucket: str, dataset: Path, tmp_path: Path
) -> None:
    here = run_job(dataset, tmp_path, OBJECTIVES["vae_gan"])
    expected = run_training(here, LocalSession(0, 1, CPU))

    job = run_job(dataset, f"{s3_bucket}/runs", OBJECTIVES["vae_gan"])
    check_train_job(job)
    assert finished_result(job) is None
    assert run_training(job, _StopsAt(4)).ending is Ending.STOPPED
    assert run_training(job, LocalSession(0, 1, CPU)) == expected

    run = RunDirectory.of(job)
    assert run.load_job() == job
    assert read_record(run)["scores"] == expected.scores
    assert read_metrics(run)[-1]["position"] == 80
    weights = (run.final / "generator.safetensors").read_bytes()
    assert weights == (RunDirectory.of(here).final / "generator.safetensors").read_bytes()
    assert run.picture("samples", 80).exists()
    assert any(name.startswith("events") for name in run.tensorboard.names())
    again = finished_result(job)
    assert again is not None
    assert again.was_complete_before


@pytest.mark.s3
@pytest.mark.usefixtures("s3_bucket")
def test_bucket_that_is_not_there_is_refused_before_anything_starts(dataset: Path) -> None:
    job = run_job(dataset, "s3://no-such-bucket/runs", OBJECTIVES["vae"])
    with pytest.raises(StorageError, match="s3://no-such-bucket/runs/tiny"):
        check_train_job(job)


def test_storage_below_a_file_is_refused_before_anything_starts(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot"):
        check_train_job(run_job(dataset, tmp_path / "file", OBJECTIVES["vae"]))


def test_name_of_another_job_is_refused_and_what_differs_is_named(dataset: Path, tmp_path: Path) -> None:
    run_training(run_job(dataset, tmp_path, OBJECTIVES["vae"]), _StopsAt(1))
    other = run_job(dataset, tmp_path, OBJECTIVES["vae"], optimizer={"generator": {"learning_rate": 0.5}})
    with pytest.raises(JobError, match=r"optimizer.generator.learning_rate: 0.001 there, 0.5 here"):
        run_training(other, LocalSession(0, 1, CPU))


def test_dataset_with_other_channels_or_size_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"model.channels: .*1"):
        check_train_job(run_job(dataset, tmp_path, OBJECTIVES["vae"], model={"channels": 3}))
    with pytest.raises(JobError, match=r"model.image_size: .*16"):
        check_train_job(run_job(dataset, tmp_path, OBJECTIVES["vae"], model={"image_size": 32}))
