"""TensorBoard event files in the run directory, local or in an object store."""

import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL.Image import Image
from torch.utils.tensorboard import SummaryWriter

from vaegen_ray.storage import Location

SECONDS_BETWEEN_UPLOADS = 30.0


class TensorBoardTracker:
    """Writes event files to ``folder``; those for an object store grow in a local folder and are copied there.

    Steps are positions. Every start writes a file of its own, which tells TensorBoard to hide what earlier
    files hold beyond the position at which it begins.
    """

    def __init__(self, folder: Location, position: int) -> None:
        self._folder = folder
        self._spool = None if folder.is_local else tempfile.TemporaryDirectory(prefix="vaegen-tensorboard-")
        self._local = folder.local_path if self._spool is None else Path(self._spool.name)
        first_hidden = position + 1 if position else 0
        self._writer = SummaryWriter(str(self._local), purge_step=first_hidden)
        self._uploaded_s = time.monotonic()

    def scalars(self, record: Mapping[str, float], position: int) -> None:
        """One point a metric; ``losses/total`` and the like are grouped by what stands before the slash."""
        for name, value in record.items():
            self._writer.add_scalar(name, value, position)
        if self._spool is not None and time.monotonic() - self._uploaded_s >= SECONDS_BETWEEN_UPLOADS:
            self.flush()

    def image(self, name: str, picture: Image, position: int) -> None:
        """One picture under ``name``."""
        pixels_HWC = np.asarray(picture.convert("RGB"))
        self._writer.add_image(name, pixels_HWC, position, dataformats="HWC")

    def flush(self) -> None:
        """Write to disk, and copy to the object store."""
        self._writer.flush()
        self._upload()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
        self._upload()
        if self._spool is not None:
            self._spool.cleanup()

    def _upload(self) -> None:
        if self._spool is not None:
            for file in sorted(self._local.iterdir()):
                (self._folder / file.name).upload(file)
            self._uploaded_s = time.monotonic()
