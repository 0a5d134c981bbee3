"""Rules between sections, and settings that have no effect in their job."""

import pytest

from tests.config.samples import job, refusals

FEATURES = "objective.reconstruction={kind: discriminator_features, layer: 4}"

BROKEN: dict[tuple[str, ...], str] = {
    ("vae", "resources.workers=3"): (
        "training.images_per_step: must be a multiple of resources.workers (3) x training.accumulation_steps (1), "
        "got 8; try 6 or 9"
    ),
    ("vae", "resources.workers=16"): (
        "training.images_per_step: must be a multiple of resources.workers (16) x training.accumulation_steps (1), "
        "got 8; try 16"
    ),
    ("vae", "training.accumulation_steps=3", "resources.workers=2"): (
        "training.images_per_step: must be a multiple of resources.workers (2) x training.accumulation_steps (3), "
        "got 8; try 6 or 12"
    ),
    ("vae", "resources.workers={min: 2, max: 3}"): (
        "training.images_per_step: must be a multiple of resources.workers (both 2 and 3) x "
        "training.accumulation_steps (1), got 8; try 6 or 12"
    ),
    ("vae", "optimizer.schedule={kind: cosine, warmup_images: 1000}"): (
        "optimizer.schedule.warmup_images: must be below training.total_images (1000), got 1000; "
        "the learning rate would never be reached"
    ),
    ("vae", "data.random_crop_pixels=32"): "data.random_crop_pixels: must be below model.image_size (32), got 32",
    ("vae", "data.shuffle_window_images=100", "data.placement=device"): (
        "data.placement: must be 'stream' with data.shuffle_window_images, which keeps a part of the images on a "
        "node, got 'device'; remove one of them"
    ),
    ("vae", "optimizer.discriminator={}"): (
        "optimizer.discriminator: has no effect, a vae has no discriminator; remove it"
    ),
    ("gan", "model.encoder={}"): "model.encoder: has no effect, a gan has no encoder; remove it",
    ("vae", "evaluation.features.network=fashion_mnist_cnn", "model.channels=3"): (
        "evaluation.features.network: 'fashion_mnist_cnn' needs grey images (model.channels 1), got 3 channels; "
        "use 'inception_v3_fid'"
    ),
    ("vae", "evaluation.features.network=inception_v3_fid", "model.channels=4"): (
        "evaluation.features.network: 'inception_v3_fid' needs 1 or 3 channels, got 4; remove evaluation.features "
        "(the sliced Wasserstein distance needs no network)"
    ),
    ("vae", "evaluation.features={network: fashion_mnist_cnn, weights: w.npz}"): (
        "evaluation.features.weights: has no effect with 'fashion_mnist_cnn', which finds its own; remove it"
    ),
    ("vae_gan", "objective.adversarial.start_images=1000"): (
        "objective.adversarial.start_images: must be below training.total_images (1000), got 1000; "
        "the generator would never feel the discriminator"
    ),
    ("gan", "objective.adversarial.gradient_penalty={every_steps: 4}"): (
        "objective.adversarial.gradient_penalty: r1 or r2 must be above 0, got 0 and 0; or remove the section"
    ),
    ("gan", "objective.adversarial={loss: hinge, balance: {kind: equilibrium, weight: 1}}"): (
        "objective.adversarial.balance.kind: 'equilibrium' compares cross-entropies, which the loss 'non_saturating' "
        "trains, got the loss 'hinge'; use that loss or another balance"
    ),
    ("gan", "objective.adversarial.augment=[color, cutout, color]"): (
        "objective.adversarial.augment: must name each once, got color, cutout, color"
    ),
    ("gan", "objective.adversarial.shows=both"): (
        "objective.adversarial.shows: must be 'generated', got 'both'; a gan has no reconstructions"
    ),
    ("gan", "objective.adversarial.reaches_encoder=false"): (
        "objective.adversarial.reaches_encoder: has no effect, a gan has no encoder; remove it"
    ),
    ("gan", "objective.adversarial.feature_matching.weight=1"): (
        "objective.adversarial.feature_matching: has no effect without reconstructions; remove it"
    ),
    ("gan", "objective.adversarial.balance={kind: gradient_share, share: 0.5}"): (
        "objective.adversarial.balance.kind: 'gradient_share' balances against a reconstruction, which a gan does "
        "not have; use 'fixed' or 'equilibrium'"
    ),
    ("gan", "objective.adversarial.balance={kind: fixed, weight: 0}"): (
        "objective.adversarial.balance.weight: must be above 0, got 0; a gan's generator learns from nothing else"
    ),
    ("vae", "objective.kl={weight: 0, schedule: {kind: linear, warmup_images: 9}}"): (
        "objective.kl.schedule: has no effect while objective.kl.weight is 0; remove it or raise the weight"
    ),
    ("vae_gan", "objective.kl={weight: 0, penalty: {kind: free_bits, nats_per_dimension: 1}}"): (
        "objective.kl.penalty: has no effect while objective.kl.weight is 0; remove it or raise the weight"
    ),
    ("vae", "objective.kl.schedule={kind: linear, start_images: 1000, warmup_images: 1}"): (
        "objective.kl.schedule.start_images: must be below training.total_images (1000), got 1000; "
        "the KL would never count"
    ),
    ("vae_gan", FEATURES): (
        "objective.reconstruction.layer: must be below 4, the feature maps of this discriminator, got 4"
    ),
    ("vae_gan", "objective.adversarial.shows=generated", "objective.adversarial.feature_matching.weight=1"): (
        "objective.adversarial.feature_matching: compares an image with its reconstruction, which shows: generated "
        "does not show to the discriminator; use shows: both"
    ),
    ("vae_gan", "objective.adversarial.shows=generated", "objective.adversarial.reaches_encoder=true"): (
        "objective.adversarial.reaches_encoder: has no effect with shows: generated, whose images have no latent code "
        "of the encoder; remove it"
    ),
}


@pytest.mark.parametrize(("situation", "sentence"), BROKEN.items(), ids=map(" ".join, BROKEN))
def test_broken_rule_is_refused_in_one_sentence(situation: tuple[str, ...], sentence: str) -> None:
    objective, *overrides = situation
    assert refusals(objective, *overrides) == [sentence]


def test_all_broken_rules_are_listed() -> None:
    keys = [
        sentence.split(":")[0]
        for sentence in refusals(
            "gan",
            "resources.workers=3",
            "model.encoder={}",
            "objective.adversarial.shows=both",
            "optimizer.schedule={kind: linear, warmup_images: 5000}",
        )
    ]
    assert keys == [
        "training.images_per_step",
        "optimizer.schedule.warmup_images",
        "model.encoder",
        "objective.adversarial.shows",
    ]


def test_nearby_batches_that_the_sentence_offers_are_accepted() -> None:
    for images_per_step in (6, 12):
        job("vae", "resources.workers={min: 2, max: 3}", f"training.images_per_step={images_per_step}")


def test_layer_counts_the_feature_maps_of_the_discriminator() -> None:
    for image_size, layers in ((16, 3), (32, 4), (64, 5)):
        accepted = f"objective.reconstruction={{kind: discriminator_features, layer: {layers - 1}}}"
        refused = f"objective.reconstruction={{kind: discriminator_features, layer: {layers}}}"
        job("vae_gan", f"model.image_size={image_size}", accepted)
        refusals("vae_gan", f"model.image_size={image_size}", refused)
