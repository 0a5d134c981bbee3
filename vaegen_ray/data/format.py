"""The dataset on disk: a folder of Parquet shards and the ``dataset.json`` that describes them.

``dataset.json`` is written last, so a folder without it is not a dataset yet. Rows are in the order of the
shards in ``dataset.json``; an index into a split means that order.
"""

import hashlib
import json
from typing import Annotated, Final, Literal, Self

import pyarrow as pa
from pydantic import Field, ValidationError, model_validator

from vaegen_ray.config.base import Count, Section
from vaegen_ray.config.model import Model
from vaegen_ray.config.prepare import LARGEST_IN_FULL_SHARDS, Encoding
from vaegen_ray.errors import DataError, JobError

SCHEMA_VERSION: Final = 2
FINGERPRINT_VERSION: Final = 1
"""Of the rule of :func:`fingerprint_of`, which has outlived a version of the schema."""
METADATA_FILE = "dataset.json"
CARD_FILE = "README.md"
"""By which Hugging Face `datasets` knows the splits of the folder; it takes files named `held_out` for no split."""
JOB_FILE = "prepare.json"
"""The job that makes, or made, the dataset; written first."""
REJECTED_FILE = "rejected.parquet"

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "held_out")
LabelType = Literal["int64", "string"]
Label = int | str | None
RejectionKind = Literal["damaged", "too_small", "duplicate"]
REJECTION_KINDS: tuple[RejectionKind, ...] = ("damaged", "too_small", "duplicate")

ROWS_PER_GROUP = 512
"""Rows of each row group, but for the last, of what is no image larger than 256 pixels."""


def rows_per_group(image_size: int) -> int:
    """Of each row group of a shard, but for its last: in memory at a time, when writing and when reading."""
    return max(1, ROWS_PER_GROUP * LARGEST_IN_FULL_SHARDS**2 // max(LARGEST_IN_FULL_SHARDS, image_size) ** 2)


class Shard(Section):
    """One Parquet file of a split."""

    file: Annotated[str, Field(pattern=r"^[\w.-]+\.parquet$")]
    """Its name in the folder of the dataset."""
    rows: Count
    row_groups: Count
    """Each of ``rows_per_group`` rows, but for the last."""
    bytes: Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Metadata(Section):
    """The contents of ``dataset.json``."""

    schema_version: Literal[2]
    name: str
    image_size: Count
    """Side of the square images, in pixels."""
    channels: Count
    encoding: Encoding
    label: LabelType | None
    """Type of the column `label`; null when the images have none."""
    rows_per_group: Count
    splits: dict[Split, tuple[Shard, ...]]
    counts: dict[Split, Annotated[int, Field(ge=0, strict=True)]]
    mean: tuple[float, ...]
    """Of each channel over the training images, with values in [0, 1]."""
    std: tuple[float, ...]
    """Population standard deviation of each channel, as for ``mean``."""
    largest_eigenvalue: Annotated[float, Field(ge=0)]
    """Of the covariance of the flattened training images, with values in [0, 1]. A linear VAE with a Gaussian decoder
    collapses where beta times the decoder's variance is larger (Lucas 2019, 1911.02469), so it bounds the useful KL
    weights; for values in [-1, 1] it is four times that. See `data.statistics` for its accuracy."""
    source: str
    licence: str | None
    smallest_source: tuple[Count, Count]
    """[width, height] of the source image with the fewest pixels, upright, before it was converted."""
    largest_source: tuple[Count, Count]
    """The same of the one with the most."""
    rejected: dict[RejectionKind, Annotated[int, Field(ge=0, strict=True)]]
    """Images of the source that are not in the dataset; ``rejected.parquet`` names them."""
    fingerprint: str
    """SHA-256 over all that the decoded images depend on."""

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        expected = fingerprint_of(self.image_size, self.channels, self.encoding, self.splits)
        if self.fingerprint != expected:
            raise ValueError(f"fingerprint: must be {expected} for these shards, got {self.fingerprint}")
        for split in SPLITS:
            rows = sum(shard.rows for shard in self.splits.get(split, ()))
            if self.counts.get(split, 0) != rows:
                raise ValueError(
                    f"counts.{split}: must be {rows}, the rows of its shards, got {self.counts.get(split, 0)}"
                )
            for shard in self.splits.get(split, ()):
                if shard.row_groups != (groups := -(-shard.rows // self.rows_per_group)):
                    raise ValueError(f"{shard.file}: row_groups must be {groups}, got {shard.row_groups}")
        return self

    def card(self) -> str:
        """The text of ``README.md``, in the form of Hugging Face's dataset cards."""
        splits = [split for split in SPLITS if self.counts.get(split)]
        files = "".join(f"  - split: {split}\n    path: {split}-*.parquet\n" for split in splits)
        counts = " and ".join(f"{self.counts[split]} {split.replace('_', '-')}" for split in splits)
        shape = f"{self.image_size} x {self.image_size} x {self.channels}"
        return (
            f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n# {self.name}\n\n"
            f"{counts} images of {shape}, made by `vaegen prepare` from {self.source}. "
            f"Licence: {self.licence or 'not stated'}. `{METADATA_FILE}` has statistics and checksums.\n"
        )

    def to_json(self) -> str:
        """The text of ``dataset.json``."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str) -> "Metadata":
        """Read the text of ``dataset.json``; ``where`` names the file in errors."""
        try:
            version = json.loads(text)["schema_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{where}: must be JSON with a schema_version, got {text[:40]!r}; run `vaegen prepare` again"
            ) from error
        if version != SCHEMA_VERSION:
            raise DataError(
                f"{where}: schema_version must be {SCHEMA_VERSION} for this version of vaegen_ray, got {version}; "
                "run `vaegen prepare` again"
            )
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            problem = f"{key}: {first['msg']}" if key else first["msg"]
            raise DataError(
                f"{where}: {problem}; the file was changed or damaged, restore it or prepare again"
            ) from error


def fingerprint_of(image_size: int, channels: int, encoding: Encoding, splits: dict[Split, tuple[Shard, ...]]) -> str:
    """Return the SHA-256 of what determines the decoded images: names and licences do not."""
    content = {
        "schema_version": FINGERPRINT_VERSION,
        "image_size": image_size,
        "channels": channels,
        "encoding": encoding,
        "splits": {split: [[shard.sha256, shard.rows] for shard in splits.get(split, ())] for split in SPLITS},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def shard_schema(encoding: Encoding, label: LabelType | None) -> pa.Schema:
    """The columns of a shard, with the metadata by which Hugging Face `datasets` decodes the images."""
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
    ]
    if label:
        fields.append(pa.field("label", pa.int64() if label == "int64" else pa.string()))
    features: dict[str, object] = {
        field.name: {"dtype": str(field.type), "_type": "Value"} for field in fields if field.name != "image"
    }
    features["image"] = (
        {"bytes": {"dtype": "binary", "_type": "Value"}, "path": {"dtype": "string", "_type": "Value"}}
        if encoding == "raw"
        else {"_type": "Image"}
    )
    # `datasets` takes the order of columns from here.
    ordered = {field.name: features[field.name] for field in fields}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": ordered}})})


REJECTED_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("repeats", pa.string()),
        pa.field("bytes", pa.int64(), nullable=False),
    ]
)


def check_matches(metadata: Metadata, model: Model) -> None:
    """Refuse a model whose images have another size or other channels than the dataset's."""
    rules = (
        ("model.channels", model.channels, metadata.channels, "image.channels"),
        ("model.image_size", model.image_size, metadata.image_size, "image.size"),
    )
    for key, value, needed, prepare_key in rules:
        if value != needed:
            raise JobError(
                f"{key}: must be {needed} like the dataset '{metadata.name}', got {value}; "
                f"set {key} to {needed}, or prepare the dataset with {prepare_key}: {value}"
            )
