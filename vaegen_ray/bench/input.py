"""The input of a training job, interleaved in one run: alone, with training, and beside training on images in memory.

The cache of the measurement is a new one, so that its first epoch is cold. Other loaders (:class:`Peer`) read the
same images, converted to their own format beforehand, each in a process of its own and in turn with the rest.
"""

import itertools
import operator
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vaegen_ray.bench.peer import Peer, PeerTimes, RunningPeer
from vaegen_ray.config.job import TrainJob
from vaegen_ray.data.batches import ImageBatches
from vaegen_ray.data.dataset import Dataset, locate
from vaegen_ray.data.placement import Images, training_images
from vaegen_ray.data.plain_parquet import open_dataset
from vaegen_ray.storage import Location
from vaegen_ray.training.guard import FiniteGuard
from vaegen_ray.training.local_session import LocalSession
from vaegen_ray.training.loop import take_step
from vaegen_ray.training.precision import compile_networks
from vaegen_ray.training.rate import now
from vaegen_ray.training.state import TrainState

BATCHES_IN_MEMORY = 64
INPUT_ALONE_S = 1.0
"""For so long the input alone is read in each round."""

OnProgress = Callable[[str], None]


@dataclass
class StoreReads:
    """What was asked of an object store, and what came."""

    requests: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class LoaderTimes:
    """How fast a loader alone hands over batches: in its first epoch, and then."""

    cold_images_per_s: float
    images_per_s: float
    cold_first_batch_s: float
    first_batch_s: float


@dataclass(frozen=True)
class InputTimes:
    """Medians over the rounds."""

    num_images: int
    ours: LoaderTimes
    reads: StoreReads | None
    """By our loader, in all: None for images on a local disk."""
    training_images_per_s: float
    memory_images_per_s: float
    ratio: float
    """Speed of training with its input to that of training on images in memory, within a round."""
    peers: dict[str, LoaderTimes | str] = field(default_factory=dict)
    """By name; the reason where a peer could not be measured."""


def measure_input(
    job: TrainJob, peers: Sequence[Peer], *, device: torch.device, rounds: int, steps: int, on_progress: OnProgress
) -> InputTimes:
    """Time ``rounds`` rounds, in each of which ``steps`` steps are trained with the input and from memory."""
    with ExitStack() as stack:
        workspace = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vaegen-bench-")))
        job = job.model_copy(update={"data": job.data.model_copy(update={"cache": str(workspace / "cache")})})
        on_progress("first epoch")
        with _counted(locate(job.data.source)) as reads:
            cold = _epoch(job, device)
            dataset, images = _open(job, device)
        stack.callback(images.close)
        running = _start(job, dataset, peers, workspace, stack, on_progress)
        trainer = _Trainer(job, device)
        in_memory = _batches_in_memory(job, images, device)
        rates: dict[str, list[float]] = {"alone": [], "training": [], "memory": []}
        first_batch_s: list[float] = []
        for number in range(rounds):
            on_progress(f"round {number + 1} of {rounds}")
            first_batch_s.append(_time_to_first_batch(job, device))
            rates["alone"].append(_images_per_s_alone(job, images, device))
            position = trainer.state.position
            for name in ("training", "memory") if number % 2 else ("memory", "training"):
                # From the same position: what a step costs may depend on it.
                trainer.state.position = position
                batches = in_memory if name == "memory" else None
                rates[name].append(trainer.images_per_s(images, batches, steps))
            for peer in running:
                on_progress(f"round {number + 1} of {rounds}: {peer.name}")
                peer.read_epoch()
    return InputTimes(
        num_images=len(images),
        ours=LoaderTimes(
            cold.images / cold.epoch_s,
            statistics.median(rates["alone"]),
            cold.first_batch_s,
            statistics.median(first_batch_s),
        ),
        reads=reads,
        training_images_per_s=statistics.median(rates["training"]),
        memory_images_per_s=statistics.median(rates["memory"]),
        ratio=statistics.median(map(operator.truediv, rates["training"], rates["memory"])),
        peers={peer.name: peer.problem or _loader_times(peer.epochs) for peer in running},
    )


def _loader_times(epochs: Sequence[PeerTimes]) -> LoaderTimes:
    cold, *warm = epochs
    return LoaderTimes(
        cold.images / cold.epoch_s,
        statistics.median(times.images / times.epoch_s for times in warm),
        cold.first_batch_s,
        statistics.median(times.first_batch_s for times in warm),
    )


def _open(job: TrainJob, device: torch.device) -> tuple[Dataset, Images]:
    dataset = open_dataset(job.data, job.model)
    return dataset, training_images(dataset, job.data, device)


def _batches(job: TrainJob, images: Images) -> ImageBatches:
    return ImageBatches(images, seed=job.seed, images_per_step=job.training.images_per_step)


def _epoch(job: TrainJob, device: torch.device) -> PeerTimes:
    """Open the dataset and read an epoch."""
    start = time.perf_counter()
    _, opened = _open(job, device)
    with closing(opened) as images, _batches(job, images) as batches:
        num_batches = -(-len(images) // job.training.images_per_step)
        next(batches)
        first_batch_s = now(device) - start
        for _ in itertools.islice(batches, num_batches - 1):
            pass
        epoch_s = now(device) - start
    return PeerTimes(num_batches * job.training.images_per_step, first_batch_s, epoch_s)


def _time_to_first_batch(job: TrainJob, device: torch.device) -> float:
    start = time.perf_counter()
    _, opened = _open(job, device)
    with closing(opened) as images, _batches(job, images) as batches:
        next(batches)
        return now(device) - start


def _images_per_s_alone(job: TrainJob, images: Images, device: torch.device) -> float:
    with _batches(job, images) as batches:
        next(batches)
        start, num_batches = now(device), 0
        while now(device) - start < INPUT_ALONE_S:
            for _ in itertools.islice(batches, 16):
                num_batches += 1
        return num_batches * job.training.images_per_step / (now(device) - start)


def _batches_in_memory(job: TrainJob, images: Images, device: torch.device) -> list[Tensor]:
    """Some batches that lie ready on the device."""
    num_batches = min(BATCHES_IN_MEMORY, max(1, len(images) // job.training.images_per_step))
    with _batches(job, images) as batches:
        return [batch.to(device) for batch in itertools.islice(batches, num_batches)]


class _Trainer:
    """The loop's step, without what a run keeps."""

    def __init__(self, job: TrainJob, device: torch.device) -> None:
        self.job, self.device = job, device
        self.session = LocalSession(0, 1, device)
        self.state = TrainState(job, device)
        compile_networks(self.state.objective, job, device)
        self.guard = FiniteGuard(device)

    def images_per_s(self, images: Images, in_memory: list[Tensor] | None, steps: int) -> float:
        """Train on batches of the input, or on those in memory; one step before the clock runs."""
        if in_memory is not None:
            return self._timed(itertools.cycle(in_memory), steps)
        with _batches(self.job, images) as batches:
            return self._timed(batches, steps)

    def _timed(self, batches: Iterator[Tensor], steps: int) -> float:
        self._step(next(batches))
        start = now(self.device)
        for batch in itertools.islice(batches, steps):
            self._step(batch)
        return steps * self.job.training.images_per_step / (now(self.device) - start)

    def _step(self, images: Tensor) -> None:
        take_step(self.job, self.session, self.state, images, self.guard)


def _start(
    job: TrainJob,
    dataset: Dataset,
    peers: Sequence[Peer],
    workspace: Path,
    stack: ExitStack,
    on_progress: OnProgress,
) -> list[RunningPeer]:
    """Convert the images for each peer, put them where ours are, and start it."""
    if not peers:
        return []
    pixels = workspace / "images.npy"
    np.save(pixels, dataset.decoded("train", str(workspace / "cache"), job.data.max_images))
    running = []
    for number, peer in enumerate(peers):
        on_progress(f"converting for {peer.name}")
        folder = workspace / f"peer-{number}"
        peer_is_running = RunningPeer(peer, pixels, folder)
        running.append(peer_is_running)
        source = str(folder)
        if not dataset.location.is_local and peer_is_running.problem is None:
            remote = dataset.location.parent / f"{dataset.location.name}-bench-{uuid.uuid4().hex}"
            stack.callback(remote.remove)
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                (remote / str(file.relative_to(folder))).upload(file)
            source = str(remote)
        stack.callback(peer_is_running.close)
        peer_is_running.start(source, workspace / f"cache-{number}", job.training.images_per_step)
        # The first epoch, which fills its cache.
        peer_is_running.read_epoch()
    return running


@contextmanager
def _counted(source: Location) -> Iterator[StoreReads | None]:
    """Count what this process reads from an S3 store."""
    if not source.url.startswith("s3"):
        yield None
        return
    reads = StoreReads()

    def count_request(**_: Any) -> None:
        reads.requests += 1

    def count_bytes(parsed: dict[str, Any], **_: Any) -> None:
        reads.bytes += int(parsed.get("ContentLength") or 0)

    filesystem = source.filesystem
    filesystem.connect()
    events = filesystem.s3.meta.events
    events.register("request-created.s3", count_request)
    events.register("after-call.s3.GetObject", count_bytes)
    try:
        yield reads
    finally:
        events.unregister("request-created.s3", count_request)
        events.unregister("after-call.s3.GetObject", count_bytes)
