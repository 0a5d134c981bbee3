"""Small jobs, models and pictures for the tests of evaluation and tracking."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.loading import job_of
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.evaluation.trained_model import save_trained_model
from vaegen_ray.models.generator import Generator


def tiny_job(storage: Path | str = "runs", kind: str = "vae", **sections: Any) -> TrainJob:
    """A job of a small model on grey images of 32 pixels; ``sections`` replace or add."""
    objective: dict[str, Any] = {"kind": kind}
    model: dict[str, Any] = {
        "kind": "convolutional",
        "image_size": 32,
        "channels": 1,
        "latent_dim": 6,
        "decoder": {"width": 4},
    }
    if kind != "gan":
        objective["reconstruction"] = {"kind": "laplace"}
        model["encoder"] = {"width": 4}
    tree = {
        "kind": "train",
        "name": "tiny",
        "data": {"source": "shipped:fashion_mnist"},
        "model": model,
        "objective": objective,
        "training": {"total_images": 1000, "images_per_step": 10},
        "evaluation": {"images": 60},
        "storage": str(storage),
    }
    job = job_of({**tree, **sections}, "tiny")
    assert isinstance(job, TrainJob)
    return job


def tiny_generator(job: TrainJob, seed: int = 0) -> Generator:
    """A generator with initial weights drawn from ``seed``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Generator(job.model).eval()


def finished(job: TrainJob) -> RunDirectory:
    """The run of ``job``, with a model that was not trained at all."""
    run = RunDirectory.of(job)
    run.claim(job)
    save_trained_model(tiny_generator(job), job, run.final)
    return run


def random_pictures(count: int, channels: int = 1, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth random pictures of 32 pixels, NHWC."""
    coarse = torch.rand(count, channels, 8, 8, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)
    return (smooth * 255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()


def shared_data(name: str) -> Path:
    """A file of the shared data folder; skips where there is none."""
    folder = Path(os.environ.get("VAEGEN_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    if not (folder / name).exists():
        pytest.skip(f"needs {name}: set VAEGEN_SHARED_DATA to a folder that holds it (looked in {folder})")
    return folder / name
