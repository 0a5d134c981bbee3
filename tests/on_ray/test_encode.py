"""Actors of Ray Data write the latents that one process would."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray.util.state import list_actors

from tests.training.jobs import KL_AUTOENCODER, run_job
from vaegen_ray.config.prepare import PrepareJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.data.dataset import Dataset
from vaegen_ray.data.prepare import prepare
from vaegen_ray.evaluation.latent_dataset import encode_dataset, encode_here
from vaegen_ray.evaluation.trained_model import save_trained_model
from vaegen_ray.models.generator import Generator
from vaegen_ray.on_ray.encode import encode_on_ray
from vaegen_ray.storage import Location

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]


def finished_run(dataset: Path | str, storage: Path | str) -> RunDirectory:
    """Of a KL autoencoder with the weights that it begins with."""
    job = run_job(dataset, storage, {"kind": "vae"}, model={**KL_AUTOENCODER, "image_size": 16, "channels": 1})
    run = RunDirectory.of(job)
    run.claim(job)
    torch.manual_seed(0)
    save_trained_model(Generator(job.model), job, run.final)
    return run


def dataset_of_many_shards(folder: Path, destination: str) -> PrepareJob:
    """200 images of noise in shards of ten or fewer."""
    folder.mkdir()
    for index, image in enumerate(np.random.default_rng(0).integers(0, 256, (200, 16, 16, 1), np.uint8)):
        np.save(folder / f"{index:03}.npy", image)
    return PrepareJob.model_validate(
        {
            "kind": "prepare",
            "name": "many",
            "source": {"kind": "folder", "path": str(folder)},
            "image": {"size": 16, "channels": 1, "encoding": "raw"},
            "rows_per_shard": 10,
            "destination": destination,
        }
    )


def latents_of_one_process(run: RunDirectory, dataset: str, folder: Path) -> Mapping[str, bytes]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # As Ray's actors have: with more, convolutions add in another order.
    try:
        encode_dataset(run, dataset, Location.of(folder), encode_here(run, torch.device("cpu")))
    finally:
        torch.set_num_threads(num_threads)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def written(folder: Location) -> Mapping[str, bytes]:
    return {name: (folder / name).read_bytes() for name in folder.names()}


def test_ray_gives_the_latents_of_one_process(dataset: Path, tmp_path: Path) -> None:
    run, on_ray = finished_run(dataset, tmp_path), Location.of(tmp_path / "on_ray")
    expected = latents_of_one_process(run, str(dataset), tmp_path / "here")
    done: list[tuple[int, int]] = []
    count = encode_on_ray(run, str(dataset), on_ray, lambda *progress: done.append(progress))
    assert (count, done[-1]) == (160, (160, 160))
    assert any(name.endswith(".parquet") for name in expected)
    assert written(on_ray) == expected


def test_latents_in_a_bucket_are_complete_although_actors_are_killed(s3_bucket: str, tmp_path: Path) -> None:
    """Run, dataset and latents are in the object store; every process that encodes is killed once."""
    source = f"{s3_bucket}/many"
    prepare(dataset_of_many_shards(tmp_path / "images", source))
    assert sum(map(len, Dataset.open(source).metadata.splits.values())) >= 20
    run, on_ray = finished_run(source, f"{s3_bucket}/runs"), Location.of(f"{s3_bucket}/latents")
    expected = latents_of_one_process(run, source, tmp_path / "here")
    killed = set[int]()

    def kill_encoders(done: int, total: int) -> None:
        if killed or not 0 < done < total:
            return
        for actor in list_actors(address=ray.get_runtime_context().gcs_address, filters=[("state", "=", "ALIVE")]):
            if "_Encoder" in actor.class_name or "MapWorker" in actor.class_name:
                os.kill(actor.pid, signal.SIGKILL)
                killed.add(actor.pid)

    assert encode_on_ray(run, source, on_ray, kill_encoders) == 200
    assert killed
    assert written(on_ray) == expected
