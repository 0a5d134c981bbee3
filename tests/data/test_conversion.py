"""Every odd kind of image, as real bytes, against the pixel values that a viewer would show."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.data.samples import image_bytes, random_pixels
from vaegen_ray.config.prepare import ImageFormat
from vaegen_ray.data import conversion
from vaegen_ray.data.conversion import Rejection, SourceImage, StoredImage, store_image, to_pixels
from vaegen_ray.data.pixels import decode_pixels

SIZE = 16


def image_format(channels: int = 3, **changes: Any) -> ImageFormat:
    return ImageFormat.model_validate({"size": SIZE, "channels": channels, **changes})


def plain(color: Any, mode: str) -> Image.Image:
    return Image.new(mode, (SIZE, SIZE), color)


def rejection_of(content: bytes, channels: int = 3) -> Rejection:
    outcome = store_image(SourceImage("odd", content, None, "train"), image_format(channels))
    assert isinstance(outcome, Rejection)
    assert (outcome.id, outcome.kind) == ("odd", "damaged")
    assert outcome.num_bytes == len(content)
    return outcome


def assert_plain(pixels: np.ndarray, color: tuple[int, ...], tolerance: int = 0) -> None:
    assert pixels.shape == (SIZE, SIZE, len(color))
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - color).max() <= tolerance


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_image_of_the_right_size_keeps_its_exact_pixels(file_format: str) -> None:
    pixels = random_pixels(1)
    assert np.array_equal(to_pixels(image_bytes(pixels, file_format), image_format()), pixels)


def test_jpeg_image_is_close_to_its_pixels() -> None:
    content = image_bytes(plain((200, 100, 50), "RGB"), "JPEG", quality=95)
    assert_plain(to_pixels(content, image_format()), (200, 100, 50), tolerance=3)


def test_cmyk_jpeg_becomes_the_colour_that_its_inks_give() -> None:
    # Full cyan ink takes the red away.
    content = image_bytes(plain((255, 0, 0, 0), "CMYK"), "JPEG", quality=100)
    assert_plain(to_pixels(content, image_format()), (0, 255, 255), tolerance=3)


def test_transparent_image_is_laid_on_white() -> None:
    assert_plain(to_pixels(image_bytes(plain((255, 0, 0, 0), "RGBA")), image_format()), (255, 255, 255))
    half = to_pixels(image_bytes(plain((255, 0, 0, 128), "RGBA")), image_format())
    assert_plain(half, (255, 127, 127), tolerance=1)


def test_opaque_alpha_leaves_colours_unchanged() -> None:
    pixels = random_pixels(2)
    opaque = np.dstack([pixels, np.full((SIZE, SIZE), 255, np.uint8)])
    assert np.array_equal(to_pixels(image_bytes(opaque), image_format()), pixels)


def test_grey_with_alpha_is_laid_on_white() -> None:
    assert_plain(to_pixels(image_bytes(plain((0, 0), "LA")), image_format(1)), (255,))
    assert_plain(to_pixels(image_bytes(plain((90, 255), "LA")), image_format(1)), (90,))


def test_palette_image_shows_its_colours() -> None:
    image = plain(1, "P")
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert_plain(to_pixels(image_bytes(image), image_format()), (10, 20, 30))


def test_palette_image_with_a_transparent_entry_is_laid_on_white() -> None:
    image = plain(1, "P")
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert_plain(to_pixels(image_bytes(image, transparency=1), image_format()), (255, 255, 255))
    assert_plain(to_pixels(image_bytes(image, transparency=0), image_format()), (10, 20, 30))


def test_colour_declared_transparent_is_laid_on_white() -> None:
    content = image_bytes(plain((10, 20, 30), "RGB"), transparency=(10, 20, 30))
    assert_plain(to_pixels(content, image_format()), (255, 255, 255))


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled_to_eight(file_format: str) -> None:
    values = np.array([[0, 256], [32768, 65535]], np.uint16).repeat(8, 0).repeat(8, 1)
    content = image_bytes(Image.fromarray(values), file_format)
    pixels = to_pixels(content, image_format(1))
    assert [pixels[0, 0, 0], pixels[0, 15, 0], pixels[15, 0, 0], pixels[15, 15, 0]] == [0, 1, 128, 255]


def test_big_endian_sixteen_bit_tiff_is_scaled_to_eight() -> None:
    image = Image.fromarray(np.full((SIZE, SIZE), 0x8001, ">u2"))
    assert_plain(to_pixels(image_bytes(image, "TIFF"), image_format(1)), (128,))


def test_float_image_is_rejected_because_its_range_is_unknown() -> None:
    content = image_bytes(Image.fromarray(np.zeros((SIZE, SIZE), np.float32)), "TIFF")
    assert "must have 8 or 16 bits a channel, got mode F" in rejection_of(content).reason


def test_bilevel_image_becomes_black_and_white() -> None:
    assert_plain(to_pixels(image_bytes(plain(1, "1")), image_format()), (255, 255, 255))
    assert_plain(to_pixels(image_bytes(plain(0, "1")), image_format(1)), (0,))


def test_grey_image_becomes_colour_with_equal_channels() -> None:
    grey = random_pixels(3, channels=1)
    assert np.array_equal(to_pixels(image_bytes(grey), image_format()), grey.repeat(3, axis=2))


def test_colour_image_becomes_grey_by_luma() -> None:
    assert_plain(to_pixels(image_bytes(plain((255, 0, 0), "RGB")), image_format(1)), (76,))


def test_four_channels_keep_alpha() -> None:
    pixels = random_pixels(4, channels=4)
    assert np.array_equal(to_pixels(image_bytes(pixels), image_format(4)), pixels)


def test_two_channels_are_grey_and_alpha() -> None:
    assert_plain(to_pixels(image_bytes(plain((90, 70), "LA")), image_format(2)), (90, 70))
    assert_plain(to_pixels(image_bytes(plain((50, 50, 50), "RGB")), image_format(2)), (50, 255))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = np.zeros((SIZE, SIZE, 3), np.uint8)
    upright[:8, :8] = (255, 0, 0)
    upright[:8, 8:] = (0, 255, 0)
    # What a camera in that position stores, after the definition of the EXIF tag.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    content = image_bytes(np.ascontiguousarray(stored), "PNG", exif=exif)
    assert np.array_equal(to_pixels(content, image_format()), upright)


def test_animation_gives_its_first_frame() -> None:
    frames = [plain((255, 0, 0), "RGB"), plain((0, 0, 255), "RGB")]
    content = image_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert_plain(to_pixels(content, image_format()), (255, 0, 0), tolerance=1)


def test_array_of_five_channels_keeps_them() -> None:
    pixels = random_pixels(5, channels=5)
    file = io.BytesIO()
    np.save(file, pixels)
    stored = store_image(SourceImage("spectrum.npy", file.getvalue(), None, "train"), image_format(5))
    assert isinstance(stored, StoredImage)
    assert np.array_equal(decode_pixels(stored.content, "raw", SIZE, 5), pixels)


def test_array_of_other_channels_is_rejected() -> None:
    file = io.BytesIO()
    np.save(file, random_pixels(5, channels=5))
    assert rejection_of(file.getvalue()).reason == "array: must have 3 channels, got 5"


def test_array_of_objects_is_rejected_without_unpickling() -> None:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "allow_pickle" in rejection_of(file.getvalue()).reason


def test_empty_file_is_rejected() -> None:
    assert rejection_of(b"").reason == "empty: 0 bytes"


def test_garbage_is_rejected() -> None:
    assert "not an image in a known format" in rejection_of(b"this is not an image" * 10).reason


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
def test_truncated_image_is_rejected(file_format: str) -> None:
    content = image_bytes(random_pixels(6, 64, 64), file_format)
    assert rejection_of(content[: len(content) // 2]).reason


def test_postscript_is_rejected_before_an_interpreter_sees_it() -> None:
    assert "not an image in a known format" in rejection_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n").reason


def test_decompression_bomb_is_rejected_by_its_header() -> None:
    side = int(conversion.MAX_SOURCE_PIXELS**0.5) + 8
    bomb = image_bytes(Image.new("1", (side, side)))
    assert len(bomb) < 100_000
    assert f"at most {conversion.MAX_SOURCE_PIXELS} pixels, got {side} x {side}" in rejection_of(bomb).reason


def test_crop_takes_the_central_square() -> None:
    wide = np.zeros((SIZE, 3 * SIZE, 3), np.uint8)
    wide[:, SIZE : 2 * SIZE] = random_pixels(7)
    assert np.array_equal(to_pixels(image_bytes(wide), image_format()), wide[:, SIZE : 2 * SIZE])


def test_pad_surrounds_a_small_image_with_zeros() -> None:
    small = random_pixels(8, 12, 10, channels=1)
    pixels = to_pixels(image_bytes(small), image_format(1, fit="pad"))
    assert np.array_equal(pixels[2:14, 3:13], small)
    assert pixels.sum(dtype=int) == small.sum(dtype=int)


def test_pad_shrinks_a_large_image_and_keeps_its_proportions() -> None:
    pixels = to_pixels(image_bytes(Image.new("L", (64, 32), 200)), image_format(1, fit="pad"))
    assert (pixels[4:12] == 200).all()
    assert not pixels[:4].any()
    assert not pixels[12:].any()


def test_stretch_uses_the_whole_image() -> None:
    halves = np.zeros((8, 32, 1), np.uint8)
    halves[:, 16:] = 255
    pixels = to_pixels(image_bytes(halves), image_format(1, fit="stretch"))
    assert not pixels[:, :4].any()
    assert (pixels[:, 12:] == 255).all()


@pytest.mark.parametrize("encoding", ["png", "webp", "raw"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_stored_image_decodes_to_the_same_pixels(encoding: str, channels: int) -> None:
    pixels = random_pixels(9, channels=channels)
    if channels == 4:
        pixels[:8, :, 3] = 0
    made_for = image_format(channels, encoding=encoding)
    stored = store_image(SourceImage("a.png", image_bytes(pixels), 7, "held_out"), made_for)
    assert isinstance(stored, StoredImage)
    assert (stored.label, stored.split) == (7, "held_out")
    assert np.array_equal(decode_pixels(stored.content, made_for.stored_encoding, SIZE, channels), pixels)
    assert np.array_equal(stored.pixels, pixels)
    assert stored.source_size == (SIZE, SIZE)


def test_source_size_is_that_of_the_upright_image() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    content = image_bytes(Image.new("RGB", (40, 20)), "JPEG", exif=exif)
    stored = store_image(SourceImage("a.jpg", content, None, "train"), image_format())
    assert isinstance(stored, StoredImage)
    assert stored.source_size == (20, 40)


def test_image_with_a_side_below_the_minimum_is_rejected_as_too_small() -> None:
    image = SourceImage("a.png", image_bytes(random_pixels(1, 30, 20)), None, "train")
    assert isinstance(store_image(image, image_format(), minimum_pixels=20), StoredImage)
    rejection = store_image(image, image_format(), minimum_pixels=21)
    assert isinstance(rejection, Rejection)
    assert (rejection.kind, rejection.reason) == ("too_small", "must have at least 21 pixels a side, got 20 x 30")


def test_opaque_webp_with_four_channels_decodes_to_four() -> None:
    pixels = np.full((SIZE, SIZE, 4), 255, np.uint8)
    stored = store_image(SourceImage("a.png", image_bytes(pixels), None, "train"), image_format(4, encoding="webp"))
    assert isinstance(stored, StoredImage)
    assert np.array_equal(decode_pixels(stored.content, "webp", SIZE, 4), pixels)


def test_array_that_promises_more_than_it_has_is_rejected_before_memory_is_taken() -> None:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (10**7, 10**7)})
    outcome = store_image(SourceImage("a.npy", file.getvalue(), None, "train"), image_format())
    assert isinstance(outcome, Rejection)
    assert outcome.reason.startswith("array: must have the values of its shape [10000000, 10000000]")


def test_lack_of_memory_is_not_the_fault_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", out_of_memory)
    with pytest.raises(MemoryError):
        store_image(SourceImage("a.png", image_bytes(random_pixels(0)), None, "train"), image_format())
