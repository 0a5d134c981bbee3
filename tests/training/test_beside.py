"""Evaluation beside training, with a second process of the machine in the place of Ray's evaluator."""

import json
import re
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.faults.proxy import FaultyProxy
from tests.training.jobs import run_job
from vaegen_ray import store_failures
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.data.cache import NodeCache
from vaegen_ray.data.plain_parquet import open_dataset
from vaegen_ray.errors import DivergedError, TrainingError
from vaegen_ray.evaluation.trained_model import save_trained_model
from vaegen_ray.tracking.json_lines import read_metrics
from vaegen_ray.training.beside import STATE, Published, measure_published, next_to_measure
from vaegen_ray.training.local_session import local_session
from vaegen_ray.training.run import run_training
from vaegen_ray.training.state import TrainState


def job_beside(dataset: Path, storage: Path) -> TrainJob:
    return run_job(
        dataset,
        storage,
        {"kind": "vae"},
        training={"total_images": 400, "report_every_images": 16},
        evaluation={"every_images": 80, "best": {"metric": "sample_swd", "goal": "minimize"}},
    )


def train(job: TrainJob, *, beside: bool) -> None:
    with local_session() as session:
        session.evaluates_beside = beside
        run_training(job, session)


def measure(job: TrainJob, over: threading.Event) -> None:
    dataset = open_dataset(job.data, job.model)
    held_out = dataset.decoded("held_out", NodeCache.of(job.data), job.evaluation.images)
    cpu = torch.device("cpu")
    measure_published(job, RunDirectory.of(job), held_out, dataset.metadata.fingerprint, cpu, over.is_set)


def test_scores_measured_beside_are_those_in_line_at_the_same_positions(dataset: Path, tmp_path: Path) -> None:
    alone, beside = job_beside(dataset, tmp_path / "alone"), job_beside(dataset, tmp_path / "beside")
    train(alone, beside=False)
    over = threading.Event()
    evaluator = threading.Thread(target=measure, args=(beside, over))
    evaluator.start()
    while not (RunDirectory.of(beside).evaluations / STATE).exists():
        time.sleep(0.05)
    train(beside, beside=True)
    over.set()
    evaluator.join(30)
    scores = [
        {line["position"]: line["sample_swd"] for line in read_metrics(RunDirectory.of(job)) if "sample_swd" in line}
        for job in (alone, beside)
    ]
    assert list(scores[1]) == [0, 80, 160, 240, 320, 400]
    assert scores[1] == pytest.approx(scores[0], rel=1e-5)
    run = RunDirectory.of(beside)
    assert run.evaluations.names() == [STATE]
    assert (run.best / "model.json").exists()
    assert sorted(run.samples.names()) == sorted(RunDirectory.of(alone).samples.names())
    positions = [line["position"] for line in read_metrics(run)]
    assert positions == sorted(set(positions))


def test_training_waits_for_scores_that_are_more_than_one_behind(dataset: Path, tmp_path: Path) -> None:
    job, over = job_beside(dataset, tmp_path), threading.Event()
    run = RunDirectory.of(job)
    (run.evaluations / STATE).write_text("open")
    trainer = threading.Thread(target=lambda: train_in_thread(job), daemon=True)
    trainer.start()
    deadline = time.monotonic() + 60
    while next_to_measure(run) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1.0)
    assert next_to_measure(run) == 80
    assert read_metrics(run)[-1]["position"] <= 160
    evaluator = threading.Thread(target=measure, args=(job, over))
    evaluator.start()
    trainer.join(60)
    over.set()
    evaluator.join(30)
    assert run.is_complete()


def train_in_thread(job: TrainJob) -> None:
    from vaegen_ray.training.local_session import LocalSession

    session = LocalSession(0, 1, torch.device("cpu"))
    session.evaluates_beside = True
    run_training(job, session)


def test_lost_evaluator_leaves_evaluations_to_the_run(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = job_beside(dataset, tmp_path)
    run = RunDirectory.of(job)

    (run.evaluations / STATE).write_text("open")

    def close() -> None:
        while next_to_measure(run) is None:
            time.sleep(0.05)
        (run.evaluations / STATE).write_text("closed")

    threading.Thread(target=close, daemon=True).start()
    train(job, beside=True)
    evaluated = [line["position"] for line in read_metrics(run) if "sample_swd" in line]
    assert evaluated == [0, 160, 240, 320, 400]
    assert any("is not evaluated, the evaluator was lost" in message for message in caplog.messages)


def test_evaluator_that_falls_silent_leaves_evaluations_to_the_run(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose node is gone, and with it whoever would write that it is."""
    monkeypatch.setattr("vaegen_ray.training.beside.SILENCE_S", 2.0)
    job = job_beside(dataset, tmp_path)
    run = RunDirectory.of(job)
    (run.evaluations / STATE).write_text("open 1700000000.0")
    train(job, beside=True)
    evaluated = [line["position"] for line in read_metrics(run) if "sample_swd" in line]
    assert evaluated == [0, 160, 240, 320, 400]
    assert any("is not evaluated, the evaluator was lost" in message for message in caplog.messages)


def test_evaluator_is_heard_while_it_measures(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaegen_ray.training.beside.BEAT_S", 0.05)
    job, over = job_beside(dataset, tmp_path), threading.Event()
    state = RunDirectory.of(job).evaluations / STATE
    evaluator = threading.Thread(target=measure, args=(job, over))
    evaluator.start()
    heard = set()
    deadline = time.monotonic() + 60
    while len(heard) < 3 and time.monotonic() < deadline:
        heard |= {state.read_text()} if state.exists() else set()
        time.sleep(0.02)
    over.set()
    evaluator.join(30)
    assert len(heard) >= 3
    assert all(text.startswith("open ") for text in heard)


@pytest.mark.parametrize("is_broken", [True, False], ids=["not finite", "without what it is measured by"])
def test_what_the_evaluator_met_ends_the_run_as_what_it_is(dataset: Path, tmp_path: Path, *, is_broken: bool) -> None:
    """Comparisons count a run that diverged as unstable, and one whose weights are missing as failed."""
    job, over = job_beside(dataset, tmp_path), threading.Event()
    run = RunDirectory.of(job)
    generator = TrainState(job, torch.device("cpu")).ema.generator
    if is_broken:
        next(generator.decoder.parameters()).data.fill_(torch.nan)
    save_trained_model(generator, job, run.evaluation(80), 80)
    if not is_broken:
        (run.evaluation(80) / "generator.safetensors").remove()
    evaluator = threading.Thread(target=measure, args=(job, over))
    evaluator.start()
    with pytest.raises(TrainingError) as failure:
        Published(job, run, 80).take()
    over.set()
    evaluator.join(30)
    assert isinstance(failure.value, DivergedError) == is_broken
    assert re.search("finite" if is_broken else r"generator\.safetensors", str(failure.value))


def test_store_that_is_away_for_the_evaluator_is_no_failure_of_the_job(
    dataset: Path, s3_bucket: str, s3_proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_failures, "PATIENCE_S", 0.1)
    job = job_beside(dataset, tmp_path).model_copy(update={"storage": f"{s3_bucket}/runs"})
    run, over = RunDirectory.of(job), threading.Event()
    generator = TrainState(job, torch.device("cpu")).ema.generator
    save_trained_model(generator, job, run.evaluation(80), 80)
    s3_proxy.schedule(r"GET .*generator\.safetensors", ["internal_error"] * 8)
    evaluator = threading.Thread(target=measure, args=(job, over))
    evaluator.start()
    deadline = time.monotonic() + 120
    while next_to_measure(run) is not None and time.monotonic() < deadline:
        time.sleep(0.2)
    over.set()
    evaluator.join(60)
    assert "sample_swd" in json.loads((run.evaluation(80) / "result.json").read_text())["scores"]
