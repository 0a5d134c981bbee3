"""Adversarial losses as functions of logits: what the discriminator and the generator minimise.

Shapes: ``real_B``, and ``fake_F`` with F a multiple of B, fake i paired with real i modulo B; of discriminators of
patches (B, P) and (F, P). Means over images and patches, so that real and fake count equally however many fakes
there are.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

AdversarialLoss = Literal["hinge", "non_saturating", "least_squares", "relativistic"]


def discriminator_loss(loss: AdversarialLoss, real_B: Tensor, fake_F: Tensor) -> Tensor:
    """What the discriminator minimises, a scalar.

    hinge: (E relu(1 - D(x)) + E relu(1 + D(x'))) / 2 (Lim & Ye 2017).
    non_saturating: E softplus(-D(x)) + E softplus(D(x')) (Goodfellow et al. 2014, eq. 1).
    least_squares: (E (D(x) - 1)^2 + E D(x')^2) / 2 (Mao et al. 2017, eq. 9).
    relativistic: E softplus(-(D(x) - D(x'))) over pairs (Jolicoeur-Martineau 2019; Huang et al. 2024, eq. 2).
    """
    if loss == "hinge":
        return 0.5 * (relu(1 - real_B).mean() + relu(1 + fake_F).mean())
    if loss == "non_saturating":
        return softplus(-real_B).mean() + softplus(fake_F).mean()
    if loss == "least_squares":
        return 0.5 * ((real_B - 1).square().mean() + fake_F.square().mean())
    return softplus(fake_F - paired(real_B, fake_F)).mean()


def generator_loss(loss: AdversarialLoss, real_B: Tensor | None, fake_F: Tensor) -> Tensor:
    """What the generator minimises, a scalar; ``real_B`` is needed by `relativistic` only.

    hinge: -E D(x'). non_saturating: E softplus(-D(x')). least_squares: E (D(x') - 1)^2 / 2.
    relativistic: E softplus(-(D(x') - D(x))) over pairs.
    """
    if loss == "hinge":
        return -fake_F.mean()
    if loss == "non_saturating":
        return softplus(-fake_F).mean()
    if loss == "least_squares":
        return 0.5 * (fake_F - 1).square().mean()
    assert real_B is not None
    return softplus(paired(real_B, fake_F) - fake_F).mean()


def accuracy(loss: AdversarialLoss, real_B: Tensor, fake_F: Tensor) -> Tensor:
    """The part of real and of fake images, equally, that the discriminator tells right; a scalar in [0, 1].

    By the middle between what its loss asks of the two; `relativistic` asks of a real image only that its logit be
    above that of the generated one.
    """
    if loss == "relativistic":
        return (paired(real_B, fake_F) > fake_F).float().mean()
    middle = 0.5 if loss == "least_squares" else 0.0
    return 0.5 * ((real_B > middle).float().mean() + (fake_F < middle).float().mean())


def paired(real_B: Tensor, fake_F: Tensor) -> Tensor:
    """The real logits once for each block of fakes, shape F."""
    return real_B.repeat(len(fake_F) // len(real_B), *[1] * (real_B.dim() - 1))


def cross_entropies(real_B: Tensor, fake_F: Tensor) -> tuple[Tensor, Tensor]:
    """Mean binary cross-entropy, in nats, of the discriminator on real and on fake images."""
    return softplus(-real_B).mean(), softplus(fake_F).mean()


def feature_matching_loss(real_features: list[Tensor], fake_features: list[Tensor]) -> Tensor:
    """Mean over layers of the mean absolute difference; a scalar, in float32.

    Wang et al. 2018, eq. 4, sum over layers: here the weight means the same for any depth.
    """
    distances = [
        (fake.float() - real.float()).abs().mean() for real, fake in zip(real_features, fake_features, strict=True)
    ]
    return torch.stack(distances).mean()
