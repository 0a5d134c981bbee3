"""Images in a column of Parquet files: plain bytes, or Hugging Face's struct of bytes and path."""

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vaegen_ray.config.prepare import DEFAULT_HELD_OUT_FRACTION, ImagesPerLabel, ParquetSource
from vaegen_ray.data.chunks import Chunk, LeftOut, Piece, Plan, Selection, in_chunks
from vaegen_ray.data.conversion import SourceImage
from vaegen_ray.data.format import METADATA_FILE, REJECTED_FILE, Label, LabelType, Split
from vaegen_ray.data.listing import as_text, files_of, location_of, split_of
from vaegen_ray.errors import DataError, StorageError
from vaegen_ray.storage import Location

ROWS_PER_READ = 64
"""Of encoded images, in memory at a time."""

SPLIT_IN_NAME = re.compile(r"(?:^|/)(train|test|validation|held_out)(?=[-./])")
"""In Hugging Face's layout: `data/train-00000-of-00002.parquet`, `test.parquet`, `train/0000.parquet`."""

BUFFER_BYTES = 2**22
"""Without a buffer pyarrow reads the images of a whole row group at once, which may be those of a whole file."""


class ParquetImages:
    """Every row of one or more Parquet files, in the order of file names and rows."""

    def __init__(
        self,
        source: ParquetSource,
        held_out_fraction: float | None,
        images_per_chunk: int,
        limit: ImagesPerLabel | None,
    ) -> None:
        """Read nothing yet."""
        self.description = f"parquet {source.path} (column {source.image_column})"
        self.root = Location.of(source.path)
        self._source = source
        self._held_out_fraction = held_out_fraction
        self._images_per_chunk = images_per_chunk
        self._limit = limit

    def plan(self) -> Plan:
        """Read the files' footers and check the columns."""
        left_out = LeftOut()
        label_types: set[LabelType | None] = set()
        chunks = tuple(in_chunks(self._pieces(label_types, left_out), self._images_per_chunk))
        if len(label_types) > 1:
            types = ", ".join(sorted(map(str, label_types)))
            raise DataError(f"source.label_column: must have one type in all files, got {types}; prepare them apart")
        if not chunks:
            raise DataError(f"source.path: {self._source.path} must hold at least one row, got none")
        return Plan(chunks, label_types.pop(), left_out)

    def images(self, chunk: Chunk, left_out: LeftOut) -> Iterator[SourceImage]:
        """Give the rows, a few in memory at a time."""
        source = self._source
        columns = [source.image_column, source.id_column, source.label_column, source.split_column]
        for piece in chunk.pieces:
            path, _, first_row, named = piece.place
            for number, row in self._rows(piece, [name for name in columns if name]):
                image_id = self._id(row, str(path), int(first_row) + number)
                split = self._split(row, image_id, str(named))
                if split is None:
                    left_out.add(f"{image_id} ({source.split_column}={row[source.split_column or '']})")
                    continue
                value = row[source.image_column]
                content = value["bytes"] if isinstance(value, dict) else value
                yield SourceImage(image_id, content or b"", self._label(row), split)

    def _pieces(self, label_types: set[LabelType | None], left_out: LeftOut) -> Iterator[Piece]:
        """One for each row group."""
        selection = Selection(self._limit)
        files = [file for file in files_of(self.root, (".parquet",)) if not self._is_rejected_file(file[0])]
        named = self._splits_in_names([path for path, _ in files])
        for path, version in files:
            if named and path not in named:
                left_out.add(as_text(path))
                continue
            file = location_of(self.root, path)
            with file.open() as opened:
                footer = _parquet_file(opened, file)
                label_types.add(self._check_columns(footer.schema_arrow, file))
                sizes = [footer.metadata.row_group(group).num_rows for group in range(footer.num_row_groups)]
            first_row = 0
            for group, num_rows in enumerate(sizes):
                piece = Piece((path, group, first_row, named.get(path, "")), range(num_rows), version)
                yield self._selected(piece, selection, left_out) if self._limit else piece
                first_row += num_rows

    def _is_rejected_file(self, path: str) -> bool:
        """Whether it lists what a dataset that we prepared has left out."""
        folder, _, name = path.rpartition("/")
        return name == REJECTED_FILE and (self.root / folder / METADATA_FILE).exists()

    def _selected(self, piece: Piece, selection: Selection, left_out: LeftOut) -> Piece:
        """The rows that ``selection`` takes, which need not be read with their images for that."""
        source = self._source
        columns = [name for name in (source.id_column, source.label_column, source.split_column) if name]
        path, _, first_row, named = piece.place
        taken = []
        for number, row in self._rows(piece, columns):
            image_id = self._id(row, str(path), int(first_row) + number)
            split = self._split(row, image_id, str(named))
            if split is None:
                left_out.add(f"{image_id} ({source.split_column}={row[source.split_column or '']})")
            elif selection.takes(split, self._label(row)):
                taken.append(number)
        return Piece(piece.place, tuple(taken), piece.version)

    def _rows(self, piece: Piece, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows of ``piece`` with their numbers in its row group."""
        path, group, *_ = piece.place
        file = location_of(self.root, str(path))
        wanted = piece.rows if isinstance(piece.rows, range) else frozenset(piece.rows)
        first = 0
        with file.open() as opened:
            parquet = _parquet_file(opened, file)
            try:
                for batch in parquet.iter_batches(ROWS_PER_READ, row_groups=[int(group)], columns=list(columns)):
                    numbers = [number for number in range(first, first + len(batch)) if number in wanted]
                    rows = batch.take([number - first for number in numbers]).to_pylist() if numbers else []
                    yield from zip(numbers, rows, strict=True)
                    first += len(batch)
                    if first > piece.rows[-1]:
                        break
            except StorageError:
                raise
            except (pa.ArrowException, OSError) as error:
                problem = " ".join(str(error).split())  # Arrow's errors have several lines.
                raise DataError(f"{file}: must be readable Parquet, got {problem}; restore it") from error

    def _id(self, row: dict[str, Any], path: str, number: int) -> str:
        return str(row[self._source.id_column]) if self._source.id_column else as_text(f"{path}#{number}")

    def _label(self, row: dict[str, Any]) -> Label:
        label: Label = row[self._source.label_column] if self._source.label_column else None
        return label

    def _splits_in_names(self, paths: Sequence[str]) -> dict[str, Split]:
        """The split of each file that is used, where their names tell; nothing where images are to be divided."""
        words = {path: match[1] if (match := SPLIT_IN_NAME.search(path)) else "" for path in paths}
        others = {*words.values()} - {"train", ""}
        if self._source.split_column is not None or "train" not in words.values() or not others:
            return {}
        if unnamed := [path for path, word in words.items() if not word]:
            raise DataError(
                f"source.path: {self.root} has files for training and files that are held out, and the name of "
                f"{as_text(unnamed[0])} says neither; take it away, or name source.split_column"
            )
        if self._held_out_fraction is not None:
            raise DataError(
                f"held_out_fraction: has no effect, the names of the files in {self.root} say what is held out, "
                f"got {self._held_out_fraction}; remove it"
            )
        held_out = next(word for word in ("test", "validation", "held_out") if word in others)
        splits: dict[str, Split] = {"train": "train", held_out: "held_out"}
        return {path: splits[word] for path, word in words.items() if word in splits}

    def _split(self, row: dict[str, Any], image_id: str, named: str) -> Split | None:
        source = self._source
        if named:
            return "train" if named == "train" else "held_out"
        if source.split_column is None:
            fraction = self._held_out_fraction
            return split_of(image_id, DEFAULT_HELD_OUT_FRACTION if fraction is None else fraction)
        splits: dict[str, Split] = {
            source.train_value or "train": "train",
            source.held_out_value or "test": "held_out",
        }
        return splits.get(str(row[source.split_column]))

    def _check_columns(self, schema: pa.Schema, file: Location) -> LabelType | None:
        source = self._source
        for key in ("image_column", "id_column", "label_column", "split_column"):
            name = getattr(source, key)
            if name is not None and name not in schema.names:
                close = difflib.get_close_matches(name, schema.names, n=1)
                hint = f"did you mean '{close[0]}'?" if close else "name one of them"
                raise DataError(f"source.{key}: {file} has no column '{name}', but {', '.join(schema.names)}; {hint}")
        if not _holds_bytes(image_type := schema.field(source.image_column).type):
            raise DataError(
                f"source.image_column: '{source.image_column}' of {file} must hold bytes or a struct with the field "
                f"'bytes', got {image_type}; name the column of encoded images"
            )
        return _label_type(schema.field(source.label_column).type, file) if source.label_column else None


def _parquet_file(opened: Any, file: Location) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(opened, buffer_size=BUFFER_BYTES)
    except StorageError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{file}: must be a Parquet file, got {error}; restore it or name another") from error


def _holds_bytes(column: pa.DataType) -> bool:
    if pa.types.is_struct(column):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in column)
    return bool(pa.types.is_binary(column) or pa.types.is_large_binary(column))


def _label_type(column: pa.DataType, file: Location) -> LabelType:
    if pa.types.is_dictionary(column):
        column = column.value_type
    if pa.types.is_integer(column):
        return "int64"
    if pa.types.is_string(column) or pa.types.is_large_string(column):
        return "string"
    raise DataError(
        f"source.label_column: must hold whole numbers or strings, got {column} in {file}; name another column"
    )
