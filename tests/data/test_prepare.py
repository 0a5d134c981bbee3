"""From a source to a dataset: contents, splits, rejections, repetition, refusal, interruption."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from tests.data.samples import files_of, image_bytes, prepare_job, random_pixels, write_images
from vaegen_ray.cli.prepare import prepare_command
from vaegen_ray.config.prepare import PrepareJob
from vaegen_ray.data.dataset import Dataset
from vaegen_ray.data.format import Metadata
from vaegen_ray.data.inspection import spread_images
from vaegen_ray.data.listing import split_of
from vaegen_ray.data.prepare import prepare
from vaegen_ray.data.tasks import OnImages, Task
from vaegen_ray.data.verification import problems_of
from vaegen_ray.errors import DataError, JobError


def folder_source(folder: Path) -> dict[str, str]:
    return {"kind": "folder", "path": str(folder)}


def rows_of(folder: Path, split: str) -> list[dict[str, object]]:
    shards = json.loads((folder / "dataset.json").read_text())["splits"][split]
    return [row for shard in shards for row in pq.read_table(folder / shard["file"]).to_pylist()]


def test_prepared_folder_holds_every_image_once_with_its_pixels(image_folder: Path, tmp_path: Path) -> None:
    summary = prepare(prepare_job(folder_source(image_folder), tmp_path / "made"))
    assert sum(summary.metadata.counts.values()) == 40
    dataset = Dataset.open(str(tmp_path / "made"))
    seen = []
    for split in ("train", "held_out"):
        images = dataset.decoded(split, cache=str(tmp_path / "cache"))
        names = [str(row["id"]) for row in rows_of(tmp_path / "made", split)]
        assert names == sorted(names)
        for name, pixels in zip(names, images, strict=True):
            assert np.array_equal(pixels, random_pixels(int(name[6:10])))
        seen += names
    assert sorted(seen) == [f"image-{number:04d}.png" for number in range(40)]


def test_metadata_states_shards_and_statistics_as_they_are(image_folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    metadata = prepare(prepare_job(folder_source(image_folder), made, rows_per_shard=8, licence="CC0")).metadata
    assert metadata == Metadata.from_json((made / "dataset.json").read_text(), "dataset.json")
    assert [shard.file for shard in metadata.splits["train"]] == [f"train-{n:05d}.parquet" for n in range(5)]
    for shard in (*metadata.splits["train"], *metadata.splits["held_out"]):
        content = (made / shard.file).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.bytes, shard.sha256)
        footer = pq.read_metadata(made / shard.file)
        assert (footer.num_rows, footer.num_row_groups) == (shard.rows, shard.row_groups)
    values = Dataset.open(str(made)).decoded("train", cache=str(tmp_path / "cache")) / 255
    assert metadata.mean == pytest.approx(values.mean((0, 1, 2)), abs=1e-12)
    assert metadata.std == pytest.approx(values.std((0, 1, 2)), abs=1e-12)
    covariance = np.cov(values.reshape(len(values), -1), rowvar=False, bias=True)
    assert metadata.largest_eigenvalue == pytest.approx(np.linalg.eigvalsh(covariance)[-1], rel=1e-5)
    assert (metadata.licence, metadata.encoding) == ("CC0", "webp")
    assert metadata.rejected == {"damaged": 0, "too_small": 0, "duplicate": 0}
    assert metadata.smallest_source == metadata.largest_source == (16, 16)


def test_large_images_are_in_small_row_groups_and_each_is_found(tmp_path: Path) -> None:
    levels = np.arange(34, dtype=np.uint8) * 7
    (tmp_path / "images").mkdir()
    for number, level in enumerate(levels):
        content = image_bytes(np.full((1024, 1024, 1), level, np.uint8))
        (tmp_path / "images" / f"{number:02d}.png").write_bytes(content)
    image = {"size": 1024, "channels": 1}
    source = folder_source(tmp_path / "images")
    metadata = prepare(prepare_job(source, tmp_path / "made", image=image, held_out_fraction=0.0)).metadata
    (shard,) = metadata.splits["train"]
    footer = pq.read_metadata(tmp_path / "made" / shard.file)
    assert [footer.row_group(group).num_rows for group in range(footer.num_row_groups)] == [32, 2]
    images = spread_images(Dataset.open(str(tmp_path / "made")), "train", 34)
    assert images[:, 0, 0, 0].tolist() == levels.tolist()
    assert metadata.largest_eigenvalue == pytest.approx(1024**2 * levels.astype(float).var() / 255**2, rel=1e-5)


def test_dataset_is_read_by_hugging_face_with_decoded_images(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    made = tmp_path / "made"
    prepare(prepare_job(folder_source(image_folder), made, rows_per_shard=9))
    files = {split: f"{made}/{split}-*.parquet" for split in ("train", "held_out")}
    read = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "hugging_face"))
    for split in ("train", "held_out"):
        assert read[split].column_names == ["id", "image", "width", "height"]
        assert [row["id"] for row in read[split]] == [row["id"] for row in rows_of(made, split)]
    row = read["train"][2]
    assert np.array_equal(np.asarray(row["image"]), random_pixels(int(row["id"][6:10])))
    assert row["width"] == 16


def test_folder_is_read_by_hugging_face_with_all_of_its_splits(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    prepare(prepare_job(folder_source(image_folder), tmp_path / "made", rows_per_shard=9))
    read = datasets.load_dataset(str(tmp_path / "made"), cache_dir=str(tmp_path / "hugging_face"))
    counts = Dataset.open(str(tmp_path / "made")).metadata.counts
    assert {split: len(read[split]) for split in read} == counts


def test_preparing_twice_gives_the_same_bytes(image_folder: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        prepare(prepare_job(folder_source(image_folder), tmp_path / name, rows_per_shard=7))
    assert files_of(tmp_path / "first") == files_of(tmp_path / "second")


def test_preparing_again_says_that_it_is_complete_and_changes_nothing(image_folder: Path, tmp_path: Path) -> None:
    job = prepare_job(folder_source(image_folder), tmp_path / "made")
    first = prepare(job)
    before = files_of(tmp_path / "made")
    again = prepare(job)
    assert again.was_complete
    assert not first.was_complete
    assert again.metadata == first.metadata
    assert "already complete" in str(again)
    assert files_of(tmp_path / "made") == before


def test_destination_of_another_job_is_refused_with_what_differs(image_folder: Path, tmp_path: Path) -> None:
    prepare(prepare_job(folder_source(image_folder), tmp_path / "made"))
    other = prepare_job(folder_source(image_folder), tmp_path / "made", held_out_fraction=0.5)
    with pytest.raises(JobError, match=r"belongs to another job, which differs in held_out_fraction"):
        prepare(other)


def test_many_requests_to_a_store_decode_no_more_images_at_a_time_than_there_are_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, most, open_image = fsspec.filesystem("memory"), Most(), Image.open
    for number in range(160):
        store.pipe_file(f"/decoding/{number:03}.png", image_bytes(random_pixels(number)))

    def open_slowly(*arguments: Any, **options: Any) -> Image.Image:
        with most:
            time.sleep(0.001)
            return open_image(*arguments, **options)

    monkeypatch.setattr(Image, "open", open_slowly)
    job = prepare_job({"kind": "folder", "path": "memory://decoding"}, tmp_path / "made")

    def run(tasks: Sequence[Task], on_images: OnImages) -> None:
        for task in tasks:
            task(2, on_images)

    prepare(job, run=run)
    assert most.seen == 2


class Most:
    """The most users at a time."""

    def __init__(self) -> None:
        self.seen, self._now, self._lock = 0, 0, threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self._now += 1
            self.seen = max(self.seen, self._now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._now -= 1


@pytest.mark.parametrize("below", ["", "made", "linked/made"])
def test_destination_in_its_own_source_is_refused(image_folder: Path, below: str) -> None:
    (image_folder.parent / "linked").symlink_to(image_folder)
    destination = image_folder.parent / below if below.startswith("linked") else image_folder / below
    job = prepare_job({"kind": "folder", "path": str(image_folder)}, destination)
    with pytest.raises(JobError, match=r"destination: must lie outside of source.path .*images, got .*images|linked"):
        prepare(job)


def test_destination_with_other_files_is_refused_and_left_alone(image_folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "thesis.txt").write_text("precious")
    with pytest.raises(JobError, match=r"must be an empty folder or this job's, got 1 other entries \(thesis.txt\)"):
        prepare(prepare_job(folder_source(image_folder), made))
    assert files_of(made) == {"thesis.txt": b"precious"}


def test_split_of_an_image_stays_when_images_are_added(image_folder: Path, tmp_path: Path) -> None:
    prepare(prepare_job(folder_source(image_folder), tmp_path / "few"))
    write_images(image_folder, 60)
    prepare(prepare_job(folder_source(image_folder), tmp_path / "many"))
    few, many = ({str(row["id"]) for row in rows_of(tmp_path / name, "held_out")} for name in ("few", "many"))
    assert few == {name for name in many if int(name[6:10]) < 40}
    assert few


def test_split_takes_the_fraction_that_the_job_asks() -> None:
    held_out = sum(split_of(f"image-{number}", 0.1) == "held_out" for number in range(20_000))
    assert held_out == pytest.approx(2000, rel=0.1)
    assert all(split_of(f"image-{number}", 0.0) == "train" for number in range(100))


def test_odd_images_are_listed_with_name_and_reason_and_the_rest_is_kept(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "image-0003.png").write_bytes(b"")
    (image_folder / "image-0007.png").write_bytes(image_bytes(random_pixels(7))[:300])
    summary = prepare(prepare_job(folder_source(image_folder), tmp_path / "made", max_rejected_fraction=0.05))
    rejected = pq.read_table(tmp_path / "made" / "rejected.parquet").to_pylist()
    assert [(row["id"], row["kind"], row["bytes"]) for row in rejected] == [
        ("image-0003.png", "damaged", 0),
        ("image-0007.png", "damaged", 300),
    ]
    assert rejected[0]["reason"] == "empty: 0 bytes"
    assert summary.metadata.rejected["damaged"] == 2
    assert sum(summary.metadata.counts.values()) == 38
    assert "image-0003.png: empty: 0 bytes" in str(summary)
    assert "image-0007.png" in str(summary)


def test_link_to_nothing_is_rejected_like_a_damaged_image(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "image-0003b.png").symlink_to(tmp_path / "nowhere.png")
    summary = prepare(prepare_job(folder_source(image_folder), tmp_path / "made", max_rejected_fraction=0.05))
    assert [(rejection.id, rejection.reason) for rejection in summary.rejections] == [
        ("image-0003b.png", "listed, but there is no such file")
    ]


def test_too_many_odd_images_fail_the_job_and_are_listed(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "image-0003.png").write_bytes(b"")
    job = prepare_job(folder_source(image_folder), tmp_path / "made")
    with pytest.raises(DataError, match=r"max_rejected_fraction: .* got 0.025 \(1 of 40 images: image-0003.png: empty"):
        prepare(job)
    assert pq.read_table(tmp_path / "made" / "rejected.parquet").num_rows == 1
    with pytest.raises(DataError, match=r"preparation was interrupted"):
        Dataset.open(str(tmp_path / "made"))
    tolerant = prepare_job(folder_source(image_folder), tmp_path / "tolerant", max_rejected_fraction=0.1)
    assert prepare(tolerant).metadata.rejected["damaged"] == 1
    assert prepare(tolerant.model_copy(update={"destination": job.destination})).metadata.rejected["damaged"] == 1


def test_failed_job_is_repeated_after_the_images_were_repaired(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "image-0003.png").write_bytes(b"")
    job = prepare_job(folder_source(image_folder), tmp_path / "made")
    with pytest.raises(DataError, match=r"max_rejected_fraction"):
        prepare(job)
    (image_folder / "image-0003.png").write_bytes(image_bytes(random_pixels(3)))
    assert not any(prepare(job).metadata.rejected.values())
    assert not (tmp_path / "made" / "rejected.parquet").exists()


def test_files_that_are_not_images_are_counted_and_named(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "README.md").write_text("about these images")
    (image_folder / ".DS_Store").write_bytes(b"hidden")
    summary = prepare(prepare_job(folder_source(image_folder), tmp_path / "made"))
    assert (summary.num_left_out, summary.left_out) == (1, ("README.md",))
    assert "1 left out, not images of this source: README.md" in str(summary)


def test_job_without_any_training_image_is_refused(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 2)
    with pytest.raises(DataError, match=r"must have at least one training image, got none and 2 held-out"):
        prepare(prepare_job(folder_source(folder), tmp_path / "made", held_out_fraction=0.999999))


def test_subset_takes_the_first_images_of_each_label(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        write_images(tmp_path / "images" / label, 30)
    source = {"kind": "folder", "path": str(tmp_path / "images"), "label_from_folder": True}
    prepare(prepare_job(source, tmp_path / "made", images_per_label={"train": 4, "held_out": 2}))
    for split, count in (("train", 4), ("held_out", 2)):
        rows = rows_of(tmp_path / "made", split)
        assert [row["label"] for row in rows] == ["cat"] * count + ["dog"] * count
        assert all(str(row["id"]).startswith(f"{row['label']}/") for row in rows)


def test_progress_counts_up_to_the_images_of_the_source(image_folder: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    prepare(prepare_job(folder_source(image_folder), tmp_path / "made"), lambda done, total: seen.append((done, total)))
    assert seen == [(number, 40) for number in range(1, 41)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": {"size": 2048, "channels": 3}}, "less than or equal to 1024"),
        ({"image": {"size": 16, "channels": 5, "encoding": "png"}}, "image.encoding: must be raw for 5 channels"),
        ({"images_per_label": {"train": 1, "held_out": 1}}, "images_per_label: needs labels; set source.label_from"),
        (
            {"source": {"kind": "parquet", "path": "a", "held_out_value": "test"}},
            "source.held_out_value: has no effect",
        ),
        ({"source": {"kind": "parquet", "path": "a", "split_column": "s"}}, "held_out_fraction: has no effect on a"),
        ({"name": "../up"}, "must be 1 to 100 letters"),
        ({"source": {"kind": "tar", "path": "a"}, "rows_per_shard": 5}, "rows_per_shard: has no effect on tar shards"),
        ({"source": {"kind": "tar", "path": "a", "label_key": "k"}}, "source.label_key: has no effect without"),
        ({"source": {"kind": "tar", "path": "a", "label_extension": "json"}}, "source.label_key: must name the label"),
    ],
)
def test_job_that_breaks_a_rule_is_refused_before_anything_is_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        prepare_job(**{"source": {"kind": "folder", "path": "a"}, "destination": "b", **changes})


def test_small_images_are_left_out_by_name_and_not_counted_as_damaged(image_folder: Path, tmp_path: Path) -> None:
    for number in range(5):
        (image_folder / f"tiny-{number}.png").write_bytes(image_bytes(random_pixels(number, 16, 8)))
    job = prepare_job(folder_source(image_folder), tmp_path / "made", minimum_pixels=16, max_rejected_fraction=0.0)
    summary = prepare(job)
    assert summary.metadata.rejected == {"damaged": 0, "too_small": 5, "duplicate": 0}
    assert "rejected: 5 too small; all are named in rejected.parquet" in str(summary)
    assert summary.metadata.smallest_source == (16, 16)


def test_source_sizes_are_those_of_the_fewest_and_the_most_pixels(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "wide.png").write_bytes(image_bytes(random_pixels(1, 8, 24)))
    (image_folder / "large.png").write_bytes(image_bytes(random_pixels(2, 40, 30)))
    metadata = prepare(prepare_job(folder_source(image_folder), tmp_path / "made", rows_per_shard=10)).metadata
    assert (metadata.smallest_source, metadata.largest_source) == ((24, 8), (30, 40))


def test_duplicates_are_found_where_chunks_keep_no_image(tmp_path: Path) -> None:
    """A table of no rows described itself as a shard, which must have one."""
    folder = write_images(tmp_path / "images", 3)
    (folder / "image-0000.png").write_bytes(b"no image")
    (folder / "zzz.bmp").write_bytes(image_bytes(random_pixels(1), "BMP"))
    changes = {"rows_per_shard": 1, "remove_duplicates": True, "max_rejected_fraction": 1.0, "held_out_fraction": 0.0}
    metadata = prepare(prepare_job(folder_source(folder), tmp_path / "made", **changes)).metadata
    assert metadata.counts == {"train": 2, "held_out": 0}
    assert metadata.rejected == {"damaged": 1, "too_small": 0, "duplicate": 1}
    for image in folder.iterdir():
        image.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"must have at least one training image, .* and repair them"):
        prepare(prepare_job(folder_source(folder), tmp_path / "none", **changes))


def test_duplicates_are_left_out_in_the_order_of_the_source_and_name_the_first(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 30)
    # The same pixels in another file format: in the first chunk, in a later one, and twice.
    for copy, original in (("image-0005b", 5), ("image-0027b", 3), ("zzz", 3)):
        (folder / f"{copy}.bmp").write_bytes(image_bytes(random_pixels(original), "BMP"))
    job = prepare_job(folder_source(folder), tmp_path / "made", rows_per_shard=7, remove_duplicates=True)
    prepare(job)
    rejected = pq.read_table(tmp_path / "made" / "rejected.parquet").to_pylist()
    assert [(row["id"], row["kind"], row["repeats"]) for row in rejected] == [
        ("image-0005b.bmp", "duplicate", "image-0005.png"),
        ("image-0027b.bmp", "duplicate", "image-0003.png"),
        ("zzz.bmp", "duplicate", "image-0003.png"),
    ]
    kept = [str(row["id"]) for split in ("train", "held_out") for row in rows_of(tmp_path / "made", split)]
    assert sorted(kept) == [f"image-{number:04d}.png" for number in range(30)]
    assert sorted(files_of(tmp_path / "made"))[1:3] == ["dataset.json", "held_out-00000.parquet"]
    assert problems(tmp_path / "made") == []


def test_statistics_without_duplicates_are_those_of_the_images_that_stay(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 30)
    prepare(prepare_job(folder_source(folder), tmp_path / "distinct", rows_per_shard=10))
    for number in range(0, 30, 2):
        (folder / f"image-{number:04d}b.png").write_bytes(image_bytes(random_pixels(number)))
    job = prepare_job(folder_source(folder), tmp_path / "made", rows_per_shard=15, remove_duplicates=True)
    distinct = Metadata.from_json((tmp_path / "distinct" / "dataset.json").read_text(), "")
    metadata = prepare(job).metadata
    assert (metadata.mean, metadata.std) == (distinct.mean, distinct.std)
    assert metadata.largest_eigenvalue == distinct.largest_eigenvalue


def problems(folder: Path) -> list[str]:
    return list(problems_of(Dataset.open(str(folder)), [].append))


def start_preparing(job: PrepareJob) -> subprocess.Popen[bytes]:
    code = (
        "import sys\n"
        "from vaegen_ray.config.prepare import PrepareJob\n"
        "from vaegen_ray.data.prepare import prepare\n"
        "prepare(PrepareJob.model_validate_json(sys.argv[1]))\n"
    )
    return subprocess.Popen([sys.executable, "-c", code, job.model_dump_json()])


def kill_when_there(process: subprocess.Popen[bytes], file: Path) -> None:
    give_up = time.monotonic() + 30
    while not file.exists():
        assert time.monotonic() < give_up
        assert process.poll() is None
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(
    ("remove_duplicates", "last_file"),
    [(False, ".unfinished/00002.json"), (True, ".unfinished/00002.converted.json"), (True, ".unfinished/00002.json")],
    ids=["converting", "before duplicates are known", "writing without duplicates"],
)
def test_prepare_killed_in_the_middle_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, remove_duplicates: bool, last_file: str
) -> None:
    folder = write_images(tmp_path / "images", 600)
    (folder / "image-0100.png").write_bytes(b"damaged")
    (folder / "image-0107b.png").write_bytes(image_bytes(random_pixels(7)))
    killed, undisturbed = (
        prepare_job(folder_source(folder), tmp_path / name, rows_per_shard=20, remove_duplicates=remove_duplicates)
        for name in ("killed", "undisturbed")
    )
    kill_when_there(start_preparing(killed), tmp_path / "killed" / last_file)
    assert not (tmp_path / "killed" / "dataset.json").exists()
    with pytest.raises(DataError, match=r"preparation was interrupted; run the same `vaegen prepare` again"):
        Dataset.open(str(tmp_path / "killed"))
    done = {path: path.stat().st_ino for path in (tmp_path / "killed").glob("train-*.parquet")}
    # The last one may have been put in place before the kill came, and its record not.
    kept = sorted(done)[:-1]
    prepare(killed)
    prepare(undisturbed)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "undisturbed")
    assert {path: path.stat().st_ino for path in kept} == {path: done[path] for path in kept}
    assert remove_duplicates or len(kept) >= 2
    assert problems(tmp_path / "killed") == []


def test_chunks_whose_source_changed_since_the_kill_are_converted_again(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "image-0003.png").write_bytes(b"damaged")
    job = prepare_job(folder_source(image_folder), tmp_path / "made", rows_per_shard=10)
    with pytest.raises(DataError, match=r"max_rejected_fraction"):
        prepare(job)
    before = {path.name: path.stat().st_ino for path in (tmp_path / "made").glob("train-*.parquet")}
    (image_folder / "image-0003.png").write_bytes(image_bytes(random_pixels(3)))
    prepare(job)
    after = {path.name: path.stat().st_ino for path in (tmp_path / "made").glob("train-*.parquet")}
    assert [name for name in sorted(after) if after[name] != before[name]] == ["train-00000.parquet"]


def test_shards_of_a_source_that_has_shrunk_are_removed(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "image-0003.png").write_bytes(b"damaged")
    job = prepare_job(folder_source(image_folder), tmp_path / "made", rows_per_shard=10)
    with pytest.raises(DataError, match=r"max_rejected_fraction"):
        prepare(job)
    for path in image_folder.glob("image-00[03]*.png"):
        path.unlink()
    metadata = prepare(job).metadata
    assert len(metadata.splits["train"]) == 2
    assert problems(tmp_path / "made") == []
    assert not (tmp_path / "made" / "rejected.parquet").exists()


def test_two_processes_that_prepare_one_dataset_do_not_disturb_each_other(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 200)
    job = prepare_job(folder_source(folder), tmp_path / "made", rows_per_shard=10, remove_duplicates=True)
    processes = [start_preparing(job) for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    prepare(prepare_job(folder_source(folder), tmp_path / "alone", rows_per_shard=10, remove_duplicates=True))
    assert files_of(tmp_path / "made") == files_of(tmp_path / "alone")


def test_prepare_command_prints_what_it_made(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job_file = tmp_path / "job.yaml"
    job_file.write_text(
        f"kind: prepare\nname: noise\nsource: {{kind: folder, path: {image_folder}}}\n"
        f"image: {{size: 32, channels: 3}}\ndestination: {tmp_path / 'made'}\n"
    )
    prepare_command(str(job_file), ["image.size=16", "held_out_fraction=0.25"], local=True)
    assert "16 x 16 x 3" in capsys.readouterr().out
    assert Dataset.open(str(tmp_path / "made")).metadata.image_size == 16
