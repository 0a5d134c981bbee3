"""The KL autoencoder from a model of the real diffusers library to latents, and back into that library."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.models.test_kl_autoencoder import model_of, published, sharded
from tests.training.jobs import KL_AUTOENCODER, run_job
from vaegen_ray.cli.main import app
from vaegen_ray.config.model import KlAutoencoderModel
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.data.dataset import Dataset
from vaegen_ray.errors import JobError, StorageError, VaegenError
from vaegen_ray.evaluation.diffusers_format import load_diffusers_weights
from vaegen_ray.evaluation.inference import images_of_bytes
from vaegen_ray.evaluation.trained_model import load_latent_statistics, load_trained_model
from vaegen_ray.models.generator import Generator
from vaegen_ray.storage import Location
from vaegen_ray.training.local_session import LocalSession
from vaegen_ray.training.run import check_train_job, run_training

CPU = torch.device("cpu")
MODEL: dict[str, Any] = {**KL_AUTOENCODER, "image_size": 16, "channels": 1}
OBJECTIVE: dict[str, Any] = {
    "kind": "vae_gan",
    "reconstruction": {"kind": "laplace"},
    "kl": {"weight": 1e-3},
    "adversarial": {"loss": "hinge", "balance": {"kind": "adaptive", "weight": 0.5}, "start_images": 40},
    "discriminator": {"kind": "patch", "width": 4, "layers": 2},
}


def vaegen(*arguments: object) -> str:
    """What the command prints; raises what it raises."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "120"})
    if isinstance(result.exception, VaegenError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    return load_file(run.final.local_path / "generator.safetensors")


@pytest.mark.slow
def test_published_autoencoder_is_fine_tuned_exported_and_encodes(dataset: Path, tmp_path: Path) -> None:
    section = {**MODEL, "start_from": str(tmp_path / "published"), "freeze_encoder": True}
    scale = {"scaling_factor": 0.3, "shift_factor": 0.1, "latents_mean": [0.1] * 4, "latents_std": [2.0] * 4}
    published(model_of(**MODEL), tmp_path / "published", force_upcast=False, **scale)
    objective = {key: value for key, value in OBJECTIVE.items() if key != "kl"}
    job = run_job(dataset, tmp_path / "runs", objective, model=section)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(job.model_dump(mode="json", exclude_none=True)))
    vaegen("train", tmp_path / "tiny.yaml", "--local")
    run = RunDirectory.of(job)

    before = Generator(job.model)
    load_diffusers_weights(before, Location.of(tmp_path / "published"), job.model)
    after = weights(run)
    moved = {name.split(".")[0] for name, tensor in before.state_dict().items() if not torch.equal(tensor, after[name])}
    assert moved == {"decoder"}

    shutil.rmtree(tmp_path / "published")
    shutil.rmtree(run.final.local_path)  # As a message about damaged models advises.
    vaegen("train", tmp_path / "tiny.yaml", "--local")
    assert all(torch.equal(tensor, after[name]) for name, tensor in weights(run).items())
    vaegen("export", run.root, tmp_path / "exported", "--to", "diffusers")
    theirs = AutoencoderKL.from_pretrained(tmp_path / "exported").eval()
    ours, _ = load_trained_model(run, "cpu")
    held_out = images_of_bytes(Dataset.open(str(dataset)).decoded("train", str(tmp_path / "cache")), CPU)
    with torch.no_grad():
        posterior = theirs.encode(held_out).latent_dist
        torch.testing.assert_close(ours.decoder(posterior.mean), theirs.decode(posterior.mean).sample)
    # The statistics are those of samples of the posterior, over all training images.
    statistics = load_latent_statistics(run)
    assert statistics.images == len(held_out)
    variance = posterior.mean.double().var(dim=(0, 2, 3), unbiased=False) + posterior.var.double().mean(dim=(0, 2, 3))
    torch.testing.assert_close(torch.tensor(statistics.std).double(), variance.sqrt(), rtol=1e-4, atol=1e-6)
    # What was trained on the latents expects the scale that was published.
    assert {key: theirs.config[key] for key in scale} == scale
    assert not theirs.config.force_upcast
    config = json.loads((tmp_path / "exported" / "config.json").read_text())
    assert config["_latents_mean"] == pytest.approx(statistics.mean)
    assert config["_latents_std"] == pytest.approx(statistics.std)
    with pytest.raises(JobError, match=r"DESTINATION: must be a folder without a model"):
        vaegen("export", run.root, tmp_path / "exported", "--to", "diffusers")
    (tmp_path / "exported" / "config.json").unlink()  # As after a kill: it is written last.
    vaegen("export", run.root, tmp_path / "exported", "--to", "diffusers")
    assert json.loads((tmp_path / "exported" / "config.json").read_text()) == config

    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"DESTINATION: .*file must be writable"):
        vaegen("encode", run.root, dataset, tmp_path / "file", "--local")
    latents = tmp_path / "latents"
    latents.mkdir()
    (latents / ".encode.json.0123abcd").touch()  # What a kill in the first moments leaves.
    assert "160 images" in vaegen("encode", run.root, dataset, latents, "--local")
    description = json.loads((latents / "latents.json").read_text())
    (shard,) = description["splits"]["train"]
    table, source = pq.read_table(latents / shard["file"]), pq.read_table(dataset / shard["file"])
    assert table.column("id").equals(source.column("id"))
    means = torch.tensor(table.column("mean").to_pylist()).view(-1, *description["latent_shape"])
    torch.testing.assert_close(means, posterior.mean, rtol=1e-4, atol=1e-5)
    assert description["model"]["fingerprint"] == table.schema.metadata[b"model_fingerprint"].decode()

    (held_out_shard,) = description["splits"]["held_out"]
    content = (latents / held_out_shard["file"]).read_bytes()
    (latents / held_out_shard["file"]).unlink()
    (latents / "latents.json").unlink()
    stamp = (latents / shard["file"]).stat().st_mtime_ns
    vaegen("encode", run.root, dataset, latents, "--local")
    assert (latents / held_out_shard["file"]).read_bytes() == content
    assert (latents / shard["file"]).stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(dataset: Path, tmp_path: Path) -> None:
    at_once = run_job(dataset, tmp_path / "a", OBJECTIVE, model=MODEL, evaluation={"every_images": 40})
    in_two = run_job(dataset, tmp_path / "b", OBJECTIVE, model=MODEL, evaluation={"every_images": 40})
    run_training(at_once, LocalSession(0, 1, CPU))
    run_training(in_two, LocalSession(0, 1, CPU), until=48)
    assert run_training(in_two, LocalSession(0, 1, CPU)).position == 80
    one, other = weights(RunDirectory.of(at_once)), weights(RunDirectory.of(in_two))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_run_in_windows_that_was_killed_in_its_last_evaluation_is_finished(dataset: Path, tmp_path: Path) -> None:
    """The statistics of its latents read all images, and no step had asked for their order."""
    job = run_job(dataset, tmp_path, OBJECTIVE, model=MODEL, data={"shuffle_window_images": 40})
    run_training(job, LocalSession(0, 1, CPU))
    run = RunDirectory.of(job)
    before = load_latent_statistics(run)
    run.scores.remove()
    assert run_training(job, LocalSession(0, 1, CPU)).position == 80
    assert run.is_complete()
    assert load_latent_statistics(run) == before


def test_run_with_grids_of_one_image_comes_to_its_end(dataset: Path, tmp_path: Path) -> None:
    job = run_job(dataset, tmp_path, OBJECTIVE, model=MODEL, evaluation={"grid_images": 1})
    assert run_training(job, LocalSession(0, 1, CPU)).position == 80
    assert RunDirectory.of(job).picture("traversals", 80).exists()


def test_run_goes_on_when_the_model_that_it_began_with_is_gone(dataset: Path, tmp_path: Path) -> None:
    published(model_of(**MODEL), tmp_path / "published")
    job = run_job(dataset, tmp_path / "runs", OBJECTIVE, model={**MODEL, "start_from": str(tmp_path / "published")})
    run_training(job, LocalSession(0, 1, CPU), until=48)
    shutil.rmtree(tmp_path / "published")
    check_train_job(job)
    assert run_training(job, LocalSession(0, 1, CPU)).position == 80
    vaegen("export", RunDirectory.of(job).root, tmp_path / "exported", "--to", "diffusers")


@pytest.mark.parametrize("save", [published, sharded], ids=["whole", "in shards"])
def test_published_autoencoder_in_an_object_store_is_loaded(
    save: Callable[[KlAutoencoderModel, Path], object], s3_bucket: str, tmp_path: Path
) -> None:
    model = model_of(**MODEL)
    save(model, tmp_path)
    folder = Location.of(s3_bucket) / "vae"
    for file in tmp_path.iterdir():
        (folder / file.name).upload(file)
    near, far = Generator(model), Generator(model)
    load_diffusers_weights(near, Location.of(tmp_path), model)
    load_diffusers_weights(far, folder, model)
    assert all(torch.equal(far.state_dict()[name], tensor) for name, tensor in near.state_dict().items())
