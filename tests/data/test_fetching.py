"""Shards of an object store: each byte read once a node, and once more where it arrived damaged."""

import subprocess
import sys
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import s3fs
import torch

from tests.data.samples import random_pixels
from tests.faults.proxy import FaultyProxy
from vaegen_ray.config.data import Data
from vaegen_ray.data.batches import ImageBatches
from vaegen_ray.data.dataset import Dataset
from vaegen_ray.data.placement import training_images
from vaegen_ray.errors import DataError

pytestmark = pytest.mark.s3

EXPECTED = np.stack([random_pixels(number) for number in range(40)])
SHARDS = [f"train-{number:05d}.parquet" for number in range(5)]


@pytest.fixture
def source(s3_bucket: str, s3_proxy: FaultyProxy, made: Path) -> str:
    """The dataset in a bucket, beyond a proxy that has not served anything yet."""
    store = s3fs.S3FileSystem()
    for path in made.iterdir():
        store.put_file(str(path), f"{s3_bucket}/noise/{path.name}")
    s3_proxy.served.clear()
    return f"{s3_bucket}/noise"


def bytes_of(made: Path) -> int:
    return sum((made / name).stat().st_size for name in SHARDS)


def test_eight_processes_that_start_together_read_each_byte_once(
    source: str, s3_proxy: FaultyProxy, made: Path, cache: Path
) -> None:
    code = (
        "import sys\nfrom vaegen_ray.data.dataset import Dataset\n"
        "print(Dataset.open(sys.argv[1]).decoded('train', cache=sys.argv[2]).sum(dtype='int64'))\n"
    )
    arguments = [sys.executable, "-c", code, source, str(cache)]
    processes = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    assert {int(process.communicate(timeout=120)[0]) for process in processes} == {int(EXPECTED.sum(dtype=int))}
    assert len(s3_proxy.requests(r"^GET .*/train-\d+.parquet$")) == len(SHARDS)
    assert s3_proxy.bytes_read(r"train-\d+.parquet") == bytes_of(made)


@pytest.mark.parametrize("placement", ["host", "stream"])
def test_later_runs_read_nothing_but_the_description(
    source: str, s3_proxy: FaultyProxy, cache: Path, placement: str
) -> None:
    for _ in range(2):
        s3_proxy.served.clear()
        data = Data.model_validate({"source": source, "cache": str(cache), "placement": placement})
        training_images(Dataset.open(source), data, torch.device("cpu")).close()
    assert s3_proxy.bytes_read() == s3_proxy.bytes_read("dataset.json") > 0


def test_windows_on_a_disk_with_room_read_each_byte_once_for_all_epochs(
    source: str, s3_proxy: FaultyProxy, made: Path, cache: Path
) -> None:
    data = Data(source=source, cache=str(cache), shuffle_window_images=9)
    images = training_images(Dataset.open(source), data, torch.device("cpu"))
    with ImageBatches(images, seed=0, images_per_step=5) as batches:
        for _ in range(24):
            next(batches)
    images.close()
    assert s3_proxy.bytes_read(r"train-\d+.parquet") == bytes_of(made)


@pytest.mark.parametrize("fault", ["corrupt", "truncate"])
def test_shard_that_arrives_damaged_once_is_fetched_again(
    source: str, s3_proxy: FaultyProxy, cache: Path, fault: str
) -> None:
    s3_proxy.schedule(r"GET .*/train-00002.parquet", [fault])
    assert np.array_equal(Dataset.open(source).decoded("train", str(cache)), EXPECTED)
    assert len(s3_proxy.requests(r"^GET .*/train-00002.parquet")) == 2


def test_shard_that_arrives_damaged_again_is_refused_by_name(source: str, s3_proxy: FaultyProxy, cache: Path) -> None:
    s3_proxy.schedule(r"GET .*/train-00002.parquet", repeat("corrupt"))
    with pytest.raises(DataError, match=r"train-00002.parquet: sha256 must be [0-9a-f]{64}, got .* is damaged"):
        Dataset.open(source).decoded("train", str(cache))
    assert len(s3_proxy.requests(r"^GET .*/train-00002.parquet")) == 2
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_shard_that_was_cut_in_the_store_is_refused_by_name(source: str, cache: Path, made: Path) -> None:
    content = (made / SHARDS[2]).read_bytes()
    s3fs.S3FileSystem().pipe_file(f"{source}/{SHARDS[2]}", content[:-1])
    with pytest.raises(
        DataError, match=rf"{SHARDS[2]}: must have {len(content)} bytes, got {len(content) - 1}; the sh"
    ):
        Dataset.open(source).decoded("train", str(cache))


def test_shard_that_is_gone_is_refused_by_name(source: str, cache: Path) -> None:
    s3fs.S3FileSystem().rm(f"{source}/{SHARDS[4]}")
    with pytest.raises(DataError, match=r"train-00004.parquet: must be there, dataset.json names it, got nothing"):
        Dataset.open(source).decoded("train", str(cache))
