"""The objectives once more, written for obviousness: one float64 loss, differentiated by autograd."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributions import Laplace, Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.functional import relu

from tests.objectives.steps import AnyObjective, twin
from vaegen_ray.config.job import TrainJob
from vaegen_ray.objectives.augmentation import augment
from vaegen_ray.objectives.objective import Batch


@dataclass
class Reference:
    """The networks in float64 and one batch as a whole."""

    job: TrainJob
    objective: AnyObjective
    batch: Batch
    networks: AnyObjective = field(init=False)

    def __post_init__(self) -> None:
        self.networks = twin(self.objective)
        self.images = self.batch.images_BCHW.double()
        self.num_values = self.images[0].numel()

    # ------------------------------------------------------------------ the generator

    def generator_gradients(self) -> dict[str, Tensor]:
        """Gradients of L by all parameters of the generator and its scale."""
        settings = self.job.objective
        if settings.kind == "gan":
            generated = self.networks.generator.decoder(self.prior())
            loss = self.factor() * settings.adversarial.balance.weight * self.adversarial(generated)
            return self._gradients(loss, "generator")
        mean, log_variance = self.networks.generator.encoder(self.images)
        noise = self.batch.draws.normal("posterior", *self.job.model.latent_shape).double()
        latents = mean + (log_variance / 2).exp() * noise
        reconstructions = self.networks.generator.decoder(latents)
        beta_kl = settings.kl.weight * self.kl_schedule() * self.kl_penalty(mean, log_variance)
        if settings.kind == "vae":
            return self._gradients((self.nll(reconstructions) + beta_kl) / self.num_values, "generator")

        generated = self.networks.generator.decoder(self.prior())
        side = self.nll(reconstructions) / self.num_values
        if settings.adversarial.feature_matching is not None and self.factor() > 0:
            weight = self.factor() * settings.adversarial.feature_matching.weight
            side = side + weight * self.feature_matching(reconstructions)
        total = side + beta_kl / self.num_values
        if self.factor() > 0:
            adversarial = self.adversarial(self.shown(reconstructions, generated))
            lambda_ = self.balance(side, adversarial, reconstructions, generated)
            if not settings.adversarial.reaches_encoder:
                again = self.networks.generator.decoder(latents.detach())
                adversarial = self.adversarial(self.shown(again, generated))
            total = total + self.factor() * lambda_ * adversarial
        return self._gradients(total, "generator")

    def balance(self, side: Tensor, adversarial: Tensor, reconstructions: Tensor, generated: Tensor) -> float:
        """lambda, by autograd where it depends on gradients."""
        balance = self.job.objective.adversarial.balance
        if balance.kind in ("fixed", "equilibrium"):
            return balance.weight
        if balance.kind == "adaptive":
            last_layer = self.networks.generator.decoder.to_images.weight
            a, b = (torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm() for loss in (side, adversarial))
            return balance.weight * min(float(a / (b + 1e-4)), balance.max_ratio)
        a, b = (image_gradient_norm(loss, reconstructions, generated) for loss in (side, adversarial))
        return min(balance.share / (1 - balance.share) * a / b, balance.max_weight)

    def nll(self, reconstructions: Tensor) -> Tensor:
        """Mean over images of the negative log-likelihood, or of Larsen's feature error."""
        settings = self.job.objective.reconstruction
        if settings.kind == "discriminator_features":
            features = [self.features(images)[settings.layer].flatten(1) for images in (self.images, reconstructions)]
            return 0.5 * (features[1] - features[0].detach()).square().sum(1).mean()
        error = self.images - reconstructions
        if settings.scale.kind == "learned":
            scale = self.networks.likelihood.learned_log_scale.exp()
        elif settings.scale.kind == "fixed":
            scale = torch.tensor(settings.scale.value, dtype=torch.float64)
        else:  # The optimum, differentiated like everything else: at an optimum that adds nothing.
            scale = error.abs().mean() if settings.kind == "laplace" else error.square().mean().sqrt()
        distribution = (Laplace if settings.kind == "laplace" else Normal)(reconstructions, scale)
        return -distribution.log_prob(self.images).flatten(1).sum(1).mean()

    def kl_penalty(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        """The penalty of the whole batch."""
        penalty = self.job.objective.kl.penalty
        posterior = Normal(mean, (log_variance / 2).exp())
        kl_Z = kl_divergence(posterior, Normal(0.0, 1.0)).mean(0)
        if penalty.kind == "free_bits":
            return torch.maximum(kl_Z, torch.tensor(penalty.nats_per_dimension, dtype=torch.float64)).sum()
        if penalty.kind == "capacity":
            return (kl_Z.sum() - penalty.nats * min(self.batch.position / penalty.growth_images, 1)).abs()
        return kl_Z.sum()

    def kl_schedule(self) -> float:
        """The schedule's multiplier."""
        schedule, position = self.job.objective.kl.schedule, self.batch.position
        if schedule.kind == "linear":
            return min(max((position - schedule.start_images) / schedule.warmup_images, 0), 1)
        if schedule.kind == "cyclical":
            return min(position % schedule.cycle_images / (schedule.ramp_fraction * schedule.cycle_images), 1)
        return 1.0

    def factor(self) -> float:
        """The ramp of the adversarial term."""
        adversarial = self.job.objective.adversarial
        since = self.batch.position - adversarial.start_images
        if adversarial.ramp_images == 0:
            return float(since >= 0)
        return min(max(since / adversarial.ramp_images, 0), 1)

    def adversarial(self, fakes: Tensor) -> Tensor:
        """The generator's adversarial loss."""
        loss = self.job.objective.adversarial.loss
        fake = self.logits(fakes, "generator")
        if loss == "hinge":
            return -fake.mean()
        if loss == "non_saturating":
            return bce(fake, torch.ones_like(fake))
        if loss == "least_squares":
            return ((fake - 1) ** 2).mean() / 2
        real = self.logits(self.images, "generator").detach()
        difference = torch.stack([fake[i] - real[i % len(real)] for i in range(len(fake))])
        return bce(difference, torch.ones_like(difference))

    def feature_matching(self, reconstructions: Tensor) -> Tensor:
        """Mean over layers of the mean absolute difference."""
        real, fake = self.features(self.images), self.features(reconstructions)
        return sum((r.detach() - f).abs().mean() for r, f in zip(real, fake, strict=True)) / len(real)

    # ------------------------------------------------------------------ the discriminator

    def discriminator_gradients(self) -> dict[str, Tensor]:
        """Gradients of the discriminator's loss, at what the generator's phase left in the batch."""
        settings = self.job.objective.adversarial
        real_images = self.images.clone().requires_grad_()
        fake_images = in_blocks(self.batch).double().requires_grad_()
        real, fake = self.logits(real_images, "discriminator"), self.logits(fake_images, "discriminator")
        if settings.loss == "hinge":
            loss = (relu(1 - real).mean() + relu(1 + fake).mean()) / 2
        elif settings.loss == "non_saturating":
            loss = bce(real, torch.ones_like(real)) + bce(fake, torch.zeros_like(fake))
        elif settings.loss == "least_squares":
            loss = (((real - 1) ** 2).mean() + (fake**2).mean()) / 2
        else:
            difference = torch.stack([real[i % len(real)] - fake[i] for i in range(len(fake))])
            loss = bce(difference, torch.ones_like(difference))
        penalty = settings.gradient_penalty
        if penalty is not None and (self.batch.position // len(self.images)) % penalty.every_steps == 0:
            for gamma, logits, images in ((penalty.r1, real, real_images), (penalty.r2, fake, fake_images)):
                (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
                loss = loss + penalty.every_steps * gamma / 2 * (gradient**2).sum() / len(images)
        if settings.lecam is not None:
            loss = loss + settings.lecam.weight * self.lecam(real, fake)
        return self._gradients(loss, "discriminator")

    def lecam(self, real: Tensor, fake: Tensor) -> Tensor:
        """Tseng et al. 2021 with the averages as they stand, free of their zero start."""
        module = self.networks.adversary.lecam
        if module.num_updates == 0:
            return 0 * real.sum()
        real_average, fake_average = module.averages / (1 - module.settings.decay ** float(module.num_updates))
        return relu(real - fake_average).square().mean() + relu(real_average - fake).square().mean()

    # ------------------------------------------------------------------ parts

    def prior(self) -> Tensor:
        """Latents of the images from noise."""
        return self.batch.draws.normal("prior", *self.job.model.latent_shape).double()

    def shown(self, reconstructions: Tensor, generated: Tensor) -> Tensor:
        """What the discriminator sees of the generator."""
        shows = self.job.objective.adversarial.shows
        chosen = {"reconstructions": [reconstructions], "generated": [generated], "both": [reconstructions, generated]}
        return torch.cat(chosen[shows])

    def logits(self, images: Tensor, purpose: str) -> Tensor:
        """One logit an image, augmented with the same numbers for image i of each block."""
        policies = self.job.objective.adversarial.augment
        if policies:
            draws = self.batch.draws.uniform(f"augment {purpose}", 7).double()
            images = augment(images, policies, draws.repeat(len(images) // len(draws), 1))
        return self.networks.discriminator(images)[0]

    def features(self, images: Tensor) -> list[Tensor]:
        """Feature maps as the generator's phase sees them."""
        policies = self.job.objective.adversarial.augment
        if policies:
            images = augment(images, policies, self.batch.draws.uniform("augment generator", 7).double())
        return self.networks.discriminator(images)[1]

    def _gradients(self, loss: Tensor, phase: str) -> dict[str, Tensor]:
        owned = {id(parameter) for group in self.networks.groups(phase).values() for parameter in group}
        named = {name: p for name, p in self.networks.named_parameters() if id(p) in owned}
        found = torch.autograd.grad(loss, list(named.values()))
        return dict(zip(named, found, strict=True))


def image_gradient_norm(loss: Tensor, *images: Tensor) -> float:
    """Norm of the gradient at all these images together; an image that has no part in the loss counts 0."""
    found = torch.autograd.grad(loss, images, retain_graph=True, allow_unused=True)
    return float(torch.cat([gradient.flatten() for gradient in found if gradient is not None]).norm())


def in_blocks(batch: Batch) -> Tensor:
    """The generator's images of all portions: all reconstructions, then all generated ones."""
    length = len(batch.images_BCHW) // batch.num_portions
    portions = [batch.shown[index].split(length) for index in range(batch.num_portions)]
    return torch.cat([block for blocks in zip(*portions, strict=True) for block in blocks])
