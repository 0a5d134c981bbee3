"""Parquet as it is, as the source of a run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.samples import image_bytes, prepare_job, random_pixels
from tests.training.jobs import OBJECTIVES, run_job
from vaegen_ray.config.data import Data
from vaegen_ray.config.model import ConvolutionalModel, KlAutoencoderModel
from vaegen_ray.data.dataset import Dataset
from vaegen_ray.data.plain_parquet import check_dataset, open_dataset
from vaegen_ray.data.prepare import prepare
from vaegen_ray.errors import DataError, JobError
from vaegen_ray.training.local_session import local_session
from vaegen_ray.training.run import check_train_job, run_training

COLOUR = ConvolutionalModel(kind="convolutional", image_size=16, channels=3)


def write_parquet(path: Path, numbers: range, column: str = "image", damaged: tuple[int, ...] = ()) -> None:
    """Images as Hugging Face stores them."""
    contents = [b"damaged" if number in damaged else image_bytes(random_pixels(number, 20, 24)) for number in numbers]
    rows = [{"bytes": content, "path": None} for content in contents]
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({column: rows, "label": list(numbers)}), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files of 60 images."""
    write_parquet(tmp_path / "plain" / "part-0.parquet", range(60))
    write_parquet(tmp_path / "plain" / "part-1.parquet", range(60, 120))
    return tmp_path / "plain"


def data_of(source: Path | str, cache: Path, **settings: Any) -> Data:
    return Data(source=str(source), cache=str(cache), **settings)


def test_folder_of_parquet_gives_the_images_and_the_split_of_prepare(folder: Path, cache: Path, tmp_path: Path) -> None:
    source = {"kind": "parquet", "path": str(folder)}
    prepare(prepare_job(source, tmp_path / "made", held_out_fraction=None))
    expected, found = Dataset.open(str(tmp_path / "made")), open_dataset(data_of(folder, cache), COLOUR)
    assert found.metadata.fingerprint == expected.metadata.fingerprint
    assert found.metadata.counts["held_out"] >= 2
    for split in ("train", "held_out"):
        assert np.array_equal(found.decoded(split, str(cache)), expected.decoded(split, str(tmp_path / "other")))


def test_folder_in_the_layout_of_hugging_face_keeps_its_split(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = {"train-00000-of-00002": range(20), "train-00001-of-00002": range(20, 40), "test-0": range(40, 45)}
    for name, numbers in {**parts, "validation-0": range(50, 60)}.items():
        (tmp_path / "plain").mkdir(exist_ok=True)
        write_parquet(tmp_path / "plain" / "data" / f"{name}.parquet", numbers)
    dataset = open_dataset(data_of(tmp_path / "plain", cache), COLOUR)
    assert dataset.metadata.counts == {"train": 40, "held_out": 5}
    assert "1 left out, not images of this source: data/validation-0.parquet" in caplog.text
    (tmp_path / "plain" / "data" / "test-0.parquet").unlink()
    assert open_dataset(data_of(tmp_path / "plain", cache), COLOUR).metadata.counts == {"train": 40, "held_out": 10}


def test_folder_of_prepared_datasets_is_not_taken_for_plain_parquet(made: Path, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "datasets").mkdir()
    made.rename(tmp_path / "datasets" / "made")
    with pytest.raises(DataError, match=r"must hold a dataset.json, got a folder without one"):
        check_dataset(data_of(tmp_path / "datasets", cache), COLOUR)


def test_one_file_with_a_column_of_another_name_and_a_grey_model(tmp_path: Path, cache: Path) -> None:
    write_parquet(tmp_path / "one.parquet", range(80), column="picture")
    data, grey = (
        data_of(tmp_path / "one.parquet", cache),
        ConvolutionalModel(kind="convolutional", image_size=32, channels=1),
    )
    with pytest.raises(DataError, match=r"has no column 'image', but picture, label"):
        check_dataset(data, grey)
    dataset = open_dataset(data.model_copy(update={"image_column": "picture"}), grey)
    assert dataset.decoded("train", str(cache)).shape[1:] == (32, 32, 1)


def test_images_have_the_size_of_the_model_whatever_it_is(folder: Path, cache: Path) -> None:
    model = KlAutoencoderModel(kind="kl_autoencoder", image_size=48, channels=3, widths=(8, 8), norm_groups=2)
    check_dataset(data_of(folder, cache), model)
    assert open_dataset(data_of(folder, cache), model).decoded("train", str(cache)).shape[1:3] == (48, 48)


def test_conversion_is_done_once_for_a_content_and_again_for_another(folder: Path, cache: Path) -> None:
    first = open_dataset(data_of(folder, cache), COLOUR)
    made_at = (first.location.local_path / "dataset.json").stat().st_mtime_ns
    again = open_dataset(data_of(folder, cache), COLOUR)
    assert (again.location.local_path / "dataset.json").stat().st_mtime_ns == made_at
    write_parquet(folder / "part-1.parquet", range(200, 260))
    changed = open_dataset(data_of(folder, cache), COLOUR)
    assert changed.metadata.fingerprint != first.metadata.fingerprint
    assert len(list((cache / "converted").glob("*.lock"))) == 2


def test_processes_that_start_together_convert_once(folder: Path, cache: Path) -> None:
    code = (
        "import sys\nfrom vaegen_ray.config.data import Data\nfrom vaegen_ray.config.model import ConvolutionalModel\n"
        "from vaegen_ray.data.plain_parquet import open_dataset\n"
        "model = ConvolutionalModel(kind='convolutional', image_size=16, channels=3)\n"
        "dataset = open_dataset(Data(source=sys.argv[1], cache=sys.argv[2]), model)\n"
        "stamp = (dataset.location.local_path / 'dataset.json').stat()\n"
        "print(dataset.metadata.fingerprint, stamp.st_ino, stamp.st_mtime_ns)\n"
    )
    arguments = [sys.executable, "-c", code, str(folder), str(cache)]
    processes = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert len({process.communicate(timeout=60)[0] for process in processes}) == 1


def test_converted_dataset_makes_room_when_nobody_uses_it(folder: Path, cache: Path, tmp_path: Path) -> None:
    open_dataset(data_of(folder, cache), COLOUR)
    limit = 120 * 16 * 16 * 3 + 1000
    shutil.copytree(folder, tmp_path / "copy")
    os.utime(tmp_path / "copy" / "part-0.parquet", (0, 0))
    kept = open_dataset(data_of(tmp_path / "copy", cache, cache_bytes=limit), COLOUR)
    entries = [path for path in (cache / "converted").iterdir() if path.suffix != ".lock"]
    assert entries == [kept.location.local_path]


def test_damaged_images_are_left_out_and_named(folder: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_parquet(folder / "part-1.parquet", range(60, 120), damaged=(70,))
    dataset = open_dataset(data_of(folder, cache), COLOUR)
    assert sum(dataset.metadata.counts.values()) == 119
    assert "part-1.parquet#10: not an image in a known format" in caplog.text


def test_too_many_damaged_images_are_refused_and_leave_nothing(folder: Path, cache: Path) -> None:
    write_parquet(folder / "part-1.parquet", range(60, 120), damaged=(70, 80, 90))
    with pytest.raises(
        DataError,
        match=r"data.source: cannot be used as it is: 3 of its 120 images are damaged \(part-1.parquet#10",
    ):
        open_dataset(data_of(folder, cache), COLOUR)
    assert [path.suffix for path in (cache / "converted").iterdir()] == [".lock"]


def test_column_of_a_prepared_dataset_has_no_effect(made: Path, cache: Path) -> None:
    with pytest.raises(JobError, match=r"data.image_column: has no effect, .*made is a prepared dataset, got 'photo'"):
        open_dataset(data_of(made, cache, image_column="photo"), COLOUR)


def test_folder_without_parquet_is_refused_as_before(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(DataError, match=r"must hold a dataset.json, got a folder without one"):
        check_dataset(data_of(tmp_path, cache), COLOUR)


@pytest.mark.s3
def test_prefix_of_a_bucket_trains_like_the_folder_with_the_same_files(
    s3_bucket: str, folder: Path, tmp_path: Path
) -> None:
    import s3fs

    for path in folder.iterdir():
        s3fs.S3FileSystem().put_file(str(path), f"{s3_bucket}/plain/{path.name}")
    model = {"image_size": 16, "channels": 3}
    scores = []
    for source in (str(folder), f"{s3_bucket}/plain"):
        storage, cache = tmp_path / f"runs-{len(scores)}", tmp_path / f"cache-{len(scores)}"
        data = {"source": source, "cache": str(cache)}
        job = run_job(Path("unused"), storage, OBJECTIVES["vae"], data=data, model=model, evaluation={"images": 4})
        check_train_job(job)
        assert not cache.exists()
        with local_session() as session:
            scores.append(run_training(job, session).scores)
    assert scores[0] == scores[1]
