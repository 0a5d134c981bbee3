"""What images a run reads, in which order, and where they wait for it."""

from typing import Literal

from vaegen_ray.config.base import Bytes, Count, Flag, Section, Text

Placement = Literal["auto", "stream", "host", "device"]


class Data(Section):
    """A dataset in the project's format (``vaegen prepare`` makes one), or plain Parquet as it is."""

    source: Text
    """Folder of a prepared dataset: a local path, ``s3://bucket/prefix``, or ``shipped:fashion_mnist``. Or a Parquet
    file, or a folder of them, with a column of encoded images (bytes, or Hugging Face's struct of bytes and path):
    each machine converts it to the model's size and channels, once, as ``vaegen prepare`` does with its defaults.
    Held-out images are those of the files ``test-*`` or else ``validation-*`` where there are such."""

    image_column: Text | None = None
    """Of plain Parquet; `image` when absent."""

    shuffle_window_images: Count | None = None
    """Shuffle shards, and images within windows of about so many; all images of an epoch together when absent. For
    datasets larger than the disk of a node, which then holds two windows. Changes the sequence of images."""

    horizontal_flip: Flag = False
    """Mirror each training image with probability one half, drawn from (seed, position)."""

    random_crop_pixels: Count | None = None
    """Shift each training image by up to so many pixels each way, drawn from (seed, position); what comes in at the
    edge is the image mirrored there."""

    max_images: Count | None = None
    """Use only the first so many training images; all when absent."""

    placement: Placement = "auto"
    """Where training images wait, which changes their speed and nothing else. `stream`: encoded on the local disk,
    decoded as they are needed; `host`: decoded on the local disk, mapped into memory; `device`: all in the memory of
    the GPU. `auto`: on the device where they take at most an eighth of its memory, else decoded where the disk has
    room, else encoded."""

    cache: Text | None = None
    """Local folder that keeps the images, shared by all runs of a machine; by default ``$VAEGEN_CACHE`` or
    ``~/.cache/vaegen_ray``."""

    cache_bytes: Bytes | None = None
    """Most that the cache may hold, all datasets together: those used longest ago make room. By default what its
    disk has free, but for a reserve of 5 % of the disk and at most 10 GB."""
