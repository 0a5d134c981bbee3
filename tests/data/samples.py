"""Images as files hold them, and jobs that prepare them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vaegen_ray.config.prepare import PrepareJob


def random_pixels(seed: int, height: int = 16, width: int = 16, channels: int = 3) -> NDArray[np.uint8]:
    """Noise [H, W, C]: any change of order, channel or value shows."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def image_bytes(image: Image.Image | NDArray[np.uint8], file_format: str = "PNG", **options: Any) -> bytes:
    """The image as a file of the format."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    file = io.BytesIO()
    image.save(file, format=file_format, **options)
    return file.getvalue()


def write_images(folder: Path, count: int, size: int = 16) -> Path:
    """Fill ``folder`` with PNG files image-0000.png, ... of noise seeded by their number."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"image-{number:04d}.png").write_bytes(image_bytes(random_pixels(number, size, size)))
    return folder


def prepare_job(source: dict[str, Any], destination: str | Path, **changes: Any) -> PrepareJob:
    """A job for colour images of 16 pixels."""
    tree = {
        "kind": "prepare",
        "name": "noise",
        "source": source,
        "image": {"size": 16, "channels": 3},
        "destination": str(destination),
        "held_out_fraction": 0.25,
        **changes,
    }
    return PrepareJob.model_validate({key: value for key, value in tree.items() if value is not None})


def files_of(folder: Path) -> dict[str, bytes]:
    """Path to content of every file below ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
