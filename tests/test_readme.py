"""What the README shows is true of the code."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vaegen_ray.cli.main import app
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.loading import job_of, load_job, parse_yaml
from vaegen_ray.config.presets import PRESETS
from vaegen_ray.config.search import SearchJob

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_readme_jobs_are_valid(tmp_path: Path) -> None:
    train, search = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert isinstance(job_of(parse_yaml(train), "README"), TrainJob)
    (tmp_path / "search.yaml").write_text(search.replace("jobs/train", str(ROOT / "jobs" / "train")))
    assert isinstance(load_job(tmp_path / "search.yaml"), SearchJob)


@pytest.mark.parametrize("verb", sorted(set(re.findall(r"`(?:uv run )?vaegen ((?:bench |data )?[a-z]+)", README))))
def test_readme_verb_has_help(verb: str) -> None:
    result = CliRunner().invoke(app, [*verb.split(), "--help"])
    assert result.exit_code == 0, result.output


def test_readme_names_every_preset() -> None:
    assert set(re.findall(r"`(\w+)`", README)) >= PRESETS.keys()


@pytest.mark.parametrize(
    "link", re.findall(r"\]\(([^)#:]+)\)", README) + re.findall(r"(?:jobs|vaegen_ray)/[\w/]+\.\w+", README)
)
def test_readme_path_exists(link: str) -> None:
    assert (ROOT / link).exists()


def test_ci_runs_the_command_of_the_readme() -> None:
    (commands,) = re.findall(r"^pip install uv && (uv run pytest.*)$", README, re.MULTILINE)
    assert commands.split(" && ") == (ROOT / ".ci/run").read_text().splitlines()[-2:]


@pytest.mark.slow
def test_readme_command_trains_the_quickstart(tmp_path: Path) -> None:
    """The command as it stands, but for fewer images and another place."""
    from vaegen_ray.cli.train import train

    (job_file,) = re.findall(r"pip install uv && uv run vaegen train (\S+)", README)
    shorter = ["training.total_images=640", "evaluation.images=64", "evaluation.every_images=null"]
    train(str(ROOT / job_file), [*shorter, f"storage={tmp_path}"])
    final = tmp_path / "vae_gan_quickstart" / "final"
    assert {path.name for path in final.iterdir()} >= {"generator.safetensors", "model.json", "scores.json"}
