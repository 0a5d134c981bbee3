"""What a run learns depends on its job alone, wherever its images wait."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.jobs import OBJECTIVES, run_job
from tests.training.test_resume import _StopsAt
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import JobError
from vaegen_ray.training.local_session import LocalSession
from vaegen_ray.training.loop import Ending
from vaegen_ray.training.run import run_training

CPU = torch.device("cpu")


def weights(job: Any) -> bytes:
    return (RunDirectory.of(job).final / "generator.safetensors").read_bytes()


@pytest.mark.parametrize(
    "settings",
    [
        {"placement": "stream"},
        {"placement": "device"},
        {"cache_bytes": 10_000_000},
    ],
    ids=str,
)
def test_weights_are_the_same_to_the_bit_wherever_the_images_wait(
    settings: dict[str, Any], dataset: Path, tmp_path: Path
) -> None:
    here = run_job(dataset, tmp_path / "one", OBJECTIVES["vae"])
    there = run_job(dataset, tmp_path / "other", OBJECTIVES["vae"], data={**settings, "cache": str(tmp_path / "cache")})
    for job in (here, there):
        run_training(job, LocalSession(0, 1, CPU))
    assert weights(here) == weights(there)


def test_run_in_windows_with_crops_resumes_to_the_bit_in_another_place(dataset: Path, tmp_path: Path) -> None:
    data = {"shuffle_window_images": 40, "random_crop_pixels": 2}
    whole = run_job(dataset, tmp_path / "whole", OBJECTIVES["vae"], data=data)
    run_training(whole, LocalSession(0, 1, CPU))
    stopped = run_job(dataset, tmp_path / "stopped", OBJECTIVES["vae"], data=data)
    assert run_training(stopped, _StopsAt(4)).ending is Ending.STOPPED
    elsewhere = {"cache": str(tmp_path / "cache"), "placement": "stream"}
    run_training(
        run_job(dataset, tmp_path / "stopped", OBJECTIVES["vae"], data=data | elsewhere), LocalSession(0, 1, CPU)
    )
    assert weights(stopped) == weights(whole)
    full = run_job(dataset, tmp_path / "full", OBJECTIVES["vae"], data={"random_crop_pixels": 2})
    run_training(full, LocalSession(0, 1, CPU))
    assert weights(full) != weights(whole)


def test_order_is_part_of_the_job_and_not_of_the_machine(dataset: Path, tmp_path: Path) -> None:
    job = run_job(dataset, tmp_path, OBJECTIVES["vae"])
    run_training(job, _StopsAt(4))
    with pytest.raises(JobError, match=r"data.shuffle_window_images: nothing there, 40 here"):
        run_training(
            run_job(dataset, tmp_path, OBJECTIVES["vae"], data={"shuffle_window_images": 40}), LocalSession(0, 1, CPU)
        )
