"""The rules between the sections of a train job. Each broken one is a sentence: key, rule, value, remedy.

A setting that has no effect in its job breaks a rule too: its author expects something of it.
"""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vaegen_ray.config.model import ConvolutionalModel, KlAutoencoderModel
from vaegen_ray.config.objective import (
    Adversarial,
    ConvolutionalDiscriminator,
    GanObjective,
    PatchDiscriminator,
    Perceptual,
    PlainPenalty,
    VaeGanObjective,
    VaeObjective,
)
from vaegen_ray.config.sentences import must_be

if TYPE_CHECKING:
    from vaegen_ray.config.job import Features, TrainJob

SMALLEST_OF_LPIPS = 32
"""Pixels, below which the last stage of a network of LPIPS has nothing left to see."""

SMALLEST_OF_PATCHES = 3
"""Pixels of the last feature map of a PatchGAN, of which its two last layers take one each."""


def broken_rules(job: "TrainJob") -> Iterator[str]:
    """All rules that ``job``, whose sections are each valid, breaks."""
    objective = job.objective
    yield from _division_of_a_step(job)
    yield from _learning_rate(job)
    yield from _data(job)
    if job.evaluation.features is not None:
        yield from _features(job.evaluation.features, job.model.channels)
    if job.evaluation.lpips is not None:
        yield from _lpips(job, "evaluation.lpips")
    if isinstance(job.model, KlAutoencoderModel):
        yield from _kl_autoencoder(job, job.model)
    yield from _best(job)
    if isinstance(objective, VaeObjective):
        if job.optimizer.discriminator is not None:
            yield "optimizer.discriminator: has no effect, a vae has no discriminator; remove it"
    else:
        yield from _adversarial(objective.adversarial, job.training.total_images)
        yield from _discriminator(job, objective)
    if isinstance(objective, GanObjective):
        if isinstance(job.model, ConvolutionalModel) and job.model.encoder is not None:
            yield "model.encoder: has no effect, a gan has no encoder; remove it"
        yield from _gan(objective.adversarial)
    else:
        yield from _kl(objective, job.training.total_images)
        if objective.perceptual is not None:
            yield from _perceptual(job, objective.perceptual)
    if isinstance(objective, VaeGanObjective):
        yield from _vae_gan(objective, num_stages=objective.discriminator.num_features(job.model.image_size))


def _division_of_a_step(job: "TrainJob") -> Iterator[str]:
    training, resources = job.training, job.resources
    fewest, most = resources.fewest_workers, resources.most_workers
    portions = math.lcm(fewest, most) * training.accumulation_steps
    below = training.images_per_step // portions * portions
    if below != training.images_per_step:
        nearby = f"{below} or {below + portions}" if below else str(portions)
        workers = f"{most}" if fewest == most else f"both {fewest} and {most}"
        yield (
            f"training.images_per_step: must be a multiple of resources.workers ({workers}) x "
            f"training.accumulation_steps ({training.accumulation_steps}), got {training.images_per_step}; try {nearby}"
        )


def _learning_rate(job: "TrainJob") -> Iterator[str]:
    warmup, total = job.optimizer.schedule.warmup_images, job.training.total_images
    if warmup >= total:
        yield (
            f"optimizer.schedule.warmup_images: must be below training.total_images ({total}), got {warmup}; "
            "the learning rate would never be reached"
        )


def _data(job: "TrainJob") -> Iterator[str]:
    data, size = job.data, job.model.image_size
    if data.random_crop_pixels is not None and data.random_crop_pixels >= size:
        yield f"data.random_crop_pixels: must be below model.image_size ({size}), got {data.random_crop_pixels}"
    if data.shuffle_window_images is not None and data.placement not in ("auto", "stream"):
        yield (
            f"data.placement: must be 'stream' with data.shuffle_window_images, which keeps a part of the images on a "
            f"node, got '{data.placement}'; remove one of them"
        )


def _best(job: "TrainJob") -> Iterator[str]:
    from vaegen_ray.config.metrics import evaluated_metrics  # Which knows this module's jobs.

    best = job.evaluation.best
    if best is None:
        return
    if job.evaluation.every_images is None:
        yield "evaluation.best: has no effect without evaluation.every_images; give it, or remove evaluation.best"
    if best.metric not in evaluated_metrics(job):
        yield f"evaluation.best.metric: {must_be(evaluated_metrics(job), best.metric)}"


def _features(features: "Features", channels: int) -> Iterator[str]:
    if features.network == "fashion_mnist_cnn" and channels != 1:
        yield (
            "evaluation.features.network: 'fashion_mnist_cnn' needs grey images (model.channels 1), got "
            f"{channels} channels; use 'inception_v3_fid'"
        )
    if features.network != "fashion_mnist_cnn" and channels not in (1, 3):
        yield (
            f"evaluation.features.network: '{features.network}' needs 1 or 3 channels, got {channels}; "
            "remove evaluation.features (the sliced Wasserstein distance needs no network)"
        )
    if features.network != "inception_v3_fid" and features.weights is not None:
        yield f"evaluation.features.weights: has no effect with '{features.network}', which finds its own; remove it"


def _lpips(job: "TrainJob", key: str) -> Iterator[str]:
    if job.model.channels not in (1, 3):
        yield f"{key}: needs images of 1 or 3 channels, got {job.model.channels}; remove it"
    if job.model.image_size < SMALLEST_OF_LPIPS:
        yield f"{key}: needs images of at least {SMALLEST_OF_LPIPS} pixels, got {job.model.image_size}; remove it"
    if job.objective.kind == "gan" and key == "evaluation.lpips":
        yield "evaluation.lpips: has no effect, a gan has no reconstructions; remove it"


def _perceptual(job: "TrainJob", perceptual: Perceptual) -> Iterator[str]:
    yield from _lpips(job, "objective.perceptual")
    if perceptual.images_fraction * job.training.images_per_step < 1:
        yield (
            f"objective.perceptual.images_fraction: must leave at least one of training.images_per_step "
            f"({job.training.images_per_step}) images, got {perceptual.images_fraction}"
        )


def _kl_autoencoder(job: "TrainJob", model: KlAutoencoderModel) -> Iterator[str]:
    objective = job.objective
    if isinstance(objective, GanObjective):
        yield (
            "objective.kind: 'gan' has no encoder, which model.kind 'kl_autoencoder' is named for, got 'gan'; "
            "use model.kind 'convolutional', or the objective 'vae' or 'vae_gan'"
        )
        return
    if objective.reconstruction.kind == "discriminator_features":
        yield (
            "objective.reconstruction.kind: 'discriminator_features' is Larsen's, for model.kind 'convolutional', "
            "got it with 'kl_autoencoder'; use 'laplace' with objective.perceptual"
        )
    if model.freeze_encoder:
        if objective.kl.weight > 0:
            yield (
                f"objective.kl.weight: has no effect with model.freeze_encoder, got {objective.kl.weight}; remove it, "
                "or set it to 0"
            )
        for key, usual in (("schedule", "constant"), ("penalty", "plain")):
            if (kind := getattr(objective.kl, key).kind) != usual:
                yield f"objective.kl.{key}: has no effect with model.freeze_encoder, got '{kind}'; remove it"
        if isinstance(objective, VaeGanObjective) and objective.adversarial.reaches_encoder is False:
            yield "objective.adversarial.reaches_encoder: has no effect with model.freeze_encoder; remove it"


def _discriminator(job: "TrainJob", objective: GanObjective | VaeGanObjective) -> Iterator[str]:
    settings, size = objective.discriminator, job.model.image_size
    if isinstance(settings, PatchDiscriminator):
        smallest = SMALLEST_OF_PATCHES * 2**settings.layers
        if size < smallest:
            yield (
                f"objective.discriminator.layers: needs images of at least {smallest} pixels, got {settings.layers} "
                f"layers and {size} pixels; lower it, or use the kind 'convolutional'"
            )
    elif isinstance(settings, ConvolutionalDiscriminator):
        if size & (size - 1):
            yield (
                f"objective.discriminator.kind: 'convolutional' needs a model.image_size that is a power of two, got "
                f"{size}; use 'patch'"
            )
    else:
        yield from _lpips(job, "objective.discriminator")


def _adversarial(adversarial: Adversarial, total_images: int) -> Iterator[str]:
    if adversarial.start_images >= total_images:
        yield (
            f"objective.adversarial.start_images: must be below training.total_images ({total_images}), "
            f"got {adversarial.start_images}; the generator would never feel the discriminator"
        )
    penalty = adversarial.gradient_penalty
    if penalty is not None and penalty.r1 == penalty.r2 == 0:
        yield "objective.adversarial.gradient_penalty: r1 or r2 must be above 0, got 0 and 0; or remove the section"
    if adversarial.balance.kind == "equilibrium" and adversarial.loss != "non_saturating":
        yield (
            "objective.adversarial.balance.kind: 'equilibrium' compares cross-entropies, which the loss "
            f"'non_saturating' trains, got the loss '{adversarial.loss}'; use that loss or another balance"
        )
    if len(set(adversarial.augment)) < len(adversarial.augment):
        yield f"objective.adversarial.augment: must name each once, got {', '.join(adversarial.augment)}"


def _gan(adversarial: Adversarial) -> Iterator[str]:
    balance = adversarial.balance
    if adversarial.shows != "generated":
        yield (
            f"objective.adversarial.shows: must be 'generated', got '{adversarial.shows}'; a gan has no reconstructions"
        )
    if adversarial.reaches_encoder is not None:
        yield "objective.adversarial.reaches_encoder: has no effect, a gan has no encoder; remove it"
    if adversarial.feature_matching is not None:
        yield "objective.adversarial.feature_matching: has no effect without reconstructions; remove it"
    if balance.kind == "adaptive" or balance.kind == "gradient_share":
        yield (
            f"objective.adversarial.balance.kind: '{balance.kind}' balances against a reconstruction, "
            "which a gan does not have; use 'fixed' or 'equilibrium'"
        )
    elif balance.weight == 0:
        yield "objective.adversarial.balance.weight: must be above 0, got 0; a gan's generator learns from nothing else"


def _kl(objective: VaeObjective | VaeGanObjective, total_images: int) -> Iterator[str]:
    kl = objective.kl
    if kl.weight == 0:
        if kl.schedule.kind != "constant":
            yield "objective.kl.schedule: has no effect while objective.kl.weight is 0; remove it or raise the weight"
        if not isinstance(kl.penalty, PlainPenalty):
            yield "objective.kl.penalty: has no effect while objective.kl.weight is 0; remove it or raise the weight"
    if kl.schedule.kind == "linear" and kl.schedule.start_images >= total_images:
        yield (
            f"objective.kl.schedule.start_images: must be below training.total_images ({total_images}), "
            f"got {kl.schedule.start_images}; the KL would never count"
        )


def _vae_gan(objective: VaeGanObjective, num_stages: int) -> Iterator[str]:
    reconstruction, adversarial = objective.reconstruction, objective.adversarial
    if reconstruction.kind == "discriminator_features" and reconstruction.layer >= num_stages:
        yield (
            f"objective.reconstruction.layer: must be below {num_stages}, the feature maps of this discriminator, "
            f"got {reconstruction.layer}"
        )
    if adversarial.shows == "generated":
        if adversarial.feature_matching is not None:
            yield (
                "objective.adversarial.feature_matching: compares an image with its reconstruction, which "
                "shows: generated does not show to the discriminator; use shows: both"
            )
        if adversarial.reaches_encoder is not None:
            yield (
                "objective.adversarial.reaches_encoder: has no effect with shows: generated, whose images have no "
                "latent code of the encoder; remove it"
            )
