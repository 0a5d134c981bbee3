"""Ray Data streaming images to a trainer, as a peer of `vaegen bench input`; see `bench/serve_peer.py`."""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
import ray.data

BUFFERED_IMAGES = 1000

ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
ray.data.DataContext.get_current().enable_progress_bars = False
ray.data.DataContext.get_current().print_on_execution_start = False


def convert(images: Any, folder: str) -> None:
    """Write Parquet with a column of tensors."""
    ray.data.from_numpy(images).repartition(8).write_parquet(folder)


def batches(source: str, cache_folder: str, images_per_batch: int) -> Callable[[], Iterable[Any]]:  # noqa: ARG001
    """Read the files where they are, anew in each epoch."""
    images = ray.data.read_parquet(source, shuffle="files")

    def epoch() -> Iterator[Any]:
        batches = images.iter_torch_batches(batch_size=images_per_batch, local_shuffle_buffer_size=BUFFERED_IMAGES)
        return (batch["data"] for batch in batches)

    return epoch
