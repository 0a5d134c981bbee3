"""Rows into Parquet files of a folder or bucket. A file appears there whole, or not at all."""

import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vaegen_ray.data.format import ROWS_PER_GROUP, Shard, Split
from vaegen_ray.errors import StorageError
from vaegen_ray.storage import Location

ZSTD_LEVEL = 3


class TableWriter:
    """One Parquet file, written on the local disk group by group and then put in its place."""

    def __init__(
        self, schema: pa.Schema, target: Location, workspace: Path, rows_per_group: int = ROWS_PER_GROUP
    ) -> None:
        """Nothing is written before the first row."""
        self._schema, self._rows_per_group = schema, rows_per_group
        self._target = target
        # Another process may be writing the same file.
        self._temporary = workspace / f"{uuid.uuid4().hex}-{target.name}"
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[dict[str, Any]] = []
        self.num_rows = 0

    def append(self, row: dict[str, Any]) -> None:
        """Add a row: a value for each column."""
        self._pending.append(row)
        self.num_rows += 1
        if len(self._pending) == self._rows_per_group:
            self._write_group()

    def publish(self) -> Shard:
        """Put the file, of one row at least, in its place and describe it."""
        num_bytes, sha256 = self.put()
        return Shard(
            file=self._target.name,
            rows=self.num_rows,
            row_groups=-(-self.num_rows // self._rows_per_group),
            bytes=num_bytes,
            sha256=sha256,
        )

    def put(self) -> tuple[int, str]:
        """Put the file in its place, also one without rows; its size and digest."""
        if self._pending or self._writer is None:
            self._write_group()
        assert self._writer is not None
        with self._errors():
            self._writer.close()
            with self._temporary.open("rb+") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            num_bytes = self._temporary.stat().st_size
            if self._target.is_local:
                self._temporary.replace(self._target.local_path)
            else:
                self._target.upload(self._temporary)
                self._temporary.unlink()
        return num_bytes, sha256

    def _write_group(self) -> None:
        with self._errors():
            if self._writer is None:
                self._writer = pq.ParquetWriter(
                    self._temporary, self._schema, compression="zstd", compression_level=ZSTD_LEVEL
                )
            table = pa.Table.from_pylist(self._pending, schema=self._schema)
            self._writer.write_table(table, row_group_size=self._rows_per_group)
        self._pending.clear()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(f"{self._temporary}: cannot write: {error}; free space there") from error


def shard_name(split: Split, number: int) -> str:
    """The file of a chunk's images of one split."""
    return f"{split}-{number:05d}.parquet"


@contextmanager
def workspace(folder: Location) -> Iterator[Path]:
    """Where to write files before they are put into ``folder``: on the same disk, so that putting is one step."""
    if folder.is_local:
        folder.local_path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vaegen-", dir=folder.local_path if folder.is_local else None) as path:
        yield Path(path)
