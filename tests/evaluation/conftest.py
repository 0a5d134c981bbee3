"""Fixtures: finished runs."""

from pathlib import Path

import pytest

from tests.evaluation.samples import finished, tiny_job
from vaegen_ray.config.run_directory import RunDirectory


@pytest.fixture
def vae_run(tmp_path: Path) -> RunDirectory:
    """The finished run of a VAE."""
    return finished(tiny_job(tmp_path))


@pytest.fixture
def gan_run(tmp_path: Path) -> RunDirectory:
    """The finished run of a GAN."""
    return finished(tiny_job(tmp_path, kind="gan", name="tiny-gan"))
