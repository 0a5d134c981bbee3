"""Where images come from. A source plans its chunks once, by its listing, and gives the images of any chunk anywhere.

Sources hold only what the job says and are sent to other machines; the images are given without decoding them.
"""

import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vaegen_ray.config.prepare import (
    FolderSource,
    ImagesPerLabel,
    ParquetSource,
    PrepareJob,
    TarSource,
    TorchvisionSource,
)
from vaegen_ray.data.chunks import Chunk, LeftOut, Piece, Plan, Selection, in_chunks
from vaegen_ray.data.conversion import ARRAY_MAGIC, SourceImage, size_problem
from vaegen_ray.data.format import LabelType, Split
from vaegen_ray.data.listing import as_text, image_suffixes, split_of, walk
from vaegen_ray.data.parquet_source import ParquetImages
from vaegen_ray.data.tar_source import TarImages
from vaegen_ray.errors import DataError
from vaegen_ray.storage import Location

SPLIT_BY_NAME = ("svhn", "stl10")
"""Datasets of torchvision that take `split` where the others take `train`."""
TORCHVISION_CLASSES = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
    "svhn": "SVHN",
    "stl10": "STL10",
}


class ImageSource(Protocol):
    """Images in a fixed order, divided into chunks."""

    description: str
    """One line for ``dataset.json``."""
    root: Location
    """What every machine that reads the source must see."""

    def plan(self) -> Plan:
        """List the source. One that is not there, or not as described, is an error now."""

    def images(self, chunk: Chunk, left_out: LeftOut) -> Iterator[SourceImage]:
        """Give the images of ``chunk`` with their splits; what is none is counted in ``left_out``."""


def open_source(job: PrepareJob) -> ImageSource:
    """Return the images that ``job`` names."""
    fraction, size, limit = job.effective_held_out_fraction, job.effective_rows_per_shard, job.images_per_label
    match job.source:
        case FolderSource():
            return FolderImages(job.source, fraction, size, limit)
        case ParquetSource():
            return ParquetImages(job.source, job.held_out_fraction, size, limit)
        case TarSource():
            return TarImages(job.source, fraction)
        case TorchvisionSource():
            return TorchvisionImages(job.source, size, limit)


class FolderImages:
    """Every image file below a folder, folder by folder, sorted by name."""

    def __init__(
        self, source: FolderSource, held_out_fraction: float, images_per_chunk: int, limit: ImagesPerLabel | None
    ) -> None:
        """Read nothing yet."""
        self.description = f"folder {source.path}"
        self.root = Location.of(source.path)
        self._label_from_folder = source.label_from_folder
        self._held_out_fraction = held_out_fraction
        self._images_per_chunk = images_per_chunk
        self._limit = limit

    def plan(self) -> Plan:
        """List the files."""
        if not self.root.exists():
            raise DataError(f"source.path: {self.root} must exist, got nothing there; check the path")
        left_out = LeftOut()
        chunks = tuple(in_chunks(self._pieces(left_out), self._images_per_chunk))
        if not chunks:
            found = f"got {left_out.count} other files" if left_out.count else "got no files"
            raise DataError(f"source.path: {self.root} must hold image files, {found}; check the path")
        return Plan(chunks, "string" if self._label_from_folder else None, left_out)

    def images(self, chunk: Chunk, left_out: LeftOut) -> Iterator[SourceImage]:  # noqa: ARG002 (planning left them out)
        """Give the files by their locations: they are read where they are decoded."""
        for piece in chunk.pieces:
            folder = str(piece.place[0])
            for name, size_bytes, _ in piece.rows:
                path = f"{folder}{name}"
                image_id = as_text(path)
                split = split_of(image_id, self._held_out_fraction)
                yield SourceImage(image_id, self.root / path, self._label(folder), split, size_problem(size_bytes))

    def _pieces(self, left_out: LeftOut) -> Iterator[Piece]:
        selection = Selection(self._limit)
        for folder, entries in walk(self.root):
            rows = []
            for entry in entries:
                image_id = as_text(f"{folder}{entry.name}")
                if entry.is_special or Path(entry.name).suffix.lower() not in image_suffixes():
                    left_out.add(image_id)
                elif selection.takes(split_of(image_id, self._held_out_fraction), self._label(folder)):
                    rows.append((entry.name, entry.size_bytes, entry.version))
            yield Piece((folder,), tuple(rows))

    def _label(self, folder: str) -> str | None:
        # An image beside the folders of the labels has none.
        return as_text(Path(folder).name) or None if self._label_from_folder else None


class TorchvisionImages:
    """A dataset of torchvision: its train split, then its test split as held-out images."""

    def __init__(self, source: TorchvisionSource, images_per_chunk: int, limit: ImagesPerLabel | None) -> None:
        """Load nothing yet."""
        self.description = f"torchvision {source.dataset}"
        self.root = Location.of(source.root)
        self._source = source
        self._images_per_chunk = images_per_chunk
        self._limit = limit

    def plan(self) -> Plan:
        """Load the dataset, or fetch it first where the job says so."""
        download = self._source.download
        try:
            datasets = _torchvision_datasets(self._source.dataset, self.root.url, download=download)
        except (RuntimeError, OSError) as error:
            remedy = "check the network, or put the files there" if download else "set source.download: true"
            raise DataError(
                f"source.root: {self.root} must hold torchvision's {self._source.dataset}, got {error}; {remedy}"
            ) from error
        selection = Selection(self._limit)
        pieces = []
        for split, dataset in datasets.items():
            rows: range | tuple[int, ...] = range(len(dataset))
            if self._limit:
                labels = dataset.labels if self._source.dataset in SPLIT_BY_NAME else dataset.targets
                rows = tuple(row for row in rows if selection.takes(split, int(labels[row])))
            pieces.append(Piece((split,), rows))
        label_type: LabelType = "int64"
        return Plan(tuple(in_chunks(pieces, self._images_per_chunk)), label_type, LeftOut())

    def images(self, chunk: Chunk, left_out: LeftOut) -> Iterator[SourceImage]:  # noqa: ARG002 (there is nothing else)
        """Give the images as uint8 arrays."""
        datasets = _torchvision_datasets(self._source.dataset, self.root.url, download=False)
        splits: dict[str, Split] = {"train": "train", "held_out": "held_out"}
        for piece in chunk.pieces:
            split = splits[str(piece.place[0])]
            for index in piece.rows:
                image, label = datasets[split][index]
                yield SourceImage(f"{split}/{index:06d}", _array_file(np.asarray(image)), int(label), split)


@cache
def _torchvision_datasets(dataset: str, root: str, *, download: bool) -> dict[Split, Any]:
    # Imports torch, which only this source needs.
    import torchvision.datasets

    make = getattr(torchvision.datasets, TORCHVISION_CLASSES[dataset])
    options: dict[Split, dict[str, Any]] = {"train": {"train": True}, "held_out": {"train": False}}
    if dataset in SPLIT_BY_NAME:
        options = {"train": {"split": "train"}, "held_out": {"split": "test"}}
    return {split: make(root, download=download, **arguments) for split, arguments in options.items()}


def _array_file(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    content = file.getvalue()
    assert content.startswith(ARRAY_MAGIC)
    return content
