"""Picture files as the images of a model."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import UnidentifiedImageError
from torch import Tensor

from vaegen_ray.config.model import KlAutoencoderModel, Model
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


def read_image_of_own_size(file: str, model: KlAutoencoderModel) -> Tensor:
    """The file as :func:`read_images` converts it, in the size that it has: (1, C, H, W).

    DataError, which names the file, also where it is too small for ``model``.
    """
    pixels = _read(Location.of(file), lambda content: to_pixels_of_own_size(content, model.channels))
    height, width = pixels.shape[:2]
    if not model.can_normalise(height, width):
        raise DataError(
            f"{file}: must have a side of more than {model.down_factor} pixels for this model, whose normalisation "
            f"leaves nothing of a latent code of one position, got {height} x {width}; enlarge it"
        )
    return images_of_bytes(pixels[np.newaxis], torch.device("cpu"))


def _read(file: Location, convert: Callable[[bytes], Pixels]) -> Pixels:
    try:
        content = file.read_bytes()
    except StorageError as error:
        raise DataError(f"{file}: must be an image file, there is none to read: {error}") from error
    try:
        return convert(content)
    except UnidentifiedImageError as error:  # Its message is of the object that holds the bytes.
        raise DataError(f"{file}: must be an image file, is none; check it or give another") from error
    except Exception as error:
        # Pillow's decoders raise a dozen unrelated classes on damaged bytes.
        raise DataError(f"{file}: must be an image file, cannot be read ({error}); check it or give another") from error
