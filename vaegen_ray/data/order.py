"""Which image stands at which position of the endless sequence that training reads.

A pure function of (seed, position): the order knows nothing of ranks, workers, time or disks, so the position is
the only state of the input. There are two, and the job says which:

- the full order permutes all images of an epoch, in constant memory for any number of them;
- the windowed order is for datasets that no disk of a node holds. Each epoch permutes the shards, cuts their
  sequence into windows of so many images, and permutes the images of each window. It needs the shards of one
  window at a time, and a few bytes a shard of memory.

What windows cost in shuffling, for 1,000,000 images of 100 labels in shards of 10,000: a dataset that is stored
sorted, a label a shard, and one that is stored in mixed order (`python -m vaegen_ray.bench.shuffle`; the drift is
the distance between the labels of so many images in a row and those of all: 0 alike, 1 disjoint):

                            labels in a batch of 64     drift of 50,000 images
    order                       sorted        mixed        sorted        mixed
    full                          47.5         47.5         0.018        0.017
    windows of 500,000            36.3         47.5         0.500        0.017
    windows of 200,000            19.3         47.4         0.800        0.018
    windows of 100,000            10.0         47.4         0.900        0.017
    windows of 50,000              5.0         47.5         0.950        0.017
    windows of 20,000              2.0         47.4         0.940        0.017

So shards that were mixed when they were made lose nothing, and a sorted dataset needs windows of many shards.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vaegen_ray.errors import DataError

Indices = NDArray[np.uint64]

NUM_ROUNDS = 8
"""Even, because the halves of the index change places each round; eight also mix an index of few bits."""


class Order(Protocol):
    """A sequence of images without end."""

    def indices(self, positions: NDArray[np.integer]) -> Indices:
        """Return the index of the image at each position."""
        ...


@dataclass(frozen=True)
class FullOrder:
    """All images of an epoch permuted."""

    seed: int
    size: int

    def indices(self, positions: NDArray[np.integer]) -> Indices:
        """Return the index in [0, size) at each position."""
        return order_of(self.seed, positions, self.size)


@dataclass(frozen=True)
class Window:
    """The positions [first, last) and the shards that hold their images, all of them."""

    first: int
    last: int
    shards: tuple[int, ...]


class WindowedOrder:
    """The shards of an epoch permuted, and the images within each window of shards.

    An epoch is divided into equal shares, the fewest that have at most ``window_images``. A window takes the
    shards that begin in its share, so it differs from that by less than a shard; where a shard is larger than a
    share it is a window by itself.
    """

    def __init__(self, seed: int, shard_images: Sequence[int], window_images: int) -> None:
        """``shard_images`` counts the images of each shard."""
        self._seed = seed
        self._shard_images = np.array(shard_images, dtype=np.int64)
        self._shard_firsts = np.cumsum(self._shard_images) - self._shard_images
        self.size = int(self._shard_images.sum())
        _check_size(self.size)
        self._num_windows = -(-self.size // window_images)
        self._epochs: dict[int, _Epoch] = {}

    def indices(self, positions: NDArray[np.integer]) -> Indices:
        """Return the index in [0, size) at each position."""
        epochs, offsets = _epochs_and_offsets(positions, self.size)
        indices = np.empty_like(offsets)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            indices[in_epoch] = self._indices_in(int(epoch), offsets[in_epoch].astype(np.int64))
        return indices

    def window_at(self, position: int) -> Window:
        """Return the window that the position lies in."""
        number, offset = divmod(position, self.size)
        epoch = self._epoch(number)
        window = int(np.searchsorted(epoch.window_ends, offset, side="right"))
        first_shard, end_shard = epoch.window_shards[window], epoch.window_shards[window + 1]
        return Window(
            first=number * self.size + int(epoch.window_firsts[window]),
            last=number * self.size + int(epoch.window_ends[window]),
            shards=tuple(epoch.shards[first_shard:end_shard].tolist()),
        )

    def _indices_in(self, number: int, offsets: NDArray[np.int64]) -> Indices:
        epoch = self._epoch(number)
        windows = np.searchsorted(epoch.window_ends, offsets, side="right")
        shuffled = np.empty_like(offsets)
        for window in np.unique(windows):
            inside = windows == window
            first, end = epoch.window_firsts[window], epoch.window_ends[window]
            keys = _round_keys(f"vaegen order {self._seed} {number} window {window}")
            shuffled[inside] = first + _permuted(keys, offsets[inside] - first, int(end - first)).astype(np.int64)
        # Counted through the shards in the order of the epoch, and then in the order of the dataset.
        places = np.searchsorted(epoch.shard_ends, shuffled, side="right")
        shards = epoch.shards[places]
        rows = shuffled - (epoch.shard_ends[places] - self._shard_images[shards])
        return (self._shard_firsts[shards] + rows).astype(np.uint64)

    def _epoch(self, number: int) -> "_Epoch":
        if number not in self._epochs:
            # One epoch is in use at a time, or two where a step spans them.
            self._epochs = {old: epoch for old, epoch in self._epochs.items() if old == number - 1}
            self._epochs[number] = self._plan(number)
        return self._epochs[number]

    def _plan(self, number: int) -> "_Epoch":
        num_shards = len(self._shard_images)
        keys = _round_keys(f"vaegen order {self._seed} {number} shards")
        shards = _permuted(keys, np.arange(num_shards), num_shards).astype(np.int64)
        ends = np.cumsum(self._shard_images[shards])
        firsts = ends - self._shard_images[shards]
        _, window_shards = np.unique(firsts * self._num_windows // self.size, return_index=True)
        window_firsts = firsts[window_shards]
        return _Epoch(
            shards=shards,
            shard_ends=ends,
            window_shards=np.append(window_shards, num_shards),
            window_firsts=window_firsts,
            window_ends=np.append(window_firsts[1:], self.size),
        )


@dataclass(frozen=True)
class _Epoch:
    """The shards in the order of an epoch, and where each window begins: among shards, and among images."""

    shards: NDArray[np.int64]
    shard_ends: NDArray[np.int64]
    window_shards: NDArray[np.int64]
    window_firsts: NDArray[np.int64]
    window_ends: NDArray[np.int64]


def order_of(seed: int, positions: NDArray[np.integer], size: int) -> Indices:
    """Return the index in [0, size) at each position: position p >= 0 is image p % size of epoch p // size."""
    epochs, offsets = _epochs_and_offsets(positions, size)
    indices = np.empty_like(offsets)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        indices[in_epoch] = permute(seed, int(epoch), offsets[in_epoch], size)
    return indices


def permute(seed: int, epoch: int, indices: NDArray[np.integer], size: int) -> Indices:
    """Return the image of each index in [0, size) under the permutation that (seed, epoch) names."""
    _check_size(size)
    return _permuted(_round_keys(f"vaegen order {seed} {epoch}"), indices, size)


def _permuted(keys: Indices, indices: NDArray[np.integer], size: int) -> Indices:
    """Permute [0, size).

    A Feistel network over the smallest power of two that holds ``size``; an index that leaves the range walks
    on until it is inside again, which keeps the map one-to-one (Black & Rogaway 2002, cycle walking).
    """
    walking = np.array(indices, dtype=np.uint64)
    if walking.size and walking.max() >= size:
        raise DataError(f"index: must be below the {size} images, got {walking.max()}")
    num_bits = (size - 1).bit_length()
    walking = _feistel(walking, keys, num_bits)
    while (outside := walking >= size).any():
        walking[outside] = _feistel(walking[outside], keys, num_bits)
    return walking


def _epochs_and_offsets(positions: NDArray[np.integer], size: int) -> tuple[Indices, Indices]:
    _check_size(size)
    positions = np.asarray(positions)
    if positions.size and positions.min() < 0:
        raise DataError(f"position: must be at least 0, got {positions.min()}")
    return np.divmod(positions.astype(np.uint64), np.uint64(size))


def _check_size(size: int) -> None:
    if size < 1:
        raise DataError(f"size: must be at least 1 image, got {size}")


def _round_keys(name: str) -> Indices:
    digest = hashlib.blake2b(name.encode(), digest_size=8 * NUM_ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def _feistel(values: Indices, keys: Indices, num_bits: int) -> Indices:
    """Permute [0, 2**num_bits): each round replaces the upper part by the lower, and the lower by a mixture."""
    upper_bits, lower_bits = num_bits // 2, num_bits - num_bits // 2
    for key in keys:
        upper = values >> np.uint64(lower_bits)
        lower = values & np.uint64((1 << lower_bits) - 1)
        mixed = (upper ^ _mix(lower ^ key)) & np.uint64((1 << upper_bits) - 1)
        values = (lower << np.uint64(upper_bits)) | mixed
        upper_bits, lower_bits = lower_bits, upper_bits
    return values


def _mix(values: Indices) -> Indices:
    """The finalizer of SplitMix64 (Steele, Lea & Flood 2014): every bit out depends on every bit in."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
