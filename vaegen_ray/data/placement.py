"""Where the images of a run wait to be read. The place changes how fast they come, never which, nor their values."""

import resource
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch

from vaegen_ray.config.data import Data
from vaegen_ray.data.cache import NodeCache
from vaegen_ray.data.dataset import Dataset
from vaegen_ray.data.node_files import Decoder
from vaegen_ray.data.order import FullOrder, Indices, Order, Window, WindowedOrder
from vaegen_ray.data.pixels import Pixels
from vaegen_ray.errors import CacheFullError, JobError, StorageError

PARALLEL_SHARDS = 2
"""Fetched at a time, ahead of need."""

DEVICE_FRACTION = 1 / 8
"""Of a GPU's memory, which `auto` gives to images at most: the model, and the other trials of the GPU, need it more."""

BYTES_PER_COPY = 2**26


class Images(Protocol):
    """The images of a split, by their index."""

    def __len__(self) -> int: ...

    def order(self, seed: int) -> Order:
        """The sequence in which they can be read."""
        ...

    def read(self, indices: Indices, position: int) -> torch.Tensor:
        """Bring the images of the step at ``position`` near; called ahead of need, in a thread."""
        ...

    def hand_over(self, read: torch.Tensor) -> torch.Tensor:
        """Return what ``read`` brought as uint8 [n, C, H, W] in channels-last memory; called when it is needed."""
        ...

    def close(self) -> None:
        """Let go of threads."""
        ...


class HostImages:
    """Decoded images in memory, or mapped from the disk."""

    def __init__(self, images: Pixels, *, pin_memory: bool = False) -> None:
        """``images`` is uint8 [N, H, W, C]."""
        self._images = images
        self._pin_memory = pin_memory

    def __len__(self) -> int:
        return len(self._images)

    def order(self, seed: int) -> Order:
        """All images of an epoch shuffled together."""
        return FullOrder(seed, len(self))

    def read(self, indices: Indices, position: int) -> torch.Tensor:  # noqa: ARG002
        """Gather the images."""
        gathered = torch.empty((len(indices), *self._images.shape[1:]), dtype=torch.uint8, pin_memory=self._pin_memory)
        # `clip` never applies, but lets NumPy write into `out` without a copy.
        np.take(self._images, indices.astype(np.intp), axis=0, out=gathered.numpy(), mode="clip")
        return gathered

    def hand_over(self, read: torch.Tensor) -> torch.Tensor:
        """Return the gathered images."""
        return read.permute(0, 3, 1, 2)

    def close(self) -> None:
        """There is nothing to let go."""


class DeviceImages:
    """Decoded images in the memory of a GPU: only indices travel."""

    def __init__(self, images: Pixels, device: torch.device) -> None:
        """Copy the images there."""
        self._images = torch.empty(images.shape, dtype=torch.uint8, device=device)
        images_per_copy = max(1, BYTES_PER_COPY // images[0].nbytes)
        for first in range(0, len(images), images_per_copy):
            part = np.array(images[first : first + images_per_copy])
            self._images[first : first + images_per_copy].copy_(torch.from_numpy(part))

    def __len__(self) -> int:
        return len(self._images)

    def order(self, seed: int) -> Order:
        """All images of an epoch shuffled together."""
        return FullOrder(seed, len(self))

    def read(self, indices: Indices, position: int) -> torch.Tensor:  # noqa: ARG002
        """Keep the indices ready."""
        on_host = torch.from_numpy(indices.astype(np.int64))
        return on_host.pin_memory() if self._images.is_cuda else on_host

    def hand_over(self, read: torch.Tensor) -> torch.Tensor:
        """Gather the images on the device, in the stream of the caller."""
        indices = read.to(self._images.device, non_blocking=True)
        return self._images.index_select(0, indices).permute(0, 3, 1, 2)

    def close(self) -> None:
        """There is nothing to let go; the memory is freed with this object."""


class StreamedImages:
    """All images encoded on the local disk, decoded when they are read."""

    def __init__(self, dataset: Dataset, data: Data, *, pin_memory: bool) -> None:
        """Fetch what the local disk does not hold yet."""
        self._stored = dataset.encoded("train", NodeCache.of(data), data.max_images)
        self._decoder = Decoder(dataset.metadata)
        self._pin_memory = pin_memory

    def __len__(self) -> int:
        return len(self._stored)

    def order(self, seed: int) -> Order:
        """All images of an epoch shuffled together."""
        return FullOrder(seed, len(self))

    def read(self, indices: Indices, position: int) -> torch.Tensor:  # noqa: ARG002
        """Decode the images."""
        return _decoded(self._decoder, [self._stored[int(index)] for index in indices], indices, self._pin_memory)

    def hand_over(self, read: torch.Tensor) -> torch.Tensor:
        """Return the decoded images."""
        return read.permute(0, 3, 1, 2)

    def close(self) -> None:
        """End the threads."""
        self._decoder.close()


class WindowedImages:
    """The shards of one window and of the next, encoded on the local disk, decoded when they are read.

    A shard that belongs to neither is let go: it stays on the disk until the cache needs its room.
    """

    def __init__(self, dataset: Dataset, data: Data, *, pin_memory: bool) -> None:
        """Fetch nothing yet."""
        assert data.shuffle_window_images is not None
        self._dataset, self._cache = dataset, NodeCache.of(data)
        self._window_images = data.shuffle_window_images
        self._shards = dataset.shards("train", data.max_images)
        self._ends = np.cumsum([shard.rows for shard in self._shards])
        self._firsts = np.concatenate([[0], self._ends[:-1]])
        self._ends[-1] = min(self._ends[-1], data.max_images or self._ends[-1])
        self._order: WindowedOrder | None = None
        self._window: Window | None = None
        self._open: dict[int, Future[pa.ChunkedArray]] = {}
        self._fetchers = ThreadPoolExecutor(PARALLEL_SHARDS, thread_name_prefix="fetch-window")
        self._decoder = Decoder(dataset.metadata)
        self._pin_memory = pin_memory
        _allow_many_files()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def order(self, seed: int) -> Order:
        """The shards of an epoch shuffled, and the images of each window of them."""
        self._order = WindowedOrder(seed, (self._ends - self._firsts).tolist(), self._window_images)
        self._window = None
        return self._order

    def read(self, indices: Indices, position: int) -> torch.Tensor:
        """Decode the images, and see to it that the shards of the next window come."""
        self._move_to(position)
        shards = np.searchsorted(self._ends, indices, side="right")
        rows = indices.astype(np.int64) - self._firsts[shards]
        stored = [self._stored(int(shard))[int(row)] for shard, row in zip(shards, rows, strict=True)]
        return _decoded(self._decoder, stored, indices, self._pin_memory)

    def hand_over(self, read: torch.Tensor) -> torch.Tensor:
        """Return the decoded images."""
        return read.permute(0, 3, 1, 2)

    def close(self) -> None:
        """Fetch no more, and end the threads."""
        self._fetchers.shutdown(cancel_futures=True)
        self._decoder.close()

    def _move_to(self, position: int) -> None:
        assert self._order is not None
        if self._window is not None and self._window.first <= position < self._window.last:
            return
        self._window = self._order.window_at(position)
        following = self._order.window_at(self._window.last)
        wanted = dict.fromkeys([*self._window.shards, *following.shards])
        for shard, coming in list(self._open.items()):
            # What could not be fetched ahead may come now that it is needed.
            if shard not in wanted or _has_failed(coming):
                self._open.pop(shard).cancel()
        for shard in wanted:
            self._begin(shard)

    def _begin(self, shard: int) -> Future[pa.ChunkedArray]:
        if shard not in self._open:
            self._open[shard] = self._fetchers.submit(self._dataset.encoded_shard, self._shards[shard], self._cache)
        return self._open[shard]

    def _stored(self, shard: int) -> pa.ChunkedArray:
        try:
            return self._begin(shard).result()
        except CacheFullError:
            # There was none while the window before was in use, or beside what came of the next window.
            assert self._window is not None
            self._give_up({shard} | (self._open.keys() - self._window.shards))
        try:
            return self._begin(shard).result()
        except CacheFullError as error:
            raise CacheFullError(
                f"{error}; or lower data.shuffle_window_images, which changes the order, or prepare the dataset with a "
                f"lower rows_per_shard: this shard has {self._shards[shard].rows} images"
            ) from error

    def _give_up(self, shards: set[int]) -> None:
        """Let the shards go, those too that are on their way."""
        for shard in shards:
            coming = self._open.pop(shard)
            if not coming.cancel():
                wait([coming])


def _has_failed(coming: Future[pa.ChunkedArray]) -> bool:
    return coming.done() and isinstance(coming.exception(), StorageError)


def _allow_many_files() -> None:
    """Raise the limit of open files, of which each shard in use needs two, as far as this process may."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS has a limit below the one that it tells.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))


def training_images(dataset: Dataset, data: Data, device: torch.device) -> Images:
    """Bring the training images of a job to where it wants them, or to the best place that has room."""
    pin_memory = device.type == "cuda"
    if data.shuffle_window_images is not None:
        return WindowedImages(dataset, data, pin_memory=pin_memory)
    if data.placement != "stream":
        try:
            decoded = dataset.decoded("train", NodeCache.of(data), data.max_images)
        except CacheFullError as error:
            if data.placement != "auto":
                raise CacheFullError(f"{error}; or use data.placement: stream") from error
        else:
            if _belongs_on(device, data, decoded.nbytes):
                return DeviceImages(decoded, device)
            return HostImages(decoded, pin_memory=pin_memory)
    try:
        return StreamedImages(dataset, data, pin_memory=pin_memory)
    except CacheFullError as error:
        raise CacheFullError(
            f"{error}; or set data.shuffle_window_images, which keeps a part of the images on a node, in another order"
        ) from error


def _belongs_on(device: torch.device, data: Data, num_bytes: int) -> bool:
    """Whether images of so many bytes are to be in the memory of the device."""
    if device.type != "cuda" or data.placement == "host":
        return False
    free_bytes, total_bytes = _memory_of(device)
    if data.placement == "device" and num_bytes > free_bytes:
        raise JobError(
            f"data.placement: 'device' needs {num_bytes / 1e9:.1f} GB of the GPU's memory for the images, "
            f"got {free_bytes / 1e9:.1f} GB free; use 'auto' or 'host'"
        )
    return data.placement == "device" or num_bytes <= min(DEVICE_FRACTION * total_bytes, free_bytes / 2)


def _memory_of(device: torch.device) -> tuple[float, float]:
    """Bytes free and in all, of a GPU or of the share of one that this process may take."""
    index = torch.cuda.current_device() if device.index is None else device.index
    free_bytes, total_bytes = torch.cuda.mem_get_info(index)
    share_bytes = torch.cuda.get_per_process_memory_fraction(index) * total_bytes
    return min(free_bytes, share_bytes - torch.cuda.memory_allocated(index)), share_bytes


def _decoded(decoder: Decoder, stored: Sequence[Any], indices: Indices, pin_memory: bool) -> torch.Tensor:  # noqa: FBT001
    images = torch.empty((len(stored), *decoder.shape), dtype=torch.uint8, pin_memory=pin_memory)
    decoder.decode(stored, [f"training image {index}" for index in indices], images.numpy())
    return images
