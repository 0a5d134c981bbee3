"""Picture files as the images of a model."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from vaegen_ray.config.model import Model
from vaegen_ray.config.prepare import ImageFormat
from vaegen_ray.data.conversion import to_pixels, to_pixels_of_own_size
from vaegen_ray.data.pixels import Pixels
from vaegen_ray.errors import DataError, StorageError
from vaegen_ray.evaluation.inference import images_of_bytes
from vaegen_ray.storage import Location


def read_images(files: Sequence[str], model: Model) -> Tensor:
    """The files (local or s3://) as images in [-1, 1] of shape (B, C, H, W), as `vaegen prepare` converts them.

    The central square at the size and with the channels of ``model``. Raises DataError naming the file that
    is missing or cannot be read.
    """
    image_format = ImageFormat(size=model.image_size, channels=model.channels, fit="crop")
    pixels = [_read(Location.of(file), lambda content: to_pixels(content, image_format)) for file in files]
    return images_of_bytes(np.stack(pixels), torch.device("cpu"))


def read_image_of_own_size(file: str, channels: int) -> Tensor:
    """The file as :func:`read_images` converts it, in the size that it has: (1, C, H, W)."""
    pixels = _read(Location.of(file), lambda content: to_pixels_of_own_size(content, channels))
    return images_of_bytes(pixels[np.newaxis], torch.device("cpu"))


def _read(file: Location, convert: Callable[[bytes], Pixels]) -> Pixels:
    try:
        content = file.read_bytes()
    except StorageError as error:
        raise DataError(f"{file}: must be an image file, there is none to read: {error}") from error
    try:
        return convert(content)
    except Exception as error:
        # Pillow's decoders raise a dozen unrelated classes on damaged bytes.
        raise DataError(f"{file}: must be an image file, cannot be read ({error}); check it or give another") from error
