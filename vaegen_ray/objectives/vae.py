"""The variational autoencoder: L = (1/N) [ NLL(x | x') + beta KL ] (Kingma & Welling 2014, eq. 10)."""

from typing import NamedTuple

from torch import Tensor, nn

from vaegen_ray.config.model import ConvolutionalModel
from vaegen_ray.config.objective import VaeObjective
from vaegen_ray.models.convolutional import Generator
from vaegen_ray.objectives.autoencoding import KlTerm, Likelihood, encode
from vaegen_ray.objectives.objective import Batch, PhaseName, Portion, backward_in_portions


class _Forward(NamedTuple):
    error_B: Tensor
    kl_BZ: Tensor


class Vae(nn.Module):
    """Encoder and decoder; no discriminator."""

    discriminator = None

    def __init__(self, settings: VaeObjective, model: ConvolutionalModel) -> None:
        super().__init__()
        self.generator = Generator(model)
        self.likelihood = Likelihood(settings.reconstruction, model.values_per_image)
        self.kl = KlTerm(settings.kl, model.values_per_image)

    def groups(self, phase: PhaseName) -> dict[str, list[nn.Parameter]]:
        """All parameters are the generator's."""
        return {"generator": list(self.parameters())} if phase == "generator" else {}

    def generator_backward(self, batch: Batch) -> None:
        """Gradients of L, and its terms as metrics."""
        means = backward_in_portions(
            batch,
            forward=lambda portion: self._forward(portion, batch),
            statistics=lambda forward: {"error": forward.error_B.mean(), "kl_Z": forward.kl_BZ.mean(0)},
            backward=lambda forward, means: self._backward(forward, means, batch),
        )
        self.kl.record(batch, means["kl_Z"])
        self.likelihood.record(batch, means["error"], means["kl_Z"])
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
        return _Forward(error_B, kl_BZ)

    def _backward(self, forward: _Forward, means: dict[str, Tensor], batch: Batch) -> None:
        error = forward.error_B.mean()
        loss = self.likelihood.error_weight(means["error"]) * error
        loss = loss + self.kl.loss(forward.kl_BZ, means["kl_Z"], batch.position)
        scale_loss = self.likelihood.scale_loss(error)
        if scale_loss is not None:
            loss = loss + scale_loss
        (loss / batch.num_portions).backward()

    def _loss(self, means: dict[str, Tensor], batch: Batch) -> Tensor:
        return self.likelihood.nll(means["error"]) / self.likelihood.values_per_image + self.kl.value(
            means["kl_Z"], batch.position
        )
