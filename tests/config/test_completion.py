"""Values that follow from others; resolved jobs show them all and stay as they are."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.config.samples import ONE_OF_EACH_KIND, job, refusals, tree_of
from vaegen_ray.config.completion import complete
from vaegen_ray.config.data import Data
from vaegen_ray.config.job import Adam, Optimizer, Training, TrainJob
from vaegen_ray.config.loading import job_of, load_job
from vaegen_ray.config.model import ConvolutionalModel, Network
from vaegen_ray.config.objective import Adversarial, GradientShareBalance, VaeGanObjective
from vaegen_ray.config.presets import PRESETS
from vaegen_ray.config.settings import flat
from vaegen_ray.config.watchdog import Watchdog

SHIPPED = sorted(Path("jobs").rglob("*.yaml"))
MAY_BE_ABSENT = {
    "data.cache",
    "data.cache_bytes",
    "data.image_column",
    "data.max_images",
    "data.random_crop_pixels",
    "data.shuffle_window_images",
    "evaluation.every_images",
    "evaluation.features",
    "model.encoder",
    "objective.adversarial.feature_matching",
    "objective.adversarial.gradient_penalty",
    "objective.adversarial.lecam",
    "objective.adversarial.reaches_encoder",
    "objective.preset",
    "optimizer.discriminator",
    "optimizer.discriminator.clip_norm",
    "optimizer.generator.clip_norm",
    "resources.gpus_per_worker",
    "evaluation.best",
    "evaluation.lpips",
    "evaluation.lpips.weights",
    "model.start_from",
    "objective.discriminator.weights",
    "objective.perceptual",
    "objective.perceptual.weights",
    "resources.evaluator",
    "resources.evaluator.gpus",
    "resources.max_duration_s",
    "tracking.mlflow",
    "tracking.wandb",
    *(f"watchdog.{rule}.patience_images" for rule in Watchdog().rules()),
}
"""Keys whose absence means that the thing is absent; every other key has a value in a resolved job."""


def preset_job(name: str, *overrides: str) -> TrainJob:
    return job({"preset": name}, "training.total_images=5e6", *overrides)


# ---------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_shipped_job_reloads_from_its_resolved_form(path: Path) -> None:
    loaded = load_job(path)
    assert job_of(loaded.model_dump(mode="json"), "job.json") == loaded
    assert type(loaded).model_validate(loaded.model_dump()) == loaded


@pytest.mark.parametrize("objective", ONE_OF_EACH_KIND.values(), ids=ONE_OF_EACH_KIND)
def test_job_of_every_kind_reloads_pickles_and_hides_nothing(objective: dict[str, Any]) -> None:
    resolved = job(objective)
    tree = resolved.model_dump(mode="json")
    assert job_of(tree, "job.json") == resolved
    assert pickle.loads(pickle.dumps(resolved)) == resolved
    assert {key for key, value in flat(tree).items() if value is None} <= MAY_BE_ABSENT


@pytest.mark.parametrize("name", PRESETS)
def test_preset_reloads_from_its_resolved_form(name: str) -> None:
    resolved = preset_job(name)
    assert job_of(resolved.model_dump(mode="json"), "job.json") == resolved
    assert resolved.objective.preset == name


@pytest.mark.parametrize("objective", ONE_OF_EACH_KIND.values(), ids=ONE_OF_EACH_KIND)
def test_completing_twice_changes_nothing_and_spares_the_input(objective: dict[str, Any]) -> None:
    tree = tree_of(objective)
    once = complete(tree)
    assert tree == tree_of(objective)
    assert complete(once) == once


def test_jobs_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        job().seed = 1  # type: ignore[misc]


def test_job_built_in_python_equals_the_one_from_a_tree() -> None:
    built = TrainJob(
        kind="train",
        name="tiny",
        data=Data(source="datasets/tiny"),
        model=ConvolutionalModel(kind="convolutional", image_size=32, channels=1),
        objective=VaeGanObjective(
            kind="vae_gan", adversarial=Adversarial(balance=GradientShareBalance(kind="gradient_share", share=0.4))
        ),
        training=Training(total_images=1000, images_per_step=8),
    )
    assert built == job("vae_gan")
    assert built.model.encoder == Network()
    assert built.optimizer.discriminator == Adam(betas=(0.5, 0.99))


def test_sections_given_as_objects_are_completed_within_trees() -> None:
    tree = tree_of("vae_gan") | {"optimizer": Optimizer(discriminator=Adam(learning_rate=1e-3))}
    discriminator = TrainJob.model_validate(tree).optimizer.discriminator
    assert discriminator == Adam(learning_rate=1e-3, betas=(0.5, 0.99))


# ---------------------------------------------------------------------------- dependent defaults


def test_discriminator_keeps_its_betas_when_only_its_rate_is_given() -> None:
    discriminator = job("gan", "optimizer.discriminator.learning_rate=1e-3").optimizer.discriminator
    assert discriminator == Adam(learning_rate=1e-3, betas=(0.5, 0.99))


def test_gan_shows_generated_images_at_weight_one() -> None:
    adversarial = job("gan", "objective.adversarial.loss=hinge").objective.adversarial
    assert adversarial.shows == "generated"
    assert adversarial.balance.model_dump() == {"kind": "fixed", "weight": 1.0}
    assert adversarial.reaches_encoder is None
    assert job("gan").model.encoder is None


def test_vae_gan_shows_both_and_reaches_the_encoder() -> None:
    adversarial = job("vae_gan").objective.adversarial
    assert (adversarial.shows, adversarial.reaches_encoder) == ("both", True)
    generated = job("vae_gan", "objective.adversarial.shows=generated").objective.adversarial
    assert generated.reaches_encoder is None


@pytest.mark.parametrize(
    ("total", "report", "checkpoint"), [(8, 1, 1), (1000, 5, 100), (50_000_000, 250_000, 5_000_000)]
)
def test_intervals_follow_from_the_length(total: int, report: int, checkpoint: int) -> None:
    training = job("vae", f"training.total_images={total}").training
    assert (training.report_every_images, training.checkpoint_every_images) == (report, checkpoint)
    as_float = job("vae", f"training.total_images={float(total)}").training
    assert as_float == training


def test_given_interval_stays() -> None:
    assert job("vae", "training.report_every_images=7").training.report_every_images == 7


# ---------------------------------------------------------------------------- presets


def test_values_beside_a_preset_win() -> None:
    resolved = preset_job("ldm", "objective.kl.weight=0.5", "objective.adversarial.balance.weight=0.8").objective
    assert resolved.kl.weight == 0.5
    assert resolved.adversarial.balance.model_dump() == {"kind": "adaptive", "weight": 0.8, "max_ratio": 1e4 / 1024}


def test_another_kind_beside_a_preset_replaces_the_section() -> None:
    resolved = preset_job("ldm", "objective.adversarial.balance={kind: gradient_share, share: 0.2}").objective
    assert resolved.adversarial.balance.model_dump() == {"kind": "gradient_share", "share": 0.2, "max_weight": 1e4}
    assert resolved.adversarial.loss == "hinge"


def test_preset_of_a_resolved_job_does_not_undo_what_was_changed() -> None:
    changed = preset_job("larsen", "objective.adversarial.balance.weight=0.25")
    assert job_of(changed.model_dump(mode="json"), "job.json").objective.adversarial.balance.weight == 0.25


@pytest.mark.parametrize("channels", ["0", "-3", "1.5", "x", "[]", ".inf", "true"])
def test_preset_beside_a_wrong_size_blames_the_size(channels: str) -> None:
    (sentence,) = refusals({"preset": "sgm"}, f"model.channels={channels}")
    assert sentence.startswith("model.channels: must be ")


def test_preset_without_the_sections_that_it_needs_blames_them() -> None:
    tree = tree_of({"preset": "ldm"})
    del tree["model"]
    with pytest.raises(ValueError, match=r"^job.yaml: model: is required; add it$"):
        job_of(tree, "job.yaml")
