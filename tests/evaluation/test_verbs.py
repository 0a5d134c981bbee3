"""`vaegen evaluate`, `sample`, `reconstruct` and `interpolate`, as a user calls them."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from typer.testing import CliRunner

from tests.evaluation.samples import finished, tiny_job
from tests.training.jobs import KL_AUTOENCODER
from vaegen_ray.cli.main import app
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import CheckpointError, DataError, JobError, StorageError, VaegenError
from vaegen_ray.evaluation.trained_model import load_trained_model, save_trained_model


def printed(*arguments: object) -> str:
    """What the command prints; raises what it raises."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "100"})
    if isinstance(result.exception, VaegenError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A colour picture with an alpha channel, of no size that a model has."""
    file = tmp_path / "a photo.png"
    Image.effect_noise((50, 70), 60).convert("RGBA").save(file)
    return file


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAEGEN_CACHE", str(tmp_path / "cache"))


def test_evaluate_verb_prints_and_writes_the_scores(vae_run: RunDirectory) -> None:
    output = printed("evaluate", vae_run.root)
    record = json.loads(vae_run.scores.read_text())
    assert record["measured_on"]["sample_swd"].startswith("60 samples against 60 held_out images of shipped:")
    assert "60 samples against 60 held_out images" in output
    assert all(name in output for name in record["scores"])
    assert str(vae_run.scores) in output


def test_sample_verb_writes_a_grid_of_the_seed(gan_run: RunDirectory, tmp_path: Path) -> None:
    output = printed("sample", gan_run.root, "--count", 9, "--seed", 3, "--output", tmp_path / "grid.png")
    assert f"picture: {tmp_path / 'grid.png'}" in output
    assert Image.open(tmp_path / "grid.png").size == (3 * 33 - 1, 3 * 33 - 1)
    printed("sample", gan_run.root, "--count", 9, "--seed", 3)
    (default,) = gan_run.samples.names()
    first, second = (np.asarray(Image.open(file)) for file in (tmp_path / "grid.png", f"{gan_run.samples}/{default}"))
    assert np.array_equal(first, second)


def test_reconstruct_verb_takes_pictures_of_any_size_and_mode(
    vae_run: RunDirectory, picture: Path, tmp_path: Path
) -> None:
    printed("reconstruct", vae_run.root, picture, picture, "--output", tmp_path / "grid.png")
    assert Image.open(tmp_path / "grid.png").size == (2 * 33 - 1, 2 * 33 - 1)


def test_reconstruct_verb_takes_held_out_images(vae_run: RunDirectory, tmp_path: Path) -> None:
    printed("reconstruct", vae_run.root, "held_out", "--output", tmp_path / "grid.png")
    assert Image.open(tmp_path / "grid.png").size == (8 * 33 - 1, 8 * 33 - 1)


def test_reconstruct_verb_of_a_gan_is_refused(gan_run: RunDirectory, picture: Path) -> None:
    with pytest.raises(JobError, match="a gan has none"):
        printed("reconstruct", gan_run.root, picture)


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG\r\n\x1a\nno more"], ids=["missing", "empty", "truncated"])
def test_reconstruct_verb_names_a_file_that_cannot_be_read(
    vae_run: RunDirectory, tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png: must be an image file"):
        printed("reconstruct", vae_run.root, tmp_path / "broken.png")


@pytest.fixture
def kl_run(tmp_path: Path) -> RunDirectory:
    """The finished run of a KL autoencoder of 16 pixels with the down factor 4."""
    model = {**KL_AUTOENCODER, "image_size": 16, "widths": [4, 8, 8]}
    return finished(tiny_job(tmp_path, model=model, name="tiny-kl"))


def test_reconstruct_verb_with_full_size_keeps_the_size_of_each_picture(
    kl_run: RunDirectory, picture: Path, tmp_path: Path
) -> None:
    sideways = Image.Exif()
    sideways[ExifTags.Base.Orientation] = 6
    Image.new("L", (21, 9), 200).save(tmp_path / "sideways.png", exif=sideways)
    output = printed("reconstruct", kl_run.root, picture, tmp_path / "sideways.png", "--full-size")
    file = kl_run.samples / "final-reconstruct-full-size.png"
    assert f"picture: {file}" in output
    shown = Image.open(file.local_path)
    assert (shown.mode, shown.size) == ("RGB", (50 + 1 + 50, 70 + 1 + 21))
    assert np.array_equal(np.asarray(shown)[:70, :50], np.asarray(Image.open(picture).convert("RGB")))
    assert (np.asarray(shown)[71:, :9] == 200).all()
    assert np.asarray(shown)[71:, 10:19].std() > 0
    assert not np.asarray(shown)[71:, 19:].any()


def test_reconstruct_verb_with_full_size_is_refused_where_all_images_have_one_size(
    vae_run: RunDirectory, kl_run: RunDirectory, picture: Path
) -> None:
    with pytest.raises(JobError, match=r"--full-size: must be for .* 'kl_autoencoder', got 'convolutional', whose"):
        printed("reconstruct", vae_run.root, picture, "--full-size")
    with pytest.raises(JobError, match=r"IMAGES: must be image files with --full-size, got `held_out`"):
        printed("reconstruct", kl_run.root, "held_out", "--full-size")


@pytest.mark.parametrize("dataset", ["nonsense", "shipped:nonsense"])
def test_encode_verb_names_the_argument_that_is_no_dataset(kl_run: RunDirectory, dataset: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^DATASET: .*must") as refusal:
        printed("encode", kl_run.root, dataset, tmp_path / "latents", "--local")
    assert "data.source" not in str(refusal.value)


def test_interpolate_verb_goes_from_a_picture_to_a_sample(vae_run: RunDirectory, picture: Path) -> None:
    output = printed("interpolate", vae_run.root, picture, 7, "--steps", 5)
    (name,) = vae_run.samples.names()
    assert name in output
    assert Image.open(f"{vae_run.samples}/{name}").size == (5 * 33 - 1, 32)


def test_interpolate_verb_of_a_gan_goes_between_samples_but_not_pictures(gan_run: RunDirectory, picture: Path) -> None:
    printed("interpolate", gan_run.root, 1, 2)
    with pytest.raises(JobError, match="a gan has none"):
        printed("interpolate", gan_run.root, 1, picture)


def test_verbs_of_a_colour_model_convert_grey_pictures(tmp_path: Path) -> None:
    model = {"kind": "convolutional", "image_size": 16, "channels": 3, "latent_dim": 4, "encoder": {"width": 4}}
    run = finished(tiny_job(tmp_path, model={**model, "decoder": {"width": 4}}))
    Image.new("L", (40, 30), 200).save(tmp_path / "grey.png")
    printed("reconstruct", run.root, tmp_path / "grey.png", "--output", tmp_path / "grid.png")
    grid = Image.open(tmp_path / "grid.png")
    assert (grid.mode, grid.size, grid.getpixel((3, 3))) == ("RGB", (16, 33), (200, 200, 200))


def test_verbs_with_an_unknown_device_are_refused(vae_run: RunDirectory) -> None:
    with pytest.raises(JobError, match="--device: must be cpu, cuda"):
        printed("sample", vae_run.root, "--device", "abacus")


def test_evaluate_verb_measures_all_with_another_number_of_samples(tmp_path: Path) -> None:
    run = finished(tiny_job(tmp_path, evaluation={"images": 60, "features": {"network": "fashion_mnist_cnn"}}))
    with pytest.raises(CheckpointError, match=r"scores.json: must hold the scores of the end of training before"):
        printed("evaluate", run.root, "--metrics", "all", "--samples", 150, "--against", "train")
    assert not run.is_complete()
    printed("evaluate", run.root)
    output = printed("evaluate", run.root, "--metrics", "all", "--samples", 150, "--against", "train")
    assert "150 samples against 150 train images" in output
    assert 0 <= json.loads(run.scores.read_text())["scores"]["memorised_fraction"] <= 1
    record = json.loads((run.final / "scores-train-150.json").read_text())
    assert all("train images" in condition for condition in record["measured_on"].values())
    assert {"sample_precision", "sample_coverage", "rate_bits_per_dimension"} <= record["scores"].keys()
    assert Image.open(f"{run.samples}/final-traversals.png").size == (9 * 33 - 1, 6 * 33 - 1)
    assert Image.open(f"{run.samples}/final-nearest-training-images.png").size == (16 * 33 - 1, 2 * 33 - 1)


def test_evaluate_verb_with_a_group_measures_it_alone_and_keeps_the_rest(vae_run: RunDirectory) -> None:
    printed("evaluate", vae_run.root)
    before = json.loads(vae_run.scores.read_text())
    generator, job = load_trained_model(vae_run, "cpu")
    with torch.no_grad():
        next(generator.parameters()).add_(0.1)
    save_trained_model(generator, job, vae_run.final)
    printed("evaluate", vae_run.root, "--metrics", "rate")
    after = json.loads(vae_run.scores.read_text())
    changed = {name for name, score in before["scores"].items() if score != after["scores"][name]}
    assert changed == {"kl_nats", "rate_bits_per_dimension"}
    with pytest.raises(JobError, match=r"--metrics: must be one of .*'fid'.* got 'fied'; did you mean 'fid'"):
        printed("evaluate", vae_run.root, "--metrics", "fied")


def test_evaluate_verb_by_a_group_alone_leaves_a_run_without_scores_unfinished(vae_run: RunDirectory) -> None:
    """It was complete with a part of them, and nobody measured the rest."""
    for metrics in ("swd", "memorisation"):
        with pytest.raises(CheckpointError, match=r"is missing; `vaegen evaluate .*` measures them"):
            printed("evaluate", vae_run.root, "--metrics", metrics)
    assert not vae_run.is_complete()
    printed("evaluate", vae_run.root)
    assert json.loads(vae_run.scores.read_text())["position"] == 1000


@pytest.mark.parametrize(
    ("kind", "metrics", "lacks"),
    [("vae", "swd,fid", "'fid' needs evaluation.features"), ("gan", "active_units", "'active_units' needs an encoder")],
)
def test_evaluate_verb_refuses_a_group_that_the_run_cannot_give(
    kind: str, metrics: str, lacks: str, tmp_path: Path
) -> None:
    run = finished(tiny_job(tmp_path, kind))
    with pytest.raises(JobError, match=f"--metrics: {lacks}"):
        printed("evaluate", run.root, "--metrics", metrics)


def test_evaluate_verb_of_another_dataset_than_was_trained_on_is_refused(vae_run: RunDirectory) -> None:
    vae_run.provenance.write_text(json.dumps([{"position": 0, "dataset": {"fingerprint": "0" * 64}}]))
    with pytest.raises(JobError, match=r"data\.source: shipped:fashion_mnist holds other images than this run was tr"):
        printed("evaluate", vae_run.root)


def test_evaluate_verb_with_as_many_samples_as_the_job_names_but_fewer_images_leaves_the_scores_of_the_run(
    tmp_path: Path,
) -> None:
    run = finished(tiny_job(tmp_path, evaluation={"images": 3000}))
    printed("evaluate", run.root)
    before = run.scores.read_text()
    assert "scores-held_out-3000.json" in printed("evaluate", run.root, "--metrics", "swd", "--samples", 3000)
    assert run.scores.read_text() == before


def test_evaluate_verb_of_a_run_that_cannot_be_written_is_refused_before_it_measures(vae_run: RunDirectory) -> None:
    folder = str(vae_run.final)
    mounts = [["mount", "--bind", folder, folder], ["mount", "-o", "remount,ro,bind", folder]]
    if any(subprocess.run(mount, check=False, capture_output=True).returncode for mount in mounts):
        subprocess.run(["umount", folder], check=False, capture_output=True)
        pytest.skip("needs to mount a folder that is read-only: as root, outside of most containers")
    try:
        with pytest.raises(StorageError, match=r"RUN: .*final must be writable"):
            printed("evaluate", vae_run.root)
    finally:
        subprocess.run(["umount", folder], check=True)


def test_evaluate_verb_of_a_run_that_was_moved_writes_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    finished(tiny_job("runs", evaluation={"images": 60, "features": {"network": "fashion_mnist_cnn"}}))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs").rename(tmp_path / "elsewhere/moved")
    printed("evaluate", "elsewhere/moved/tiny")
    assert (tmp_path / "elsewhere/moved/statistics").exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("seed", [2**63, 10**30])
def test_verbs_refuse_seeds_that_no_generator_takes(vae_run: RunDirectory, seed: int) -> None:
    with pytest.raises(JobError, match=r"a seed must be at most 9223372036854775807"):
        printed("interpolate", vae_run.root, seed, 1)
    assert CliRunner().invoke(app, ["sample", str(vae_run.root), "--seed", str(seed)]).exit_code == 2


def test_evaluate_verb_against_other_images_leaves_the_scores_of_the_run(vae_run: RunDirectory) -> None:
    """They stood in for the run's own, and comparisons with other runs took them for those."""
    printed("evaluate", vae_run.root)
    before = vae_run.scores.read_text()
    output = printed("evaluate", vae_run.root, "--metrics", "swd", "--samples", 20)
    assert "scores-held_out-20.json" in output
    assert vae_run.scores.read_text() == before
    record = json.loads((vae_run.final / "scores-held_out-20.json").read_text())
    assert record["scores"].keys() == {"reconstruction_swd", "sample_swd"}
