"""The jobs that come with the project."""

import re
from pathlib import Path
from typing import Any

import pytest

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.loading import load_job, load_train_job
from vaegen_ray.config.prepare import PrepareJob
from vaegen_ray.config.settings import flat

JOBS = sorted(Path("jobs").rglob("*.yaml"))
SMOKE = sorted(Path("jobs/smoke").glob("*.yaml"))
FAMILIES = ("quickstart", "faces_64", "cifar10")
OBJECTIVES = ("vae", "gan", "vae_gan")


def header(path: Path) -> dict[str, str]:
    """The comment that a job begins with: topic to text."""
    topics: dict[str, str] = {}
    topic = ""
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        match = re.match(r"# ([A-Z]\w+): +(.*)", line)
        if match:
            topic, text = match.groups()
            topics[topic] = text
        else:
            topics[topic] += line.removeprefix("#")
    return topics


@pytest.mark.parametrize("path", JOBS, ids=str)
def test_job_is_valid_and_named_like_its_file(path: Path) -> None:
    assert load_job(path).name == path.stem


@pytest.mark.parametrize("path", JOBS, ids=str)
def test_job_says_what_it_is_for_needs_takes_and_scores(path: Path) -> None:
    topics = header(path)
    expected = ["Purpose", "Command", "Needs", "Time"]
    if isinstance(load_job(path), TrainJob):
        expected.append("Scores")
    assert list(topics) == expected
    assert topics["Command"].startswith(f"vaegen {load_job(path).kind} {path}")
    assert all(topics.values())


def test_every_family_has_every_objective() -> None:
    names = {path.stem for path in Path("jobs/train").glob("*.yaml")}
    assert names >= {f"{objective}_{family}" for objective in OBJECTIVES for family in FAMILIES}
    assert {path.stem for path in SMOKE} == set(OBJECTIVES)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("objective", ["vae", "gan"])
def test_family_differs_in_objective_and_optimizer_only(family: str, objective: str) -> None:
    def compared(name: str) -> dict[str, Any]:
        return flat(load_train_job(f"jobs/train/{name}_{family}.yaml").model_dump(mode="json"))

    one, other = compared(objective), compared("vae_gan")
    different = {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    allowed = ("name", "objective.", "optimizer.", *(("model.encoder",) if objective == "gan" else ()))
    assert {key for key in different if not key.startswith(allowed)} == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_families_share_terms_where_they_have_them(family: str) -> None:
    vae, gan, both = (load_train_job(f"jobs/train/{name}_{family}.yaml") for name in OBJECTIVES)
    assert vae.optimizer.generator == both.optimizer.generator
    assert vae.objective.reconstruction == both.objective.reconstruction
    assert vae.objective.kl == both.objective.kl
    assert gan.optimizer == both.optimizer
    assert gan.objective.discriminator == both.objective.discriminator
    for term in ("loss", "gradient_penalty", "lecam", "augment"):
        assert getattr(gan.objective.adversarial, term) == getattr(both.objective.adversarial, term)


PRESET_JOBS = sorted(
    set(Path("jobs/train").glob("kl_autoencoder_faces_64_*.yaml"))
    - {Path("jobs/train/kl_autoencoder_faces_64_f8.yaml")}
)


@pytest.mark.parametrize("path", PRESET_JOBS, ids=str)
def test_preset_of_the_kl_autoencoder_differs_from_the_base_in_the_objective_only(path: Path) -> None:
    one, base = (load_train_job(job) for job in (path, "jobs/train/kl_autoencoder_faces_64.yaml"))
    assert one.objective.preset == path.stem.removeprefix("kl_autoencoder_faces_64_")
    same = {"name": base.name, "objective": base.objective}
    assert one.model_copy(update=same) == base


@pytest.mark.parametrize("path", sorted(Path("jobs/train").glob("*.yaml")), ids=str)
def test_train_job_reads_what_a_prepare_job_makes(path: Path) -> None:
    job = load_train_job(path)
    if job.data.source.startswith("shipped:"):
        return
    made = [load_job(prepare) for prepare in Path("jobs/prepare").glob("*.yaml")]
    (source,) = [
        made_by for made_by in made if isinstance(made_by, PrepareJob) and made_by.destination == job.data.source
    ]
    assert (source.image.size, source.image.channels) == (job.model.image_size, job.model.channels)


@pytest.mark.slow
@pytest.mark.parametrize("path", SMOKE, ids=str)
def test_smoke_job_runs_from_start_to_end(path: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from vaegen_ray.cli.main import app
    from vaegen_ray.config.run_directory import RunDirectory

    arguments = ["train", str(path), "--local", "--set", f"storage={tmp_path}"]
    first = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
    assert first.exit_code == 0, first.output
    assert "2,000/2,000 images" in first.output
    run = RunDirectory.of(load_train_job(path, [f"storage={tmp_path}"]))
    assert run.is_complete()
    assert {"metrics.jsonl", "provenance.json", "job.json", "final", "samples", "tensorboard", "checkpoints"} <= set(
        run.root.names()
    )
    again = CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})
    assert again.exit_code == 0, again.output
    assert f"The run '{path.stem}' is complete already; nothing was trained." in again.output
