"""Batches of images for one rank, brought near ahead of the consumer."""

import queue
import threading
from collections.abc import Iterator
from typing import Self

import numpy as np
import torch

from vaegen_ray.data.order import Indices
from vaegen_ray.data.pixels import Pixels
from vaegen_ray.data.placement import HostImages, Images
from vaegen_ray.errors import DataError, JobError

PREFETCHED_BATCHES = 3
"""Beside the one that is being read: enough that an image that is slow to decode does not show."""

ORDERED_IMAGES = 8192
"""Positions looked up at a time: the order of a few costs as much as that of thousands."""


class ImageBatches(Iterator[torch.Tensor]):
    """This rank's share of each step's batch, without end, from any position.

    A step reads the global positions [position, position + images_per_step); rank r takes the r-th contiguous
    slice of them. The sequence of steps is the same for any number of ranks.
    """

    def __init__(
        self,
        images: Images | Pixels,
        *,
        seed: int,
        images_per_step: int,
        rank: int = 0,
        num_ranks: int = 1,
        position: int = 0,
    ) -> None:
        """Start reading ahead.

        ``images`` may be an array in memory, uint8 [N, H, W, C]; ``position`` counts images of the global sequence.
        """
        if images_per_step % num_ranks:
            raise JobError(
                f"training.images_per_step: must be a multiple of the number of ranks ({num_ranks}), "
                f"got {images_per_step}; try {images_per_step - images_per_step % num_ranks or num_ranks}"
            )
        if not 0 <= rank < num_ranks:
            raise JobError(f"rank: must be from 0 to {num_ranks - 1}, got {rank}")
        if len(images) == 0:
            raise DataError("dataset: must have at least one image, got none")
        self.position = position
        """Of the first image of the batch that comes next: the whole state of the input."""
        if isinstance(images, np.ndarray):
            images = HostImages(images, pin_memory=torch.cuda.is_available())
        self._images = images
        self._order = images.order(seed)
        self._images_per_step = images_per_step
        self._images_per_rank = images_per_step // num_ranks
        self._offset = rank * self._images_per_rank
        self._closed = threading.Event()
        self._ready: queue.Queue[torch.Tensor | Exception] = queue.Queue(maxsize=PREFETCHED_BATCHES)
        self._thread = threading.Thread(target=self._read_ahead, args=(position,), name="image-batches", daemon=True)
        self._thread.start()

    def __next__(self) -> torch.Tensor:
        """Return uint8 [images_per_rank, C, H, W] in channels-last memory, and advance the position."""
        if self._closed.is_set():
            raise StopIteration
        batch = self._ready.get()
        if isinstance(batch, Exception):
            self.close()
            raise batch
        self.position += self._images_per_step
        return self._images.hand_over(batch)

    def close(self) -> None:
        """Stop reading ahead; the iterator then ends."""
        self._closed.set()
        while self._thread.is_alive():
            try:
                # Makes room, in case the thread waits to hand over a batch.
                self._ready.get_nowait()
            except queue.Empty:
                self._thread.join(timeout=0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read_ahead(self, position: int) -> None:
        try:
            for indices in self._indices_from(position):
                if self._closed.is_set():
                    return
                self._ready.put(self._images.read(indices, position))
                position += self._images_per_step
        except Exception as error:  # noqa: BLE001
            # Any failure belongs to the consumer, who would otherwise wait for ever.
            self._ready.put(error)

    def _indices_from(self, position: int) -> Iterator[Indices]:
        """Give the images of this rank, step by step."""
        # At most an epoch, because each epoch of a small dataset costs a permutation of its own.
        num_steps = max(1, min(ORDERED_IMAGES // self._images_per_rank, len(self._images) // self._images_per_step))
        while True:
            starts = position + self._offset + self._images_per_step * np.arange(num_steps)
            positions = starts[:, np.newaxis] + np.arange(self._images_per_rank)
            yield from self._order.indices(positions)
            position += self._images_per_step * num_steps


def to_float(images_BCHW: torch.Tensor) -> torch.Tensor:
    """Return uint8 images as float32 in [-1, 1]; 0 becomes exactly -1 and 255 exactly 1."""
    return images_BCHW.to(torch.float32).div_(127.5).sub_(1.0)
