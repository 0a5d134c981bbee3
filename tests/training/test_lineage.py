"""Runs that begin from another's state, and jobs that change their weights on the way: the same bits as alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.jobs import NETWORK, OBJECTIVES, run_job
from vaegen_ray.config.completion import merged
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import CheckpointError
from vaegen_ray.runs.records import read_incidents
from vaegen_ray.search.forks import fork_of
from vaegen_ray.tracking.json_lines import read_metrics
from vaegen_ray.training.checkpoint import read_checkpoint
from vaegen_ray.training.lineage import begin_from
from vaegen_ray.training.local_session import LocalSession
from vaegen_ray.training.loop import Ending
from vaegen_ray.training.run import run_training
from vaegen_ray.training.watchdog import rollback_factors

CPU = torch.device("cpu")
START = 32


def vae_gan(share: float, **adversarial: Any) -> dict[str, Any]:
    return {
        "kind": "vae_gan",
        "adversarial": {
            "balance": {"kind": "gradient_share", "share": share},
            "gradient_penalty": {"r1": 0.5, "every_steps": 3},
            "lecam": {"weight": 0.1},
            "augment": ["color", "translation"],
            "start_images": START,
            **adversarial,
        },
        "discriminator": {**NETWORK, "spectral_norm": True},
    }


def train_job(job: TrainJob, until: int | None = None) -> RunDirectory:
    run_training(job, LocalSession(0, 1, CPU), until=until)
    return RunDirectory.of(job)


def state_of(run: RunDirectory, position: int) -> dict[str, bytes]:
    return read_checkpoint(run.checkpoint(position))


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What clocks and memory measured is not the same twice."""
    return [{name: value for name, value in line.items() if not name.endswith(("_s", "_bytes"))} for line in lines]


@pytest.mark.parametrize(
    "other",
    [
        vae_gan(0.8),
        vae_gan(0.3, ramp_images=16),
        vae_gan(0.3, balance={"kind": "fixed", "weight": 0.5}),
        vae_gan(0.3, balance={"kind": "equilibrium", "weight": 0.5}),
        vae_gan(0.3, feature_matching={"weight": 0.5}),
        vae_gan(0.3, reaches_encoder=False),
    ],
    ids=["share", "ramp", "fixed", "equilibrium", "feature matching", "encoder"],
)
def test_forked_trial_is_bit_equal_to_the_same_trial_alone(
    dataset: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    first, second = run_job(dataset, tmp_path / "a", vae_gan(0.3)), run_job(dataset, tmp_path / "b", other)
    fork = fork_of(first)
    assert fork is not None
    assert fork == fork_of(second)
    alone = train_job(run_job(dataset, tmp_path / "c", other))
    begin_from(train_job(first, until=fork.position), RunDirectory.of(second), second, fork.position)
    forked = train_job(second)
    end = second.training.final_position
    assert state_of(forked, end) == state_of(alone, end)
    assert forked.scores.read_text() == alone.scores.read_text()
    assert without_times(read_metrics(forked)) == without_times(read_metrics(alone))


@pytest.mark.parametrize(
    "other",
    [
        {"objective": {"kl": {"weight": 0.5}}},
        {"objective": {"adversarial": {"loss": "hinge"}}},
        {"objective": {"adversarial": {"gradient_penalty": {"r1": 0.1}}}},
        {"objective": {"adversarial": {"start_images": 40}}},
        {"optimizer": {"discriminator": {"learning_rate": 1e-3}}},
        {"seed": 1},
        {"training": {"total_images": 160}},
    ],
    ids=str,
)
def test_trials_that_differ_before_the_adversarial_start_share_no_beginning(
    dataset: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    objective = merged(vae_gan(0.3), other.get("objective", {}))
    sections = {name: section for name, section in other.items() if name != "objective"}
    assert fork_of(run_job(dataset, tmp_path, vae_gan(0.3))) != fork_of(
        run_job(dataset, tmp_path, objective, **sections)
    )


@pytest.mark.parametrize("objective", [OBJECTIVES["vae"], vae_gan(0.3, start_images=0)], ids=["vae", "from the start"])
def test_job_without_a_phase_before_the_adversarial_start_has_no_fork(
    dataset: Path, tmp_path: Path, objective: dict[str, Any]
) -> None:
    assert fork_of(run_job(dataset, tmp_path, objective)) is None


def test_fork_lies_at_the_first_step_that_feels_the_discriminator(dataset: Path, tmp_path: Path) -> None:
    fork = fork_of(run_job(dataset, tmp_path, vae_gan(0.3, start_images=33)))
    assert fork is not None
    assert fork.position == 40


def test_run_until_a_position_stops_there_with_a_checkpoint_and_goes_on_to_the_same_bits(
    dataset: Path, tmp_path: Path
) -> None:
    job = run_job(dataset, tmp_path / "a", vae_gan(0.3))
    stopped = run_training(job, LocalSession(0, 1, CPU), until=30)
    assert (stopped.ending, stopped.position) == (Ending.STOPPED, 32)
    assert RunDirectory.of(job).checkpoint_positions()[-1] == 32
    alone = train_job(run_job(dataset, tmp_path / "b", vae_gan(0.3)))
    end = job.training.final_position
    assert state_of(train_job(job), end) == state_of(alone, end)


CHANGES = [
    {"at_images": 40, "set": {"objective.kl.weight": 0.25, "optimizer.generator.learning_rate": 5e-4}},
    {"at_images": 64, "set": {"objective.adversarial.balance.share": 0.7}},
]


def test_changed_weights_are_those_of_a_run_that_begins_there_with_them(dataset: Path, tmp_path: Path) -> None:
    whole = train_job(run_job(dataset, tmp_path / "whole", vae_gan(0.3), changes=CHANGES))
    legs = [
        (run_job(dataset, tmp_path / "a", vae_gan(0.3)), 40),
        (
            run_job(
                dataset,
                tmp_path / "b",
                {**vae_gan(0.3), "kl": {"weight": 0.25}},
                optimizer={"generator": {"learning_rate": 5e-4}},
            ),
            64,
        ),
        (
            run_job(
                dataset,
                tmp_path / "c",
                {**vae_gan(0.7), "kl": {"weight": 0.25}},
                optimizer={"generator": {"learning_rate": 5e-4}},
            ),
            80,
        ),
    ]
    before: tuple[RunDirectory, int] | None = None
    for job, end in legs:
        if before is not None:
            begin_from(before[0], RunDirectory.of(job), job, before[1])
        before = (train_job(job, until=end), end)
    assert before is not None
    assert state_of(whole, 80) == state_of(before[0], 80)
    assert state_of(whole, 80) != state_of(train_job(run_job(dataset, tmp_path / "plain", vae_gan(0.3))), 80)


@pytest.mark.parametrize("until", [24, 48])
def test_run_with_changes_resumes_to_the_same_bits(dataset: Path, tmp_path: Path, until: int) -> None:
    alone = train_job(run_job(dataset, tmp_path / "a", vae_gan(0.3), changes=CHANGES))
    job = run_job(dataset, tmp_path / "b", vae_gan(0.3), changes=CHANGES)
    train_job(job, until=until)
    assert state_of(train_job(job), 80) == state_of(alone, 80)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ([{"at_images": 12, "set": {"objective.kl.weight": 1.0}}], "changes[0].at_images: must be a multiple of"),
        ([{"at_images": 80, "set": {"objective.kl.weight": 1.0}}], "below training.total_images, got 80"),
        ([CHANGES[1], CHANGES[0]], "changes[1].at_images: must be a multiple of training.images_per_step (8) above 64"),
        ([{"at_images": 16, "set": {"model.latent_dim": 8.0}}], "changes[0].set: must name keys under objective.kl."),
        ([{"at_images": 16, "set": {"objective.kl.weight": -1.0}}], "changes[0].set: must make a valid job"),
    ],
)
def test_impossible_change_is_refused(dataset: Path, tmp_path: Path, changes: list[Any], sentence: str) -> None:
    with pytest.raises(ValueError, match="changes") as error:
        run_job(dataset, tmp_path, vae_gan(0.3), changes=changes)
    assert sentence in str(error.value)


def test_damaged_state_is_not_begun_from(dataset: Path, tmp_path: Path) -> None:
    first = train_job(run_job(dataset, tmp_path / "a", vae_gan(0.3)), until=32)
    job = run_job(dataset, tmp_path / "b", vae_gan(0.3))
    target = RunDirectory.of(job)
    file = (first.checkpoint(32) / "networks.safetensors").local_path
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="is damaged"):
        begin_from(first, target, job, 32)
    assert target.checkpoint_positions() == []


def test_what_a_run_was_rolled_back_by_holds_for_those_that_go_on_from_it(dataset: Path, tmp_path: Path) -> None:
    job = run_job(dataset, tmp_path, vae_gan(0.4), name="parent", training={"checkpoint_every_images": 16})
    run_training(job, LocalSession(0, 1, CPU), until=48)
    entries = [
        {
            "rule": "posterior_collapse",
            "position": at,
            "action": "roll_back",
            "to": to,
            "multiply": {"objective.kl.weight": 0.5},
        }
        for at, to in ((32, 16), (64, 48))
    ]
    RunDirectory.of(job).incidents.write_text(json.dumps(entries))
    child = RunDirectory.of(job.model_copy(update={"name": "child"}))
    begin_from(RunDirectory.of(job), child, job.model_copy(update={"name": "child"}), 32)
    assert rollback_factors(read_incidents(child)) == {"objective.kl.weight": 0.5}
