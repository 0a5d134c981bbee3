"""Actors of Ray Data write the latents that one process would."""

from pathlib import Path

import pytest
import torch

from tests.training.jobs import KL_AUTOENCODER, run_job
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.evaluation.latent_dataset import encode_dataset, encode_here
from vaegen_ray.evaluation.trained_model import save_trained_model
from vaegen_ray.models.generator import Generator
from vaegen_ray.on_ray.encode import encode_on_ray
from vaegen_ray.storage import Location

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]


def test_ray_gives_the_latents_of_one_process(dataset: Path, tmp_path: Path) -> None:
    job = run_job(dataset, tmp_path, {"kind": "vae"}, model={**KL_AUTOENCODER, "image_size": 16, "channels": 1})
    run = RunDirectory.of(job)
    run.claim(job)
    torch.manual_seed(0)
    save_trained_model(Generator(job.model), job, run.final)
    here, on_ray = tmp_path / "here", tmp_path / "on_ray"
    encode_dataset(run, str(dataset), Location.of(here), encode_here(run, torch.device("cpu")))
    done: list[tuple[int, int]] = []
    count = encode_on_ray(run, str(dataset), Location.of(on_ray), lambda *progress: done.append(progress))
    assert (count, done[-1]) == (160, (160, 160))
    names = sorted(file.name for file in here.iterdir())
    assert names == sorted(file.name for file in on_ray.iterdir())
    assert any(name.endswith(".parquet") for name in names)
    for name in names:
        assert (here / name).read_bytes() == (on_ray / name).read_bytes()
