"""The job of `vaegen prepare`: which images become a dataset in the project's format, and how."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from vaegen_ray.config.base import Count, Flag, Fraction, Name, ProperFraction, Section, Text

DEFAULT_HELD_OUT_FRACTION = 0.05
DEFAULT_ROWS_PER_SHARD, LARGEST_IN_FULL_SHARDS = 10_000, 256
"""Of larger images a shard has so many fewer that it has as many pixels."""

Encoding = Literal["png", "webp", "raw"]
"""How an image is stored: lossless PNG, lossless WebP, or its uint8 values in the order H, W, C."""


class FolderSource(Section):
    """Image files (PNG, JPEG, WebP, GIF, BMP, TIFF, NetPBM, AVIF, JPEG 2000, or `.npy` arrays H, W, C of uint8)."""

    kind: Literal["folder"]
    path: Text
    """Searched with all its sub-folders: a local path or ``s3://bucket/prefix``."""
    label_from_folder: Flag = False
    """Label each image with the name of the folder that holds it; one directly in ``path`` has none."""


class ParquetSource(Section):
    """Parquet with encoded images in a column of bytes, or of Hugging Face's struct of bytes and path."""

    kind: Literal["parquet"]
    path: Text
    """A file, or a folder of ``*.parquet``: a local path or ``s3://bucket/prefix``."""
    image_column: Text = "image"
    id_column: Text | None = None
    """By default an image is named by its file and row."""
    label_column: Text | None = None
    """Of whole numbers or strings."""
    split_column: Text | None = None
    """Column that says which split a row belongs to. By default the names of the files do where some begin with
    `train` and others with `test` or `validation`, as Hugging Face's (`data/train-00000-of-00002.parquet`), or lie in
    folders of these names: `test` is held out, `validation` where there is no `test` and left out where there is.
    Else the split is drawn from the image's name."""
    train_value: str | None = None
    """Rows with this value in ``split_column`` are trained on; `train` when absent."""
    held_out_value: str | None = None
    """Rows with this value in ``split_column`` are held out; `test` when absent. Other rows are left out."""

    @model_validator(mode="after")
    def _values_belong_to_a_column(self) -> Self:
        for key in ("train_value", "held_out_value"):
            if getattr(self, key) is not None and self.split_column is None:
                raise ValueError(
                    f"source.{key}: has no effect without source.split_column; remove it or name the column"
                )
        return self


class TarSource(Section):
    """Tar shards in WebDataset's naming: files of one stem, one after another, are one image and what belongs to it."""

    kind: Literal["tar"]
    path: Text
    """A file, or a folder of ``*.tar``, ``*.tar.gz`` or ``*.tgz``: a local path or ``s3://bucket/prefix``."""
    label_extension: Literal["cls", "txt", "json"] | None = None
    """The file of each stem that holds the label: a whole number in `.cls`, a string in `.txt`."""
    label_key: Text | None = None
    """The key of the label in `.json`: a whole number or a string."""

    @model_validator(mode="after")
    def _key_belongs_to_json(self) -> Self:
        if self.label_extension == "json" and self.label_key is None:
            raise ValueError("source.label_key: must name the label in the .json files; set it")
        if self.label_extension != "json" and self.label_key is not None:
            raise ValueError("source.label_key: has no effect without source.label_extension: json; remove it")
        return self


class TorchvisionSource(Section):
    """A dataset that torchvision knows, with its own division into train and test."""

    kind: Literal["torchvision"]
    dataset: Literal["mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100", "svhn", "stl10"]
    root: Text
    """Local folder that torchvision keeps its datasets in."""
    download: Flag = False
    """Fetch the dataset when it is not in ``root``."""


Source = Annotated[FolderSource | ParquetSource | TarSource | TorchvisionSource, Field(discriminator="kind")]


class ImageFormat(Section):
    """What every image of the dataset is made into."""

    size: Annotated[int, Field(ge=16, le=1024, strict=True)]
    """Side of the square images, in pixels. Convolutional models take 16, 32, 64, 128 and 256."""

    channels: Count
    """1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha; any number for `.npy` arrays."""

    fit: Literal["crop", "pad", "stretch"] = "crop"
    """`crop` the central square and resize it; `pad` with zeros, after shrinking larger images (smaller ones are
    not enlarged); `stretch` both sides to the size."""

    encoding: Encoding | None = None
    """By default `webp` for 1, 3 and 4 channels and `raw` for others."""

    @model_validator(mode="after")
    def _encoding_holds_the_channels(self) -> Self:
        if self.encoding in ("png", "webp") and self.channels not in (1, 3, 4):
            raise ValueError(
                f"image.encoding: must be raw for {self.channels} channels, got {self.encoding}; "
                "png and webp hold 1, 3 or 4 channels"
            )
        return self

    @property
    def stored_encoding(self) -> Encoding:
        """The encoding, chosen by the number of channels where the job names none."""
        return self.encoding or ("webp" if self.channels in (1, 3, 4) else "raw")


class ImagesPerLabel(Section):
    """A balanced subset: the first so many images of each label, in the order of the source."""

    train: Count
    held_out: Count


class PrepareJob(Section):
    """Make a dataset in the project's format."""

    kind: Literal["prepare"]
    name: Name
    """Of the dataset."""
    source: Source
    image: ImageFormat
    destination: Text
    """Folder of the dataset: a local path or ``s3://bucket/prefix``, empty or not there yet."""
    licence: str | None = None
    """Of the images, recorded in the dataset."""
    held_out_fraction: ProperFraction | None = None
    """Part of the images that is never trained on, chosen by a hash of each image's name so that adding images
    moves none; 0.05 when absent. Not for a source that has its own split."""
    images_per_label: ImagesPerLabel | None = None
    """All images when absent."""
    minimum_pixels: Count | None = None
    """Leave out images whose shorter side has fewer pixels than this in the source."""
    remove_duplicates: Flag = False
    """Leave out an image whose pixels, at the size of the dataset, are those of an earlier image of the source."""
    max_rejected_fraction: Fraction = 0.01
    """The job fails when more of the images than this cannot be read."""
    rows_per_shard: Count | None = None
    """Images of the source that share a Parquet file, or two where they are of both splits; when absent 10,000,
    and fewer of images larger than 256 pixels. Not for tar shards, which stay as they are."""

    @model_validator(mode="after")
    def _has_one_split(self) -> Self:
        if self.held_out_fraction is not None and self.source_has_split:
            raise ValueError(
                "held_out_fraction: has no effect on a source with its own split, "
                f"got {self.held_out_fraction}; remove it"
            )
        return self

    @model_validator(mode="after")
    def _tar_shards_stay_as_they_are(self) -> Self:
        if isinstance(self.source, TarSource):
            if self.rows_per_shard is not None:
                raise ValueError(
                    f"rows_per_shard: has no effect on tar shards, each of which becomes one Parquet shard of a split, "
                    f"got {self.rows_per_shard}; remove it"
                )
            if self.images_per_label is not None:
                raise ValueError(
                    "images_per_label: is not for tar shards, whose labels are known only when all is read; prepare "
                    "all images, then choose from the Parquet files with a second job"
                )
        return self

    @model_validator(mode="after")
    def _has_labels_to_choose_by(self) -> Self:
        source = self.source
        unlabelled = (isinstance(source, FolderSource) and not source.label_from_folder) or (
            isinstance(source, ParquetSource) and source.label_column is None
        )
        if self.images_per_label and unlabelled:
            key = "source.label_from_folder" if isinstance(source, FolderSource) else "source.label_column"
            raise ValueError(f"images_per_label: needs labels; set {key}")
        return self

    @property
    def source_has_split(self) -> bool:
        """Whether the source says which images are held out."""
        return isinstance(self.source, TorchvisionSource) or (
            isinstance(self.source, ParquetSource) and self.source.split_column is not None
        )

    @property
    def effective_rows_per_shard(self) -> int:
        """The images of the source that share a shard."""
        if self.rows_per_shard is not None:
            return self.rows_per_shard
        return DEFAULT_ROWS_PER_SHARD * LARGEST_IN_FULL_SHARDS**2 // max(LARGEST_IN_FULL_SHARDS, self.image.size) ** 2

    @property
    def effective_held_out_fraction(self) -> float:
        """The held-out part of a source without its own split."""
        return DEFAULT_HELD_OUT_FRACTION if self.held_out_fraction is None else self.held_out_fraction
