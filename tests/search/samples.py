"""A small search job, and logs of its trials."""

from pathlib import Path
from typing import Any

from vaegen_ray.config.completion import merged
from vaegen_ray.config.loading import job_of
from vaegen_ray.config.search import SearchJob

BALANCE = "objective.adversarial.balance"
SPACE = {
    "objective.kl.weight": {"kind": "log_uniform", "low": 0.01, "high": 10.0},
    f"{BALANCE}.share": {"kind": "uniform", "low": 0.1, "high": 0.9},
}
NETWORK = {"width": 4, "max_width": 8, "depth": 1}


def base_tree(data: str = "shipped:fashion_mnist", **sections: Any) -> dict[str, Any]:
    tree = {
        "kind": "train",
        "name": "base",
        "data": {"source": data},
        "model": {
            "kind": "convolutional",
            "image_size": 16,
            "channels": 1,
            "latent_dim": 4,
            "encoder": NETWORK,
            "decoder": NETWORK,
        },
        "objective": {
            "kind": "vae_gan",
            "adversarial": {"balance": {"kind": "gradient_share", "share": 0.4}},
            "discriminator": NETWORK,
        },
        "training": {"total_images": 96, "images_per_step": 8, "ema": {"half_life_images": 40}},
        "evaluation": {"images": 16, "grid_images": 4, "every_images": 32},
    }
    return merged(tree, sections)


def search_tree(storage: Path | str, base: dict[str, Any] | None = None, **sections: Any) -> dict[str, Any]:
    return {
        "kind": "search",
        "name": "search",
        "storage": str(storage),
        "base": base or base_tree(),
        "space": SPACE,
        "objectives": [
            {"metric": "reconstruction_psnr", "goal": "maximize"},
            {"metric": "sample_swd", "goal": "minimize"},
        ],
        "trials": 4,
        **sections,
    }


def search_job(storage: Path | str, base: dict[str, Any] | None = None, **sections: Any) -> SearchJob:
    job = job_of(search_tree(storage, base, **sections), "search.yaml")
    assert isinstance(job, SearchJob)
    return job
