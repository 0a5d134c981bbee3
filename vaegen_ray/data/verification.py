"""Is a dataset what its ``dataset.json`` says? Every shard against its checksum, every image decoded."""

import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vaegen_ray.data.dataset import Dataset
from vaegen_ray.data.fetching import sha256_of
from vaegen_ray.data.format import METADATA_FILE, REJECTED_FILE, Metadata, Shard, shard_schema
from vaegen_ray.data.pixels import decode_pixels
from vaegen_ray.data.tasks import UNFINISHED
from vaegen_ray.errors import StorageError, StoreUnavailableError
from vaegen_ray.storage import Location

ROWS_PER_READ = 256
IMAGES_PER_CALL = 32

OnImages = Callable[[int], None]


def problems_of(dataset: Dataset, on_images: OnImages) -> Iterator[str]:
    """Give a sentence for each shard or image that is not as it should be; none for a whole dataset."""
    metadata, folder = dataset.metadata, dataset.location
    names = set(folder.names())
    shards = [shard for split in metadata.splits.values() for shard in split]
    if not (folder / UNFINISHED).names():
        names.discard(UNFINISHED)  # Some stores show the empty folder for a while.
    yield from _left_over(names, {shard.file for shard in shards}, metadata)
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="verify") as pool:
        for shard in shards:
            if shard.file not in names:
                yield f"{shard.file}: must be there, {METADATA_FILE} names it, got nothing"
                continue
            yield from _problems_of_shard(folder / shard.file, shard, metadata, pool, on_images)
    if any(metadata.rejected.values()):
        yield from _problems_of_rejected(folder, names, sum(metadata.rejected.values()))


def _left_over(names: set[str], shards: set[str], metadata: Metadata) -> Iterator[str]:
    expected = shards | ({REJECTED_FILE} if any(metadata.rejected.values()) else set())
    for name in sorted(names):
        if name == UNFINISHED or (name.endswith(".parquet") and name not in expected):
            yield f"{name}: must not be there, {METADATA_FILE} does not name it; remove it"


def _problems_of_shard(
    location: Location, shard: Shard, metadata: Metadata, pool: ThreadPoolExecutor, on_images: OnImages
) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="vaegen-verify-") as folder:
        path = location.local_path if location.is_local else Path(folder) / shard.file
        try:
            sha256 = sha256_of(path) if location.is_local else location.download(path)
        except StoreUnavailableError:
            raise  # Says nothing of the shard.
        except OSError as error:
            yield f"{shard.file}: cannot be read ({error})"
            return
        if (num_bytes := path.stat().st_size) != shard.bytes:
            yield f"{shard.file}: must have {shard.bytes} bytes, got {num_bytes}"
        elif sha256 != shard.sha256:
            yield f"{shard.file}: sha256 must be {shard.sha256}, got {sha256}"
        try:
            yield from _problems_of_rows(path, shard, metadata, pool, on_images)
        except (pa.ArrowException, OSError, KeyError) as error:
            yield f"{shard.file}: must be readable Parquet with id, image, width and height, got {error}"


def _problems_of_rows(
    path: Path, shard: Shard, metadata: Metadata, pool: ThreadPoolExecutor, on_images: OnImages
) -> Iterator[str]:
    parquet = pq.ParquetFile(path)
    found = (parquet.metadata.num_rows, parquet.metadata.num_row_groups)
    if found != (shard.rows, shard.row_groups):
        expected = f"{shard.rows} rows in {shard.row_groups} row groups"
        yield f"{shard.file}: must have {expected}, got {found[0]} in {found[1]}"
    schema = shard_schema(metadata.encoding, metadata.label)
    if not parquet.schema_arrow.equals(schema, check_metadata=False):
        columns = [
            ", ".join(f"{field.name} ({field.type})" for field in each) for each in (schema, parquet.schema_arrow)
        ]
        yield f"{shard.file}: must have the columns {columns[0]} as {METADATA_FILE} says, got {columns[1]}"
    first = 0
    for batch in parquet.iter_batches(ROWS_PER_READ, columns=["id", "image", "width", "height"]):
        rows = batch.to_pylist()
        starts = range(0, len(rows), IMAGES_PER_CALL)
        calls = [pool.submit(_bad_images, rows[start : start + IMAGES_PER_CALL], metadata) for start in starts]
        for start, call in zip(starts, calls, strict=True):
            for number, name, reason in call.result():
                yield f"{shard.file}: row {first + start + number}, image '{name}': {reason}"
        on_images(len(rows))
        first += len(rows)


def _bad_images(rows: list[dict[str, object]], metadata: Metadata) -> list[tuple[int, str, str]]:
    """Number, name and what is wrong of each image that is not as ``metadata`` says."""
    size, bad = metadata.image_size, []
    for number, row in enumerate(rows):
        if (row["width"], row["height"]) != (size, size):
            bad.append((number, str(row["id"]), f"must be {size} x {size}, got {row['width']} x {row['height']}"))
        stored = row["image"]
        try:
            assert isinstance(stored, dict)
            decode_pixels(stored["bytes"] or b"", metadata.encoding, size, metadata.channels)
        except Exception as error:  # noqa: BLE001 (decoders raise unrelated classes on damaged bytes)
            bad.append((number, str(row["id"]), f"cannot be decoded ({error})"))
    return bad


def _problems_of_rejected(folder: Location, names: set[str], expected: int) -> Iterator[str]:
    if REJECTED_FILE not in names:
        yield f"{REJECTED_FILE}: must be there, it names {expected} images that are not in the dataset, got nothing"
        return
    try:
        with (folder / REJECTED_FILE).open() as file:
            found = pq.ParquetFile(file).metadata.num_rows
    except (pa.ArrowException, StorageError) as error:
        yield f"{REJECTED_FILE}: must be readable Parquet, got {error}"
        return
    if found != expected:
        yield f"{REJECTED_FILE}: must have {expected} rows like {METADATA_FILE} says, got {found}"
