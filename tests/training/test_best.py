"""The best evaluation is kept, and a run that gets no better ends early."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.training.jobs import job_with, run_job
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.evaluation.trained_model import load_generator, save_trained_model
from vaegen_ray.runs.records import read_incidents
from vaegen_ray.tracking.json_lines import read_metrics
from vaegen_ray.training.local_session import local_session
from vaegen_ray.training.loop import Ending
from vaegen_ray.training.recorder import Recorder
from vaegen_ray.training.run import RunResult, finished_result, run_training
from vaegen_ray.training.state import TrainState


def job_with_best(dataset: Path, storage: Path, best: dict[str, Any]) -> TrainJob:
    # A rate that ruins the model after a while, so that the best evaluation is not the last.
    return run_job(
        dataset,
        storage,
        {"kind": "vae"},
        optimizer={"generator": {"learning_rate": 3e-3}},
        training={"total_images": 800, "checkpoint_every_images": 160},
        evaluation={"every_images": 80, "best": best},
    )


def run(job: TrainJob) -> RunResult:
    with local_session() as session:
        return run_training(job, session)


def test_best_evaluation_keeps_its_model_and_scores(dataset: Path, tmp_path: Path) -> None:
    job = job_with_best(dataset, tmp_path, {"metric": "kl_nats", "goal": "minimize"})
    run(job)
    directory = RunDirectory.of(job)
    kept = json.loads((directory.best / "scores.json").read_text())
    evaluated = {line["position"]: line["kl_nats"] for line in read_metrics(directory) if "sample_swd" in line}
    positions = [at for at in evaluated if at > 0]
    assert len(positions) == 10
    assert kept["scores"]["kl_nats"] == min(evaluated[at] for at in positions)
    assert json.loads((directory.best / "model.json").read_text())["position"] == kept["position"]
    best, final = (load_generator(folder, "cpu") for folder in (directory.best, directory.final))
    same = torch.equal(best.decoder.to_images.weight, final.decoder.to_images.weight)
    assert same == (kept["position"] == 800)


def test_run_that_gets_no_better_ends_early_and_is_complete(dataset: Path, tmp_path: Path) -> None:
    # Nothing has a lower cost than the first evaluation of a number that only rises.
    job = job_with_best(dataset, tmp_path, {"metric": "active_units", "goal": "maximize", "patience_evaluations": 2})
    result = run(job)
    assert result.ending is Ending.COMPLETE
    assert result.position < 800
    finished = finished_result(job)
    assert finished is not None
    assert finished.position == result.position
    directory = RunDirectory.of(job)
    kept = json.loads((directory.best / "scores.json").read_text())
    assert kept["position"] == result.position - 2 * 80
    assert directory.picture("interpolations", result.position).exists()


def evaluate_at_24(job: TrainJob, *, late: dict[str, float], known: dict[str, float], is_last: bool) -> RunDirectory:
    """In line, of a run whose model at 16 was measured beside it, with ``late`` scores; ``known`` is its last line."""
    directory = RunDirectory.of(job)
    state = TrainState(job, torch.device("cpu"))
    save_trained_model(state.ema.generator, job, directory.evaluation(16), 16)
    (directory.evaluation(16) / "result.json").write_text(json.dumps({"scores": late}))
    directory.metrics.write_text(json.dumps(known) + "\n")
    (directory.evaluations / "state").write_text("open")
    with local_session() as session:
        session.evaluates_beside = True
        recorder = Recorder(job, session, directory, None, np.zeros((16, 16, 16, 1), np.uint8), None)
        recorder.begin(24)
        state.position = 24
        recorder.evaluate(state, is_last=is_last)
    return directory


def test_best_model_is_kept_although_a_kill_came_before_it_was_copied(tmp_path: Path) -> None:
    """Its scores stood in the metrics already, and counted in again they were no better than themselves."""
    best = {"metric": "sample_swd", "goal": "minimize"}
    job = job_with({"kind": "vae"}, storage=str(tmp_path), evaluation={"every_images": 16, "best": best})
    scores = {"sample_swd": 0.0}
    directory = evaluate_at_24(job, late=scores, known={"position": 16, **scores}, is_last=False)
    assert json.loads((directory.best / "model.json").read_text())["position"] == 16
    assert json.loads((directory.best / "scores.json").read_text())["position"] == 16


def test_run_at_its_end_is_only_warned_by_scores_that_came_late(tmp_path: Path) -> None:
    """Those measured beside had ended the run as failed, at each start again, when all of it was trained."""
    watchdog = {"falling_diversity": {"action": "stop"}}
    evaluation = {"every_images": 16}
    job = job_with({"kind": "vae"}, storage=str(tmp_path), evaluation=evaluation, watchdog=watchdog)
    late = {"sample_swd": 1.0, "sample_diversity": 0.0}
    directory = evaluate_at_24(job, late=late, known={"position": 8}, is_last=True)
    assert [(entry["position"], entry["action"]) for entry in read_incidents(directory)] == [(16, "warn")]
