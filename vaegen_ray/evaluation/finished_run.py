"""The whole judgement of a finished run: all scores and pictures, by one process or several."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.data.cache import NodeCache
from vaegen_ray.data.plain_parquet import open_dataset
from vaegen_ray.errors import CheckpointError, JobError
from vaegen_ray.evaluation.evaluate import evaluate
from vaegen_ray.evaluation.inference import images_of_bytes
from vaegen_ray.evaluation.memorisation import memorisation
from vaegen_ray.evaluation.pictures import image_grid, save_picture, traversal_grid
from vaegen_ray.evaluation.scores import GROUPS, Compared, save_scores
from vaegen_ray.evaluation.shares import Share
from vaegen_ray.evaluation.trained_model import load_trained_model, trained_position
from vaegen_ray.runs.records import trained_on
from vaegen_ray.storage import Location

SEPARATE = ("memorisation", "traversals")
"""Not measured while training."""


@dataclass(frozen=True)
class Request:
    """What is asked of an evaluation; crosses processes."""

    groups: tuple[str, ...]
    """Of :data:`~vaegen_ray.evaluation.scores.GROUPS`."""
    samples: int | None
    split: Literal["held_out", "train"]


def evaluate_run(
    run: RunDirectory,
    request: Request,
    device: torch.device,
    *,
    rank: int = 0,
    num_ranks: int = 1,
    gather: Callable[[Tensor], Tensor] = lambda rows: rows,
    total: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> tuple[TrainJob, dict[str, float], Compared]:
    """Measure what is asked for, and write it into the run's directory on rank 0. A collective.

    Raises JobError where the dataset holds other images than those that the run was trained on, and CheckpointError
    where the run has no scores yet and would get a part of them.
    """
    generator, job = load_trained_model(run, device)
    if rank == 0:
        run.final.check_writable("RUN")  # Else all is measured for nothing.
    # The job's own `storage` may begin in another working directory, or be where the run was before.
    job = job.model_copy(update={"storage": run.root.parent.url})
    dataset, cache = open_dataset(job.data, job.model), NodeCache.of(job.data)
    _check_same_images(run, job, dataset.metadata.fingerprint)
    wanted = request.samples or job.evaluation.images
    known = job.data.max_images if request.split == "train" else None
    real = dataset.decoded(request.split, cache, min(wanted, known or wanted))
    num_real, num_own = min(wanted, len(real)), min(job.evaluation.images, dataset.metadata.counts["held_out"])
    num_samples = request.samples or num_real
    is_own = request.split == "held_out" and num_samples == num_real == num_own
    compared = Compared(request.split, num_real, num_samples, is_own=is_own)
    _check_makes_no_part_of_the_scores(run, request, compared)
    scores: dict[str, float] = {}
    if set(request.groups) - set(SEPARATE):
        scores = evaluate(
            generator,
            real,
            job,
            device=device,
            rank=rank,
            num_ranks=num_ranks,
            gather=gather,
            total=total,
            samples=request.samples,
            fingerprint=dataset.metadata.fingerprint,
            split=request.split,
        )
    share = Share(len(real), rank, num_ranks, gather, total)
    if "memorisation" in request.groups:
        held_out = dataset.decoded("held_out", cache, job.evaluation.images)
        found = memorisation(
            generator, dataset.decoded("train", cache, job.data.max_images), held_out, job, share, device
        )
        scores["memorised_fraction"] = found.memorised_fraction
        if rank == 0:
            grid = image_grid(found.pairs_BCHW, columns=len(found.pairs_BCHW) // 2)
            save_picture(grid, run.samples / "final-nearest-training-images.png")
    if "traversals" in request.groups and rank == 0:
        first = images_of_bytes(dataset.decoded("held_out", cache, 1), device)
        save_picture(traversal_grid(generator, first, job.seed), run.samples / "final-traversals.png")
    wanted_names = {name for group in request.groups for name in GROUPS[group]}
    scores = {name: value for name, value in scores.items() if name in wanted_names}
    if rank == 0:
        _save(scores, job, compared, run)
    return job, scores, compared


def scores_file(run: RunDirectory, compared: Compared) -> Location:
    """The run's own scores where images are compared that its training compares, else a file of their own.

    In the run's they would stand in for those that comparisons and reports hold against other runs'.
    """
    return run.scores if compared.is_own else run.final / f"scores-{compared.split}-{compared.samples}.json"


def _check_same_images(run: RunDirectory, job: TrainJob, fingerprint: str) -> None:
    known = trained_on(run)
    if known is not None and known != fingerprint:
        raise JobError(
            f"data.source: {job.data.source} holds other images than this run was trained on (fingerprint "
            f"{known[:12]} there, {fingerprint[:12]} here), some of which it may know; restore them"
        )


def _check_makes_no_part_of_the_scores(run: RunDirectory, request: Request, compared: Compared) -> None:
    """Scores of the run's own mark it as complete, and nobody would measure the rest."""
    training = set(GROUPS) - set(SEPARATE)
    if not run.scores.exists() and not (compared.is_own and training <= set(request.groups)):
        raise CheckpointError(
            f"{run.scores}: must hold the scores of the end of training before others are added, is missing; "
            f"`vaegen evaluate {run.root}` measures them"
        )


def _save(scores: dict[str, float], job: TrainJob, compared: Compared, run: RunDirectory) -> None:
    """The nearest-training-image check names its own set, whatever is asked for."""
    memory = {name: value for name, value in scores.items() if name == "memorised_fraction"}
    others = {name: value for name, value in scores.items() if name not in memory}
    position = trained_position(run)
    if others:
        save_scores(others, job, compared, run, position=position, file=scores_file(run, compared))
    if memory:
        save_scores(memory, job, replace(compared, split="held_out"), run, position=position)
