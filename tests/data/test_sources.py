"""Parquet, torchvision and folders as sources: what they give, and what they refuse."""

import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.samples import files_of, image_bytes, prepare_job, random_pixels, write_images
from vaegen_ray.config.prepare import PrepareJob
from vaegen_ray.data.chunks import LeftOut, Plan
from vaegen_ray.data.conversion import SourceImage
from vaegen_ray.data.format import Metadata, rows_per_group
from vaegen_ray.data.prepare import prepare
from vaegen_ray.data.sources import open_source
from vaegen_ray.errors import DataError

IMAGES = [image_bytes(random_pixels(number)) for number in range(10)]


def write_parquet(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=4)
    return path


def parquet_job(path: Path, **options: Any) -> PrepareJob:
    fraction = None if "split_column" in options else 0.25
    return prepare_job({"kind": "parquet", "path": str(path), **options}, "unused", held_out_fraction=fraction)


def images_of(job: PrepareJob) -> tuple[Plan, list[SourceImage], LeftOut]:
    """The plan, and the images of all chunks as other processes see them."""
    source = pickle.loads(pickle.dumps(open_source(job)))
    plan, left_out = source.plan(), LeftOut()
    return plan, [image for chunk in plan.chunks for image in source.images(chunk, left_out)], left_out


@pytest.mark.parametrize(
    "column",
    [
        pa.array(IMAGES, pa.binary()),
        pa.array(IMAGES, pa.large_binary()),
        pa.array([{"bytes": image, "path": None} for image in IMAGES]),
    ],
    ids=["bytes", "large bytes", "struct of Hugging Face"],
)
def test_parquet_gives_every_row_named_by_file_and_number(column: pa.Array, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "faces.parquet", image=column)
    plan, images, _ = images_of(parquet_job(path))
    assert [image.content for image in images] == IMAGES
    assert [image.id for image in images] == [f"faces.parquet#{number}" for number in range(10)]
    assert (plan.num_images, plan.label_type) == (10, None)


def test_chunks_cut_row_groups_and_span_files(tmp_path: Path) -> None:
    for name, images in (("a", IMAGES[:5]), ("b", IMAGES[5:])):
        write_parquet(tmp_path / "rows" / f"{name}.parquet", image=pa.array(images))
    job = prepare_job({"kind": "parquet", "path": str(tmp_path / "rows")}, "unused", rows_per_shard=3)
    plan, images, _ = images_of(job)
    assert [chunk.num_images for chunk in plan.chunks] == [3, 3, 3, 1]
    assert [image.content for image in images] == IMAGES
    assert [image.id for image in images][4:6] == ["a.parquet#4", "b.parquet#0"]


def test_parquet_subset_of_each_label_is_chosen_without_the_rest(tmp_path: Path) -> None:
    labels = [0, 0, 1, 0, 1, 0, 0, 1, 0, 1]
    path = write_parquet(tmp_path / "a.parquet", image=pa.array(IMAGES), label=labels, split=["train"] * 9 + ["test"])
    source = {"kind": "parquet", "path": str(path), "label_column": "label", "split_column": "split"}
    limit = {"train": 2, "held_out": 2}
    job = prepare_job(source, "unused", held_out_fraction=None, images_per_label=limit, rows_per_shard=4)
    plan, images, _ = images_of(job)
    assert [image.id for image in images] == [f"a.parquet#{number}" for number in (0, 1, 2, 4, 9)]
    assert [chunk.num_images for chunk in plan.chunks] == [4, 1]


def test_parquet_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    write_parquet(tmp_path / "rows" / "b.parquet", image=pa.array(IMAGES[5:]))
    write_parquet(tmp_path / "rows" / "a.parquet", image=pa.array(IMAGES[:5]))
    plan, images, _ = images_of(parquet_job(tmp_path / "rows"))
    assert [image.content for image in images] == IMAGES
    assert plan.num_images == 10


@pytest.mark.parametrize(("size", "rows"), [(16, 10_000), (256, 10_000), (320, 6_400), (1024, 625)])
def test_shard_of_large_images_has_as_many_pixels(size: int, rows: int) -> None:
    job = prepare_job({"kind": "folder", "path": "images"}, "unused", image={"size": size, "channels": 3})
    assert job.effective_rows_per_shard == rows


def test_folder_named_as_its_only_file_is_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet" / "a.parquet", image=pa.array(IMAGES[:2]))
    _, images, _ = images_of(parquet_job(tmp_path / "a.parquet"))
    assert [image.content for image in images] == IMAGES[:2]


def test_prepared_dataset_is_a_source_without_what_it_left_out(tmp_path: Path) -> None:
    """Two steps make what one cannot, such as a balanced subset of tar shards."""
    folder = write_images(tmp_path / "images", 20)
    (folder / "broken.png").write_bytes(b"no image")
    prepare(prepare_job({"kind": "folder", "path": str(folder)}, tmp_path / "first", max_rejected_fraction=1.0))
    assert (tmp_path / "first" / "rejected.parquet").exists()
    job = prepare_job({"kind": "parquet", "path": str(tmp_path / "first")}, tmp_path / "second", held_out_fraction=None)
    counts = Metadata.from_json((tmp_path / "first" / "dataset.json").read_text(), "dataset.json").counts
    assert prepare(job).metadata.counts == counts


@pytest.mark.parametrize("is_linked", [False, True])
def test_pipe_among_images_is_left_out_and_not_waited_for(tmp_path: Path, *, is_linked: bool) -> None:
    folder = write_images(tmp_path / "images", 3)
    os.mkfifo(tmp_path / "pipe.png")
    if is_linked:
        (folder / "pipe.png").symlink_to(tmp_path / "pipe.png")
    else:
        (tmp_path / "pipe.png").rename(folder / "pipe.png")
    plan, images, _ = images_of(prepare_job({"kind": "folder", "path": str(folder)}, "unused"))
    assert len(images) == 3
    assert plan.left_out.first_names == ["pipe.png"]


@pytest.mark.parametrize(("size", "rows"), [(16, 512), (256, 512), (512, 128), (1024, 32), (8192, 1)])
def test_row_group_of_large_images_has_as_many_pixels(size: int, rows: int) -> None:
    assert rows_per_group(size) == rows


def test_parquet_columns_give_name_label_and_split(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "cifar.parquet",
        image=pa.array(IMAGES[:4]),
        file=["a", "b", "c", "d"],
        label=pa.array([3, 1, None, 2], pa.int8()),
        split=pa.array(["train", "test", "train", "validation"]).dictionary_encode(),
    )
    job = parquet_job(path, id_column="file", label_column="label", split_column="split")
    plan, images, left_out = images_of(job)
    assert [(image.id, image.label, image.split) for image in images] == [
        ("a", 3, "train"),
        ("b", 1, "held_out"),
        ("c", None, "train"),
    ]
    assert plan.label_type == "int64"
    assert (left_out.count, left_out.first_names) == (1, ["d (split=validation)"])


def test_parquet_split_values_can_be_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", image=pa.array(IMAGES[:3]), part=[0, 1, 2])
    _, images, _ = images_of(parquet_job(path, split_column="part", train_value="2", held_out_value="0"))
    assert [(image.id, image.split) for image in images] == [("a.parquet#0", "held_out"), ("a.parquet#2", "train")]


def test_parquet_files_of_both_splits_are_not_mixed(tmp_path: Path) -> None:
    for name in ("train/0", "test/0"):
        write_parquet(tmp_path / f"{name}.parquet", image=pa.array(IMAGES))
    job = prepare_job({"kind": "parquet", "path": str(tmp_path)}, "unused", held_out_fraction=None)
    assert [image.split for image in images_of(job)[1]] == ["held_out"] * 10 + ["train"] * 10
    with pytest.raises(DataError, match=r"held_out_fraction: has no effect, the names of the files .* got 0.25; remo"):
        open_source(parquet_job(tmp_path)).plan()
    write_parquet(tmp_path / "more.parquet", image=pa.array(IMAGES))
    with pytest.raises(DataError, match=r"the name of more.parquet says neither; take it away, or name source.split_c"):
        open_source(job).plan()


def test_parquet_row_without_an_image_is_rejected_by_name(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", image=pa.array([*IMAGES, None], pa.binary()))
    job = prepare_job({"kind": "parquet", "path": str(path)}, tmp_path / "made", max_rejected_fraction=0.2)
    assert [(rejection.id, rejection.reason) for rejection in prepare(job).rejections] == [
        ("a.parquet#10", "empty: 0 bytes")
    ]


def test_parquet_without_the_column_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", images=pa.array(IMAGES))
    with pytest.raises(
        DataError, match=r"source.image_column: .* has no column 'image', but images; did you mean 'imag"
    ):
        open_source(parquet_job(path)).plan()


def test_parquet_column_of_other_types_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", image=["a.png"], age=[0.5])
    with pytest.raises(
        DataError, match=r"'image' of .* must hold bytes or a struct with the field 'bytes', got string"
    ):
        open_source(parquet_job(path)).plan()
    path = write_parquet(tmp_path / "b.parquet", image=pa.array(IMAGES[:1]), age=[0.5])
    with pytest.raises(DataError, match=r"source.label_column: must hold whole numbers or strings, got double"):
        open_source(parquet_job(path, label_column="age")).plan()


def test_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(DataError, match=r"a.parquet: must be a Parquet file, got"):
        open_source(parquet_job(tmp_path / "a.parquet")).plan()


def test_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"source.path: .*nowhere must be, or hold, \*.parquet files, got nothing there"
    ):
        open_source(parquet_job(tmp_path / "nowhere")).plan()
    with pytest.raises(DataError, match=r"source.path: .*nowhere must exist"):
        open_source(prepare_job({"kind": "folder", "path": str(tmp_path / "nowhere")}, "unused")).plan()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("no image")
    with pytest.raises(DataError, match=r"must hold image files, got 1 other files"):
        open_source(prepare_job({"kind": "folder", "path": str(tmp_path / "texts")}, "unused")).plan()


def test_folder_is_searched_with_its_sub_folders_and_labels(tmp_path: Path) -> None:
    write_images(tmp_path / "images" / "dog", 2)
    write_images(tmp_path / "images" / "cat" / "tabby", 1)
    (tmp_path / "images" / "dog" / "photo.JPG").write_bytes(image_bytes(random_pixels(0), "JPEG"))
    source = {"kind": "folder", "path": str(tmp_path / "images"), "label_from_folder": True}
    _, images, _ = images_of(prepare_job(source, "unused"))
    assert [(image.id, image.label) for image in images] == [
        ("cat/tabby/image-0000.png", "tabby"),
        ("dog/image-0000.png", "dog"),
        ("dog/image-0001.png", "dog"),
        ("dog/photo.JPG", "dog"),
    ]


def test_links_to_folders_are_followed_but_not_in_a_circle(tmp_path: Path) -> None:
    write_images(tmp_path / "elsewhere" / "cat", 2)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "images")
    (tmp_path / "images" / "one.png").symlink_to(tmp_path / "elsewhere" / "cat" / "image-0000.png")
    (tmp_path / "images" / "gone.png").symlink_to(tmp_path / "nowhere")
    _, images, _ = images_of(prepare_job({"kind": "folder", "path": str(tmp_path / "images")}, "unused"))
    assert [image.id for image in images] == [
        "gone.png", "linked/cat/image-0000.png", "linked/cat/image-0001.png", "one.png"
    ]  # fmt: skip


def test_name_that_is_not_utf8_is_shown_as_it_can_be(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in (b"caf\xe9.png", b"notes\xe9.txt", "caf\u00e9.png".encode()):
        (tmp_path / "images" / os.fsdecode(name)).write_bytes(IMAGES[0])
    job = prepare_job({"kind": "folder", "path": str(tmp_path / "images")}, tmp_path / "made", held_out_fraction=0.0)
    assert prepare(job).left_out == ("notes\\xe9.txt",)
    rows = pq.read_table(tmp_path / "made" / "train-00000.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["caf\u00e9.png", "caf\\xe9.png"]


def test_image_beside_the_folders_of_labels_has_none(tmp_path: Path) -> None:
    write_images(tmp_path / "cat", 1)
    write_images(tmp_path, 1)
    _, images, _ = images_of(
        prepare_job({"kind": "folder", "path": str(tmp_path), "label_from_folder": True}, "unused")
    )
    assert [image.label for image in images] == ["cat", None]


def test_file_larger_than_the_limit_is_rejected_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaegen_ray.data.conversion.MAX_SOURCE_BYTES", 5000)
    write_images(tmp_path / "images", 20)
    (tmp_path / "images" / "huge.png").write_bytes(bytes(5001))
    source = {"kind": "folder", "path": str(tmp_path / "images")}
    rejections = prepare(prepare_job(source, tmp_path / "made", max_rejected_fraction=0.1)).rejections
    assert [(rejection.id, rejection.reason) for rejection in rejections] == [
        ("huge.png", "must have at most 5000 bytes, got 5001")
    ]


def write_idx(path: Path, values: np.ndarray) -> None:
    """The file format of MNIST, compressed as it is published."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + values.astype(np.uint8).tobytes())


def test_torchvision_dataset_gives_its_own_split_and_labels(tmp_path: Path) -> None:
    raw = tmp_path / "root" / "FashionMNIST" / "raw"
    pixels = {"train": random_pixels(1, 28, 28, 6), "t10k": random_pixels(2, 28, 28, 3)}
    for part, values in pixels.items():
        write_idx(raw / f"{part}-images-idx3-ubyte", values.transpose(2, 0, 1))
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(values.shape[2]))
    job = prepare_job(
        {"kind": "torchvision", "dataset": "fashion_mnist", "root": str(tmp_path / "root")},
        tmp_path / "made",
        image={"size": 32, "channels": 1, "fit": "pad", "encoding": "raw"},
        held_out_fraction=None,
    )
    metadata = prepare(job).metadata
    assert metadata.counts == {"train": 6, "held_out": 3}
    rows = pq.read_table(tmp_path / "made" / "train-00000.parquet").to_pylist()
    assert [row["label"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert rows[0]["id"] == "train/000000"
    stored = np.frombuffer(rows[4]["image"]["bytes"], np.uint8).reshape(32, 32)
    assert np.array_equal(stored[2:30, 2:30], pixels["train"][..., 4])


def test_torchvision_dataset_that_is_not_there_says_how_to_fetch_it(tmp_path: Path) -> None:
    source = {"kind": "torchvision", "dataset": "cifar10", "root": str(tmp_path)}
    with pytest.raises(
        DataError, match=r"source.root: .* must hold torchvision's cifar10, .* set source.download: true"
    ):
        open_source(prepare_job(source, "unused", held_out_fraction=None)).plan()


def test_torchvision_is_the_only_source_that_needs_torch(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 12)
    job = prepare_job({"kind": "folder", "path": str(folder)}, tmp_path / "made")
    code = (
        "import sys\nsys.modules['torch'] = None\nsys.modules['ray'] = None\n"
        "from vaegen_ray.config.prepare import PrepareJob\nfrom vaegen_ray.data.prepare import prepare\n"
        "prepare(PrepareJob.model_validate_json(sys.argv[1]))\n"
    )
    subprocess.run([sys.executable, "-c", code, job.model_dump_json()], check=True)
    assert "dataset.json" in files_of(tmp_path / "made")
