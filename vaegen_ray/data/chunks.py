"""A source divided into chunks: the unit of work, of restart, and of the shards that come of it.

Where chunks begin depends on the source's listing alone, never on the machines that convert them.
"""

import hashlib
import pickle
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vaegen_ray.config.prepare import ImagesPerLabel
from vaegen_ray.data.format import Label, LabelType, Split

SHOWN_NAMES = 20


@dataclass(frozen=True)
class Piece:
    """Images that lie together in the source."""

    place: tuple[str | int, ...]
    """The file, folder or split that holds them, in the words of the source."""
    rows: Sequence[Any]
    """Which of its images: numbers or names, in order."""
    version: str = ""
    """Another when the place's content is another."""


@dataclass(frozen=True)
class Chunk:
    """Images that become at most one shard of each split."""

    number: int
    num_images: int | None
    """None where only reading tells."""
    digest: str
    """Of its pieces: another when the source has changed there."""
    packed: bytes
    """The pieces, small enough that those of many millions of images fit into memory."""

    @classmethod
    def of(cls, number: int, pieces: Sequence[Piece], num_images: int | None) -> "Chunk":
        """Pack the pieces."""
        digest = hashlib.sha256(repr(tuple(pieces)).encode()).hexdigest()
        return cls(number, num_images, digest, zlib.compress(pickle.dumps(tuple(pieces))))

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The images, in order."""
        pieces: tuple[Piece, ...] = pickle.loads(zlib.decompress(self.packed))
        return pieces


class LeftOut:
    """What is no image of a source: a count, and the first few names."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Begin with ``names``."""
        self.count = 0
        self.first_names: list[str] = []
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        """Count ``name``."""
        self.count += 1
        if len(self.first_names) < SHOWN_NAMES:
            self.first_names.append(name)

    def merge(self, count: int, first_names: Iterable[str]) -> None:
        """Count ``count`` more, the first of which have these names."""
        self.count += count
        self.first_names += list(first_names)[: SHOWN_NAMES - len(self.first_names)]


@dataclass(frozen=True)
class Plan:
    """What a source holds, and how it is divided."""

    chunks: tuple[Chunk, ...]
    label_type: LabelType | None
    left_out: LeftOut
    """As far as the listing tells."""

    @cached_property
    def num_images(self) -> int | None:
        """None where only reading tells."""
        counts = [chunk.num_images for chunk in self.chunks]
        return None if None in counts else sum(count for count in counts if count is not None)


def in_chunks(pieces: Iterable[Piece], images_per_chunk: int) -> Iterator[Chunk]:
    """Divide ``pieces``, in their order, into chunks of so many images; the last may have fewer."""
    number, held, room = 0, list[Piece](), images_per_chunk
    for piece in pieces:
        first = 0
        while first < len(piece.rows):
            rows = piece.rows[first : first + room]
            held.append(Piece(piece.place, rows, piece.version))
            first += len(rows)
            room -= len(rows)
            if room == 0:
                yield Chunk.of(number, held, images_per_chunk)
                number, held, room = number + 1, [], images_per_chunk
    if held:
        yield Chunk.of(number, held, images_per_chunk - room)


class Selection:
    """The first images of each label and split, or all where there is no limit."""

    def __init__(self, limit: ImagesPerLabel | None) -> None:
        """Begin with nothing taken."""
        self._limit = limit
        self._taken: Counter[tuple[Split, Label]] = Counter()

    def takes(self, split: Split, label: Label) -> bool:
        """Whether the next image is among the first ones; to be asked once for each, in order."""
        if self._limit is None:
            return True
        wanted = self._limit.train if split == "train" else self._limit.held_out
        self._taken[split, label] += 1
        return self._taken[split, label] <= wanted
