"""The work of `prepare` on one chunk: any machine may do it, again or at the same time, and writes the same files.

A chunk's record is written last, so a record says that the chunk's files are there. The record of another state of
the source, or of other duplicates, does not count.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from vaegen_ray.config.base import Section
from vaegen_ray.config.prepare import ImageFormat
from vaegen_ray.data.chunks import Chunk, LeftOut
from vaegen_ray.data.conversion import Rejection, SourceImage, StoredImage, store_image
from vaegen_ray.data.format import SPLITS, LabelType, Shard, Split, rows_per_group, shard_schema
from vaegen_ray.data.pixels import decode_pixels
from vaegen_ray.data.shards import TableWriter, shard_name, workspace
from vaegen_ray.data.sources import ImageSource
from vaegen_ray.data.statistics import ImageStatistics
from vaegen_ray.storage import Location

UNFINISHED = ".unfinished"
"""Folder in the destination for what is needed until the dataset is whole."""

HASH_BYTES = 16
IMAGES_PER_CALL = 8
ROWS_PER_READ = 256

REQUESTS_AT_A_TIME = 16
"""To an object store that holds a file for each image; no more are decoded at a time than there are threads for."""

OnImages = Callable[[int], None]
"""Takes a number of images that are done."""


class ChunkRecord(Section):
    """What came of a chunk."""

    digest: str
    num_images: int
    rejections: tuple[Rejection, ...]
    left_out: int
    left_out_names: tuple[str, ...]
    source_sizes: tuple[tuple[int, int], ...]
    """Width and height of the smallest and of the largest source image; empty without images."""
    shards: dict[Split, Shard]


@dataclass(frozen=True)
class Conversion:
    """What the tasks of a job share."""

    source: ImageSource
    image_format: ImageFormat
    minimum_pixels: int | None
    label_type: LabelType | None
    destination: Location

    @property
    def unfinished(self) -> Location:
        """Where records are, and what else is needed only until the dataset is whole."""
        return self.destination / UNFINISHED

    def statistics_file(self, number: int) -> Location:
        """Of the chunk's training images."""
        return self.unfinished / f"{number:05d}.npz"

    def converted_file(self, number: int) -> Location:
        """The chunk's images before duplicates are left out."""
        return self.unfinished / f"{number:05d}.converted.parquet"


@dataclass(frozen=True)
class ConvertTask:
    """Convert the images of a chunk into shards, or into a table from which duplicates are left out later."""

    conversion: Conversion
    chunk: Chunk
    has_duplicates: bool

    @property
    def digest(self) -> str:
        """Of the chunk's images."""
        return self.chunk.digest

    @property
    def record_file(self) -> Location:
        """Written when the work is done."""
        suffix = ".converted.json" if self.has_duplicates else ".json"
        return self.conversion.unfinished / f"{self.chunk.number:05d}{suffix}"

    def __call__(self, num_threads: int, on_images: OnImages) -> None:
        """Do the work."""
        left_out, rejections, sizes = LeftOut(), list[Rejection](), list[tuple[int, int]]()
        num_stored = 0
        with workspace(self.conversion.unfinished) as folder:
            output: _Output = (_Table if self.has_duplicates else _Shards)(self.conversion, self.chunk.number, folder)
            for outcome in self._outcomes(left_out, num_threads):
                on_images(1)
                if isinstance(outcome, Rejection):
                    rejections.append(outcome)
                    continue
                output.append(outcome)
                num_stored += 1
                sizes = extremes([*sizes, outcome.source_size])
            shards = output.publish()
        record = ChunkRecord(
            digest=self.digest,
            num_images=num_stored + len(rejections),
            rejections=tuple(rejections),
            left_out=left_out.count,
            left_out_names=tuple(left_out.first_names),
            source_sizes=tuple(sizes),
            shards=shards,
        )
        self.record_file.write_text(record.model_dump_json())

    def _outcomes(self, left_out: LeftOut, num_threads: int) -> Iterator[StoredImage | Rejection]:
        """Convert in threads; the outcomes come in the order of the source."""
        conversion = self.conversion
        images = conversion.source.images(self.chunk, left_out)
        store = partial(_store_images, conversion=conversion, decoding=BoundedSemaphore(num_threads))
        if not conversion.source.root.is_local:
            num_threads = max(num_threads, REQUESTS_AT_A_TIME)
        in_flight: deque[Future[list[StoredImage | Rejection]]] = deque()
        with ThreadPoolExecutor(num_threads, thread_name_prefix="convert") as pool:
            while some := list(islice(images, IMAGES_PER_CALL)):
                in_flight.append(pool.submit(store, some))
                if len(in_flight) > num_threads + 2:
                    yield from in_flight.popleft().result()
            while in_flight:
                yield from in_flight.popleft().result()


@dataclass(frozen=True)
class DistinctTask:
    """Write the shards of a chunk that was converted, without the images that repeat others."""

    conversion: Conversion
    chunk: Chunk
    repeats: Mapping[int, str]
    """Number of an image in the converted table to the id of the image that it repeats."""

    @property
    def digest(self) -> str:
        """Of the chunk's images and duplicates."""
        return hashlib.sha256(f"{self.chunk.digest} {sorted(self.repeats.items())}".encode()).hexdigest()

    @property
    def record_file(self) -> Location:
        """Written when the work is done."""
        return self.conversion.unfinished / f"{self.chunk.number:05d}.json"

    def __call__(self, num_threads: int, on_images: OnImages) -> None:  # noqa: ARG002 (there is little to decode)
        """Do the work."""
        conversion, image_format = self.conversion, self.conversion.image_format
        converted = ConvertTask(conversion, self.chunk, has_duplicates=True).record_file
        record = ChunkRecord.model_validate_json(converted.read_text())
        rejections = list(record.rejections)
        with workspace(conversion.unfinished) as folder:
            output = _Shards(conversion, self.chunk.number, folder)
            for number, row in enumerate(_rows(conversion.converted_file(self.chunk.number))):
                on_images(1)
                stored: bytes = row["image"]["bytes"]
                if number in self.repeats:
                    first = self.repeats[number]
                    reason = f"has the pixels of {first}"
                    rejections.append(Rejection(row["id"], "duplicate", reason, len(stored), repeats=first))
                    continue
                pixels = decode_pixels(stored, image_format.stored_encoding, image_format.size, image_format.channels)
                output.append(StoredImage(row["id"], stored, pixels, row.get("label"), row["split"], (0, 0)))
            shards = output.publish()
        record = record.model_copy(update={"digest": self.digest, "rejections": tuple(rejections), "shards": shards})
        self.record_file.write_text(record.model_dump_json())


Task = ConvertTask | DistinctTask
"""Some work on one chunk."""


def finished_record(task: Task) -> ChunkRecord | None:
    """The record of ``task``, which is there, if it was made from the present state of the source."""
    try:
        record = ChunkRecord.model_validate_json(task.record_file.read_text())
    except ValidationError:
        return None  # Of another version: the work is done again.
    return record if record.digest == task.digest else None


def extremes(sizes: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The smallest and the largest of some widths and heights, by pixels; empty if there are none."""
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return [ordered[0], ordered[-1]] if ordered else []


def _store_images(
    images: list[SourceImage], conversion: Conversion, decoding: BoundedSemaphore
) -> list[StoredImage | Rejection]:
    read = [_with_label_of_type(image, conversion.label_type).in_memory() for image in images]
    with decoding:
        return [store_image(image, conversion.image_format, conversion.minimum_pixels) for image in read]


def _with_label_of_type(image: SourceImage, label_type: LabelType | None) -> SourceImage:
    """The image, with a problem where the table cannot hold its label."""
    if label_type is None or image.problem:
        return image
    try:
        pa.scalar(image.label, pa.type_for_alias(label_type))
    except (ValueError, TypeError, OverflowError):  # Among them Arrow's own.
        problem = f"label: must be {label_type} like the others, got {image.label!r}"
        return replace(image, problem=problem)
    return image


def _rows(file: Location) -> Iterator[dict[str, Any]]:
    with file.open() as opened:
        for batch in pq.ParquetFile(opened).iter_batches(ROWS_PER_READ):
            yield from batch.to_pylist()


class _Output(Protocol):
    """Where the images of a chunk go."""

    def append(self, image: StoredImage) -> None:
        """Write an image."""

    def publish(self) -> dict[Split, Shard]:
        """Put the files in their places; return those that are shards."""


class _Shards:
    """A shard of each split that has images, and the statistics of those to train on."""

    def __init__(self, conversion: Conversion, number: int, folder: Path) -> None:
        image_format = conversion.image_format
        self._conversion = conversion
        self._number = number
        self._schema = shard_schema(image_format.stored_encoding, conversion.label_type)
        self._statistics = ImageStatistics(image_format.size, image_format.channels)
        self._writers: dict[Split, TableWriter] = {
            split: TableWriter(
                self._schema,
                conversion.destination / shard_name(split, number),
                folder,
                rows_per_group(image_format.size),
            )
            for split in SPLITS
        }

    def append(self, image: StoredImage) -> None:
        self._writers[image.split].append(_row(image, self._schema))
        if image.split == "train":
            self._statistics.add(image.pixels)

    def publish(self) -> dict[Split, Shard]:
        self._conversion.statistics_file(self._number).write_bytes(self._statistics.to_bytes())
        return {split: writer.publish() for split, writer in self._writers.items() if writer.num_rows}


class _Table:
    """One table of all images, each with its split and the hash of its pixels."""

    def __init__(self, conversion: Conversion, number: int, folder: Path) -> None:
        self._shard_schema = shard_schema(conversion.image_format.stored_encoding, conversion.label_type)
        added = [pa.field("split", pa.string()), pa.field("hash", pa.binary(HASH_BYTES))]
        schema = pa.schema([*self._shard_schema, *added])
        self._writer = TableWriter(
            schema, conversion.converted_file(number), folder, rows_per_group(conversion.image_format.size)
        )

    def append(self, image: StoredImage) -> None:
        digest = hashlib.blake2b(image.pixels.tobytes(), digest_size=HASH_BYTES).digest()
        self._writer.append({**_row(image, self._shard_schema), "split": image.split, "hash": digest})

    def publish(self) -> dict[Split, Shard]:
        self._writer.put()
        return {}


def _row(image: StoredImage, schema: pa.Schema) -> dict[str, object]:
    height, width, _ = image.pixels.shape
    row = {
        "id": image.id,
        "image": {"bytes": image.content, "path": None},
        "width": width,
        "height": height,
        "label": image.label,
    }
    return {name: row[name] for name in schema.names}
