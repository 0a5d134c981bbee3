"""A run that was interrupted ends with the same bits as one that was not."""

import json
from pathlib import Path

import pytest
import torch

from tests.training.jobs import OBJECTIVES, job_with, run_job, same_bits, take_steps
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import JobError
from vaegen_ray.storage import Location
from vaegen_ray.training.checkpoint import restore_newest, save_checkpoint
from vaegen_ray.training.local_session import LocalSession
from vaegen_ray.training.loop import Ending
from vaegen_ray.training.run import finished_result, run_training
from vaegen_ray.training.state import TrainState

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_resume_in_the_middle_of_a_run_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    job = job_with(OBJECTIVES[name])
    session = LocalSession(0, 1, CPU)
    undisturbed = TrainState(job, CPU)
    take_steps(job, session, undisturbed, until=64)

    interrupted = TrainState(job, CPU)
    take_steps(job, session, interrupted, until=24)
    run = RunDirectory(Location.of(tmp_path))
    save_checkpoint(interrupted, run, keep=1)
    resumed = TrainState(job, CPU)
    assert not same_bits(resumed, interrupted)
    restore_newest(resumed, run)
    assert resumed.position == 24
    take_steps(job, session, resumed, until=64)

    assert same_bits(resumed, undisturbed)


def test_other_seed_gives_other_parameters() -> None:
    job = job_with(OBJECTIVES["vae"])
    other = job.model_validate({**job.model_dump(), "seed": 1})
    assert not same_bits(TrainState(job, CPU), TrainState(other, CPU))
    assert same_bits(TrainState(job, CPU), TrainState(job, CPU))


class _StopsAt(LocalSession):
    """Asks to stop after so many questions, as a signal would."""

    def __init__(self, questions: int) -> None:
        super().__init__(0, 1, CPU)
        self.questions = questions

    def should_stop(self) -> bool:
        self.questions -= 1
        return self.questions < 0


def test_stopped_run_goes_on_where_it_was_and_scores_the_same(dataset: Path, tmp_path: Path) -> None:
    undisturbed = run_training(run_job(dataset, tmp_path / "a", OBJECTIVES["vae_gan"]), LocalSession(0, 1, CPU))
    job = run_job(dataset, tmp_path / "b", OBJECTIVES["vae_gan"])
    stopped = run_training(job, _StopsAt(3))
    assert (stopped.ending, stopped.position) == (Ending.STOPPED, 24)
    resumed = run_training(job, LocalSession(0, 1, CPU))
    assert resumed == undisturbed
    weights = "tiny/final/generator.safetensors"
    assert (tmp_path / "a" / weights).read_bytes() == (tmp_path / "b" / weights).read_bytes()


def test_stop_right_after_a_checkpoint_does_not_write_it_again(dataset: Path, tmp_path: Path) -> None:
    job = run_job(dataset, tmp_path, OBJECTIVES["vae"], training={"checkpoint_every_images": 16})
    run_training(job, _StopsAt(2))
    manifest = (RunDirectory.of(job).checkpoint(16) / "manifest.json").local_path
    written = manifest.stat().st_mtime_ns
    assert run_training(job, _StopsAt(0)).position == 16
    assert manifest.stat().st_mtime_ns == written


def test_second_process_of_a_run_is_refused(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    monkeypatch.setattr("vaegen_ray.training.run.LOCK_TIMEOUT_S", 0.1)
    job = run_job(dataset, tmp_path, OBJECTIVES["vae"])
    lock = RunDirectory.of(job).lock.local_path
    lock.parent.mkdir(parents=True)
    with FileLock(lock), pytest.raises(JobError, match="is being trained by another process"):
        run_training(job, LocalSession(0, 1, CPU))


def test_dataset_made_anew_under_the_same_path_is_refused_at_resume(dataset: Path, tmp_path: Path) -> None:
    job = run_job(dataset, tmp_path, OBJECTIVES["vae"])
    run_training(job, _StopsAt(2))
    provenance = RunDirectory.of(job).provenance
    starts = json.loads(provenance.read_text())
    starts[0]["dataset"]["fingerprint"] = "of other images"
    provenance.write_text(json.dumps(starts))
    with pytest.raises(JobError, match="holds other images than this run began with"):
        run_training(job, LocalSession(0, 1, CPU))


def test_dataset_may_be_made_anew_before_the_first_checkpoint(dataset: Path, tmp_path: Path) -> None:
    """Of a start that left no checkpoint nothing is in the state: what counts is the newest beginning."""
    job = run_job(dataset, tmp_path, OBJECTIVES["vae"])
    run_training(job, _StopsAt(2))
    provenance = RunDirectory.of(job).provenance
    starts = json.loads(provenance.read_text())
    killed = {**starts[0], "dataset": {**starts[0]["dataset"], "fingerprint": "of other images"}}
    provenance.write_text(json.dumps([killed, *starts]))
    assert run_training(job, LocalSession(0, 1, CPU)).ending is Ending.COMPLETE


def test_complete_run_of_a_partial_last_step_names_the_pictures_that_exist(dataset: Path, tmp_path: Path) -> None:
    job = run_job(dataset, tmp_path, OBJECTIVES["vae"], training={"total_images": 20})
    result = run_training(job, LocalSession(0, 1, CPU))
    again = finished_result(job)
    assert again is not None
    assert result.position == again.position == 24
    assert RunDirectory.of(job).picture("samples", again.position).exists()


def test_metrics_after_a_resume_hold_each_position_once(dataset: Path, tmp_path: Path) -> None:
    from vaegen_ray.tracking.json_lines import read_metrics

    job = run_job(dataset, tmp_path, OBJECTIVES["vae"], training={"report_every_images": 8})
    run_training(job, _StopsAt(4))
    run_training(job, LocalSession(0, 1, CPU))
    positions = [line["position"] for line in read_metrics(RunDirectory.of(job))]
    assert positions == list(range(8, 88, 8))
