"""Shards as local files whose length and checksum are right."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vaegen_ray.data.format import Shard
from vaegen_ray.errors import DataError, StorageError
from vaegen_ray.storage import Location

ATTEMPTS = 2
"""A shard that arrives damaged is fetched once more."""

ROWS_PER_READ = 128
"""Arrow holds the bytes of so many in an array of less than 2 GB."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredImages:
    """Some images of a shard as they are stored."""

    names: list[str]
    """For errors."""
    images: pa.LargeBinaryArray


def stored_images(source: Location, shards: Sequence[Shard], folder: Path) -> Iterator[StoredImages]:
    """Give the images of the shards as they are stored, some hundred at a time, each shard read once.

    Shards in an object store are copied to ``folder`` one after another, the next while one is read.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="fetch-shard") as pool:
        coming = pool.submit(fetch_shard, source, shards[0], folder)
        for shard, following in zip(shards, [*shards[1:], None], strict=True):
            path = coming.result()
            if following is not None:
                coming = pool.submit(fetch_shard, source, following, folder)
            yield from _images_of(path, source / shard.file, shard.rows)
            if not source.is_local:
                path.unlink()


def fetch_shard(source: Location, shard: Shard, folder: Path) -> Path:
    """Return a local file with the content of the shard of ``source``, in ``folder`` where it had to be copied.

    DataError where its length or checksum is not that of the dataset.
    """
    location = source / shard.file
    path = location.local_path if location.is_local else folder / shard.file
    for attempt in range(1, ATTEMPTS + 1):
        found = _copy(location, path)
        expected = (shard.bytes, shard.sha256)
        if found == expected:
            break
        differing = (
            f"sha256 must be {shard.sha256}, got {found[1]}"
            if found[0] == shard.bytes
            else f"must have {shard.bytes} bytes, got {found[0]}"
        )
        if attempt == ATTEMPTS or location.is_local:
            raise DataError(
                f"{location}: {differing}; the shard is damaged, restore it or prepare the dataset again "
                "(`vaegen data verify` finds all that are)"
            )
        logger.warning("%s: %s; fetching it again", location, differing)
    return path


def _copy(location: Location, path: Path) -> tuple[int, str]:
    """Bring the file to ``path`` if it is not local; return its bytes and SHA-256."""
    try:
        sha256 = sha256_of(path) if location.is_local else location.download(path)
    except OSError as error:
        if location.exists():
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{location}: cannot be read: {error}; check the rights and the disk") from error
        raise DataError(
            f"{location}: must be there, dataset.json names it, got nothing; restore it or prepare again"
        ) from error
    return path.stat().st_size, sha256


def sha256_of(path: Path) -> str:
    """Of a file on this machine, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _images_of(path: Path, location: Location, num_rows: int) -> Iterator[StoredImages]:
    try:
        parquet = pq.ParquetFile(path)
        if parquet.metadata.num_rows != num_rows:
            raise DataError(
                f"{location}: must have {num_rows} rows like dataset.json says, got {parquet.metadata.num_rows}; "
                "prepare again"
            )
        for batch in parquet.iter_batches(ROWS_PER_READ, columns=["id", "image.bytes"]):
            names = [f"{location}, image '{name}'" for name in batch.column("id").to_pylist()]
            yield StoredImages(names, batch.column("image").field("bytes").cast(pa.large_binary()))
    except (pa.ArrowException, KeyError) as error:
        raise DataError(f"{location}: must have columns id and image.bytes, got {error}; prepare again") from error
