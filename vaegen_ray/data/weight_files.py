"""Files of published weights: fetched once per machine, read without unpickling."""

import hashlib
import io
import zlib
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from torch import Tensor

from vaegen_ray.data.cache import NodeCache
from vaegen_ray.errors import DataError
from vaegen_ray.storage import Location


def read_weights(file: Location) -> dict[str, Tensor]:
    """The tensors of an npz or safetensors file by name; DataError where it is of another kind.

    A file in an object store is fetched into the node cache first, once for all processes of the machine.
    """
    content = file.read_bytes() if file.is_local else _fetched(file)
    try:
        if file.name.endswith(".safetensors"):
            return tensors_of(content)
        # allow_pickle=False: a weights file must not be able to run code.
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    # A damaged npz, an array alone, and arrays of text each fail in a way of their own.
    except (SafetensorError, ValueError, TypeError, KeyError, OSError, EOFError, BadZipFile, zlib.error) as error:
        raise DataError(
            f"{file}: must be an npz or safetensors file of arrays ({error}); convert a .pth file with "
            "safetensors.torch.save_file"
        ) from error


def _fetched(file: Location) -> bytes:
    entry = next((entry for entry in file.parent.entries() if entry.name == file.name), None)
    if entry is None:
        raise DataError(f"{file}: must be a file of weights, there is none; check the path")
    key = hashlib.sha256(f"{file}\n{entry.version}\n{entry.size_bytes}".encode()).hexdigest()[:32]

    def is_whole(path: Path) -> bool:
        return path.exists() and path.stat().st_size == entry.size_bytes

    lease = NodeCache.at(None).entry(
        f"weights/{key}", num_bytes=entry.size_bytes, is_whole=is_whole, make=lambda path: _download(file, path)
    )
    try:
        return lease.path.read_bytes()
    finally:
        lease.close()


def _download(file: Location, path: Path) -> None:
    file.download(path)
