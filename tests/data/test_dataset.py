"""A prepared dataset: its description, its images as a node keeps them, what is damaged."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.data.samples import random_pixels
from vaegen_ray.config.model import ConvolutionalModel
from vaegen_ray.data.cache import NodeCache
from vaegen_ray.data.dataset import Dataset
from vaegen_ray.data.format import Metadata, check_matches
from vaegen_ray.data.pixels import decode_pixels
from vaegen_ray.errors import DataError, JobError


def cached_file(cache: Path) -> Path:
    return next(cache.rglob("train.npy"))


def expected_images(count: int = 40) -> np.ndarray:
    return np.stack([random_pixels(number) for number in range(count)])


def test_decoded_images_are_mapped_read_only_in_the_order_of_the_rows(made: Path, cache: Path) -> None:
    images = Dataset.open(str(made)).decoded("train", cache=str(cache))
    assert isinstance(images, np.memmap)
    assert images.dtype == np.uint8
    assert np.array_equal(images, expected_images())
    with pytest.raises(ValueError, match=r"read-only"):
        images[0] = 0


@pytest.mark.parametrize(("limit", "num_shards"), [(1, 1), (9, 1), (10, 2), (39, 5), (99, 5)])
def test_limit_takes_the_first_images_and_needs_their_shards_only(
    made: Path, cache: Path, limit: int, num_shards: int
) -> None:
    for number in range(num_shards, 5):
        (made / f"train-{number:05d}.parquet").unlink()
    dataset, expected = Dataset.open(str(made)), expected_images()[:limit]
    assert np.array_equal(dataset.decoded("train", str(cache), limit), expected)
    stored = dataset.encoded("train", NodeCache(cache), limit)
    assert np.array_equal([decode_pixels(image.as_buffer(), "webp", 16, 3) for image in stored], expected)


def test_second_reader_needs_the_cache_only(made: Path, cache: Path) -> None:
    dataset = Dataset.open(str(made))
    dataset.decoded("train", str(cache))
    for shard in made.glob("*.parquet"):
        shard.unlink()
    assert np.array_equal(dataset.decoded("train", str(cache)), expected_images())


@pytest.mark.parametrize("kept_bytes", [0, 60, 1000, -1])
def test_truncated_cache_file_is_filled_again(made: Path, cache: Path, kept_bytes: int) -> None:
    dataset = Dataset.open(str(made))
    dataset.decoded("train", str(cache))
    path = cached_file(cache)
    path.write_bytes(path.read_bytes()[:kept_bytes])
    assert np.array_equal(dataset.decoded("train", str(cache)), expected_images())


@pytest.mark.parametrize("position", [30, -30, 0.5])
def test_shard_with_a_flipped_bit_is_refused_by_name(made: Path, cache: Path, position: float) -> None:
    shard = made / "train-00001.parquet"
    content = bytearray(shard.read_bytes())
    content[int(len(content) * position) if isinstance(position, float) else position] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"train-00001.parquet: sha256 must be [0-9a-f]{64}, got .* is damaged"):
        Dataset.open(str(made)).decoded("train", str(cache))
    assert not list(cache.rglob("*.npy"))
    assert not list(cache.rglob("*.unfinished"))


def test_shard_that_is_missing_is_named(made: Path, cache: Path) -> None:
    (made / "train-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"train-00001.parquet: must be there, dataset.json names it, got nothing"):
        Dataset.open(str(made)).decoded("train", str(cache))


def test_dataset_without_held_out_images_says_how_to_get_them(made: Path, cache: Path) -> None:
    with pytest.raises(DataError, match=r"must have held_out images, got none; prepare it with a held_out_fraction"):
        Dataset.open(str(made)).decoded("held_out", str(cache))


def test_missing_dataset_is_refused_with_the_key(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.source: .*nowhere must hold a dataset.json, got nothing there"):
        Dataset.open(str(tmp_path / "nowhere"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"got a folder without one; make a dataset with `vaegen prepare`"):
        Dataset.open(str(tmp_path / "folder"))


def test_unknown_shipped_dataset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"must be one of the shipped datasets fashion_mnist, got 'shipped:mnist'"):
        Dataset.open("shipped:mnist")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 9}, "schema_version must be 2 for this version of vaegen_ray, got 9"),
        ({"channels": 1}, "fingerprint: must be [0-9a-f]{64} for these shards"),
        ({"counts": {"train": 41, "held_out": 0}}, "counts.train: must be 40, the rows of its shards, got 41"),
        ({"encoding": "bmp"}, "encoding: "),
        ({"colour": True}, "colour: "),
    ],
)
def test_damaged_description_is_refused_with_file_and_key(made: Path, changes: dict[str, object], message: str) -> None:
    path = made / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(DataError, match=f"{path}: .*{message}"):
        Dataset.open(str(made))


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00"])
def test_description_that_is_no_json_is_refused(made: Path, content: bytes) -> None:
    (made / "dataset.json").write_bytes(content)
    with pytest.raises(DataError, match=r"dataset.json: must be JSON with a schema_version"):
        Dataset.open(str(made))


def metadata_of(made: Path) -> Metadata:
    return Dataset.open(str(made)).metadata


def test_description_that_names_a_file_elsewhere_is_refused(made: Path) -> None:
    path = made / "dataset.json"
    path.write_text(path.read_text().replace("train-00001.parquet", "../../train-00001.parquet"))
    with pytest.raises(DataError, match=r"dataset.json: splits.train.1.file: .* should match pattern"):
        Dataset.open(str(made))


def test_model_of_the_datasets_shape_is_accepted(made: Path) -> None:
    check_matches(metadata_of(made), ConvolutionalModel(kind="convolutional", image_size=16, channels=3))


@pytest.mark.parametrize(
    ("size", "channels", "message"),
    [
        (16, 1, "model.channels: must be 3 like the dataset 'noise', got 1; set model.channels to 3, or prepare"),
        (32, 3, "model.image_size: must be 16 like the dataset 'noise', got 32; set model.image_size to 16, or"),
    ],
)
def test_model_of_another_shape_is_refused(made: Path, size: int, channels: int, message: str) -> None:
    with pytest.raises(JobError, match=message):
        check_matches(metadata_of(made), ConvolutionalModel(kind="convolutional", image_size=size, channels=channels))
