"""Each preset against the other system's formula, written out from its code and differentiated by autograd.

Ours is the mean over images and per value of an image, so the gradients are proportional by a known factor: the
scale in each test. The encoder is shifted until the KL matters to its gradient, which a weight of 1e-6 would not.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.objectives.steps import (
    IMAGES_PER_STEP,
    AnyObjective,
    assert_same_gradients,
    gradients,
    make_batch,
    network_of,
    noise_images,
    train_job,
    twin,
)
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.presets import LARSEN_GAMMA, PRESETS
from vaegen_ray.objectives.build import build_objective
from vaegen_ray.objectives.objective import Batch

TOLERANCE = 3e-6
"""Float32 against float64: a few rounding errors, where a wrong factor would be off by far more."""

SMALL = {"width": 4, "max_width": 8}


@dataclass
class Case:
    """A preset's objective, a batch after its start, and the float64 networks and images of the other system."""

    job: TrainJob
    objective: AnyObjective
    batch: Batch
    networks: AnyObjective
    x: Tensor
    mean: Tensor
    log_variance: Tensor
    z: Tensor
    x_rec: Tensor

    @property
    def num_values(self) -> int:
        """N."""
        return self.x[0].numel()

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """The other system's gradients, by our names of the parameters."""
        owned = {id(p) for group in self.networks.groups("generator").values() for p in group}
        named = {name: p for name, p in self.networks.named_parameters() if id(p) in owned}
        found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
        return {name: gradient for name, gradient in zip(named, found, strict=True) if gradient is not None}

    def assert_kl_matters(self, loss: Tensor, kl_term: Tensor) -> None:
        """Assert that a missing KL would change the encoder's gradient a thousand times more than the tolerance."""
        whole, part = self.gradients(loss), self.gradients(kl_term)
        encoder = [name for name in whole if network_of(name) == "generator.encoder"]
        norms = [torch.stack([found[name].norm() for name in encoder]).norm() for found in (whole, part)]
        assert norms[1] > 1000 * TOLERANCE * norms[0]


def case(preset: str, shift: float = 0.0, **settings: Any) -> Case:
    """The preset on tiny networks, with the posterior's mean moved by ``shift``."""
    kind = PRESETS_KINDS[preset]
    objective_tree: dict[str, Any] = {"kind": kind, "preset": preset, **settings}
    if kind == "vae_gan":
        # Without the perceptual term, which has its own test, and on images too small for patches.
        objective_tree |= {"discriminator": {"kind": "convolutional", **SMALL}, "perceptual": None}
    job = train_job(objective_tree)
    torch.manual_seed(0)
    objective = build_objective(job)
    with torch.no_grad():
        objective.generator.encoder.to_posterior.bias[:4] += shift
    start = 0 if kind == "vae" else job.objective.adversarial.start_images
    batch = make_batch(noise_images(), position=start)
    networks = twin(objective)
    x = batch.images_BCHW.double()
    mean, log_variance = networks.generator.encoder(x)
    z = mean + torch.exp(0.5 * log_variance) * batch.draws.normal("posterior", 4).double()
    return Case(job, objective, batch, networks, x, mean, log_variance, z, networks.generator.decoder(z))


PRESETS_KINDS = {
    "larsen": "vae_gan",
    "ldm": "vae_gan",
    "pythae": "vae",
    "pytorch_vae": "vae",
    "sgm": "vae_gan",
    "ta_titok": "vae_gan",
    "ldm_modern": "vae_gan",
    "monai": "vae_gan",
    "va_vae": "vae_gan",
}


def to_unit(images: Tensor) -> Tensor:
    """From [-1, 1] to [0, 1]."""
    return (images + 1) / 2


def test_every_preset_is_tested_here() -> None:
    assert PRESETS_KINDS.keys() == PRESETS.keys()


def ldm_kl(case: Case) -> Tensor:
    """DiagonalGaussianDistribution.kl(): one number an image."""
    mean, logvar = case.mean, torch.clamp(case.log_variance, -30.0, 20.0)
    return 0.5 * torch.sum(torch.pow(mean, 2) + logvar.exp() - 1.0 - logvar, dim=1)


def ldm_adaptive_weight(nll_loss: Tensor, g_loss: Tensor, last_layer: nn.Parameter) -> Tensor:
    """LPIPSWithDiscriminator.calculate_adaptive_weight, with discriminator_weight 0.5."""
    nll_grads = torch.autograd.grad(nll_loss, last_layer, retain_graph=True)[0]
    g_grads = torch.autograd.grad(g_loss, last_layer, retain_graph=True)[0]
    d_weight = torch.norm(nll_grads) / (torch.norm(g_grads) + 1e-4)
    return torch.clamp(d_weight, 0.0, 1e4).detach() * 0.5


@pytest.mark.parametrize(("loudness", "clamped"), [(1.0, False), (0.1, True)])
def test_ldm_preset_has_the_gradient_of_latent_diffusion(loudness: float, clamped: bool) -> None:
    c = case("ldm", shift=3000.0)
    for one in (c.objective, c.networks):
        with torch.no_grad():
            one.discriminator.to_logit.weight *= loudness
    rec_loss = torch.abs(c.x - c.x_rec)
    logvar = torch.zeros(())
    nll_loss = rec_loss / torch.exp(logvar) + logvar
    nll_loss = torch.sum(nll_loss) / nll_loss.shape[0]
    kl_loss = ldm_kl(c)
    kl_loss = torch.sum(kl_loss) / kl_loss.shape[0]
    g_loss = -torch.mean(c.networks.discriminator(c.x_rec)[0])
    d_weight = ldm_adaptive_weight(nll_loss, g_loss, c.networks.generator.decoder.to_images.weight)
    assert (float(d_weight) == 0.5e4) == clamped
    loss = nll_loss + 1e-6 * kl_loss + d_weight * g_loss
    c.assert_kl_matters(loss, 1e-6 * kl_loss)
    found = gradients(c.objective, "generator", c.batch)
    assert_same_gradients(found, c.gradients(loss), scale=c.num_values, tolerance=TOLERANCE)
    assert float(c.batch.metrics["adversarial_weight"]) * c.num_values == pytest.approx(float(d_weight), rel=TOLERANCE)


def test_sgm_preset_has_the_gradient_of_stable_diffusions_autoencoder() -> None:
    c = case("sgm", shift=3.0)
    for one in (c.objective, c.networks):
        with torch.no_grad():
            one.likelihood.learned_log_scale.fill_(-1.5)
    logvar = c.networks.likelihood.learned_log_scale
    nll_loss = torch.abs(c.x - c.x_rec) / torch.exp(logvar) + logvar
    nll_loss = torch.sum(nll_loss) / nll_loss.shape[0]
    g_loss = -torch.mean(c.networks.discriminator(c.x_rec)[0])
    d_weight = ldm_adaptive_weight(nll_loss, g_loss, c.networks.generator.decoder.to_images.weight)
    kl_loss = ldm_kl(c).mean()
    loss = nll_loss + 1.0 * kl_loss + d_weight * g_loss
    c.assert_kl_matters(loss, kl_loss)
    found = gradients(c.objective, "generator", c.batch)
    assert "likelihood.learned_log_scale" in found
    assert_same_gradients(found, c.gradients(loss), scale=c.num_values, tolerance=TOLERANCE)


def test_pythae_preset_has_the_gradient_of_pythae() -> None:
    c = case("pythae", shift=1.0)
    recon_loss = 0.5 * functional.mse_loss(
        to_unit(c.x_rec).reshape(len(c.x), -1), to_unit(c.x).reshape(len(c.x), -1), reduction="none"
    ).sum(dim=-1)
    kld = -0.5 * torch.sum(1 + c.log_variance - c.mean.pow(2) - c.log_variance.exp(), dim=-1)
    loss = (recon_loss + kld).mean(dim=0)
    c.assert_kl_matters(loss, kld.mean())
    found = gradients(c.objective, "generator", c.batch)
    assert_same_gradients(found, c.gradients(loss), scale=c.num_values, tolerance=TOLERANCE)


def test_pytorch_vae_preset_has_the_gradient_of_pytorch_vae() -> None:
    c = case("pytorch_vae", shift=1.0)
    recons_loss = functional.mse_loss(to_unit(c.x_rec), to_unit(c.x))
    kld_loss = torch.mean(-0.5 * torch.sum(1 + c.log_variance - c.mean**2 - c.log_variance.exp(), dim=1), dim=0)
    loss = recons_loss + 0.00025 * kld_loss
    c.assert_kl_matters(loss, 0.00025 * kld_loss)
    found = gradients(c.objective, "generator", c.batch)
    assert_same_gradients(found, c.gradients(loss), tolerance=TOLERANCE)


def test_titok_preset_has_the_gradient_of_tatitok() -> None:
    c = case("ta_titok", shift=300.0)
    reconstruction_loss = functional.mse_loss(to_unit(c.x), to_unit(c.x_rec), reduction="mean")
    kl_loss = torch.sum(ldm_kl(c)) / len(c.x)
    # Their discriminator reads [0, 1]: the same function of the same picture.
    logits_fake = c.networks.discriminator(2 * to_unit(c.x_rec) - 1)[0]
    loss = reconstruction_loss + 1e-6 * kl_loss + 0.1 * 1.0 * -torch.mean(logits_fake)
    c.assert_kl_matters(loss, 1e-6 * kl_loss)
    found = gradients(c.objective, "generator", c.batch)
    assert_same_gradients(found, c.gradients(loss), tolerance=TOLERANCE)
    lecam = c.job.objective.adversarial.lecam
    assert (lecam.weight, lecam.decay) == (0.001, 0.999)


def test_larsen_preset_routes_gradients_as_algorithm_1() -> None:
    c = case("larsen", shift=1.0)
    real_features, fake_features = (c.networks.discriminator(images)[1][2].flatten(1) for images in (c.x, c.x_rec))
    prior = torch.sum(ldm_kl(c))
    dis_llike = 0.5 * torch.sum((fake_features - real_features.detach()) ** 2)
    # The adversarial path starts at codes that carry no gradient: "kill gradient from GAN loss to AE encoder".
    codes = torch.cat([c.z.detach(), c.batch.draws.normal("prior", 4).double()])
    logits_fake = c.networks.discriminator(c.networks.generator.decoder(codes))[0]
    gan_loss = functional.softplus(-logits_fake).sum()
    encoder_loss, decoder_loss = prior + dis_llike, LARSEN_GAMMA * dis_llike + gan_loss

    found = gradients(c.objective, "generator", c.batch)
    for network, loss, scale in (
        ("generator.encoder", encoder_loss, c.num_values * IMAGES_PER_STEP),
        ("generator.decoder", decoder_loss, LARSEN_GAMMA * c.num_values * IMAGES_PER_STEP),
    ):
        ours = {name: gradient for name, gradient in found.items() if network_of(name) == network}
        theirs = {name: gradient for name, gradient in c.gradients(loss).items() if network_of(name) == network}
        assert_same_gradients(ours, theirs, scale=scale, tolerance=TOLERANCE)
    c.assert_kl_matters(encoder_loss, prior)
    balance = c.job.objective.adversarial.balance
    assert (balance.equilibrium, balance.margin) == (0.68, 0.35)


@pytest.mark.parametrize(("preset", "steps"), [("ldm", 50_001), ("sgm", 20_001), ("ta_titok", 200_000), ("larsen", 0)])
def test_preset_starts_its_adversarial_term_after_the_steps_of_the_original(preset: str, steps: int) -> None:
    assert case(preset).job.objective.adversarial.start_images == steps * IMAGES_PER_STEP


def test_preset_yields_to_what_the_job_says() -> None:
    job = case("ldm", kl={"weight": 0.5}).job
    assert job.objective.kl.weight == 0.5
    assert job.objective.reconstruction.kind == "laplace"


MINIMISED_BY_OTHERS = {
    "ldm": (1.0, "vgg16"),
    "sgm": (0.25, "vgg16"),
    "ta_titok": (1.1, "vgg16"),
    "monai": (1e-3, "alexnet"),
}
"""Weight of LPIPS beside a mean absolute or squared error over values, and its network, in the other system's code."""


@pytest.mark.parametrize("name", MINIMISED_BY_OTHERS)
def test_perceptual_weight_is_that_of_the_other_system_beside_a_mean_over_values(name: str) -> None:
    job = train_job({"preset": name, "discriminator": {"kind": "convolutional", **SMALL}}, image_size=32)
    weight, network = MINIMISED_BY_OTHERS[name]
    assert (job.objective.perceptual.weight, job.objective.perceptual.network) == (weight, network)
    scale = job.objective.reconstruction.scale
    value = scale.initial if scale.kind == "learned" else scale.value
    # Ours is error / scale / N: a mean over values for Laplace of scale 1, and of 2 where theirs has half the range; so
    # has it with the Gaussian ones.
    in_half_the_range = 2.0 if name == "monai" else 1.0
    assert value == (2.0**0.5 if job.objective.reconstruction.kind == "gaussian" else in_half_the_range)


@pytest.mark.parametrize(("name", "loss", "weight"), [("ldm_modern", "hinge", 0.1), ("monai", "least_squares", 0.01)])
def test_fixed_weight_preset_has_the_gradient_of_its_formula(name: str, loss: str, weight: float) -> None:
    c = case(name, shift=30.0)
    if c.job.objective.adversarial.ramp_images:
        c.batch.position = c.job.objective.adversarial.ramp_images
    logits = c.networks.discriminator(c.x_rec)[0]
    adversarial = -logits.mean() if loss == "hinge" else (logits - 1).square().mean()
    kl_weight = 1e-6 if name == "monai" else 1e-6 / c.num_values
    errors = (to_unit(c.x) - to_unit(c.x_rec) if name == "monai" else c.x - c.x_rec).abs()
    found = gradients(c.objective, "generator", c.batch)
    expected = c.gradients(errors.mean() + kl_weight * ldm_kl(c).mean() + weight * adversarial)
    assert_same_gradients(found, expected, tolerance=TOLERANCE)


def test_va_vae_preset_is_latent_diffusions_with_an_earlier_start() -> None:
    va_vae, ldm = (case(name).job.objective for name in ("va_vae", "ldm"))
    assert va_vae.adversarial.start_images == 5_001 * IMAGES_PER_STEP
    changed = {"preset": "ldm", "adversarial": ldm.adversarial}
    assert va_vae.model_copy(update=changed) == ldm
