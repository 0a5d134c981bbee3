"""A run from its job to its results: claim the directory, resume, train, evaluate, keep the model."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.model import KlAutoencoderModel
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.data.batches import ImageBatches, to_float
from vaegen_ray.data.cache import NodeCache
from vaegen_ray.data.dataset import Dataset
from vaegen_ray.data.pixels import Pixels
from vaegen_ray.data.placement import Images, training_images
from vaegen_ray.data.plain_parquet import check_dataset, open_dataset
from vaegen_ray.errors import JobError
from vaegen_ray.evaluation.diffusers_config import keep_config
from vaegen_ray.evaluation.diffusers_format import check_diffusers, load_diffusers_weights
from vaegen_ray.evaluation.features import check_features
from vaegen_ray.evaluation.latent_statistics import LatentStatistics, latent_statistics
from vaegen_ray.evaluation.scores import Compared, read_record, save_scores
from vaegen_ray.evaluation.shares import images_per_batch
from vaegen_ray.evaluation.trained_model import save_trained_model
from vaegen_ray.models.arithmetic import use_exact_arithmetic
from vaegen_ray.objectives.perceptual import check_lpips
from vaegen_ray.runs.lease import Fence, Lease, locked
from vaegen_ray.storage import Location
from vaegen_ray.tracking.open import check_tracking, open_trackers
from vaegen_ray.tracking.tracker import Tracker, Trackers
from vaegen_ray.training.checkpoint import highest_fence, restore_newest
from vaegen_ray.training.collectives import from_rank_0, gather_objects, is_rank_0, sum_over_ranks, together
from vaegen_ray.training.incidents import RollBack, roll_back
from vaegen_ray.training.loop import Ending, train
from vaegen_ray.training.precision import compile_networks
from vaegen_ray.training.provenance import record_end, record_start
from vaegen_ray.training.recorder import Recorder
from vaegen_ray.training.session import Session
from vaegen_ray.training.state import TrainState
from vaegen_ray.training.watchdog import Incident

IS_TRAINED = (
    "name: {root} is being trained by another process{holder}; wait for it, stop it, or give this job another name"
)
LOCK_TIMEOUT_S = 30.0
"""Long enough for a killed worker's successor, which may start before the system has let go of the lock."""


@dataclasses.dataclass(frozen=True)
class RunResult:
    """How a run ended; crosses processes."""

    ending: Ending
    position: int
    scores: dict[str, float]
    stop_signal: int | None = None
    """The signal that stopped the run, where one did."""
    was_complete_before: bool = False


def check_train_job(job: TrainJob) -> None:
    """Refuse, before anything is launched, what a look at dataset, weights, packages and storage can refuse."""
    check_inputs(job)
    run = RunDirectory.of(job)
    if not run.is_complete():
        run.root.check_writable()


def check_inputs(job: TrainJob) -> None:
    """Refuse what a look at dataset, weights and packages can refuse."""
    check_dataset(job.data, job.model)
    if (
        isinstance(job.model, KlAutoencoderModel)
        and job.model.start_from is not None
        # Later, the run's own checkpoints have all of it.
        and not RunDirectory.of(job).checkpoint_positions()
    ):
        check_diffusers(Location.of(job.model.start_from), job.model)
    _check_networks(job)
    check_tracking(job.tracking)


def _check_networks(job: TrainJob) -> None:
    if job.evaluation.features is not None:
        check_features(job.evaluation.features)
    for network in job.lpips_networks():
        check_lpips(network)


def finished_result(job: TrainJob) -> RunResult | None:
    """The result of ``job``'s run if it is already complete; JobError if the name holds another job's."""
    run = RunDirectory.of(job)
    if not run.is_complete():
        return None
    run.check_is_of(job)
    record = read_record(run)
    position = record.get("position", job.training.final_position)
    return RunResult(Ending.COMPLETE, position, record["scores"], was_complete_before=True)


def run_training(
    job: TrainJob,
    session: Session,
    command: Sequence[str] = (),
    *,
    until: int | None = None,
    own_tracker: Tracker | None = None,
) -> RunResult:
    """Run or resume ``job`` to its end, or only ``until`` so many images were used, with a checkpoint there.

    Every rank calls it; ``command`` is what the user typed. ``own_tracker`` takes the metrics on whichever rank has
    one, with the waits of that rank, beside the trackers of the job, which are rank 0's.
    """
    use_exact_arithmetic()
    _check_ranks(job, session)
    run = RunDirectory.of(job)
    with ExitStack() as stack:
        fence = together(lambda: stack.enter_context(_sole_writer(run, session)) if is_rank_0() else None)
        from_rank_0(lambda: run.claim(job))
        dataset, images, held_out = together(lambda: _open_dataset(job, session.device))
        stack.callback(images.close)
        state = _newest_state(job, session, run)
        state.check_replicas()
        tracker = together(lambda: _start(job, run, state.position, session, dataset, command, fence))
        recorder = Recorder(job, session, run, tracker, held_out, fence, dataset.metadata.fingerprint, own_tracker)
        stack.callback(recorder.close)
        recorder.begin(state.position)
        return _train_and_evaluate(job, session, state, recorder, images, until or job.training.total_images)


def _train_and_evaluate(
    job: TrainJob, session: Session, state: TrainState, recorder: Recorder, images: Images, until: int
) -> RunResult:
    until = min(until, job.training.total_images)
    ending = Ending.COMPLETE
    while ending is Ending.COMPLETE and state.position < until and not recorder.has_converged:
        leg, end = job.leg(state.position, recorder.rollback_factors)
        if job.changes or recorder.rollback_factors:
            state = state.under(leg, session.device)
        if state.position == 0 and job.evaluation.every_images is not None:
            recorder.evaluate(state)
        compile_networks(state.objective, leg, session.device)
        with ImageBatches(
            images,
            seed=job.seed,
            images_per_step=job.training.images_per_step,
            rank=session.rank,
            num_ranks=session.num_ranks,
            position=state.position,
        ) as batches:
            try:
                ending = train(leg, session, state, batches, recorder, min(end, until))
            except RollBack as alarm:
                state = _roll_back(job, session, recorder, alarm.incident)
    is_over = state.position >= job.training.total_images or recorder.has_converged
    if ending is Ending.STOPPED or not is_over:
        signals = gather_objects(session.stop_signal or 0)
        reasons = [reason for reason in gather_objects(session.reason_to_stop) if reason]
        together(recorder.check_fence)
        from_rank_0(lambda: record_end(recorder.run, state.position, reasons))
        return RunResult(Ending.STOPPED, state.position, {}, stop_signal=max(signals) or None)
    scores = recorder.evaluate(state, is_last=True)
    statistics = _latent_statistics(job, session, state, images)
    together(recorder.check_fence)
    from_rank_0(lambda: _complete(job, state, recorder, scores, statistics))
    return RunResult(ending, state.position, scores)


def _complete(
    job: TrainJob, state: TrainState, recorder: Recorder, scores: dict[str, float], statistics: LatentStatistics | None
) -> None:
    save_trained_model(state.ema.generator, job, recorder.run.final, state.position, statistics)
    if recorder.tracker is not None:
        recorder.tracker.flush()
    # Last of all: where the scores are, the run is complete.
    num_images = min(job.evaluation.images, len(recorder.held_out))
    save_scores(scores, job, Compared("held_out", num_images, num_images), recorder.run, position=state.position)


def _newest_state(job: TrainJob, session: Session, run: RunDirectory) -> TrainState:
    """Of the newest checkpoint, or of the beginning."""
    state = TrainState(job, session.device)
    restore_newest(state, run)
    together(lambda: _start_from_published(state, job, run))
    return state


def _start_from_published(state: TrainState, job: TrainJob, run: RunDirectory) -> None:
    if not isinstance(job.model, KlAutoencoderModel) or job.model.start_from is None:
        return
    folder, is_new = Location.of(job.model.start_from), state.position == 0
    if is_new:
        load_diffusers_weights(state.objective.generator, folder, job.model)
        state.ema.generator.load_state_dict(state.objective.generator.state_dict())
    # A trial that goes on with the beginning of another has none yet.
    if is_rank_0() and (is_new or not run.published.exists()):
        keep_config(folder, run)


def _latent_statistics(job: TrainJob, session: Session, state: TrainState, images: Images) -> LatentStatistics | None:
    """Of all training images, this rank's share of them by its own hands; None for a model without a spatial code."""
    if not isinstance(job.model, KlAutoencoderModel):
        return None
    share = np.array_split(np.arange(len(images), dtype=np.uint64), session.num_ranks)[session.rank]
    count = images_per_batch(job.model.image_size)
    images.order(job.seed)  # Windows need one, and a run that was killed in its last evaluation has trained nothing.

    def batches() -> Iterator[torch.Tensor]:
        for first in range(0, len(share), count):
            read = images.read(share[first : first + count], job.training.final_position)
            yield to_float(images.hand_over(read).to(session.device))

    return latent_statistics(state.ema.generator, batches(), sum_over_ranks)


def _roll_back(job: TrainJob, session: Session, recorder: Recorder, incident: Incident) -> TrainState:
    """The state of the last checkpoint before ``incident``; metrics go on from there."""
    fence = recorder.fence
    together(recorder.check_fence)
    position = from_rank_0(lambda: roll_back(job, recorder.run, incident))
    together(recorder.close)
    tracker = together(lambda: open_trackers(job, recorder.run, position, fence.check) if fence else None)
    recorder.rolled_back(tracker, position, incident)
    return _newest_state(job, session, recorder.run)


def _start(
    job: TrainJob,
    run: RunDirectory,
    position: int,
    session: Session,
    dataset: Dataset,
    command: Sequence[str],
    fence: Fence | None,
) -> Trackers | None:
    """Record this start and open the trackers, on rank 0, which has the fence."""
    if fence is None:
        return None
    record_start(job, run, position, session, dataset.metadata.fingerprint, command)
    return open_trackers(job, run, position, fence.check)


@contextmanager
def _sole_writer(run: RunDirectory, session: Session) -> Iterator[Fence]:
    """Keep a second process from writing the same run.

    On a local disk by a lock, which goes with its holder however it dies; everywhere by a lease, which is the
    driver's where there is one.
    """
    with ExitStack() as stack:
        stack.enter_context(locked(run.root, run.lock, run.lease, LOCK_TIMEOUT_S, IS_TRAINED))
        fence = session.fence
        if fence is None:
            lease = Lease(run.lease, above=highest_fence(run))
            stack.callback(lease.release)
            fence = lease.fence
        fence.check()
        yield fence


def _check_ranks(job: TrainJob, session: Session) -> None:
    if job.training.images_per_step % session.num_ranks == 0:
        portions = session.num_ranks * job.portions(session.num_ranks)
        if job.training.images_per_step % portions == 0:
            return
    raise JobError(
        f"training.images_per_step: must be a multiple of the processes x training.accumulation_steps "
        f"({session.num_ranks} x {job.training.accumulation_steps}), got {job.training.images_per_step}"
    )


def _open_dataset(job: TrainJob, device: torch.device) -> tuple[Dataset, Images, Pixels]:
    _check_networks(job)
    dataset = open_dataset(job.data, job.model)
    held_out = dataset.decoded("held_out", NodeCache.of(job.data), job.evaluation.images)
    return dataset, training_images(dataset, job.data, device), held_out
