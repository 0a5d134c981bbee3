"""A shard of latents: its row groups, and what counts as done."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.models.test_kl_autoencoder import model_of
from vaegen_ray.data.dataset import Dataset
from vaegen_ray.evaluation.latent_dataset import EncodeTask
from vaegen_ray.models.generator import Generator
from vaegen_ray.storage import Location

MODEL = model_of(image_size=32, channels=1, widths=[4, 4, 4], depth=1, norm_groups=2, latent_channels=2)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> EncodeTask:
    dataset = Dataset.open("shipped:fashion_mnist")
    (shard,) = dataset.metadata.splits["held_out"]
    destination = Location.of(tmp_path_factory.mktemp("latents"))
    return EncodeTask(dataset.location, dataset.metadata, shard, destination, MODEL.latent_shape, "a model")


def test_latents_have_the_row_groups_of_the_images(task: EncodeTask) -> None:
    assert not task.is_done()
    assert task(Generator(MODEL)) == task.shard.rows
    assert task.is_done()
    images = pq.ParquetFile((task.source / task.shard.file).local_path)
    latents = pq.ParquetFile(task.file.local_path)
    assert images.num_row_groups > 1
    assert [latents.metadata.row_group(group).num_rows for group in range(latents.num_row_groups)] == [
        images.metadata.row_group(group).num_rows for group in range(images.num_row_groups)
    ]
    assert latents.read(["id"]).column("id").to_pylist() == images.read(["id"]).column("id").to_pylist()


@pytest.mark.parametrize(("first", "last"), [(-60, -20), (-8, None)], ids=["footer", "end"])
def test_damaged_latents_are_not_done(task: EncodeTask, tmp_path: Path, first: int, last: int | None) -> None:
    task(Generator(MODEL))
    content = bytearray(task.file.read_bytes())
    content[first:last] = b"\xff" * len(content[first:last])
    damaged = EncodeTask(
        task.source, task.metadata, task.shard, Location.of(tmp_path), task.latent_shape, task.model_fingerprint
    )
    damaged.file.write_bytes(bytes(content))
    assert not damaged.is_done()
