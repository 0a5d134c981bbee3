"""The variational autoencoder: L = (1/N) [ NLL(x | x') + beta KL ] (Kingma & Welling 2014, eq. 10) (+ LPIPS)."""

from typing import NamedTuple

from torch import Tensor, nn

from vaegen_ray.config.model import Model
from vaegen_ray.config.objective import VaeObjective
from vaegen_ray.models.generator import Generator
from vaegen_ray.objectives.autoencoding import KlTerm, Likelihood, encode
from vaegen_ray.objectives.objective import Batch, PhaseName, Portion, backward_in_portions
from vaegen_ray.objectives.perceptual import PerceptualTerm


class _Forward(NamedTuple):
    error_B: Tensor
    kl_BZ: Tensor
    perceptual: Tensor | None
    """Mean over images, at a step that has the term."""


class Vae(nn.Module):
    """Encoder and decoder; no discriminator."""

    discriminator = None

    def __init__(self, settings: VaeObjective, model: Model) -> None:
        super().__init__()
        self.generator = Generator(model)
        self.likelihood = Likelihood(settings.reconstruction, model.values_per_image)
        self.kl = KlTerm(settings.kl, model.values_per_image)
        self.perceptual = PerceptualTerm(settings.perceptual) if settings.perceptual is not None else None

    def groups(self, phase: PhaseName) -> dict[str, list[nn.Parameter]]:
        """All parameters that learn are the generator's."""
        if phase != "generator":
            return {}
        networks = [parameter for group in self.generator.groups().values() for parameter in group]
        return {"generator": networks + list(self.likelihood.parameters())}

    def generator_backward(self, batch: Batch) -> None:
        """Gradients of L, and its terms as metrics."""
        means = backward_in_portions(
            batch,
            forward=lambda portion: self._forward(portion, batch),
            statistics=_statistics,
            decide=lambda means: means,
            backward=lambda forward, means: self._backward(forward, means, batch),
            is_decided_by_all=self.kl.is_decided_by_all or self.likelihood.is_decided_by_all,
        )
        self.kl.record(batch, means["kl_Z"])
        self.likelihood.record(batch, means["error"], means["kl_Z"])
        if "perceptual" in means:
            batch.record("perceptual_loss", means["perceptual"])
        batch.record("generator_loss", self._loss(means, batch))

    def discriminator_backward(self, batch: Batch) -> None:
        """There is no discriminator."""
        raise NotImplementedError

    def _forward(self, portion: Portion, batch: Batch) -> _Forward:
        latents_BZ, kl_BZ = encode(self.generator, portion, batch)
        with batch.networks():
            reconstructions_BCHW = self.generator.decoder(latents_BZ)
        error_B = self.likelihood.error_B(reconstructions_BCHW.float(), portion.images_BCHW)
        batch.note("reconstruction", error_B.mean())
        if self.perceptual is None or not self.perceptual.is_due(batch):
            return _Forward(error_B, kl_BZ, None)
        perceptual = self.perceptual.mean(reconstructions_BCHW.float(), portion, batch)
        batch.note("perceptual", perceptual)
        return _Forward(error_B, kl_BZ, perceptual)

    def _backward(self, forward: _Forward, means: dict[str, Tensor], batch: Batch) -> None:
        error = forward.error_B.mean()
        loss = self.likelihood.error_weight(means["error"]) * error
        loss = loss + self.kl.loss(forward.kl_BZ, means["kl_Z"], batch.position)
        if forward.perceptual is not None and self.perceptual is not None:
            loss = loss + self.perceptual.weight * forward.perceptual
        scale_loss = self.likelihood.scale_loss(error)
        if scale_loss is not None:
            loss = loss + scale_loss
        (loss / batch.num_portions).backward()

    def _loss(self, means: dict[str, Tensor], batch: Batch) -> Tensor:
        loss = self.likelihood.nll(means["error"]) / self.likelihood.values_per_image
        loss = loss + self.kl.value(means["kl_Z"], batch.position)
        if "perceptual" in means and self.perceptual is not None:
            loss = loss + self.perceptual.weight * means["perceptual"]
        return loss


def _statistics(forward: _Forward) -> dict[str, Tensor]:
    means = {"error": forward.error_B.mean(), "kl_Z": forward.kl_BZ.mean(0)}
    return means | ({"perceptual": forward.perceptual} if forward.perceptual is not None else {})
