"""Each objective's gradients against one obvious loss that autograd differentiates in float64."""

import pytest
import torch

from tests.objectives.reference import Reference
from tests.objectives.steps import (
    IMAGES_PER_STEP,
    AnyObjective,
    assert_same_gradients,
    gradients,
    make_batch,
    noise_images,
    train_job,
    vae_gan,
)
from tests.objectives.variants import ADVERSARIAL, ALL, CAPACITY, FREE_BITS, VAE_GANS
from vaegen_ray.config.job import TrainJob
from vaegen_ray.models.blocks import follow_spectral_norms
from vaegen_ray.objectives.build import build_objective

POSITION = 5 * IMAGES_PER_STEP


def built(name: str) -> tuple[TrainJob, AnyObjective]:
    """The job and its objective, with a discriminator whose logits are away from zero and LeCAM under way."""
    job = train_job(ALL[name])
    torch.manual_seed(1)
    objective = build_objective(job)
    if objective.discriminator is not None:
        torch.nn.init.constant_(objective.discriminator.stages[-1][-1].bias, 0.3)
        if objective.adversary.lecam is not None:
            objective.adversary.lecam.update(torch.tensor(0.5), torch.tensor(-0.5))
    return job, objective


@pytest.mark.parametrize("name", ALL)
def test_generator_gradient_equals_that_of_one_explicit_loss(name: str) -> None:
    job, objective = built(name)
    batch = make_batch(noise_images(), position=POSITION)
    expected = Reference(job, objective, batch).generator_gradients()
    assert_same_gradients(gradients(objective, "generator", batch), expected)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_discriminator_gradient_equals_that_of_one_explicit_loss(name: str) -> None:
    job, objective = built(name)
    batch = make_batch(noise_images(), position=POSITION)
    gradients(objective, "generator", batch)
    follow_spectral_norms(objective.discriminator)
    reference = Reference(job, objective, batch)
    actual = gradients(objective, "discriminator", batch)
    if name == "vae_gan-spectral_norm":  # The phase begins with one more power iteration, close to convergence.
        assert_same_gradients(actual, reference.discriminator_gradients(), tolerance=0.1)
    else:
        assert_same_gradients(actual, reference.discriminator_gradients())


@pytest.mark.parametrize("name", ALL)
def test_gradient_in_portions_equals_that_of_the_undivided_batch(name: str) -> None:
    _, objective = built(name)
    state = {key: value.clone() for key, value in objective.state_dict().items()}
    phases = ["generator", "discriminator"] if name in ADVERSARIAL else ["generator"]
    whole = make_batch(noise_images(), position=POSITION)
    expected = {phase: gradients(objective, phase, whole) for phase in phases}
    for num_portions in (2, 4):
        objective.load_state_dict(state)
        parts = make_batch(noise_images(), position=POSITION, num_portions=num_portions)
        for phase in phases:
            assert_same_gradients(gradients(objective, phase, parts), expected[phase])
        assert whole.metrics.keys() == parts.metrics.keys()
        for key, value in whole.metrics.items():
            torch.testing.assert_close(parts.metrics[key], value, rtol=2e-5, atol=1e-6, msg=key)
        assert whole.held_back == parts.held_back


@pytest.mark.parametrize("name", ["vae-free_bits", "vae-capacity"])
def test_kl_penalty_of_these_variants_is_half_way_so_that_portions_could_disagree(name: str) -> None:
    job, objective = built(name)
    kl = {}
    for num_portions in (1, 4):
        batch = make_batch(noise_images(), position=POSITION, num_portions=num_portions)
        for portion in batch.portions():
            mean, log_variance = objective.generator.encoder(portion.images_BCHW)
            kl[num_portions, portion.index] = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean(0).detach()
    if name == "vae-free_bits":
        floor = job.objective.kl.penalty.nats_per_dimension
        assert 0 < int((kl[1, 0] > floor).sum()) < 4
        assert any(not torch.equal(kl[4, i] > floor, kl[1, 0] > floor) for i in range(4))
    else:
        capacity = job.objective.kl.penalty.nats * POSITION / job.objective.kl.penalty.growth_images
        assert len({float(torch.sign(kl[4, i].sum() - capacity)) for i in range(4)}) == 2


@pytest.mark.parametrize("name", [name for name in VAE_GANS if "capped" not in name])
def test_metrics_of_the_generator_add_up_to_its_loss(name: str) -> None:
    job, objective = built(name)
    batch = make_batch(noise_images(), position=POSITION)
    gradients(objective, "generator", batch)
    metrics, num_values = batch.metrics, job.model.values_per_image
    reconstruction = metrics["nll_nats"] if "nll_nats" in metrics else metrics["feature_error"]
    penalty = job.objective.kl.penalty
    kl = metrics["train_kl_nats"]
    if penalty.kind == "capacity":
        kl = (kl - penalty.nats * POSITION / penalty.growth_images).abs()
    if penalty.kind != "free_bits":
        expected = (reconstruction + metrics["beta"] * kl) / num_values
        expected = expected + metrics["adversarial_weight"] * metrics["adversarial_loss"]
        matching = job.objective.adversarial.feature_matching
        if matching is not None:
            factor = objective.adversary.factor(POSITION)
            expected = expected + factor * matching.weight * metrics["feature_matching_loss"]
        torch.testing.assert_close(metrics["generator_loss"], expected)


@pytest.mark.parametrize("precision_tolerance", [0.15])
@pytest.mark.parametrize("name", ["vae", "gan-relativistic", "vae_gan-adaptive", "vae_gan-spectral_norm"])
def test_gradient_in_bfloat16_points_the_same_way(name: str, precision_tolerance: float) -> None:
    _, objective = built(name)
    state = {key: value.clone() for key, value in objective.state_dict().items()}
    for phase in ["generator", "discriminator"] if name in ADVERSARIAL else ["generator"]:
        found = []
        for precision in (torch.float32, torch.bfloat16):
            objective.load_state_dict(state)
            batch = make_batch(noise_images(), position=POSITION, precision=precision)
            found.append(gradients(objective, "generator", batch))
            if phase == "discriminator":
                found[-1] = gradients(objective, "discriminator", batch)
            assert all(gradient.dtype == torch.float32 for gradient in found[-1].values())
        exact, rough = (torch.cat([gradient.flatten() for gradient in one.values()]) for one in found)
        assert float((exact - rough).norm() / exact.norm()) < precision_tolerance


@pytest.mark.parametrize("kl", [FREE_BITS, CAPACITY])
def test_adversarial_share_of_the_metrics_is_the_share_that_was_asked_for(kl: dict[str, object]) -> None:
    objective = build_objective(train_job(vae_gan({"balance": {"kind": "gradient_share", "share": 0.25}}, kl=kl)))
    batch = make_batch(noise_images())
    gradients(objective, "generator", batch)
    torch.testing.assert_close(batch.metrics["adversarial_share"], torch.tensor(0.25))
