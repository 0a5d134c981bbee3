"""The dataset that comes with the project."""

import gzip
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from vaegen_ray.config.loading import load_job
from vaegen_ray.config.prepare import PrepareJob
from vaegen_ray.data.dataset import SHIPPED_FOLDER, Dataset
from vaegen_ray.data.format import Split

FASHION_MNIST = SHIPPED_FOLDER / "fashion_mnist"
ORIGINALS = Path("/usr/share/datasets/fashion-mnist")
JOBS = Path(__file__).parents[2] / "jobs" / "prepare"


def test_shipped_fashion_mnist_is_small_and_carries_its_licence() -> None:
    assert sum(path.stat().st_size for path in FASHION_MNIST.iterdir()) < 6e6
    assert "Zalando" in (FASHION_MNIST / "LICENSE").read_text()
    assert Dataset.open("shipped:fashion_mnist").metadata.licence == "MIT"


def test_shipped_fashion_mnist_has_balanced_labels() -> None:
    for split, count in (("train", 1000), ("held_out", 200)):
        labels = pq.read_table(next(FASHION_MNIST.glob(f"{split}-*.parquet")))["label"].to_numpy()
        assert np.bincount(labels).tolist() == [count] * 10


def test_shipped_fashion_mnist_decodes_to_its_statistics(tmp_path: Path) -> None:
    dataset = Dataset.open("shipped:fashion_mnist")
    images = dataset.decoded("train", cache=str(tmp_path))
    assert images.shape == (10_000, 32, 32, 1)
    assert not images[:, :2].any()
    assert not images[:, :, 30:].any()
    assert (images / 255).mean() == pytest.approx(dataset.metadata.mean[0], abs=1e-9)
    # The published mean of all 60,000 images, spread over the padding.
    assert dataset.metadata.mean[0] == pytest.approx(0.2860 * (28 / 32) ** 2, abs=2e-3)


@pytest.mark.skipif(not ORIGINALS.exists(), reason="compares with the Debian package dataset-fashion-mnist; install it")
def test_shipped_fashion_mnist_has_the_pixels_of_the_original(tmp_path: Path) -> None:
    parts: dict[Split, str] = {"train": "train", "held_out": "t10k"}
    for split, part in parts.items():
        content = gzip.decompress((ORIGINALS / f"{part}-images-idx3-ubyte.gz").read_bytes())
        originals = np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28)
        names = pq.read_table(next(FASHION_MNIST.glob(f"{split}-*.parquet")))["id"].to_pylist()
        images = Dataset.open("shipped:fashion_mnist").decoded(split, cache=str(tmp_path))
        indices = [int(name.split("/")[1]) for name in names]
        assert np.array_equal(images[:, 2:30, 2:30, 0], originals[indices])


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
def test_prepare_job_file_is_valid_and_says_what_it_needs(path: Path) -> None:
    job = load_job(path)
    assert isinstance(job, PrepareJob)
    assert job.name == path.stem
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("Purpose:", "Command:", "Needs:", "Time:"):
        assert any(word in line for line in header)
