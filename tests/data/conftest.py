"""Fixtures: a folder of images, a dataset of them."""

import shutil
from pathlib import Path

import pytest

from tests.data.samples import prepare_job, write_images
from vaegen_ray.data.prepare import prepare


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Forty images of noise."""
    return write_images(tmp_path / "images", 40)


@pytest.fixture(scope="session")
def _made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noise")
    source = {"kind": "folder", "path": str(write_images(folder / "images", 40))}
    prepare(prepare_job(source, folder / "made", held_out_fraction=0.0, rows_per_shard=9))
    return folder / "made"


@pytest.fixture
def made(_made_once: Path, tmp_path: Path) -> Path:
    """A dataset of forty images of noise in five shards, none held out."""
    return shutil.copytree(_made_once, tmp_path / "made")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A folder for the node cache, not there yet."""
    return tmp_path / "cache"
