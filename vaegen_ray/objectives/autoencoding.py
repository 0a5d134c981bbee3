"""What `vae` and `vae_gan` share: posterior, KL term, likelihood and its scale."""

import math

import torch
from torch import Tensor, nn

from vaegen_ray.config.objective import (
    BatchOptimalScale,
    FixedScale,
    GaussianReconstruction,
    Kl,
    LaplaceReconstruction,
    LearnedScale,
    PlainPenalty,
)
from vaegen_ray.models.generator import Generator
from vaegen_ray.objectives.kl import kl_to_standard_normal, penalty_slope, penalty_value, sample_posterior
from vaegen_ray.objectives.objective import Batch, Portion
from vaegen_ray.objectives.reconstruction import (
    bits_per_dimension,
    error_B,
    inverse_scale,
    normaliser,
    optimal_log_scale,
)
from vaegen_ray.schedules import kl_factor


class KlTerm:
    """(1/N) beta(t) penalty(KL), with the floor or the capacity decided by the global batch."""

    def __init__(self, settings: Kl, values_per_image: int) -> None:
        self.settings = settings
        self.values_per_image = values_per_image

    def beta(self, position: int) -> float:
        """The KL weight in force."""
        return self.settings.weight * kl_factor(self.settings.schedule, position)

    @property
    def is_decided_by_all(self) -> bool:
        """Whether the penalty has a floor or a capacity, which the KL of the global batch reaches or not."""
        return not isinstance(self.settings.penalty, PlainPenalty)

    def loss(self, kl_BZ: Tensor, global_kl_Z: Tensor, position: int) -> Tensor:
        """A scalar whose gradient is that of the penalty of the global batch."""
        slope_Z = penalty_slope(self.settings.penalty, global_kl_Z, position)
        return self.beta(position) / self.values_per_image * (slope_Z * kl_BZ.mean(0)).sum()

    def value(self, global_kl_Z: Tensor, position: int) -> Tensor:
        """The term as it stands in L."""
        return self.beta(position) / self.values_per_image * penalty_value(self.settings.penalty, global_kl_Z, position)

    def record(self, batch: Batch, global_kl_Z: Tensor) -> None:
        """Log the KL in nats and the beta in force."""
        # Not `kl_nats`, which is the moving average's on held-out images, and would stand in the same line.
        batch.record("train_kl_nats", global_kl_Z.sum())
        batch.record("beta", torch.full((), self.beta(batch.position), device=global_kl_Z.device))


class Likelihood(nn.Module):
    """A Laplace or Gaussian likelihood of images; its scale is fixed, a parameter, or the batch's optimum."""

    def __init__(self, settings: LaplaceReconstruction | GaussianReconstruction, values_per_image: int) -> None:
        super().__init__()
        self.kind = settings.kind
        self.scale = settings.scale
        self.values_per_image = values_per_image
        initial = self.scale.initial if isinstance(self.scale, LearnedScale) else 1.0
        learned = isinstance(self.scale, LearnedScale)
        self.learned_log_scale = nn.Parameter(torch.tensor(math.log(initial))) if learned else None

    @property
    def is_decided_by_all(self) -> bool:
        """Whether the scale is that of the global batch."""
        return isinstance(self.scale, BatchOptimalScale)

    def error_B(self, reconstructions_BCHW: Tensor, images_BCHW: Tensor) -> Tensor:
        """The scale-free error, summed over an image; shape B."""
        return error_B(self.kind, reconstructions_BCHW, images_BCHW)

    def log_scale(self, global_error: Tensor) -> Tensor:
        """The log of b or sigma in force, given the mean error of the global batch; carries no gradient."""
        if self.learned_log_scale is not None:
            return self.learned_log_scale.detach()
        if isinstance(self.scale, FixedScale):
            return torch.full_like(global_error, math.log(self.scale.value))
        return optimal_log_scale(self.kind, global_error, self.values_per_image)

    def error_weight(self, global_error: Tensor) -> Tensor:
        """What multiplies the error's gradient in L: the inverse scale over N."""
        return inverse_scale(self.kind, self.log_scale(global_error)) / self.values_per_image

    def scale_loss(self, mean_error: Tensor) -> Tensor | None:
        """NLL/N as a function of the learned scale alone; None where no scale is learned.

        The optimal scale needs no term: there the NLL's derivative by the scale is zero.
        """
        if self.learned_log_scale is None:
            return None
        return self._nll(mean_error.detach(), self.learned_log_scale) / self.values_per_image

    def record(self, batch: Batch, global_error: Tensor, global_kl_Z: Tensor) -> None:
        """Log the NLL in nats an image, the scale, and the bits a value of the evidence lower bound."""
        nll = self.nll(global_error)
        batch.record("nll_nats", nll)
        batch.record("likelihood_scale", self.log_scale(global_error).exp())
        batch.record("bits_per_dimension", bits_per_dimension(nll + global_kl_Z.sum(), self.values_per_image))

    def nll(self, global_error: Tensor) -> Tensor:
        """The negative log-likelihood in nats an image, given the mean error of the global batch."""
        return self._nll(global_error, self.log_scale(global_error))

    def _nll(self, error: Tensor, log_scale: Tensor) -> Tensor:
        return error * inverse_scale(self.kind, log_scale) + normaliser(self.kind, log_scale, self.values_per_image)


def encode(generator: Generator, portion: Portion, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return a posterior sample, of shape (B, *latent_shape), and the KL of each dimension kl_BZ; both float32."""
    with batch.networks():
        mean_BZ, log_variance_BZ = generator.posterior(portion.images_BCHW)
    mean_BZ, log_variance_BZ = mean_BZ.float(), log_variance_BZ.float()
    kl_BZ = kl_to_standard_normal(mean_BZ, log_variance_BZ).flatten(1)
    batch.note("kl", kl_BZ.sum())
    noise_BZ = portion.draws.normal("posterior", *generator.latent_shape)
    return sample_posterior(mean_BZ, log_variance_BZ, noise_BZ), kl_BZ
