"""Chunks of litdata with the pixels as tensors, shuffled, in two workers."""

import functools
import os
from collections.abc import Callable, Iterable
from typing import Any

import litdata
import numpy as np
import torch

NUM_WORKERS = 2


def convert(images: Any, folder: str) -> None:
    """Write the chunks."""
    litdata.optimize(
        functools.partial(_sample, images.filename),
        inputs=list(range(len(images))),
        output_dir=folder,
        chunk_bytes="16MB",
        num_workers=NUM_WORKERS,
    )


def _sample(file: str, index: int) -> torch.Tensor:
    return torch.from_numpy(np.array(np.load(file, mmap_mode="r")[index]))


def batches(source: str, cache_folder: str, images_per_batch: int) -> Callable[[], Iterable[Any]]:
    """Open the chunks, remote ones through a cache."""
    options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"]} if "AWS_ENDPOINT_URL" in os.environ else {}
    remote = {"storage_options": options, "cache_dir": cache_folder} if "://" in source else {}
    dataset = litdata.StreamingDataset(source, shuffle=True, **remote)
    loader = litdata.StreamingDataLoader(
        dataset, batch_size=images_per_batch, num_workers=NUM_WORKERS, persistent_workers=True
    )
    return lambda: iter(loader)
