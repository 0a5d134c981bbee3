"""Small jobs of every kind, and the steps of one without files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vaegen_ray.config.completion import merged
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.data.batches import ImageBatches
from vaegen_ray.training.guard import FiniteGuard
from vaegen_ray.training.local_session import LocalSession
from vaegen_ray.training.loop import make_batch
from vaegen_ray.training.run import run_training
from vaegen_ray.training.session import Session
from vaegen_ray.training.state import TrainState

NETWORK = {"width": 4, "max_width": 8, "depth": 1}
ADVERSARIAL: dict[str, Any] = {"balance": {"kind": "gradient_share", "share": 0.4}}

OBJECTIVES: dict[str, dict[str, Any]] = {
    "vae": {"kind": "vae", "kl": {"weight": 1.0, "penalty": {"kind": "free_bits", "nats_per_dimension": 0.05}}},
    "vae, optimal scale": {
        "kind": "vae",
        "reconstruction": {"kind": "laplace", "scale": {"kind": "batch_optimal"}},
        "kl": {"weight": 1.0, "penalty": {"kind": "capacity", "nats": 5.0, "growth_images": 100}},
    },
    "gan": {
        "kind": "gan",
        "adversarial": {
            "balance": {"kind": "fixed", "weight": 1.0},
            "gradient_penalty": {"r1": 0.5, "r2": 0.5},
            "lecam": {"weight": 0.1},
        },
        "discriminator": NETWORK,
    },
    "gan, relativistic": {
        "kind": "gan",
        "adversarial": {
            "loss": "relativistic",
            "balance": {"kind": "fixed", "weight": 1.0},
            "gradient_penalty": {"r1": 0.5, "r2": 0.5},
            "augment": ["color", "translation", "cutout"],
        },
        "discriminator": NETWORK,
    },
    "vae_gan": {
        "kind": "vae_gan",
        "reconstruction": {"kind": "gaussian", "scale": {"kind": "learned", "initial": 0.5}},
        "adversarial": {
            **ADVERSARIAL,
            "gradient_penalty": {"r1": 0.5, "every_steps": 3},
            "lecam": {"weight": 0.1},
            "feature_matching": {"weight": 0.1},
            "start_images": 16,
            "ramp_images": 16,
            "augment": ["color", "translation", "cutout"],
        },
        "discriminator": {**NETWORK, "spectral_norm": True},
    },
    "vae_gan, adaptive": {
        "kind": "vae_gan",
        "reconstruction": {"kind": "laplace"},
        "adversarial": {"loss": "hinge", "balance": {"kind": "adaptive", "weight": 0.5}, "shows": "reconstructions"},
        "discriminator": NETWORK,
    },
    "larsen": {"preset": "larsen", "discriminator": NETWORK},
}
"""At least one of every term with a state or with a decision of the global batch."""


KL_AUTOENCODER: dict[str, Any] = {
    "kind": "kl_autoencoder",
    "image_size": 32,
    "channels": 3,
    "widths": [4, 8],
    "depth": 1,
    "norm_groups": 2,
    # Its keys have a bias without a gradient, which follows rounding.
    "mid_attention": False,
}
"""A model that takes the place of the small convolutional one."""


def job_with(objective: dict[str, Any], **sections: Mapping[str, Any] | str) -> TrainJob:
    """A job of 8 images a step at 16 pixels; ``sections`` are merged into it."""
    tree: dict[str, Any] = {
        "kind": "train",
        "name": "tiny",
        "data": {"source": "unused", "horizontal_flip": True},
        "model": {"kind": "convolutional", "image_size": 16, "channels": 1, "latent_dim": 4, "decoder": NETWORK},
        "objective": objective,
        "optimizer": {"generator": {"learning_rate": 1e-3, "clip_norm": 5.0}},
        "training": {"total_images": 80, "images_per_step": 8, "ema": {"half_life_images": 40}},
        "evaluation": {"images": 16, "grid_images": 4},
    }
    if objective.get("kind") != "gan":
        tree["model"]["encoder"] = NETWORK
    return TrainJob.model_validate(merged(tree, dict(sections)))


def run_job(dataset: Path, storage: Path | str, objective: dict[str, Any], **sections: Any) -> TrainJob:
    """A job on the small dataset, written to ``storage``."""
    return job_with(objective, **merged({"data": {"source": str(dataset)}, "storage": str(storage)}, sections))


def images_of(job: TrainJob, count: int = 40) -> NDArray[np.uint8]:
    """Random images for the steps of ``job``."""
    shape = (count, job.model.image_size, job.model.image_size, job.model.channels)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def take_steps(job: TrainJob, session: Session, state: TrainState, until: int) -> list[dict[str, float]]:
    """Train to the position ``until`` without any file; returns the metrics of each step of this rank."""
    guard = FiniteGuard(session.device)
    metrics = []
    with ImageBatches(
        images_of(job),
        seed=job.seed,
        images_per_step=job.training.images_per_step,
        rank=session.rank,
        num_ranks=session.num_ranks,
        position=state.position,
    ) as batches:
        while state.position < until:
            batch = make_batch(job, session, state.position, next(batches))
            for phase in state.phases:
                phase.update(batch, learning_rate_factor=1.0, guard=guard)
            state.position += job.training.images_per_step
            state.ema.follow(state.objective.generator, 0.9)
            metrics.append({name: float(value) for name, value in batch.metrics.items()})
    return metrics


def same_bits(one: TrainState, other: TrainState) -> bool:
    """Whether networks, averages and optimizers of the two states are equal to the bit."""
    first, second = one.tensors(), other.tensors()
    networks = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    return networks and all(
        torch.equal(a.optimizer.state[p][key], b.optimizer.state[q][key])
        for a, b in zip(one.phases, other.phases, strict=True)
        for p, q in zip(a.parameters, b.parameters, strict=True)
        for key in ("step", "exp_avg", "exp_avg_sq")
        if p in a.optimizer.state or q in b.optimizer.state
    )


def run_alone(job: TrainJob, storage: Path) -> RunDirectory:
    """The same train job, run by itself in this process, with as many threads as a trial of a search."""
    again = job.model_validate({**job.model_dump(), "storage": str(storage)})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run_training(again, LocalSession(0, 1, torch.device("cpu")))
    torch.set_num_threads(threads)
    return RunDirectory.of(again)
