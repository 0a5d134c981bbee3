"""What `vaegen data verify` finds, and that it finds nothing in a whole dataset."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.samples import image_bytes, prepare_job, random_pixels
from vaegen_ray.data.dataset import Dataset
from vaegen_ray.data.prepare import prepare
from vaegen_ray.data.shards import TableWriter
from vaegen_ray.data.verification import problems_of
from vaegen_ray.storage import Location


def problems(folder: Path | str) -> list[str]:
    return list(problems_of(Dataset.open(str(folder)), [].append))


def replace_shard(made: Path, number: int, change: pa.Table) -> None:
    """Put a table in the place of a shard, and its true length and checksum into ``dataset.json``."""
    writer = TableWriter(change.schema, Location.of(made / f"train-{number:05d}.parquet"), made)
    for row in change.to_pylist():
        writer.append(row)
    shard = writer.publish()
    from vaegen_ray.data.format import Metadata, fingerprint_of

    metadata = Metadata.from_json((made / "dataset.json").read_text(), "")
    shards = list(metadata.splits["train"])
    shards[number] = shard
    splits = {**metadata.splits, "train": tuple(shards)}
    fingerprint = fingerprint_of(metadata.image_size, metadata.channels, metadata.encoding, splits)
    changed = metadata.model_copy(update={"splits": splits, "fingerprint": fingerprint})
    (made / "dataset.json").write_text(changed.to_json())


def test_whole_dataset_has_no_problems_and_every_image_is_counted(made: Path) -> None:
    counts: list[int] = []
    assert list(problems_of(Dataset.open(str(made)), counts.append)) == []
    assert sum(counts) == 40


def test_shipped_dataset_has_no_problems() -> None:
    assert problems("shipped:fashion_mnist") == []


def test_shard_that_is_missing_and_one_that_is_left_over_are_named(made: Path) -> None:
    (made / "train-00001.parquet").rename(made / "train-00009.parquet")
    (made / ".unfinished").mkdir()
    (made / ".unfinished" / "00000.json").touch()
    assert problems(made) == [
        ".unfinished: must not be there, dataset.json does not name it; remove it",
        "train-00009.parquet: must not be there, dataset.json does not name it; remove it",
        "train-00001.parquet: must be there, dataset.json names it, got nothing",
    ]


def test_empty_folder_of_unfinished_work_that_a_store_still_shows_is_no_problem(made: Path) -> None:
    (made / ".unfinished").mkdir()
    assert problems(made) == []


def test_truncated_shard_is_named_with_its_length(made: Path) -> None:
    shard = made / "train-00001.parquet"
    num_bytes = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:1000])
    found = problems(made)
    assert found[0] == f"train-00001.parquet: must have {num_bytes} bytes, got 1000"
    assert found[1].startswith("train-00001.parquet: must be readable Parquet")


def test_flipped_bit_is_found_by_the_checksum_even_where_everything_decodes(made: Path) -> None:
    shard = made / "train-00001.parquet"
    content = bytearray(shard.read_bytes())
    content[content.rindex(b"huggingface")] ^= 32
    shard.write_bytes(content)
    assert [problem[:40] for problem in problems(made)] == ["train-00001.parquet: sha256 must be " + problem_sha(made)]


def problem_sha(made: Path) -> str:
    return json.loads((made / "dataset.json").read_text())["splits"]["train"][1]["sha256"][:4]


def test_image_that_does_not_decode_or_has_another_size_is_named_with_its_row(made: Path) -> None:
    table = pq.read_table(made / "train-00001.parquet")
    rows = table.to_pylist()
    rows[2]["image"]["bytes"] = rows[2]["image"]["bytes"][:50]
    rows[4]["image"]["bytes"] = image_bytes(random_pixels(1, 8, 8), "WEBP", lossless=True)
    rows[6]["width"] = 17
    replace_shard(made, 1, pa.Table.from_pylist(rows, schema=table.schema))
    found = problems(made)
    assert [problem.split(":")[1] for problem in found] == [
        f" row {row}, image 'image-{9 + row:04d}.png'" for row in (2, 4, 6)
    ]
    assert "cannot be decoded" in found[0]
    assert "got (8, 8, 3)" in found[1]
    assert found[2].endswith("must be 16 x 16, got 17 x 16")


def test_label_that_the_description_does_not_know_is_named(made: Path) -> None:
    description = json.loads((made / "dataset.json").read_text())
    (made / "dataset.json").write_text(json.dumps({**description, "label": "int64"}))
    (first, *_) = problems(made)
    assert first.startswith("train-00000.parquet: must have the columns id (string), ")
    assert "label (int64) as dataset.json says, got" in first


def test_rejected_list_must_have_the_rows_that_the_description_says(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "image-0003.png").write_bytes(b"")
    made = tmp_path / "made"
    prepare(prepare_job({"kind": "folder", "path": str(image_folder)}, made, max_rejected_fraction=0.1))
    assert problems(made) == []
    (made / "rejected.parquet").unlink()
    assert problems(made) == [
        "rejected.parquet: must be there, it names 1 images that are not in the dataset, got nothing"
    ]


@pytest.mark.s3
def test_dataset_in_a_bucket_is_verified(s3_bucket: str, image_folder: Path) -> None:
    prepare(prepare_job({"kind": "folder", "path": str(image_folder)}, f"{s3_bucket}/noise"))
    assert problems(f"{s3_bucket}/noise") == []
    (Location.of(s3_bucket) / "noise" / "train-00000.parquet").write_bytes(b"PAR1")
    assert [problem[:35] for problem in problems(f"{s3_bucket}/noise")] == [
        "train-00000.parquet: must have 3487",
        "train-00000.parquet: must be readab",
    ]
