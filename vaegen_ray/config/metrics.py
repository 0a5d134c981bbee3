"""The names of the scores that the evaluation of a job gives."""

from vaegen_ray.config.job import TrainJob

DISTANCES = ("swd",)
DISTANCES_OF_FEATURES = ("fid", "kid")
SPREAD = ("diversity",)
SPREAD_OF_FEATURES = ("precision", "recall", "density", "coverage")
AUTOENCODING = (
    "reconstruction_mse",
    "reconstruction_psnr",
    "reconstruction_ssim",
    "kl_nats",
    "rate_bits_per_dimension",
    "active_units",
)


def evaluated_metrics(job: TrainJob) -> tuple[str, ...]:
    """Every score of an evaluation of ``job``, in the middle of its run and at its end."""
    distances = DISTANCES + (DISTANCES_OF_FEATURES if job.evaluation.features is not None else ())
    autoencodes = job.objective.kind != "gan"
    sets = ("reconstruction", "sample") if autoencodes else ("sample",)
    named = tuple(f"{images}_{distance}" for images in sets for distance in distances)
    spread = SPREAD + (SPREAD_OF_FEATURES if job.evaluation.features is not None else ())
    named += tuple(f"sample_{part}" for part in spread)
    return (AUTOENCODING if autoencodes else ()) + named
