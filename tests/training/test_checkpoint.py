"""Checkpoints are whole or they are not taken."""

import logging
import pickle
from pathlib import Path

import pytest
import torch

from tests.training.jobs import OBJECTIVES, job_with, same_bits, take_steps
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import CheckpointError
from vaegen_ray.storage import Location
from vaegen_ray.training.checkpoint import restore_newest, save_checkpoint
from vaegen_ray.training.lineage import newest_checkpoint
from vaegen_ray.training.local_session import LocalSession
from vaegen_ray.training.state import TrainState

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(Location.of(tmp_path))


def state_at(position: int) -> TrainState:
    job = job_with(OBJECTIVES["vae"])
    state = TrainState(job, CPU)
    take_steps(job, LocalSession(0, 1, CPU), state, until=position)
    return state


def save_two(run: RunDirectory) -> TrainState:
    """Checkpoints at 8 and 16; returns the state at 8."""
    older = state_at(8)
    save_checkpoint(older, run, keep=5)
    save_checkpoint(state_at(16), run, keep=5)
    return older


def flip_a_byte(location: Location) -> None:
    content = bytearray(location.read_bytes())
    content[len(content) // 2] ^= 1
    location.write_bytes(bytes(content))


def restored(run: RunDirectory) -> TrainState:
    state = TrainState(job_with(OBJECTIVES["vae"]), CPU)
    restore_newest(state, run)
    return state


@pytest.mark.parametrize("name", ["networks.safetensors", "optimizers.pt", "manifest.json"])
def test_checkpoint_with_a_flipped_byte_falls_back_loudly_to_the_one_before(
    run: RunDirectory, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    older = save_two(run)
    damaged = run.checkpoint(16) / name
    if name == "manifest.json":
        damaged.write_text(damaged.read_text()[:-20])
    else:
        flip_a_byte(damaged)
    with caplog.at_level(logging.WARNING):
        state = restored(run)
    assert state.position == 8
    assert same_bits(state, older)
    assert str(damaged) in caplog.text


def test_checkpoint_missing_a_file_falls_back(run: RunDirectory) -> None:
    save_two(run)
    (run.checkpoint(16) / "networks.safetensors").remove()
    assert restored(run).position == 8


def test_checkpoint_killed_before_its_manifest_is_passed_over(run: RunDirectory) -> None:
    save_two(run)
    (run.checkpoint(16) / "manifest.json").remove()
    assert restored(run).position == 8


def test_all_checkpoints_damaged_is_refused_instead_of_starting_again(run: RunDirectory) -> None:
    save_two(run)
    for position in (8, 16):
        flip_a_byte(run.checkpoint(position) / "networks.safetensors")
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        restored(run)


def test_no_checkpoint_starts_at_zero(run: RunDirectory) -> None:
    assert restored(run).position == 0


def test_old_checkpoints_beyond_the_kept_ones_are_deleted(run: RunDirectory) -> None:
    for position in (8, 16, 24):
        save_checkpoint(state_at(position), run, keep=2)
    assert run.checkpoint_positions() == [16, 24]


@pytest.mark.parametrize("word", ["files", "bytes", "sha256", "optimizers.pt"])
def test_manifest_with_a_flipped_letter_falls_back(run: RunDirectory, word: str) -> None:
    save_two(run)
    manifest = run.checkpoint(16) / "manifest.json"
    manifest.write_text(manifest.read_text().replace(word, "x" + word[1:]))
    assert restored(run).position == 8


def test_unfinished_checkpoint_ahead_does_not_push_out_the_good_one(run: RunDirectory) -> None:
    save_two(run)
    (run.checkpoint(16) / "manifest.json").remove()
    state = restored(run)
    state.position = 12
    save_checkpoint(state, run, keep=1)
    assert run.checkpoint_positions() == [12]
    assert restored(run).position == 12


def test_checkpoint_of_another_schema_says_which_version_wrote_it(run: RunDirectory) -> None:
    save_checkpoint(state_at(8), run, keep=1)
    manifest = run.checkpoint(8) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema": 1', '"schema": 99'))
    with pytest.raises(CheckpointError, match=r"schema must be 1 .* got 99"):
        restored(run)


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('unpickled')",))


def test_optimizer_file_with_code_in_it_is_not_executed(run: RunDirectory) -> None:
    import hashlib
    import json

    save_checkpoint(state_at(8), run, keep=1)
    folder = run.checkpoint(8)
    bomb = pickle.dumps({"generator": _Bomb()})
    (folder / "optimizers.pt").write_bytes(bomb)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["optimizers.pt"] = {"bytes": len(bomb), "sha256": hashlib.sha256(bomb).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(pickle.UnpicklingError, match=r"(?i)weights.only"):
        restored(run)


def test_checkpoint_of_a_driver_that_had_lost_the_run_does_not_count(run: RunDirectory) -> None:
    save_checkpoint(state_at(8), run, keep=5, fence=2)
    save_checkpoint(state_at(16), run, keep=5, fence=1)
    assert restored(run).position == 8
    assert newest_checkpoint(run) == 8


def test_driver_that_had_lost_the_run_deletes_nothing_of_its_successor(run: RunDirectory) -> None:
    save_checkpoint(state_at(8), run, keep=5, fence=2)
    save_checkpoint(state_at(24), run, keep=5, fence=2)
    save_checkpoint(state_at(16), run, keep=1, fence=1)
    assert run.checkpoint_positions() == [8, 16, 24]
    assert restored(run).position == 24


def test_unfinished_checkpoints_take_no_place_of_those_that_are_kept(run: RunDirectory) -> None:
    state = TrainState(job_with(OBJECTIVES["vae"]), CPU)
    for position in (8, 16):
        state.position = position
        save_checkpoint(state, run, keep=2)
    (run.checkpoint(24) / "networks.safetensors").write_bytes(b"cut off")
    state.position = 32
    save_checkpoint(state, run, keep=2)
    assert run.checkpoint_positions() == [16, 32]
