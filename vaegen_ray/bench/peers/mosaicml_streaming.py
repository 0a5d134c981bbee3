"""Shards of mosaicml-streaming (MDS), shuffled, in two workers of torch's DataLoader."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image
from streaming import MDSWriter, StreamingDataset
from torch.utils.data import DataLoader

NUM_WORKERS = 2


class Images(StreamingDataset):  # type: ignore[misc]  # Not installed where types are checked.
    """The images as arrays."""

    def __getitem__(self, index: int) -> Any:
        """Return uint8 [H, W, C]."""
        return np.asarray(super().__getitem__(index)["image"])


def convert(images: Any, folder: str, encoding: str) -> None:
    """Write one column: ``png``, or the pixels as they are."""
    is_png = encoding == "png"
    shape = ",".join(str(length) for length in images.shape[1:])
    with MDSWriter(out=folder, columns={"image": "png" if is_png else f"ndarray:uint8:{shape}"}) as writer:
        for image in images:
            writer.write({"image": Image.fromarray(image.squeeze()) if is_png else np.asarray(image)})


def batches(source: str, cache_folder: str, images_per_batch: int) -> Callable[[], Iterable[Any]]:
    """Open local shards as they are, remote ones through a cache."""
    places = {"remote": source, "local": cache_folder} if "://" in source else {"local": source}
    dataset = Images(**places, shuffle=True, batch_size=images_per_batch)
    loader: DataLoader[Any] = DataLoader(
        dataset, batch_size=images_per_batch, num_workers=NUM_WORKERS, persistent_workers=True
    )

    def epoch() -> Iterator[Any]:
        return iter(loader)

    return epoch
