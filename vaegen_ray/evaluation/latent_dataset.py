"""A dataset's images as the latent codes of a trained KL autoencoder: what latent diffusion trains on.

A folder of Parquet files, one for each shard of the dataset and in its order, with the columns `id`, `label` (where
the dataset has one), `mean` and `std`: of the posterior, float32, flattened from (channels, height, width).
`encode.json` says whose they are and is written first; `latents.json` describes them and is written last.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from vaegen_ray.config.model import KlAutoencoderModel
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.data.dataset import Dataset
from vaegen_ray.data.fetching import fetch_shard
from vaegen_ray.data.format import Metadata, Shard
from vaegen_ray.data.node_files import Decoder
from vaegen_ray.errors import DataError, JobError, StorageError
from vaegen_ray.evaluation.inference import device_of, evaluation_mode, images_of_bytes
from vaegen_ray.evaluation.shares import images_per_batch
from vaegen_ray.evaluation.tiles import posterior_in_tiles
from vaegen_ray.evaluation.trained_model import fingerprint_of, load_latent_statistics, load_trained_model
from vaegen_ray.models.generator import Generator
from vaegen_ray.storage import Location

CLAIM, DESCRIPTION = "encode.json", "latents.json"
SCHEMA_VERSION = 1

OnImages = Callable[[int], None]
Progress = Callable[[int, int], None]
"""Images done, of how many."""


@dataclass(frozen=True)
class EncodeTask:
    """One shard; crosses processes."""

    source: Location
    metadata: Metadata
    shard: Shard
    destination: Location
    latent_shape: tuple[int, ...]
    model_fingerprint: str

    @property
    def file(self) -> Location:
        """Where its latents go."""
        return self.destination / self.shard.file

    def is_done(self) -> bool:
        """Whether the latents of the shard are there, by this model; each file appears whole."""
        if not self.file.exists():
            return False
        try:
            with self.file.open() as file:
                found = pq.read_metadata(file)
        except StorageError:
            raise
        except (pa.ArrowException, OSError):
            return False  # Damaged, by a crash of the machine: it is made again.
        mark = (found.metadata or {}).get(b"model_fingerprint", b"").decode()
        return bool(found.num_rows == self.shard.rows and mark == self.model_fingerprint)

    def __call__(self, generator: Generator) -> int:
        """Encode the shard; returns how many images it has. Holds a row group of latents at a time."""
        decoder = Decoder(self.metadata)
        try:
            with tempfile.TemporaryDirectory() as folder:
                parquet = pq.ParquetFile(fetch_shard(self.source, self.shard, Path(folder)))
                latents, writer = Path(folder) / "latents.parquet", None
                with ExitStack() as stack:
                    for group in range(parquet.num_row_groups):
                        table = self._encoded_group(parquet, group, generator, decoder)
                        writer = writer or stack.enter_context(
                            pq.ParquetWriter(latents, table.schema, compression="zstd")
                        )
                        writer.write_table(table, row_group_size=table.num_rows)
                self.file.upload(latents)
        finally:
            decoder.close()
        return self.shard.rows

    def _encoded_group(self, parquet: pq.ParquetFile, group: int, generator: Generator, decoder: Decoder) -> pa.Table:
        batches = parquet.iter_batches(
            images_per_batch(generator.image_size), row_groups=[group], columns=self._columns()
        )
        return pa.Table.from_batches([self._encoded(batch, generator, decoder) for batch in batches])

    def _columns(self) -> list[str]:
        return ["id", "image.bytes", *(["label"] if self.metadata.label else [])]

    def _encoded(self, batch: pa.RecordBatch, generator: Generator, decoder: Decoder) -> pa.RecordBatch:
        ids = batch.column("id")
        pixels = np.empty((len(batch), *decoder.shape), np.uint8)
        stored = batch.column("image").field("bytes").cast(pa.large_binary())
        decoder.decode(stored, [f"{self.source / self.shard.file}, image '{name}'" for name in ids.to_pylist()], pixels)
        mean, std = encoded(generator, images_of_bytes(pixels, device_of(generator)))
        columns = {"id": ids, **({"label": batch.column("label")} if self.metadata.label else {})}
        columns |= {"mean": _as_lists(mean), "std": _as_lists(std)}
        result = pa.record_batch(list(columns.values()), names=list(columns))
        marks = {"model_fingerprint": self.model_fingerprint, "latent_shape": json.dumps(self.latent_shape)}
        return result.replace_schema_metadata(marks)


RunTasks = Callable[[Sequence[EncodeTask], OnImages], None]


def encoded(generator: Generator, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the posterior, in tiles where the images are larger than in training."""
    with evaluation_mode(generator):
        trained_pixels = generator.latent_shape[-1] * generator.down_factor
        encode = posterior_in_tiles if images_BCHW.shape[-1] > trained_pixels else Generator.posterior
        mean, log_variance = encode(generator, images_BCHW)
    return mean.float(), (0.5 * log_variance.float()).exp()


def encode_dataset(
    run: RunDirectory, source: str, destination: Location, run_tasks: RunTasks, on_progress: Progress | None = None
) -> int:
    """Write the latents of all images of ``source`` by the model of ``run``; goes on where it was interrupted.

    Returns the number of images. Raises JobError where ``destination`` holds another model's or dataset's latents.
    """
    job, fingerprint = run.load_job(), fingerprint_of(run)
    if not isinstance(job.model, KlAutoencoderModel):
        raise JobError(
            f"RUN: must be the run of a model.kind 'kl_autoencoder', got '{job.model.kind}', whose latent code is one "
            "vector; use the run of a KL autoencoder"
        )
    dataset = Dataset.open(source, key="DATASET")
    shape = _latent_shape(job.model, dataset.metadata)
    _claim(destination, {"model": fingerprint, "dataset": dataset.metadata.fingerprint})
    tasks = [
        EncodeTask(dataset.location, dataset.metadata, shard, destination, shape, fingerprint)
        for shards in dataset.metadata.splits.values()
        for shard in shards
    ]
    total = sum(task.shard.rows for task in tasks)
    pending = [task for task in tasks if not task.is_done()]
    done = total - sum(task.shard.rows for task in pending)

    def on_images(count: int) -> None:
        nonlocal done
        done += count
        if on_progress is not None:
            on_progress(done, total)

    on_images(0)
    if pending:
        run_tasks(pending, on_images)
    statistics = load_latent_statistics(run)
    description = {
        "schema_version": SCHEMA_VERSION,
        "model": {"name": job.name, "fingerprint": fingerprint},
        "dataset": {"name": dataset.metadata.name, "fingerprint": dataset.metadata.fingerprint},
        "image_size": dataset.metadata.image_size,
        "latent_shape": shape,
        "statistics": statistics.to_json() if statistics is not None else None,
        "splits": {
            split: [{"file": shard.file, "rows": shard.rows} for shard in shards]
            for split, shards in dataset.metadata.splits.items()
        },
    }
    (destination / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
    return total


def encode_here(run: RunDirectory, device: torch.device) -> RunTasks:
    """Runs tasks one after another in this process."""

    def run_tasks(tasks: Sequence[EncodeTask], on_images: OnImages) -> None:
        generator, _ = load_trained_model(run, device)
        for task in tasks:
            on_images(task(generator))

    return run_tasks


def _latent_shape(model: KlAutoencoderModel, metadata: Metadata) -> tuple[int, ...]:
    if metadata.channels != model.channels or metadata.image_size % model.down_factor:
        raise JobError(
            f"DATASET: must have images of {model.channels} channels whose side is a multiple of {model.down_factor} "
            f"pixels, got {metadata.channels} and {metadata.image_size}; prepare it anew"
        )
    side = metadata.image_size // model.down_factor
    if not model.can_normalise(metadata.image_size, metadata.image_size):
        raise JobError(
            f"DATASET: must have images of more than {model.down_factor} pixels for this model, whose normalisation "
            f"leaves nothing of a latent code of one position, got {metadata.image_size}; prepare it larger"
        )
    return (model.latent_channels, side, side)


def _claim(destination: Location, owner: dict[str, str]) -> None:
    destination.check_writable("DESTINATION")
    file = destination / CLAIM
    if file.exists():
        try:
            found: Any = json.loads(file.read_text())
        except ValueError as error:
            raise DataError(f"{file}: is damaged ({error}); remove the folder {destination}") from error
        if found != owner:
            raise JobError(
                f"DESTINATION: {destination} holds latents of another model or dataset ({found}, here {owner}); give "
                "another folder, or remove that one"
            )
        return
    # Hidden files are what a kill has left of a probe, or of a file that was being written.
    if any(not name.startswith(".") for name in destination.names()):
        raise JobError(f"DESTINATION: must be empty or hold latents, {destination} holds other files; give another")
    file.write_text(json.dumps(owner, indent=2) + "\n")


def _as_lists(latents_BCHW: Tensor) -> pa.FixedSizeListArray:
    values = latents_BCHW.cpu().flatten(1).numpy()
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float32()), values.shape[1])
