"""Small jobs as trees."""

import copy
from typing import Any

import pytest

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.loading import job_of, with_overrides
from vaegen_ray.errors import JobError

Tree = dict[str, Any]

OBJECTIVES: dict[str, Tree] = {
    "vae": {"kind": "vae"},
    "gan": {"kind": "gan"},
    "vae_gan": {"kind": "vae_gan", "adversarial": {"balance": {"kind": "gradient_share", "share": 0.4}}},
}

ONE_OF_EACH_KIND: dict[str, Tree] = {
    **OBJECTIVES,
    "vae, laplace": {
        "kind": "vae",
        "reconstruction": {"kind": "laplace", "scale": {"kind": "learned", "initial": 0.5}},
        "kl": {
            "weight": 0.5,
            "schedule": {"kind": "linear", "warmup_images": 100},
            "penalty": {"kind": "capacity", "nats": 9.0, "growth_images": 500},
        },
    },
    "gan, all": {
        "kind": "gan",
        "adversarial": {
            "loss": "relativistic",
            "gradient_penalty": {"r1": 1.0, "r2": 1.0},
            "lecam": {"weight": 0.1},
            "augment": ["color", "cutout"],
        },
    },
    "vae_gan, all": {
        "kind": "vae_gan",
        "reconstruction": {"kind": "discriminator_features", "layer": 1},
        "kl": {
            "schedule": {"kind": "cyclical", "cycle_images": 100},
            "penalty": {"kind": "free_bits", "nats_per_dimension": 0.1},
        },
        "adversarial": {
            "balance": {"kind": "equilibrium", "weight": 0.1},
            "shows": "reconstructions",
            "reaches_encoder": False,
            "feature_matching": {"weight": 1.0},
        },
        "discriminator": {"spectral_norm": True},
    },
    "vae_gan, adaptive": {
        "kind": "vae_gan",
        "reconstruction": {"kind": "gaussian", "scale": {"kind": "batch_optimal"}},
        "adversarial": {"loss": "hinge", "balance": {"kind": "adaptive", "weight": 0.5}, "shows": "generated"},
    },
}


def tree_of(objective: str | Tree = "vae_gan") -> Tree:
    """The shortest job of an objective, all keys but the required ones absent."""
    return {
        "kind": "train",
        "name": "tiny",
        "data": {"source": "datasets/tiny"},
        "model": {"kind": "convolutional", "image_size": 32, "channels": 1},
        "objective": copy.deepcopy(OBJECTIVES[objective] if isinstance(objective, str) else objective),
        "training": {"total_images": 1000, "images_per_step": 8},
    }


def job(objective: str | Tree = "vae_gan", *overrides: str) -> TrainJob:
    """The shortest job of an objective, with overrides as on the command line."""
    result = job_of(with_overrides(tree_of(objective), overrides), "job.yaml")
    assert isinstance(result, TrainJob)
    return result


def refusals(objective: str | Tree, *overrides: str) -> list[str]:
    """The sentences by which such a job is refused, without the file's name."""
    with pytest.raises(JobError) as refused:
        job(objective, *overrides)
    lines = str(refused.value).split("\n")
    assert all(line.startswith("job.yaml: ") for line in lines), lines
    return [line.removeprefix("job.yaml: ") for line in lines]
