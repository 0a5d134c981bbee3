"""Images in tar shards, named as WebDataset does: `0001.jpg`, `0001.cls`, `0001.json`, ... are one sample."""

import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Self

from vaegen_ray.config.prepare import TarSource
from vaegen_ray.data.chunks import Chunk, LeftOut, Piece, Plan
from vaegen_ray.data.conversion import SourceImage, size_problem
from vaegen_ray.data.format import Label, LabelType
from vaegen_ray.data.listing import as_text, files_of, image_suffixes, location_of, split_of
from vaegen_ray.errors import DataError, StorageError
from vaegen_ray.storage import Location

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


@dataclass
class _Sample:
    """The files of one stem that matter, and the names of the others."""

    stem: str
    images: dict[str, bytes] = field(default_factory=dict)
    label: bytes | None = None
    others: list[str] = field(default_factory=list)
    problem: str | None = None
    """Of its image."""

    def only_image(self) -> bytes:
        """The content of the image."""
        if len(self.images) > 1:
            raise DataError(f"must be one image of its stem, got {as_text(', '.join(self.images))}")
        if self.problem:
            raise DataError(self.problem)
        return next(iter(self.images.values()))


class TarImages:
    """Every sample of one or more tar files, in the order of file names and members. A file is a chunk."""

    def __init__(self, source: TarSource, held_out_fraction: float) -> None:
        """Read nothing yet."""
        self.description = f"tar {source.path}"
        self.root = Location.of(source.path)
        self._source = source
        self._held_out_fraction = held_out_fraction

    def plan(self) -> Plan:
        """List the files; the first label tells the type of all."""
        files = files_of(self.root, TAR_SUFFIXES)
        chunks = [
            Chunk.of(number, [Piece((path,), (0,), version)], num_images=None)
            for number, (path, version) in enumerate(files)
        ]
        return Plan(tuple(chunks), self._label_type([path for path, _ in files]), LeftOut())

    def images(self, chunk: Chunk, left_out: LeftOut) -> Iterator[SourceImage]:
        """Give the samples as they come by: each its image, and its label where the job names one."""
        for piece in chunk.pieces:
            path = str(piece.place[0])
            for sample in self._samples(path):
                image_id = as_text(f"{path}/{sample.stem}")
                for name in sample.others:
                    left_out.add(as_text(f"{path}/{name}"))
                if not sample.images:
                    if not sample.others:
                        left_out.add(image_id)
                    continue
                try:
                    content, label, problem = sample.only_image(), self._label(sample), None
                except DataError as error:
                    content, label, problem = b"", None, str(error)
                split = split_of(image_id, self._held_out_fraction)
                yield SourceImage(image_id, content, label, split, problem)

    def _label_type(self, paths: Sequence[str]) -> LabelType | None:
        if self._source.label_extension is None:
            return None
        for path in paths:
            for sample in self._samples(path):
                if sample.label is not None:
                    with suppress(DataError):  # The image is rejected with its reason.
                        return "int64" if isinstance(self._label(sample), int) else "string"
        raise DataError(
            f"source.label_extension: {self.root} must hold .{self._source.label_extension} files "
            "with labels, got none; remove the key or name another"
        )

    def _label(self, sample: _Sample) -> Label:
        extension, content = self._source.label_extension, sample.label
        if extension is None or content is None:
            return None
        try:
            if extension == "json":
                label = json.loads(content)[self._source.label_key]
            else:
                text = content.decode().strip()
                label = int(text) if extension == "cls" else text
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"label: .{extension} must hold it, got {content[:40]!r} ({error!r})") from error
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise DataError(f"label: must be a whole number or a string, got {label!r}")
        return label

    def _samples(self, path: str) -> Iterator[_Sample]:
        """The members of a tar file, those of one stem together, each member read once and in order."""
        file = location_of(self.root, path)
        try:
            with file.open() as opened, tarfile.open(fileobj=opened, mode="r|*", tarinfo=_StrictHeader) as tar:
                for stem, members in groupby(_members(tar), key=lambda member: _stem_and_extension(member.name)[0]):
                    yield self._sample(stem, members, tar)
        except StorageError:
            raise
        except (tarfile.TarError, OSError, EOFError) as error:
            raise DataError(f"{file}: must be a whole tar file, got {error}; restore it") from error

    def _sample(self, stem: str, members: Iterator[tarfile.TarInfo], tar: tarfile.TarFile) -> _Sample:
        sample = _Sample(stem)
        for member in members:
            extension = _stem_and_extension(member.name)[1].lower()
            if f".{extension.rsplit('.', 1)[-1]}" in image_suffixes():
                sample.problem = _link_problem(member) or size_problem(member.size)
                sample.images[member.name] = b"" if sample.problem else _content(tar, member)
            elif extension == self._source.label_extension:
                sample.label = _content(tar, member)
            elif extension not in ("cls", "txt", "json"):
                sample.others.append(member.name)
        return sample


class _StrictHeader(tarfile.TarInfo):
    """Python ends the iteration without a word at a damaged header: the images behind it would be lost in silence."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if type(error).__name__ == "EOFHeaderError":  # Two empty blocks: the regular end.
                raise
            raise tarfile.ReadError(f"a damaged or missing header ({error})") from error


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for member in tar:
        tar.members.clear()  # type: ignore[attr-defined]  # It would keep the headers of all.
        parts = member.name.split("/")
        if not member.isdir() and not any(part.startswith(".") and part not in (".", "..") for part in parts):
            yield member


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member) if member.isfile() else None
    return file.read() if file else b""


def _link_problem(member: tarfile.TarInfo) -> str | None:
    if member.isfile():
        return None
    # What it names has gone by.
    return f"must be a file, got a link to '{as_text(member.linkname)}'"


def _stem_and_extension(name: str) -> tuple[str, str]:
    """Divided at the first dot of the last part of the path."""
    folder, _, file = name.removeprefix("./").rpartition("/")
    stem, _, extension = file.partition(".")
    return (f"{folder}/{stem}" if folder else stem), extension
