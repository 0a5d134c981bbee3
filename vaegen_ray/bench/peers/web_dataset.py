"""Tar files of WebDataset with PNG images, shuffled in a buffer, in two workers."""

import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image

NUM_WORKERS, NUM_SHARDS, BUFFERED_IMAGES = 2, 4, 1000


def convert(images: Any, folder: str) -> None:
    """Write some shards, so that each worker has its own."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    images_per_shard = -(-len(images) // NUM_SHARDS)
    with webdataset.ShardWriter(f"{folder}/%05d.tar", maxcount=images_per_shard, verbose=0) as writer:
        for index, image in enumerate(images):
            stored = io.BytesIO()
            Image.fromarray(image.squeeze()).save(stored, "PNG")
            writer.write({"__key__": f"{index:08d}", "png": stored.getvalue()})


def batches(source: str, cache_folder: str, images_per_batch: int) -> Callable[[], Iterable[Any]]:  # noqa: ARG001
    """Read the shards where they are."""
    if "://" in source:
        raise SystemExit("reads an object store through a command of the user's only")
    shards = [str(path) for path in sorted(Path(source).glob("*.tar"))]
    dataset = webdataset.WebDataset(shards, shardshuffle=NUM_SHARDS).shuffle(BUFFERED_IMAGES).decode("rgb8")
    dataset = dataset.to_tuple("png").map(lambda sample: sample[0]).batched(images_per_batch, collation_fn=np.stack)
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=NUM_WORKERS, persistent_workers=True)
    return lambda: iter(loader)
