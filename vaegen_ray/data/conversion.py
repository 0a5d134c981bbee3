"""One image of a source becomes one row of a dataset, or a rejection with its reason.

Pure functions of the bytes, without order or state, so that threads here and a cluster elsewhere can map them.
"""

import io
import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from vaegen_ray.config.prepare import ImageFormat
from vaegen_ray.data.format import Label, RejectionKind, Split
from vaegen_ray.data.pixels import Pixels, encode_pixels
from vaegen_ray.errors import DataError, StorageError
from vaegen_ray.storage import Location

READABLE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
"""An allow-list: Pillow would start Ghostscript for bytes that claim to be EPS."""

MAX_SOURCE_PIXELS = 2**26
"""Larger images are rejected before they are decoded: a few kilobytes can unfold to gigabytes."""

MAX_SOURCE_BYTES = 2**28
"""Larger files (268 MB) are rejected, unread where a listing or a header tells their size."""

ARRAY_MAGIC = b"\x93NUMPY"
SIXTEEN_BIT_FORMATS = ("PNG", "PPM")
"""Formats whose grey images in Pillow's 32-bit mode `I` hold 16-bit values."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each value of the EXIF orientation."""


@dataclass(frozen=True)
class SourceImage:
    """An image as a source gives it: encoded, in memory or at a location."""

    id: str
    content: bytes | Location
    label: Label
    split: Split
    problem: str | None = None
    """Why it cannot be used, where the source knows already."""

    def in_memory(self) -> "SourceImage":
        """The image with its content. A store that cannot be read is an error, not a problem of the image."""
        if isinstance(self.content, bytes):
            return self
        if self.problem:
            return replace(self, content=b"")
        try:
            return replace(self, content=self.content.read_bytes())
        except StorageError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            # A link to nothing, or a file deleted since it was listed.
            return replace(self, content=b"", problem="listed, but there is no such file")


@dataclass(frozen=True)
class StoredImage:
    """A row of a shard, and what the dataset's statistics need of it."""

    id: str
    content: bytes
    pixels: Pixels
    label: Label
    split: Split
    source_size: tuple[int, int]
    """Width and height of the image that was converted, upright, in pixels."""


@dataclass(frozen=True)
class Rejection:
    """An image that is not in the dataset, and why."""

    id: str
    kind: RejectionKind
    reason: str
    num_bytes: int
    repeats: str | None = None
    """The id of the earlier image that a duplicate repeats."""


def store_image(
    image: SourceImage, image_format: ImageFormat, minimum_pixels: int | None = None
) -> StoredImage | Rejection:
    """Convert and encode one image, which is in memory."""
    content = image.content
    assert isinstance(content, bytes)
    if problem := image.problem or size_problem(len(content)):
        return Rejection(image.id, "damaged", problem, len(content))
    try:
        planes = _decoded(content, image_format.channels)
        width, height = source_size = planes[0].size
        if minimum_pixels is not None and min(source_size) < minimum_pixels:
            reason = f"must have at least {minimum_pixels} pixels a side, got {width} x {height}"
            return Rejection(image.id, "too_small", reason, len(content))
        pixels = _fitted(planes, image_format)
    except MemoryError:
        raise  # Says nothing of the image.
    except Exception as error:  # noqa: BLE001
        # Pillow's decoders raise a dozen unrelated classes on damaged bytes; none may end the job.
        return Rejection(image.id, "damaged", _reason(error), len(content))
    stored = encode_pixels(pixels, image_format.stored_encoding)
    return StoredImage(image.id, stored, pixels, image.label, image.split, source_size)


def size_problem(num_bytes: int) -> str | None:
    """Why a file of so many bytes is not read, if it is not."""
    if num_bytes <= MAX_SOURCE_BYTES:
        return None
    return f"must have at most {MAX_SOURCE_BYTES} bytes, got {num_bytes}"


def to_pixels(content: bytes, image_format: ImageFormat) -> Pixels:
    """Decode the bytes of an image file into [size, size, channels].

    The EXIF orientation is applied; of an animation the first frame is taken; 16-bit grey is scaled to 8 bits;
    transparency is laid on white unless the dataset keeps alpha (2 or 4 channels); colour becomes grey by
    ITU-R 601. A NumPy file [H, W] or [H, W, C] of uint8 keeps its channels as they are.
    """
    return _fitted(_decoded(content, image_format.channels), image_format)


def to_pixels_of_own_size(content: bytes, channels: int) -> Pixels:
    """As :func:`to_pixels`, in the size that the image has: [height, width, channels]."""
    return _joined([np.asarray(plane) for plane in _decoded(content, channels)])


def _decoded(content: bytes, channels: int) -> list[Image.Image]:
    """The upright image in its own size: one with all channels, or one for each channel of an array."""
    if not content:
        raise DataError("empty: 0 bytes")
    if not content.startswith(ARRAY_MAGIC):
        return [_convert(_open(content), channels)]
    array = _read_array(content)
    if array.shape[2] == channels:
        return [Image.fromarray(np.ascontiguousarray(array[..., channel])) for channel in range(channels)]
    return [_convert(_image_of_array(array, channels), channels)]


def _fitted(planes: list[Image.Image], image_format: ImageFormat) -> Pixels:
    """The image at its final size, [size, size, channels]."""
    return _joined([np.asarray(_fit(plane, image_format)) for plane in planes])


def _joined(arrays: list[Pixels]) -> Pixels:
    if arrays[0].ndim == 2:
        return np.stack(arrays, axis=2)
    return arrays[0]


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        return f"not an image in a known format ({', '.join(READABLE_FORMATS)})"
    return text if isinstance(error, DataError) else f"{type(error).__name__}: {text}"


def _read_array(content: bytes) -> Pixels:
    """Return the NumPy file as [H, W, C]."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, _ = read_header(file)
    if math.prod(shape) > len(content):  # Memory would be taken for all of it.
        raise DataError(f"array: must have the values of its shape {list(shape)}, got {len(content)} bytes")
    file.seek(0)
    array: Pixels = np.load(file, allow_pickle=False)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or 0 in array.shape:
        raise DataError(f"array: must be uint8 with shape [H, W] or [H, W, C], got {array.dtype} {list(array.shape)}")
    return array if array.ndim == 3 else array[..., np.newaxis]


def _image_of_array(array: Pixels, channels: int) -> Image.Image:
    """Return a grey or colour array as an image whose channels may then be converted."""
    if array.shape[2] not in (1, 3):
        raise DataError(f"array: must have {channels} channels, got {array.shape[2]}")
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2] == 1 else array))


def _open(content: bytes) -> Image.Image:
    """Decode the image and turn it upright."""
    image: Image.Image = Image.open(io.BytesIO(content), formats=READABLE_FORMATS)
    width, height = image.size
    if width * height > MAX_SOURCE_PIXELS:
        raise DataError(f"image: must have at most {MAX_SOURCE_PIXELS} pixels, got {width} x {height}")
    image.load()
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def _convert(image: Image.Image, channels: int) -> Image.Image:
    """Return the image in mode L, LA, RGB or RGBA."""
    if channels > 4:
        raise DataError(f"image: must have {channels} channels, which only a .npy array can, got mode {image.mode}")
    if image.mode.startswith(("I", "F")):
        image = _to_eight_bits(image)
    if channels in (2, 4):
        return image.convert("RGBA").convert("LA" if channels == 2 else "RGBA")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        image = white
    if image.mode not in ("1", "L"):
        image = image.convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey so that black stays 0 and white becomes 255."""
    is_sixteen_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN_BIT_FORMATS)
    if not is_sixteen_bit:
        raise DataError(f"image: must have 8 or 16 bits a channel, got mode {image.mode}, whose range is not known")
    values = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _fit(image: Image.Image, image_format: ImageFormat) -> Image.Image:
    """Return the image at [size, size]; one that has the size already keeps its exact values."""
    size, (width, height) = image_format.size, image.size
    if image_format.fit == "pad":
        return _pad(image, size)
    box: tuple[float, float, float, float] = (0, 0, width, height)
    if image_format.fit == "crop":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.LANCZOS, box=box)


def _pad(image: Image.Image, size: int) -> Image.Image:
    scale = min(1.0, size / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    padded = Image.new(image.mode, (size, size))
    shrunk = image.resize((width, height), Image.Resampling.LANCZOS)
    padded.paste(shrunk, ((size - width) // 2, (size - height) // 2))
    return padded
