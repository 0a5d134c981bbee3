import json
from pathlib import Path

import pytest
import torch

from tests.evaluation.samples import tiny_generator, tiny_job
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import CheckpointError, JobError
from vaegen_ray.evaluation.trained_model import DESCRIPTION, WEIGHTS, load_trained_model, save_trained_model
from vaegen_ray.storage import Location


def test_trained_model_is_loaded_as_it_was_saved(vae_run: RunDirectory) -> None:
    generator, job = load_trained_model(vae_run, "cpu")
    saved = tiny_generator(job).state_dict()
    assert not generator.training
    assert generator.state_dict().keys() == saved.keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in generator.state_dict().items())


def test_trained_model_in_an_object_store_is_loaded_as_it_was_saved(s3_bucket: str) -> None:
    job = tiny_job(s3_bucket)
    run = RunDirectory.of(job)
    run.claim(job)
    save_trained_model(tiny_generator(job), job, run.final)
    generator, _ = load_trained_model(run, "cpu")
    assert torch.equal(generator.decoder.to_images.weight, tiny_generator(job).decoder.to_images.weight)


def test_description_of_a_trained_model_says_what_it_is(vae_run: RunDirectory) -> None:
    description = json.loads((vae_run.final / DESCRIPTION).read_text())
    assert (description["name"], description["objective"], description["position"]) == ("tiny", "vae", 1000)
    assert description["model"]["latent_dim"] == 6
    assert description["weights"]["bytes"] == len((vae_run.final / WEIGHTS).read_bytes())


def test_weights_with_a_flipped_byte_are_refused_by_name(vae_run: RunDirectory) -> None:
    file = (vae_run.final / WEIGHTS).local_path
    content = bytearray(file.read_bytes())
    content[-100] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"final/generator\.safetensors: must have the sha256 .* damaged"):
        load_trained_model(vae_run, "cpu")


def test_weights_that_are_missing_are_named(vae_run: RunDirectory) -> None:
    (vae_run.final / WEIGHTS).remove()
    with pytest.raises(CheckpointError, match=r"generator\.safetensors: must lie beside model\.json, is missing"):
        load_trained_model(vae_run, "cpu")


@pytest.mark.parametrize("content", ["{", "[]", '{"weights": 1}'])
def test_description_that_is_damaged_is_refused_by_name(vae_run: RunDirectory, content: str) -> None:
    (vae_run.final / DESCRIPTION).write_text(content)
    with pytest.raises(CheckpointError, match=r"final/model\.json"):
        load_trained_model(vae_run, "cpu")


def test_description_of_another_model_than_the_weights_is_refused(vae_run: RunDirectory) -> None:
    file = vae_run.final / DESCRIPTION
    description = json.loads(file.read_text())
    description["model"]["latent_dim"] = 7
    file.write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match=r"must hold the weights of the model in model\.json"):
        load_trained_model(vae_run, "cpu")


def test_run_that_is_not_finished_says_how_far_it_is(tmp_path: Path) -> None:
    job = tiny_job(str(tmp_path))
    run = RunDirectory.of(job)
    run.claim(job)
    (run.checkpoint(300) / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"must be a finished run, stands at 300 of 1000 images"):
        load_trained_model(run, "cpu")


def test_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"must be the directory of a run"):
        load_trained_model(RunDirectory(Location.of(str(tmp_path))), "cpu")
