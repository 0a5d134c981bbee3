"""The training step against the same step as latent diffusion's code formulates it, interleaved in one process.

The reference runs the autoencoder and LPIPS again for the discriminator's phase, shows real and generated images to
the discriminator one after the other, and takes the adaptive weight from two extra backward passes through
discriminator and losses down to the decoder's last layer. Both use the adaptive balance, the same networks, images
and optimizers, and the job's precision and compilation; published code has neither, so where the job has one of them
the reference is timed without them too, in PyTorch's default arithmetic.
"""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.loading import job_of
from vaegen_ray.config.model import KlAutoencoderModel
from vaegen_ray.config.objective import AdaptiveBalance, VaeGanObjective
from vaegen_ray.errors import JobError
from vaegen_ray.models.arithmetic import use_exact_arithmetic
from vaegen_ray.objectives.adversarial import discriminator_loss, generator_loss
from vaegen_ray.objectives.balance import adaptive_weight
from vaegen_ray.objectives.kl import kl_to_standard_normal, sample_posterior
from vaegen_ray.objectives.objective import Batch
from vaegen_ray.objectives.vae_gan import VaeGan
from vaegen_ray.training.guard import FiniteGuard
from vaegen_ray.training.local_session import LocalSession
from vaegen_ray.training.loop import make_batch
from vaegen_ray.training.precision import compile_networks
from vaegen_ray.training.rate import now
from vaegen_ray.training.state import TrainState

WARM_UP_STEPS = 3


@dataclass(frozen=True)
class StepTimes:
    """Medians over the measured steps, in seconds."""

    images: int
    """A step: one portion, where the job divides its own."""
    ours_s: float
    reference_s: float
    published_s: float | None
    """The reference in eager float32, as PyTorch computes it by default; None where the job asks for nothing else."""
    parts_s: dict[str, float]
    """Of our step, from steps of their own: a clock between them makes the host wait for a GPU."""


def measure_step(job: TrainJob, *, device: torch.device, steps: int) -> StepTimes:
    """Time ``steps`` steps of each formulation in turn, after a few to warm up."""
    use_exact_arithmetic()
    job = with_adaptive_balance(job)
    ours = Ours(job, device)
    formulations: list[Ours | Reference] = [ours, Reference(job, device)]
    as_published = _as_published(job)
    if as_published != job:
        formulations.append(Published(as_published, device))
    times: list[list[float]] = [[] for _ in formulations]
    for step in range(WARM_UP_STEPS + steps):
        for formulation, taken in zip(formulations, times, strict=True):
            start = now(device)
            formulation.step()
            if step >= WARM_UP_STEPS:
                taken.append(now(device) - start)
    ours.has_clocks = True
    for _ in range(steps):
        ours.step()
    ours_s, reference_s, *published_s = (statistics.median(taken) for taken in times)
    parts_s = {name: statistics.median(parts) for name, parts in ours.parts.items()}
    images = job.training.images_per_step
    return StepTimes(images, ours_s, reference_s, published_s[0] if published_s else None, parts_s)


def _as_published(job: TrainJob) -> TrainJob:
    training = job.training.model_copy(update={"precision": "float32", "compile": False})
    return job.model_copy(update={"training": training})


def with_adaptive_balance(job: TrainJob) -> TrainJob:
    """The job with what the reference can do: adaptive balance, no extras, the adversary from the start."""
    needs = "for `bench step`, whose reference has nothing else"
    if not isinstance(job.objective, VaeGanObjective):
        raise JobError(f"objective.kind: must be 'vae_gan' {needs}, got {job.objective.kind!r}; give another job")
    if job.objective.reconstruction.kind == "discriminator_features":
        raise JobError(
            f"objective.reconstruction.kind: must be a likelihood of images {needs}, got 'discriminator_features'; "
            "set it to laplace"
        )
    if isinstance(job.model, KlAutoencoderModel) and job.model.freeze_encoder:
        raise JobError(f"model.freeze_encoder: must be false {needs}, got true; set it to false")
    tree = job.model_dump()
    tree["objective"]["reconstruction"]["scale"] = {"kind": "fixed", "value": 1.0}
    tree["objective"]["kl"] = {"weight": job.objective.kl.weight}
    tree["objective"]["adversarial"] = {
        "loss": job.objective.adversarial.loss,
        "balance": {"kind": "adaptive", "weight": 0.5},
        "shows": "reconstructions",
    }
    if job.objective.perceptual is not None:
        tree["objective"]["perceptual"] |= {"every_steps": 1, "images_fraction": 1.0}
    tree["objective"]["preset"] = None
    # A portion at a time, as the job does it: the reference knows no accumulation, and the whole step may not fit.
    tree["training"]["images_per_step"] //= job.training.accumulation_steps * job.resources.most_workers
    tree["training"]["accumulation_steps"] = 1
    tree["resources"]["workers"] = 1
    # What a run does later, to settings that this job may not have.
    tree["watchdog"], tree["changes"] = {}, ()
    result = job_of(tree, "bench step")
    assert isinstance(result, TrainJob)
    return result


class Ours:
    """The training loop's step, where asked for with a clock between its parts."""

    def __init__(self, job: TrainJob, device: torch.device) -> None:
        self.job, self.device = job, device
        self.session = LocalSession(0, 1, device)
        self.state = TrainState(job, device)
        compile_networks(self.state.objective, job, device)
        self.guard = FiniteGuard(device)
        self.images = _images(job, device)
        self.has_clocks = False
        self.parts: dict[str, list[float]] = {}
        for phase in self.state.phases:
            phase.backward = self._within(f"{phase.name}: forward and backward", phase.backward)

    def step(self) -> None:
        state = self.state
        with self._timed("input and random numbers"):
            batch = make_batch(self.job, self.session, state.position, self.images)
        for phase in state.phases:
            with self._timed(f"{phase.name}: guard and optimizer", without=f"{phase.name}: forward and backward"):
                phase.update(batch, learning_rate_factor=1.0, guard=self.guard)
        state.position += self.job.training.images_per_step
        with self._timed("moving average"):
            state.ema.follow(state.objective.generator, 0.999)

    def _within(self, name: str, backward: Callable[[Batch], None]) -> Callable[[Batch], None]:
        def timed(batch: Batch) -> None:
            with self._timed(name):
                backward(batch)

        return timed

    @contextmanager
    def _timed(self, name: str, without: str | None = None) -> Iterator[None]:
        if not self.has_clocks:
            yield
            return
        start = now(self.device)
        yield
        inside = 0.0 if without is None else self.parts[without][-1]
        self.parts.setdefault(name, []).append(now(self.device) - start - inside)


class Reference:
    """Latent diffusion's formulation of the same step (Rombach et al. 2022, the published training code)."""

    def __init__(self, job: TrainJob, device: torch.device) -> None:
        self.job, self.session = job, LocalSession(0, 1, device)
        self.state = TrainState(job, device)
        compile_networks(self.state.objective, job, device)
        self.images = _images(job, device)
        assert isinstance(self.state.objective, VaeGan)
        self.objective = self.state.objective

    def step(self) -> None:
        batch = make_batch(self.job, self.session, self.state.position, self.images)
        generator, discriminator = self.state.phases
        self.backward_generator(batch)
        generator.optimizer.step()
        generator.optimizer.zero_grad()
        self.backward_discriminator(batch)
        discriminator.optimizer.step()
        discriminator.optimizer.zero_grad()
        self.state.ema.follow(self.objective.generator, 0.999)
        self.state.position += self.job.training.images_per_step

    def _autoencode(self, batch: Batch) -> tuple[Tensor, Tensor]:
        network = self.objective.generator
        assert network.encoder is not None
        with batch.networks():
            mean_BZ, log_variance_BZ = network.encoder(batch.images_BCHW)
            latents_BZ = sample_posterior(
                mean_BZ, log_variance_BZ, batch.draws.normal("posterior", *network.latent_shape)
            )
            reconstructions = network.decoder(latents_BZ)
        kl = kl_to_standard_normal(mean_BZ.float(), log_variance_BZ.float()).flatten(1).sum(1).mean()
        return reconstructions.float(), kl

    def backward_generator(self, batch: Batch) -> None:
        """Gradients of autoencoder and loss; the adaptive weight takes two backward passes of its own."""
        self._train_only("generator")
        settings, balance = self.objective.settings, self.objective.settings.adversarial.balance
        assert isinstance(balance, AdaptiveBalance)
        assert self.objective.likelihood is not None
        reconstructions, kl = self._autoencode(batch)
        nll = (
            self.objective.likelihood.error_B(reconstructions, batch.images_BCHW).mean()
            / self.objective.values_per_image
        )
        nll = nll + self._perceptual(reconstructions, batch)
        look = self.objective.adversary.look
        logits = look(reconstructions, None, batch).logits_B
        real_logits = None
        if settings.adversarial.loss == "relativistic":
            real_logits = look(batch.images_BCHW, None, batch).logits_B
        adversarial = generator_loss(settings.adversarial.loss, real_logits, logits)
        last_layer = self.objective.generator.decoder.to_images.weight
        (nll_gradient,) = torch.autograd.grad(nll, last_layer, retain_graph=True)
        (adversarial_gradient,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
        weight = adaptive_weight(balance, nll_gradient, adversarial_gradient).detach()
        loss = nll + settings.kl.weight / self.objective.values_per_image * kl + weight * adversarial
        loss.backward()

    def backward_discriminator(self, batch: Batch) -> None:
        """Gradients of the discriminator, after a second forward pass of everything."""
        self._train_only("discriminator")
        reconstructions, _ = self._autoencode(batch)
        self._perceptual(reconstructions, batch)  # Published code computes the losses before it asks for which phase.
        look = self.objective.adversary.look
        real_logits = look(batch.images_BCHW, None, batch).logits_B
        fake_logits = look(reconstructions.detach(), None, batch).logits_B
        discriminator_loss(self.objective.settings.adversarial.loss, real_logits, fake_logits).backward()

    def _perceptual(self, reconstructions: Tensor, batch: Batch) -> Tensor:
        term = self.objective.perceptual
        if term is None:
            return torch.zeros((), device=reconstructions.device)
        (portion,) = batch.portions()
        return term.weight * term.mean(reconstructions, portion, batch)

    def _train_only(self, name: str) -> None:
        for phase in self.state.phases:
            for parameter in phase.parameters:
                parameter.requires_grad = phase.name == name


class Published(Reference):
    """The reference in the arithmetic of which published code says nothing: PyTorch's default."""

    def step(self) -> None:
        with _default_arithmetic():
            super().step()


@contextmanager
def _default_arithmetic() -> Iterator[None]:
    """On a GPU, TF32 in convolutions, and algorithms that may add in varying order."""
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.deterministic = False
    try:
        yield
    finally:
        use_exact_arithmetic()


def _images(job: TrainJob, device: torch.device) -> Tensor:
    shape = (job.training.images_per_step, job.model.image_size, job.model.image_size, job.model.channels)
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=random).permute(0, 3, 1, 2).to(device)
