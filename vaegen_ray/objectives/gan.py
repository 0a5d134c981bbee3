"""The generative adversarial network, on the decoder and discriminator of the other objectives."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaegen_ray.config.model import Model
from vaegen_ray.config.objective import AdaptiveBalance, GanObjective, GradientShareBalance
from vaegen_ray.models.generator import Generator
from vaegen_ray.models.judges import AnyDiscriminator
from vaegen_ray.objectives.adversarial import generator_loss
from vaegen_ray.objectives.adversary import Adversary
from vaegen_ray.objectives.objective import Batch, PhaseName, Portion, backward_in_portions


class _Forward(NamedTuple):
    loss: Tensor
    costs: dict[str, Tensor]


class Gan(nn.Module):
    """Decoder from noise, and discriminator (Goodfellow et al. 2014)."""

    def __init__(self, settings: GanObjective, model: Model) -> None:
        super().__init__()
        balance = settings.adversarial.balance
        assert not isinstance(balance, AdaptiveBalance | GradientShareBalance)
        self.weight = balance.weight
        self.generator = Generator(model)
        self.adversary = Adversary(settings.adversarial, settings.discriminator, model)

    @property
    def discriminator(self) -> AnyDiscriminator:
        """The adversary's network."""
        return self.adversary.discriminator

    def groups(self, phase: PhaseName) -> dict[str, list[nn.Parameter]]:
        """The decoder in one phase, the discriminator in the other."""
        if phase == "generator":
            return self.generator.groups()
        return {"discriminator": list(self.discriminator.parameters())}

    def generator_backward(self, batch: Batch) -> None:
        """Gradients of the adversarial loss at images from noise."""
        means = backward_in_portions(
            batch,
            forward=lambda portion: self._forward(portion, batch),
            statistics=lambda forward: {"loss": forward.loss, **forward.costs},
            decide=lambda means: means,
            backward=lambda forward, _: self._backward(forward, batch),
            is_decided_by_all=False,
        )
        self.adversary.decide_who_waits(batch, means)
        batch.record("adversarial_loss", means["loss"])
        batch.record("generator_loss", self._weight(batch) * means["loss"])

    def discriminator_backward(self, batch: Batch) -> None:
        """Gradients of the discriminator's loss."""
        self.adversary.backward(batch)

    def _weight(self, batch: Batch) -> float:
        return self.weight * self.adversary.factor(batch.position)

    def _forward(self, portion: Portion, batch: Batch) -> _Forward:
        adversary = self.adversary
        latents_BZ = portion.draws.normal("prior", *self.generator.latent_shape)
        with batch.networks():
            generated_BCHW = self.generator.decoder(latents_BZ).float()
        batch.shown[portion.index] = generated_BCHW.detach()
        draws_BD = adversary.augmentation_draws(portion, "generator")
        real = None
        if adversary.generator_needs_real:
            with torch.no_grad():
                real = adversary.look(portion.images_BCHW, draws_BD, batch)
        fake = adversary.look(generated_BCHW, draws_BD, batch)
        loss = generator_loss(adversary.settings.loss, real.logits_B if real else None, fake.logits_B)
        batch.note("adversarial", loss)
        return _Forward(loss, adversary.costs(real, fake.logits_B))

    def _backward(self, forward: _Forward, batch: Batch) -> None:
        (self._weight(batch) * forward.loss / batch.num_portions).backward()
