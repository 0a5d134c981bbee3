"""The two forms in which a node keeps images: decoded in one array, or encoded as the dataset stores them."""

import mmap
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from vaegen_ray.data.cache import NodeCache
from vaegen_ray.data.fetching import stored_images
from vaegen_ray.data.format import Metadata, Shard
from vaegen_ray.data.pixels import Pixels, decode_pixels
from vaegen_ray.errors import DataError
from vaegen_ray.storage import Location

IMAGES_PER_TASK = 8
HEADER_BYTES = 128
"""Of an array file, at most."""
BYTES_PER_ROW = 24
"""Of an encoded file, beside the image: its offset, and its part of the frames of batches of some hundred."""

ENCODED_SCHEMA = pa.schema([pa.field("image", pa.large_binary())])


class Decoder:
    """Decodes the images of one dataset in threads."""

    def __init__(self, metadata: Metadata) -> None:
        """One thread a core that this process may use."""
        self.shape = (metadata.image_size, metadata.image_size, metadata.channels)
        """Of an image."""
        self._encoding = metadata.encoding
        num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="decode")

    def decode(self, stored: Sequence[Any], names: Sequence[str], out: Pixels) -> None:
        """Fill ``out`` [n, H, W, C] from n Arrow scalars of bytes; ``names`` say what could not be decoded."""

        def decode_from(first: int) -> None:
            for row in range(first, min(first + IMAGES_PER_TASK, len(stored))):
                try:
                    out[row] = decode_pixels(stored[row].as_buffer(), self._encoding, *self.shape[1:])
                except Exception as error:
                    # Whatever the decoder raises: the file is as it was prepared, but not by us.
                    raise DataError(
                        f"{names[row]}: the image cannot be decoded ({error}); prepare the dataset again"
                    ) from error

        for _ in self._pool.map(decode_from, range(0, len(stored), IMAGES_PER_TASK)):
            pass

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()


def decoded_images(
    source: Location, metadata: Metadata, shards: Sequence[Shard], name: str, cache: NodeCache
) -> Pixels:
    """Return the images of the shards, mapped read-only from the entry ``name``: uint8 [N, H, W, C].

    The entry stays in the cache while the array lives.
    """
    num_images = sum(shard.rows for shard in shards)
    shape = (num_images, metadata.image_size, metadata.image_size, metadata.channels)
    lease = cache.entry(
        f"{name}.npy",
        num_bytes=HEADER_BYTES + int(np.prod(shape)),
        is_whole=lambda path: _is_whole_array(path, shape),
        make=lambda file: _write_decoded(file, source, metadata, shards, shape),
    )
    images: np.memmap[Any, np.dtype[np.uint8]] = np.load(lease.path, mmap_mode="r")
    lease.cover(images._mmap)  # type: ignore[attr-defined]  # What every view of the array keeps alive.
    return images


def encoded_images(
    source: Location, metadata: Metadata, shards: Sequence[Shard], name: str, cache: NodeCache
) -> pa.ChunkedArray:
    """Return the images of the shards as the dataset stores them, mapped from the entry ``name``.

    The entry stays in the cache while the array lives.
    """
    num_images = sum(shard.rows for shard in shards)
    image_bytes = sum(shard.bytes for shard in shards)
    if metadata.encoding == "raw":  # Which Parquet compresses, unlike the others.
        image_bytes = num_images * metadata.image_size**2 * metadata.channels
    lease = cache.entry(
        f"{name}.arrow",
        num_bytes=image_bytes + num_images * BYTES_PER_ROW,
        is_whole=_is_whole_arrow,
        make=lambda file: _write_encoded(file, stored_images(source, shards, file.parent)),
    )
    with lease.path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    lease.cover(mapped)
    return pa.ipc.open_file(pa.py_buffer(mapped)).read_all().column("image")


def _write_decoded(
    path: Path, source: Location, metadata: Metadata, shards: Sequence[Shard], shape: tuple[int, ...]
) -> None:
    decoder = Decoder(metadata)
    try:
        with path.open("r+b") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for stored in stored_images(source, shards, path.parent):
                images = np.empty((len(stored.images), *shape[1:]), np.uint8)
                decoder.decode(stored.images, stored.names, images)
                file.write(images.data)
            _finish(file)
    finally:
        decoder.close()


def _write_encoded(path: Path, batches: Iterable[Any]) -> None:
    with path.open("r+b") as file:
        with pa.ipc.new_file(file, ENCODED_SCHEMA) as writer:
            for stored in batches:
                writer.write_batch(pa.record_batch([stored.images], schema=ENCODED_SCHEMA))
        _finish(file)


def _finish(file: BinaryIO) -> None:
    """Give back the room that was not needed, and see the rest to the disk."""
    file.truncate()
    file.flush()
    os.fsync(file.fileno())


def _is_whole_array(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether the file is there with all its bytes; a crash of the machine can cut a file that had its name."""
    try:
        with path.open("rb") as file:
            if np.lib.format.read_magic(file) != (1, 0):
                return False
            header = np.lib.format.read_array_header_1_0(file)
            return header == (shape, False, np.dtype(np.uint8)) and file.tell() + np.prod(shape) == path.stat().st_size
    except (OSError, ValueError):
        return False


def _is_whole_arrow(path: Path) -> bool:
    """The same of an Arrow file, which ends with its table of contents."""
    try:
        with pa.memory_map(str(path)) as file:
            pa.ipc.open_file(file)
    except (OSError, pa.ArrowException):
        return False
    return True
