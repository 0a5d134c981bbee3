"""The final scores of a run as a file: what was measured, on what, how."""

import json
from collections.abc import Mapping

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import CheckpointError

UNITS = {
    "reconstruction_psnr": ("dB", "higher"),
    "reconstruction_ssim": ("at most 1", "higher"),
    "reconstruction_mse": ("images in [0, 1]", "lower"),
    "reconstruction_lpips": ("", "lower"),
    "reconstruction_swd": ("deviations of real patches", "lower"),
    "reconstruction_fid": ("", "lower"),
    "reconstruction_kid": ("", "lower"),
    "sample_swd": ("deviations of real patches", "lower"),
    "sample_fid": ("", "lower"),
    "sample_kid": ("", "lower"),
    "kl_nats": ("nats an image", ""),
    "active_units": ("latent dimensions", ""),
}
"""Metric to (unit, which way is better)."""


def save_scores(scores: Mapping[str, float], job: TrainJob, num_held_out: int, run: RunDirectory) -> None:
    """Write ``scores`` to ``run.scores``, with the set, the number of images and the feature network.

    ``num_held_out`` is the size of the held-out set; the job says how many of it are compared.
    """
    features = job.evaluation.features
    record = {
        "scores": dict(scores),
        "compared_with": {"data": job.data.source, "split": "held_out"},
        "images": min(job.evaluation.images, num_held_out),
        "features": features.model_dump(mode="json") if features is not None else None,
        "seed": job.seed,
    }
    run.scores.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")


def load_scores(run: RunDirectory) -> dict[str, float]:
    """The final scores of ``run``; CheckpointError where they are missing or damaged."""
    if not run.scores.exists():
        raise CheckpointError(f"{run.root}: must be a finished run, has no final/scores.json; finish or evaluate it")
    try:
        return {str(name): float(value) for name, value in json.loads(run.scores.read_text())["scores"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        remedy = f"`vaegen evaluate {run.root}` writes it again"
        raise CheckpointError(f"{run.scores}: must be JSON with scores, is damaged ({error!r}); {remedy}") from error
