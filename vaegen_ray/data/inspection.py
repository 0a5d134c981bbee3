"""A few images of a dataset, without reading the rest."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vaegen_ray.data.dataset import Dataset
from vaegen_ray.data.format import Shard, Split
from vaegen_ray.data.pixels import Pixels, decode_pixels
from vaegen_ray.errors import DataError, StoreUnavailableError


def spread_images(dataset: Dataset, split: Split, count: int) -> Pixels:
    """``count`` images of the split, or all if it has fewer, at equal distances: uint8 [N, H, W, C].

    Only the row groups that hold them are read.
    """
    metadata = dataset.metadata
    total = metadata.counts[split]
    wanted = [number * total // min(count, total) for number in range(min(count, total))]
    found = []
    for shard, rows in groupby(wanted, key=lambda row: _shard_of(metadata.splits[split], row)):
        place, first_row = shard
        found += _stored(dataset, metadata.splits[split][place], [row - first_row for row in rows])
    return np.stack([decode_pixels(s, metadata.encoding, metadata.image_size, metadata.channels) for s in found])


def label_counts(dataset: Dataset, split: Split) -> dict[str, int]:
    """How many images of the split have each label; reads the column of labels only."""
    counts: dict[str, int] = {}
    for shard in dataset.metadata.splits[split]:
        with _opened(dataset, shard) as parquet:
            column = parquet.read(["label"])["label"]
        for entry in column.value_counts().to_pylist():
            label = "none" if entry["values"] is None else str(entry["values"])
            counts[label] = counts.get(label, 0) + entry["counts"]
    return counts


def _shard_of(shards: tuple[Shard, ...], row: int) -> tuple[int, int]:
    """Number and first row of the shard that holds a row of the split."""
    first = 0
    for place, shard in enumerate(shards):
        if row < first + shard.rows:
            return place, first
        first += shard.rows
    raise IndexError(row)


def _stored(dataset: Dataset, shard: Shard, rows: list[int]) -> list[bytes]:
    per_group = dataset.metadata.rows_per_group
    stored: list[bytes] = []
    with _opened(dataset, shard) as parquet:
        for group, group_rows in groupby(rows, key=lambda row: row // per_group):
            images = parquet.read_row_group(group, columns=["image"])["image"]
            stored += [images[row - group * per_group].as_py()["bytes"] for row in group_rows]
    return stored


@contextmanager
def _opened(dataset: Dataset, shard: Shard) -> Iterator[pq.ParquetFile]:
    location = dataset.location / shard.file
    try:
        with location.open() as file:
            yield pq.ParquetFile(file)
    except StoreUnavailableError:
        raise
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{location}: cannot be read ({error}); `vaegen data verify` tells the rest") from error
