"""Sources, datasets and the cache over a real S3 protocol."""

from pathlib import Path

import boto3
import numpy as np
import pytest

from tests.conftest import BUCKET
from tests.data.samples import files_of, image_bytes, prepare_job, random_pixels
from vaegen_ray.data.dataset import Dataset
from vaegen_ray.data.prepare import prepare
from vaegen_ray.errors import DataError, JobError, StorageError

pytestmark = pytest.mark.s3


def put(key: str, content: bytes) -> None:
    boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=content)


def stored(prefix: str) -> dict[str, bytes]:
    client = boto3.client("s3")
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/")
    keys = [entry["Key"] for entry in listed.get("Contents", [])]
    return {key.removeprefix(f"{prefix}/"): client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}


def test_dataset_in_a_bucket_has_the_bytes_of_a_local_one(s3_bucket: str, image_folder: Path, tmp_path: Path) -> None:
    source = {"kind": "folder", "path": str(image_folder)}
    prepare(prepare_job(source, tmp_path / "local", rows_per_shard=9))
    prepare(prepare_job(source, f"{s3_bucket}/sets/noise", rows_per_shard=9))
    assert stored("sets/noise") == files_of(tmp_path / "local")


def test_dataset_in_a_bucket_is_read_through_the_cache(s3_bucket: str, image_folder: Path, tmp_path: Path) -> None:
    job = prepare_job({"kind": "folder", "path": str(image_folder)}, f"{s3_bucket}/noise", held_out_fraction=0.0)
    prepare(job)
    assert prepare(job).was_complete
    dataset = Dataset.open(f"{s3_bucket}/noise")
    images = dataset.decoded("train", cache=str(tmp_path / "cache"))
    assert np.array_equal(images, np.stack([random_pixels(number) for number in range(40)]))
    boto3.client("s3").delete_object(Bucket=BUCKET, Key="noise/train-00000.parquet")
    assert np.array_equal(dataset.decoded("train", cache=str(tmp_path / "cache")), images)


def test_damaged_shard_in_a_bucket_is_refused_by_name(s3_bucket: str, image_folder: Path, tmp_path: Path) -> None:
    prepare(prepare_job({"kind": "folder", "path": str(image_folder)}, f"{s3_bucket}/noise"))
    content = stored("noise")["train-00000.parquet"]
    put("noise/train-00000.parquet", content[:-1])
    with pytest.raises(
        DataError, match=r"s3://images/noise/train-00000.parquet: must have [0-9]+ bytes, got .* is damaged"
    ):
        Dataset.open(f"{s3_bucket}/noise").decoded("train", cache=str(tmp_path / "cache"))


def test_images_in_a_bucket_are_a_source(s3_bucket: str, tmp_path: Path) -> None:
    for number in range(12):
        put(f"photos/part-{number % 2}/{number:02d}.png", image_bytes(random_pixels(number)))
    for key, content in stored("photos").items():
        copy = tmp_path / "photos" / key
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(content)
    for name, path in (("remote", f"{s3_bucket}/photos"), ("local", str(tmp_path / "photos"))):
        prepare(prepare_job({"kind": "folder", "path": path}, tmp_path / name))
    remote, local = files_of(tmp_path / "remote"), files_of(tmp_path / "local")
    assert remote["train-00000.parquet"] == local["train-00000.parquet"]
    assert remote["held_out-00000.parquet"] == local["held_out-00000.parquet"]


def test_prepared_dataset_in_a_bucket_is_itself_a_source(s3_bucket: str, image_folder: Path, tmp_path: Path) -> None:
    prepare(prepare_job({"kind": "folder", "path": str(image_folder)}, f"{s3_bucket}/noise", held_out_fraction=0.0))
    source = {"kind": "parquet", "path": f"{s3_bucket}/noise/train-00000.parquet", "id_column": "id"}
    prepare(prepare_job(source, tmp_path / "again", held_out_fraction=0.0))
    images = Dataset.open(str(tmp_path / "again")).decoded("train", cache=str(tmp_path / "cache"))
    assert np.array_equal(images, np.stack([random_pixels(number) for number in range(40)]))


def test_bucket_with_other_objects_is_refused_and_left_alone(s3_bucket: str, image_folder: Path) -> None:
    put("mine/thesis.txt", b"precious")
    with pytest.raises(JobError, match=r"must be an empty folder or this job's, got 1 other entries"):
        prepare(prepare_job({"kind": "folder", "path": str(image_folder)}, f"{s3_bucket}/mine"))
    assert stored("mine") == {"thesis.txt": b"precious"}


def test_interrupted_preparation_in_a_bucket_is_begun_again(s3_bucket: str, image_folder: Path, tmp_path: Path) -> None:
    source = {"kind": "folder", "path": str(image_folder)}
    prepare(prepare_job(source, tmp_path / "local"))
    job = prepare_job(source, f"{s3_bucket}/noise")
    put("noise/prepare.json", files_of(tmp_path / "local")["prepare.json"])
    put("noise/train-00007.parquet", b"left behind")
    put("noise/.unfinished/00000.json", b"of another version")
    prepare(job)
    assert stored("noise") == files_of(tmp_path / "local")


@pytest.mark.usefixtures("s3_bucket")
def test_bucket_that_is_not_there_is_refused(image_folder: Path) -> None:
    with pytest.raises(DataError, match=r"data.source: s3://nowhere/noise must hold a dataset.json, got nothing there"):
        Dataset.open("s3://nowhere/noise")
    with pytest.raises(StorageError, match=r"s3://nowhere/noise/prepare.json: cannot write"):
        prepare(prepare_job({"kind": "folder", "path": str(image_folder)}, "s3://nowhere/noise"))
