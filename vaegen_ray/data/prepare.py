"""Make a dataset from a source of images: chunk by chunk, in bounded memory, the same bytes every time.

The chunks come from the source's listing, so a run that was killed is repeated: it keeps the chunks that are done,
and gives the same files. The folder is a dataset once `dataset.json` is there, which is written last.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vaegen_ray.config.prepare import PrepareJob, TorchvisionSource
from vaegen_ray.data.chunks import LeftOut, Plan
from vaegen_ray.data.conversion import Rejection
from vaegen_ray.data.duplicates import find_duplicates
from vaegen_ray.data.format import (
    CARD_FILE,
    JOB_FILE,
    METADATA_FILE,
    REJECTED_FILE,
    REJECTED_SCHEMA,
    REJECTION_KINDS,
    SCHEMA_VERSION,
    SPLITS,
    Metadata,
    RejectionKind,
    Shard,
    Split,
    fingerprint_of,
    rows_per_group,
)
from vaegen_ray.data.shards import TableWriter, workspace
from vaegen_ray.data.sources import ImageSource, open_source
from vaegen_ray.data.statistics import ImageStatistics
from vaegen_ray.data.tasks import (
    UNFINISHED,
    ChunkRecord,
    Conversion,
    ConvertTask,
    DistinctTask,
    OnImages,
    Task,
    extremes,
    finished_record,
)
from vaegen_ray.errors import DataError, JobError, VaegenError
from vaegen_ray.storage import Location

MADE_HERE = re.compile(r"(train|held_out)-\d{5,}\.parquet|rejected\.parquet")
"""Files that an earlier run of the job may have left at its destination."""

SHOWN_REJECTIONS = 20

Progress = Callable[[int, int | None], None]
"""Takes the images handled so far and the images of the source, None while only reading tells."""

Run = Callable[[Sequence[Task], OnImages], None]
"""Does tasks, in any order, and tells how many images are done."""


@dataclass(frozen=True)
class PrepareSummary:
    """What `prepare` made, or found already made."""

    destination: str
    metadata: Metadata
    was_complete: bool
    rejections: tuple[Rejection, ...]
    """The first few; ``rejected.parquet`` has all."""
    num_left_out: int
    left_out: tuple[str, ...]
    """The first few names of what is no image of the source."""

    def __str__(self) -> str:
        counts, size = self.metadata.counts, self.metadata.image_size
        num_bytes = sum(shard.bytes for shards in self.metadata.splits.values() for shard in shards)
        lines = [
            f"{self.destination}: already complete, nothing was done"
            if self.was_complete
            else f"{self.destination}: done",
            f"  {counts['train']} training and {counts['held_out']} held-out images, "
            f"{size} x {size} x {self.metadata.channels}, {num_bytes / 1e6:.1f} MB, "
            f"fingerprint {self.metadata.fingerprint[:16]}",
        ]
        if any(self.metadata.rejected.values()):
            kinds = [f"{count} {kind.replace('_', ' ')}" for kind, count in self.metadata.rejected.items() if count]
            lines.append(f"  rejected: {', '.join(kinds)}; all are named in {REJECTED_FILE}")
            lines += [f"    {rejection.id}: {rejection.reason}" for rejection in self.rejections]
        if self.num_left_out:
            lines.append(f"  {self.num_left_out} left out, not images of this source: {', '.join(self.left_out)}")
        return "\n".join(lines)


def run_here(tasks: Sequence[Task], on_images: OnImages) -> None:
    """Do the tasks one after another, each in as many threads as there are processors."""
    for task in tasks:
        task(os.cpu_count() or 1, on_images)


def prepare(job: PrepareJob, on_progress: Progress | None = None, run: Run = run_here) -> PrepareSummary:
    """Make the dataset of ``job`` at its destination, unless it is there already."""
    destination = Location.of(job.destination)
    if (found := _finished(job, destination)) is not None:
        return found
    source = open_source(job)
    _check_outside(source.root, job, destination)
    plan = source.plan()
    _claim(job, destination)
    try:
        return _made(job, source, plan, destination, on_progress or _nobody_looks, run)
    except (VaegenError, OSError):
        # Another process that makes the same dataset may have finished it, and cleared what we were working on.
        if (found := _finished(job, destination)) is not None:
            return found
        raise


def _nobody_looks(done: int, total: int | None) -> None:
    """Show no progress."""


def _made(
    job: PrepareJob, source: ImageSource, plan: Plan, destination: Location, on_progress: Progress, run: Run
) -> PrepareSummary:
    conversion = Conversion(source, job.image, job.minimum_pixels, plan.label_type, destination)
    tasks: list[Task] = [ConvertTask(conversion, chunk, job.remove_duplicates) for chunk in plan.chunks]
    _do(tasks, plan, on_progress, run)
    if job.remove_duplicates:
        repeats = find_duplicates([conversion.converted_file(chunk.number) for chunk in plan.chunks])
        tasks = [DistinctTask(conversion, chunk, repeats[chunk.number]) for chunk in plan.chunks]
        _do(tasks, plan, on_progress, run)
    return _Commit(job, source, plan, conversion).finish(tasks)


def _do(tasks: Sequence[Task], plan: Plan, on_progress: Progress, run: Run) -> None:
    """Do the tasks that an earlier run has not done."""
    done = 0

    def on_images(count: int) -> None:
        nonlocal done
        done += count
        on_progress(done, plan.num_images)

    conversion = tasks[0].conversion
    shards, records = set(conversion.destination.names()), set(conversion.unfinished.names())
    waiting = []
    for task in tasks:
        record = finished_record(task) if task.record_file.name in records else None
        if record is not None and all(shard.file in shards for shard in record.shards.values()):
            on_images(record.num_images)
        else:
            waiting.append(task)
    if waiting:
        run(waiting, on_images)


class _Commit:
    """Puts the records of all chunks together, in their order."""

    def __init__(self, job: PrepareJob, source: ImageSource, plan: Plan, conversion: Conversion) -> None:
        self._job = job
        self._source = source
        self._plan = plan
        self._conversion = conversion
        self._destination = conversion.destination
        self._splits: dict[Split, list[Shard]] = {split: [] for split in SPLITS}
        self._statistics = ImageStatistics(job.image.size, job.image.channels)
        self._left_out = LeftOut(plan.left_out.first_names)
        self._left_out.count = plan.left_out.count
        self._num_images = 0
        self._rejected: Counter[RejectionKind] = Counter()
        self._damaged: list[Rejection] = []
        self._first_rejections: list[Rejection] = []
        self._sizes: list[tuple[int, int]] = []

    def finish(self, tasks: Sequence[Task]) -> PrepareSummary:
        """Write ``rejected.parquet``, clear what is left of earlier runs, and describe the dataset."""
        with workspace(self._conversion.unfinished) as folder:
            table = TableWriter(REJECTED_SCHEMA, self._destination / REJECTED_FILE, folder)
            for task in tasks:
                self._add(task, table)
            if table.num_rows:
                table.put()
        self._check_rejected()
        counts = {split: sum(shard.rows for shard in self._splits[split]) for split in SPLITS}
        if not counts["train"]:
            rejected = f", and {sum(self._rejected.values())} rejected ({REJECTED_FILE})" if self._rejected else ""
            remedy = "lower held_out_fraction" if counts["held_out"] else "repair them"
            remedy = "lower minimum_pixels" if self._rejected["too_small"] else remedy
            raise DataError(
                f"{self._job.name}: must have at least one training image, got none and {counts['held_out']} held-out"
                f"{rejected}; remove the destination and {remedy}, or add images"
            )
        metadata = self._metadata(counts)
        keep = {shard.file for shards in self._splits.values() for shard in shards}
        keep |= {REJECTED_FILE} if any(self._rejected.values()) else set()
        for name in filter(MADE_HERE.fullmatch, self._destination.names()):
            if name not in keep:
                (self._destination / name).remove()
        (self._destination / CARD_FILE).write_text(metadata.card())
        (self._destination / METADATA_FILE).write_text(metadata.to_json())
        self._conversion.unfinished.remove()
        return PrepareSummary(
            destination=str(self._destination),
            metadata=metadata,
            was_complete=False,
            rejections=tuple(self._first_rejections),
            num_left_out=self._left_out.count,
            left_out=tuple(self._left_out.first_names),
        )

    def _add(self, task: Task, table: TableWriter) -> None:
        record = ChunkRecord.model_validate_json(task.record_file.read_text())
        image = self._job.image
        content = self._conversion.statistics_file(task.chunk.number).read_bytes()
        self._statistics.merge(ImageStatistics.from_bytes(content, image.size, image.channels))
        for split, shard in record.shards.items():
            self._splits[split].append(shard)
        for rejection in record.rejections:
            table.append(
                {
                    "id": rejection.id,
                    "kind": rejection.kind,
                    "reason": rejection.reason,
                    "repeats": rejection.repeats,
                    "bytes": rejection.num_bytes,
                }
            )
            self._rejected[rejection.kind] += 1
            for shown, wanted in ((self._first_rejections, True), (self._damaged, rejection.kind == "damaged")):
                if wanted and len(shown) < SHOWN_REJECTIONS:
                    shown.append(rejection)
        self._left_out.merge(record.left_out, record.left_out_names)
        self._num_images += record.num_images
        self._sizes = extremes([*self._sizes, *record.source_sizes])

    def _check_rejected(self) -> None:
        damaged = self._rejected["damaged"]
        fraction = damaged / max(1, self._num_images)
        if fraction <= self._job.max_rejected_fraction:
            return
        names = "; ".join(f"{rejection.id}: {rejection.reason}" for rejection in self._damaged[:3])
        raise DataError(
            f"max_rejected_fraction: must not be passed ({self._job.max_rejected_fraction}), got {fraction:.4g} "
            f"({damaged} of {self._num_images} images: {names}{'; ...' if damaged > 3 else ''}); "
            f"all are in {self._destination / REJECTED_FILE}: repair them or raise the limit"
        )

    def _metadata(self, counts: dict[Split, int]) -> Metadata:
        image = self._job.image
        splits = {split: tuple(shards) for split, shards in self._splits.items()}
        return Metadata(
            schema_version=SCHEMA_VERSION,
            name=self._job.name,
            image_size=image.size,
            channels=image.channels,
            encoding=image.stored_encoding,
            label=self._plan.label_type,
            rows_per_group=rows_per_group(image.size),
            splits=splits,
            counts=counts,
            mean=self._statistics.mean(),
            std=self._statistics.std(),
            largest_eigenvalue=self._statistics.largest_eigenvalue(),
            source=self._source.description,
            licence=self._job.licence,
            smallest_source=self._sizes[0],
            largest_source=self._sizes[-1],
            rejected={kind: self._rejected[kind] for kind in REJECTION_KINDS},
            fingerprint=fingerprint_of(image.size, image.channels, image.stored_encoding, splits),
        )


def _finished(job: PrepareJob, destination: Location) -> PrepareSummary | None:
    """Return the summary of a dataset that this job made before; another's is refused."""
    metadata_file = destination / METADATA_FILE
    if not metadata_file.exists():
        return None
    _check_same_job(job, destination)
    metadata = Metadata.from_json(metadata_file.read_bytes(), str(metadata_file))
    # A kill right after `dataset.json` leaves it.
    (destination / UNFINISHED).remove()
    return PrepareSummary(str(destination), metadata, was_complete=True, rejections=(), num_left_out=0, left_out=())


def _claim(job: PrepareJob, destination: Location) -> None:
    """Write the job to the empty destination; what another job, or another tool, left there is refused."""
    names = destination.names()
    if JOB_FILE in names:
        _check_same_job(job, destination)
        return
    if names:
        raise JobError(
            f"destination: {destination} must be an empty folder or this job's, got {len(names)} other entries "
            f"({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}); choose another folder"
        )
    (destination / JOB_FILE).create(_job_text(job).encode())
    _check_same_job(job, destination)  # Another job may have begun at the same moment.


def _check_outside(root: Location, job: PrepareJob, destination: Location) -> None:
    """Refuse to write where the source is listed: the dataset would become a part of it."""
    folder, target = (os.path.realpath(place.url) if place.is_local else place.url for place in (root, destination))
    if not isinstance(job.source, TorchvisionSource) and f"{target}/".startswith(f"{folder}/"):
        raise JobError(f"destination: must lie outside of source.path {root}, got {destination}; choose another folder")


def _job_text(job: PrepareJob) -> str:
    # Only what the dataset depends on: it may be moved, and a failed job repeated with a higher limit.
    return job.model_dump_json(indent=2, exclude={"destination", "max_rejected_fraction"}) + "\n"


def _check_same_job(job: PrepareJob, destination: Location) -> None:
    job_file = destination / JOB_FILE
    if not job_file.exists():
        raise JobError(f"destination: {destination} holds a dataset that another tool made; choose another folder")
    try:
        theirs = json.loads(job_file.read_text())
    except ValueError as error:
        raise DataError(f"{job_file}: must be JSON, got {error}; remove the folder and prepare again") from error
    ours = json.loads(_job_text(job))
    if differing := sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)):
        key = differing[0]
        raise JobError(
            f"destination: {destination} belongs to another job, which differs in {', '.join(differing)} "
            f"({key} is {theirs.get(key)!r} there, {ours.get(key)!r} here); choose another folder or remove it"
        )
