"""The KL divergence of the posterior from the prior, and what is made of it. In nats."""

import torch
from torch import Tensor

from vaegen_ray.config.objective import CapacityPenalty, FreeBitsPenalty, PlainPenalty
from vaegen_ray.schedules import ramp


def kl_to_standard_normal(mean_BZ: Tensor, log_variance_BZ: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) of each dimension and image, shape BZ (Kingma & Welling 2014, appendix B)."""
    return 0.5 * (mean_BZ.square() + log_variance_BZ.exp() - 1 - log_variance_BZ)


def sample_posterior(mean_BZ: Tensor, log_variance_BZ: Tensor, noise_BZ: Tensor) -> Tensor:
    """The reparameterised sample mean + sigma * noise (Kingma & Welling 2014, section 2.4)."""
    return mean_BZ + (0.5 * log_variance_BZ).exp() * noise_BZ


def penalty_value(penalty: PlainPenalty | FreeBitsPenalty | CapacityPenalty, kl_Z: Tensor, position: int) -> Tensor:
    """The penalty of the mean KL of each dimension ``kl_Z``, a scalar in nats.

    Plain: sum. Free bits: sum of max(floor, KL_d) (Kingma et al. 2016, eq. 15). Capacity: |KL - C(t)|
    (Burgess et al. 2018, eq. 8, whose gamma is the KL weight here).
    """
    if isinstance(penalty, FreeBitsPenalty):
        return kl_Z.clamp(min=penalty.nats_per_dimension).sum()
    if isinstance(penalty, CapacityPenalty):
        return (kl_Z.sum() - capacity(penalty, position)).abs()
    return kl_Z.sum()


def penalty_slope(penalty: PlainPenalty | FreeBitsPenalty | CapacityPenalty, kl_Z: Tensor, position: int) -> Tensor:
    """Derivative of :func:`penalty_value` by each dimension's mean KL, shape Z.

    Evaluated at the KL of the global batch, it makes the gradient of a rank's or a portion's share exact:
    the floor and the capacity are decided by all images together.
    """
    if isinstance(penalty, FreeBitsPenalty):
        return (kl_Z > penalty.nats_per_dimension).to(kl_Z.dtype)
    if isinstance(penalty, CapacityPenalty):
        return torch.sign(kl_Z.sum() - capacity(penalty, position)).expand_as(kl_Z)
    return torch.ones_like(kl_Z)


def capacity(penalty: CapacityPenalty, position: int) -> float:
    """The capacity C(t) in nats, which grows in a straight line from 0."""
    return penalty.nats * ramp(position, 0, penalty.growth_images)
