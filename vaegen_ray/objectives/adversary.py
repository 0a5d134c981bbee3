"""What `gan` and `vae_gan` share: the discriminator, how it looks at images, and how it learns."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaegen_ray.config.model import Model
from vaegen_ray.config.objective import Adversarial, EquilibriumBalance, FrozenFeaturesDiscriminator
from vaegen_ray.config.objective import Discriminator as DiscriminatorSettings
from vaegen_ray.models.blocks import follow_spectral_norms
from vaegen_ray.models.judges import build_discriminator
from vaegen_ray.objectives.adversarial import accuracy, cross_entropies, discriminator_loss
from vaegen_ray.objectives.augmentation import augment, draw
from vaegen_ray.objectives.balance import held_back
from vaegen_ray.objectives.gradient_penalty import squared_gradient_norm
from vaegen_ray.objectives.lecam import Lecam
from vaegen_ray.objectives.objective import Batch, Portion
from vaegen_ray.objectives.perceptual import load_lpips
from vaegen_ray.schedules import ramp


class Look(NamedTuple):
    """What the discriminator says of images."""

    logits_B: Tensor
    """Or (B, P), of P patches; in float32."""
    features: list[Tensor]
    """In the precision of the networks: most objectives compare none, and need no copies of them."""


class Adversary(nn.Module):
    """The discriminator with its regularisers."""

    def __init__(self, settings: Adversarial, network: DiscriminatorSettings, model: Model) -> None:
        super().__init__()
        self.settings = settings
        self.discriminator = build_discriminator(network, image_size=model.image_size, channels=model.channels)
        self._frozen = network if isinstance(network, FrozenFeaturesDiscriminator) else None
        self.lecam = Lecam(settings.lecam) if settings.lecam is not None else None

    def factor(self, position: int) -> float:
        """How much of its adversarial term the generator feels, in [0, 1]."""
        return ramp(position, self.settings.start_images, self.settings.ramp_images)

    def look(self, images_FCHW: Tensor, draws_FD: Tensor | None, batch: Batch) -> Look:
        """Logits and features of augmented images; block after block of images shares the same draws."""
        if draws_FD is not None:
            repeats = len(images_FCHW) // len(draws_FD)
            images_FCHW = augment(images_FCHW, self.settings.augment, draws_FD.repeat(repeats, 1))
        with batch.networks():
            trunk = () if self._frozen is None else (load_lpips(self._frozen, images_FCHW.device).trunk,)
            logits_F, features = self.discriminator(images_FCHW, *trunk)
        return Look(logits_F.float(), features)

    def augmentation_draws(self, portion: Portion, purpose: str) -> Tensor | None:
        """The random numbers of one look at a portion; None where nothing is augmented."""
        return draw(portion.draws, purpose) if self.settings.augment else None

    @property
    def generator_needs_real(self) -> bool:
        """Whether the generator's phase needs the discriminator's answer to real images."""
        return self.settings.loss == "relativistic" or isinstance(self.settings.balance, EquilibriumBalance)

    def costs(self, real: Look | None, fake_logits: Tensor) -> dict[str, Tensor]:
        """The cross-entropies by which `equilibrium` decides; nothing for other balances."""
        if real is None or not isinstance(self.settings.balance, EquilibriumBalance):
            return {}
        real_cost, fake_cost = cross_entropies(real.logits_B, fake_logits)
        return {"real_cost": real_cost, "fake_cost": fake_cost}

    def decide_who_waits(self, batch: Batch, means: dict[str, Tensor]) -> None:
        """Set ``batch.held_back`` by the global costs; reads from the device, once, in `equilibrium` only.

        Before the generator feels its adversarial term there is no contest, and nobody waits.
        """
        if isinstance(self.settings.balance, EquilibriumBalance) and self.factor(batch.position) > 0:
            if means["real_cost"].is_meta:
                return  # `vaegen plan` counts what a step costs in which nobody waits.
            real_cost, fake_cost = torch.stack([means["real_cost"], means["fake_cost"]]).tolist()
            batch.held_back = held_back(self.settings.balance, real_cost, fake_cost)
            for part in ("decoder", "discriminator"):
                batch.record(f"{part}_waits", torch.full_like(means["real_cost"], float(part in batch.held_back)))

    def backward(self, batch: Batch) -> None:
        """Gradients of the discriminator's loss on real images and on ``batch.shown``; then LeCAM's averages."""
        follow_spectral_norms(self.discriminator)
        means = [self._portion_backward(portion, batch) for portion in batch.portions()]
        if self.lecam is not None:
            real_mean, fake_mean = batch.mean_over_ranks(torch.stack(means).mean(0))
            self.lecam.update(real_mean, fake_mean)

    def _portion_backward(self, portion: Portion, batch: Batch) -> Tensor:
        penalty = self._penalty_due(batch)
        real = portion.images_BCHW.detach().requires_grad_(penalty)
        fake = batch.shown[portion.index].detach().requires_grad_(penalty)
        draws_BD = self.augmentation_draws(portion, "discriminator")
        looked_at = torch.cat([real, fake])
        logits = self.look(looked_at, draws_BD, batch).logits_B
        real_logits, fake_logits = logits[: len(real)], logits[len(real) :]
        loss = adversarial = discriminator_loss(self.settings.loss, real_logits, fake_logits)
        if self.lecam is not None:
            lecam = self.lecam.penalty(real_logits, fake_logits)
            batch.record_share("lecam_penalty", lecam)
            loss = loss + self.lecam.settings.weight * lecam
        if penalty:
            loss = loss + self._gradient_penalty(batch, (real_logits, real), (fake_logits, fake))
        (loss / batch.num_portions).backward()
        self._record(batch, adversarial, loss, real_logits, fake_logits)
        return torch.stack([real_logits.detach().mean(), fake_logits.detach().mean()])

    def _penalty_due(self, batch: Batch) -> bool:
        settings = self.settings.gradient_penalty
        if settings is None:
            return False
        step = batch.position // batch.draws.images_per_step
        return step % settings.every_steps == 0

    def _gradient_penalty(
        self, batch: Batch, real: tuple[Tensor, Tensor], fake: tuple[Tensor, Tensor]
    ) -> Tensor | float:
        settings = self.settings.gradient_penalty
        assert settings is not None
        total: Tensor | float = 0.0
        for name, gamma, (logits, images) in (("r1", settings.r1, real), ("r2", settings.r2, fake)):
            if gamma > 0:
                squared_norm = squared_gradient_norm(logits, images)
                batch.record_share(f"{name}_squared_gradient_norm", squared_norm)
                # A lazy penalty is as much stronger as it is rarer (Karras et al. 2020, section 3.1).
                total = total + settings.every_steps * gamma / 2 * squared_norm
        return total

    def _record(self, batch: Batch, adversarial: Tensor, loss: Tensor, real: Tensor, fake: Tensor) -> None:
        batch.record_share("discriminator_loss", adversarial)
        batch.record_share("discriminator_total_loss", loss)
        batch.record_share("real_logit", real.mean())
        batch.record_share("fake_logit", fake.mean())
        batch.record_share("discriminator_accuracy", accuracy(self.settings.loss, real, fake))
