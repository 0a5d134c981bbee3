"""Any Parquet with a column of encoded images as the dataset of a run: each node prepares it into its cache."""

import hashlib
import json
import logging
from pathlib import Path

from vaegen_ray.config.data import Data
from vaegen_ray.config.model import Model
from vaegen_ray.config.prepare import PrepareJob
from vaegen_ray.data.cache import NodeCache
from vaegen_ray.data.dataset import SHIPPED_SCHEME, Dataset
from vaegen_ray.data.format import JOB_FILE, METADATA_FILE, SCHEMA_VERSION, check_matches
from vaegen_ray.data.listing import files_of, walk
from vaegen_ray.data.prepare import PrepareSummary, prepare
from vaegen_ray.data.sources import open_source
from vaegen_ray.errors import DataError, JobError
from vaegen_ray.storage import Location

SUFFIX = ".parquet"

logger = logging.getLogger(__name__)


def open_dataset(data: Data, model: Model) -> Dataset:
    """The dataset of a job, which its model fits; plain Parquet is converted first where this node has not yet."""
    dataset = _converted(data, model) if _is_plain(data.source) else _open_prepared(data, model)
    _check_held_out(dataset, data)
    return dataset


def check_dataset(data: Data, model: Model) -> None:
    """Refuse, without converting anything, what a look at the source can refuse."""
    if _is_plain(data.source):
        open_source(_prepare_job(data, model)).plan()
    else:
        _check_held_out(_open_prepared(data, model), data)


def _converted(data: Data, model: Model) -> Dataset:
    cache, job = NodeCache.of(data), _prepare_job(data, model)
    name = f"converted/{_key(job)}"
    converted = cache.folder / name
    lease = cache.entry(
        name,
        num_bytes=0 if _is_whole(converted) else _most_bytes(job),
        is_whole=_is_whole,
        make=lambda content: _convert(job, content),
    )
    return Dataset.open(str(lease.path), lease)


def _check_held_out(dataset: Dataset, data: Data) -> None:
    if dataset.metadata.counts.get("held_out", 0) < 2:
        raise JobError(
            f"data.source: {data.source} must hold at least 2 held-out images to judge the model by; "
            "prepare it with held_out_fraction"
        )


def _is_plain(source: str) -> bool:
    if source.startswith(SHIPPED_SCHEME):
        return False
    if source.endswith(SUFFIX):
        return True
    location = Location.of(source)
    if any((location / file).exists() for file in (METADATA_FILE, JOB_FILE)):
        return False
    for _, entries in walk(location):  # Hugging Face has the files below the root.
        names = [entry.name for entry in entries]
        if METADATA_FILE in names:
            return False
        if any(name.endswith(SUFFIX) for name in names):
            return True
    return False


def _open_prepared(data: Data, model: Model) -> Dataset:
    dataset = Dataset.open(data.source)
    check_matches(dataset.metadata, model)
    if data.image_column is not None:
        raise JobError(
            f"data.image_column: has no effect, {data.source} is a prepared dataset, got '{data.image_column}'; "
            "remove it"
        )
    return dataset


def _prepare_job(data: Data, model: Model) -> PrepareJob:
    source = {"kind": "parquet", "path": data.source, "image_column": data.image_column or "image"}
    return PrepareJob.model_validate(
        {
            "kind": "prepare",
            "name": "plain-parquet",
            "source": source,
            "image": {"size": model.image_size, "channels": model.channels},
            "destination": "unused",
        }
    )


def _key(job: PrepareJob) -> str:
    """Another when a file, the format or the rules of preparation are others."""
    files = files_of(Location.of(job.source.path), (SUFFIX,))  # type: ignore[union-attr]
    content = [SCHEMA_VERSION, job.model_dump(mode="json"), files]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _most_bytes(job: PrepareJob) -> int:
    """The room to keep: the images take no more than their values."""
    num_images = open_source(job).plan().num_images or 0
    return num_images * job.image.size**2 * job.image.channels


def _is_whole(converted: Path) -> bool:
    return (converted / METADATA_FILE).exists()


def _convert(job: PrepareJob, content: Path) -> None:
    content.unlink()
    logger.info("%s: converting it for this machine", job.source)
    try:
        # What is damaged is judged here: nobody can look into a list of it, which goes with a failed conversion.
        summary = prepare(job.model_copy(update={"destination": str(content), "max_rejected_fraction": 1.0}))
        _check_rejected(summary, job.max_rejected_fraction)
    except DataError as error:
        raise DataError(
            f"data.source: cannot be used as it is: {error}; `vaegen prepare` can prepare it by other rules"
        ) from error
    if summary.rejections or summary.num_left_out:
        logger.warning("data.source: %s", summary)


def _check_rejected(summary: PrepareSummary, limit: float) -> None:
    num_damaged = summary.metadata.rejected.get("damaged", 0)
    num_images = sum(summary.metadata.counts.values()) + num_damaged
    if num_damaged > limit * num_images:
        named = "; ".join(f"{rejection.id}: {rejection.reason}" for rejection in summary.rejections[:3])
        more = "; ..." if num_damaged > 3 else ""
        raise DataError(f"{num_damaged} of its {num_images} images are damaged ({named}{more}), repair them")
