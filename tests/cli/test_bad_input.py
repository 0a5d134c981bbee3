"""What `vaegen train` refuses before it starts: one sentence and exit code 2, or 1 where no rule was broken."""

import json
from pathlib import Path

import pytest
import yaml

from tests.cli.test_validate import vaegen
from tests.config.samples import tree_of
from vaegen_ray.config.loading import job_of
from vaegen_ray.config.run_directory import RunDirectory


@pytest.fixture
def job_file(dataset: Path, tmp_path: Path) -> Path:
    """A job that would train, of a tiny VAE on the small dataset."""
    tree = tree_of("vae") | {
        "data": {"source": str(dataset)},
        "storage": str(tmp_path / "runs"),
        "evaluation": {"images": 8, "grid_images": 4},
    }
    tree["model"] |= {"image_size": 16, "latent_dim": 2, "encoder": {"width": 2}, "decoder": {"width": 2}}
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


class Refusal:
    """Calls `vaegen train` in this process, and expects no run."""

    def __init__(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, job_file: Path, tmp_path: Path
    ) -> None:
        self.capsys, self.monkeypatch, self.job_file, self.tmp_path = capsys, monkeypatch, job_file, tmp_path

    def __call__(self, *overrides: str, code: int = 2) -> str:
        settings = [argument for override in overrides for argument in ("--set", override)]
        ended, _, err = vaegen(self.capsys, self.monkeypatch, "train", self.job_file, *settings)
        assert ended == code, err
        assert "Traceback" not in err
        assert not list(self.tmp_path.rglob("metrics.jsonl"))
        return err.removeprefix("error: ").rstrip("\n")


@pytest.fixture
def refusal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, job_file: Path, tmp_path: Path
) -> Refusal:
    """The sentence by which `vaegen train` refuses the job."""
    return Refusal(capsys, monkeypatch, job_file, tmp_path)


def test_missing_dataset_is_refused(refusal: Refusal, tmp_path: Path) -> None:
    assert refusal(f"data.source={tmp_path}/nope").startswith(f"data.source: {tmp_path}/nope must hold a dataset.json")


def test_dataset_with_other_channels_or_size_is_refused(refusal: Refusal) -> None:
    assert "model.channels" in refusal("model.channels=3")
    assert "model.image_size" in refusal("model.image_size=32")


def test_name_that_holds_another_job_is_refused(refusal: Refusal, job_file: Path) -> None:
    other = job_of(yaml.safe_load(job_file.read_text()) | {"seed": 5}, "other")
    RunDirectory.of(other).claim(other)
    assert refusal() == (
        f"name: {other.storage}/tiny holds the run of another job (seed: 5 there, 0 here); "
        "give this one another name (--set name=tiny-2) or remove that directory"
    )


def test_finished_run_of_another_job_is_refused(refusal: Refusal, job_file: Path) -> None:
    other = job_of(yaml.safe_load(job_file.read_text()) | {"seed": 5}, "other")
    run = RunDirectory.of(other)
    run.claim(other)
    run.scores.write_text(json.dumps({}))
    assert "holds the run of another job (seed: 5 there, 0 here)" in refusal()


def test_unwritable_storage_fails_before_training(refusal: Refusal, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    message = refusal(f"storage={tmp_path}/file", code=1)
    assert message.startswith(f"storage: {tmp_path}/file/tiny must be writable, cannot write: NotADirectoryError")


def test_missing_weights_are_refused(refusal: Refusal, tmp_path: Path) -> None:
    features = f"evaluation.features={{network: inception_v3_fid, weights: {tmp_path}/nope.npz}}"
    assert "nope.npz" in refusal(features)


def test_prepare_job_is_refused_with_its_verb(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = vaegen(capsys, monkeypatch, "train", "jobs/prepare/cifar10.yaml")
    assert code == 2
    assert err.rstrip().endswith("kind: must be 'train' for this command, got 'prepare'; use `vaegen prepare`")
