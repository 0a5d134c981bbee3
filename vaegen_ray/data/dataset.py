"""A prepared dataset: what it is, and its images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa

from vaegen_ray.data.cache import CacheLease, NodeCache
from vaegen_ray.data.format import JOB_FILE, METADATA_FILE, Metadata, Shard, Split
from vaegen_ray.data.node_files import decoded_images, encoded_images
from vaegen_ray.data.pixels import Pixels
from vaegen_ray.errors import DataError
from vaegen_ray.storage import Location

SHIPPED_SCHEME = "shipped:"
SHIPPED_FOLDER = Path(__file__).parent / "shipped"


@dataclass(frozen=True)
class Dataset:
    """A folder or bucket in the project's format."""

    location: Location
    metadata: Metadata
    lease: CacheLease | None = None
    """Of a dataset that is itself in the node cache."""

    @classmethod
    def open(cls, source: str, lease: CacheLease | None = None, key: str = "data.source") -> Self:
        """Read the description of the dataset at a local path, at ``s3://bucket/prefix``, or ``shipped:NAME``.

        ``key`` is what the user knows ``source`` by; errors name it.
        """
        location = locate(source, key)
        metadata_file = location / METADATA_FILE
        if not metadata_file.exists():
            raise DataError(_why_missing(location, key))
        return cls(location, Metadata.from_json(metadata_file.read_bytes(), str(metadata_file)), lease)

    def shards(self, split: Split, limit: int | None = None) -> Sequence[Shard]:
        """Return the first shards of the split that together hold ``limit`` images; all when there is no limit."""
        if not self.metadata.counts.get(split):
            raise DataError(
                f"{self.location}: must have {split} images, got none; prepare it with a held_out_fraction above 0, "
                "or a split_column"
            )
        needed: list[Shard] = []
        for shard in self.metadata.splits[split]:
            if limit is not None and sum(before.rows for before in needed) >= limit:
                break
            needed.append(shard)
        return needed

    def decoded(self, split: Split, cache: NodeCache | str | None = None, limit: int | None = None) -> Pixels:
        """Return the images of the split in the order of its rows, at most ``limit``: uint8 [N, H, W, C], mapped.

        The first call on a machine decodes the shards into the ``cache`` (a folder is one without a limit; by
        default it is ``$VAEGEN_CACHE`` or ``~/.cache/vaegen_ray``), which later calls of any process map.
        """
        shards, cache = self.shards(split, limit), cache if isinstance(cache, NodeCache) else NodeCache.at(cache)
        return decoded_images(self.location, self.metadata, shards, self._entry(split, shards), cache)[:limit]

    def encoded(self, split: Split, cache: NodeCache, limit: int | None = None) -> pa.ChunkedArray:
        """Return the same images as the dataset stores them, mapped."""
        shards = self.shards(split, limit)
        stored = encoded_images(self.location, self.metadata, shards, self._entry(split, shards), cache)
        return stored.slice(0, limit)

    def encoded_shard(self, shard: Shard, cache: NodeCache) -> pa.ChunkedArray:
        """Return the images of one shard as it stores them, mapped."""
        name = f"{self._folder}/{Path(shard.file).stem}"
        return encoded_images(self.location, self.metadata, [shard], name, cache)

    @property
    def _folder(self) -> str:
        return self.metadata.fingerprint[:32]

    def _entry(self, split: Split, shards: Sequence[Shard]) -> str:
        is_part = len(shards) < len(self.metadata.splits[split])
        return f"{self._folder}/{split}" + (f"-first-{len(shards)}-shards" if is_part else "")


def locate(source: str, key: str = "data.source") -> Location:
    """The folder of a dataset by its path, URL, or ``shipped:NAME``."""
    if not source.startswith(SHIPPED_SCHEME):
        return Location.of(source)
    name = source.removeprefix(SHIPPED_SCHEME)
    shipped = sorted(folder.parent.name for folder in SHIPPED_FOLDER.glob(f"*/{METADATA_FILE}"))
    if name not in shipped:
        raise DataError(f"{key}: must be one of the shipped datasets {', '.join(shipped)}, got '{source}'")
    return Location.of(SHIPPED_FOLDER / name)


def _why_missing(location: Location, key: str) -> str:
    if (location / JOB_FILE).exists():
        return (
            f"{key}: {location} must be a finished dataset, got one whose preparation was interrupted; "
            "run the same `vaegen prepare` again"
        )
    found = "nothing there"
    if location.exists():
        found = "a Parquet file" if location.name.endswith(".parquet") else "a folder without one"
    return (
        f"{key}: {location} must hold a {METADATA_FILE}, got {found}; "
        "make a dataset with `vaegen prepare`, or check the path"
    )
