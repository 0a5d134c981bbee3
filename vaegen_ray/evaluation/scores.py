"""The final scores of a run as a file: what was measured, on what, how."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import CheckpointError
from vaegen_ray.evaluation.resizes import RESIZES
from vaegen_ray.storage import Location

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
    "sample_precision": ("of samples", "higher"),
    "sample_recall": ("of real images", "higher"),
    "sample_density": ("1 is as dense as real images", "higher"),
    "sample_coverage": ("of real images", "higher"),
    "sample_diversity": ("deviation, real images have 1", ""),
    "kl_nats": ("nats an image", ""),
    "rate_bits_per_dimension": ("bits a value of an image", ""),
    "active_units": ("latent dimensions", ""),
    "memorised_fraction": ("of samples; 0.01 is no memory", "lower"),
}
"""Metric to (unit, which way is better)."""

GROUPS = {
    "fid": ("reconstruction_fid", "sample_fid"),
    "kid": ("reconstruction_kid", "sample_kid"),
    "precision_recall": ("sample_precision", "sample_recall"),
    "density_coverage": ("sample_density", "sample_coverage"),
    "swd": ("reconstruction_swd", "sample_swd"),
    "diversity": ("sample_diversity",),
    "reconstruction": ("reconstruction_psnr", "reconstruction_ssim", "reconstruction_mse", "reconstruction_lpips"),
    "rate": ("kl_nats", "rate_bits_per_dimension"),
    "active_units": ("active_units",),
    "memorisation": ("memorised_fraction",),
    "traversals": (),
}
"""What a user may ask for, and the scores that it gives; traversals are a picture."""

OF_FEATURES = ("_fid", "_kid", "_precision", "_recall", "_density", "_coverage")
OF_KEPT_FEATURES = OF_FEATURES[1:]
MOST_FEATURES_KEPT = 10_000
"""Of a set, for what needs the features themselves: KID, precision and recall, density and coverage. FID takes all."""


@dataclass(frozen=True)
class Compared:
    """The two sets of images that scores are about."""

    split: str
    real: int
    samples: int
    is_own: bool = True
    """Whether they are those that the run's training compares at its end."""

    def condition(self, name: str, job: TrainJob) -> str:
        """The set, the number of images, the feature network and the resize of the score ``name``."""
        features, real = job.evaluation.features, f"{self.real:,} {self.split} images of {job.data.source}"
        if name.startswith("sample_"):
            sentence = f"{self.samples:,} samples against {real}"
        elif name == "memorised_fraction":
            sentence = f"samples and {self.split} images against all training images of {job.data.source}"
        else:
            sentence = real
        if name.endswith("_swd") and self.samples != self.real:
            sentence += f", {min(self.samples, self.real):,} of each"
        if name.endswith(OF_KEPT_FEATURES) and max(self.samples, self.real) > MOST_FEATURES_KEPT:
            sentence += f", at most {MOST_FEATURES_KEPT:,} of each"
        pixels = f"{job.model.image_size} pixels"
        if features is not None and (name.endswith(OF_FEATURES) or name == "memorised_fraction"):
            return f"{sentence}; {features.network}, {RESIZES[features.network].sentence} from {pixels}"
        return f"{sentence}; at {pixels}, not resized"


def save_scores(
    scores: Mapping[str, float],
    job: TrainJob,
    compared: Compared,
    run: RunDirectory,
    *,
    position: int,
    file: Location | None = None,
) -> None:
    """Write ``scores`` to ``run.scores``, each with the set, the number of images, the feature network and the resize.

    Or to ``file``, where they were measured on something else than the run's own.

    Scores of an earlier evaluation that are not among them stay, with what they were measured on.
    """
    file = file or run.scores
    before = _read(file, run) if file.exists() else {}
    record = {
        "scores": {**before.get("scores", {}), **scores},
        "measured_on": {
            **before.get("measured_on", {}),
            **{name: compared.condition(name, job) for name in scores},
        },
        "position": position,
        "seed": job.seed,
    }
    file.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")


def read_record(run: RunDirectory) -> dict[str, Any]:
    """What :func:`save_scores` wrote; CheckpointError where it is missing or damaged."""
    if not run.scores.exists():
        raise CheckpointError(f"{run.root}: must be a finished run, has no final/scores.json; finish or evaluate it")
    return _read(run.scores, run)


def read_other_records(run: RunDirectory) -> list[dict[str, Any]]:
    """What `vaegen evaluate` wrote of other images than the run's own."""
    return [_read(run.final / name, run) for name in run.final.names() if fnmatch(name, "scores-*.json")]


def _read(file: Location, run: RunDirectory) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text())
        scores = {str(name): float(value) for name, value in record["scores"].items()}
        return {**record, "scores": scores}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        remedy = f"remove it; `vaegen evaluate {run.root}` writes it again"
        raise CheckpointError(f"{file}: must be JSON with scores, is damaged ({error!r}); {remedy}") from error
