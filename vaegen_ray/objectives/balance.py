"""The weight of the adversarial term, from the gradients that reach the generator's images.

With a the gradient of the reconstruction side and b that of the adversarial loss at the images x', one
backward pass of a + lambda b through the decoder serves all balances: nothing is differentiated twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from vaegen_ray.config.objective import (
    AdaptiveBalance,
    EquilibriumBalance,
    FixedBalance,
    GradientShareBalance,
)

ADAPTIVE_EPSILON = 1e-4
"""Added to the denominator of the adaptive weight in the published code."""


@dataclass(frozen=True)
class GradientSizes:
    """Of the global batch: root of the mean over images of the squared gradient norm; scalars."""

    reconstruction: Tensor
    adversarial: Tensor


def last_layer_gradients(
    features_BCHW: Tensor, weight: Tensor, image_gradients_BCHW: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Gradients of the decoder's last 3x3 convolution, from those at its output, by name: no backward pass.

    Features (B, K, H, W), weight (C, K, 3, 3) and gradients (B, C, H, W) give (C, K, 3, 3) each, summed over images.
    All in one convolution, so that the features, the largest tensor of the network, are read once.
    """
    gradients = torch.cat([gradient.float() for gradient in image_gradients_BCHW.values()], 1)
    shape = [gradients.shape[1], *weight.shape[1:]]
    found: Tensor = conv2d_weight(features_BCHW.detach().float(), shape, gradients, padding=1)
    return dict(zip(image_gradients_BCHW, found.split(len(weight)), strict=True))


def adaptive_weight(balance: AdaptiveBalance, reconstruction: Tensor, adversarial: Tensor) -> Tensor:
    """The weight times |grad_W rec| / (|grad_W adv| + 1e-4), W being the last layer (Esser et al. 2021, eq. 7)."""
    ratio = reconstruction.norm() / (adversarial.norm() + ADAPTIVE_EPSILON)
    return balance.weight * ratio.clamp(max=balance.max_ratio)


def gradient_share_weight(balance: GradientShareBalance, sizes: GradientSizes) -> Tensor:
    """The lambda with |lambda b| / (|a| + |lambda b|) equal to the share."""
    wanted = balance.share / (1 - balance.share)
    tiny = torch.finfo(sizes.adversarial.dtype).tiny
    return (wanted * sizes.reconstruction / sizes.adversarial.clamp(min=tiny)).clamp(max=balance.max_weight)


def constant_weight(balance: FixedBalance | EquilibriumBalance, like: Tensor) -> Tensor:
    """The weight of the job, as a scalar like ``like``."""
    return torch.full((), balance.weight, dtype=torch.float32, device=like.device)


def held_back(balance: EquilibriumBalance, real_cost: float, fake_cost: float) -> frozenset[str]:
    """The parts that wait in this step: none, `decoder` or `discriminator` (Larsen et al. 2016, their code).

    Costs are cross-entropies in nats, of the global batch, so that all ranks decide alike. Each side waits
    when it is too far ahead on either kind of image; when both would wait, both learn.
    """
    low, high = balance.equilibrium - balance.margin, balance.equilibrium + balance.margin
    discriminator_waits = real_cost < low or fake_cost < low
    decoder_waits = real_cost > high or fake_cost > high
    if discriminator_waits == decoder_waits:
        return frozenset()
    return frozenset({"discriminator"} if discriminator_waits else {"decoder"})
