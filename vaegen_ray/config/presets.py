"""Settings of the objective as other systems write them, in our unit.

Ours is L = (1/N) [ NLL + beta KL ] + lambda L_adversarial with images in [-1, 1]. Each preset is
checked against the other system's formula, to 1e-6, in `tests/objectives/test_presets.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Tree = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """What the conventions of other systems depend on."""

    values_per_image: int
    images_per_step: int


def _ldm(sizes: Sizes) -> Tree:
    """AutoencoderKL of latent diffusion (Rombach et al. 2022): sum |x - x'| + 1e-6 KL, adaptive weight 0.5.

    The perceptual term of the original is not part of this preset.
    """
    return {
        "kind": "vae_gan",
        "reconstruction": {"kind": "laplace", "scale": {"kind": "fixed", "value": 1.0}},
        "kl": {"weight": 1e-6},
        "adversarial": {
            "loss": "hinge",
            "balance": {"kind": "adaptive", "weight": 0.5, "max_ratio": 1e4 / sizes.values_per_image},
            "shows": "reconstructions",
            "start_images": 50_001 * sizes.images_per_step,
        },
    }


def _sgm(sizes: Sizes) -> Tree:
    """Stable Diffusion's later autoencoders: sum |x - x'| / e^s + N s + KL, with s learned."""
    return {
        "kind": "vae_gan",
        "reconstruction": {"kind": "laplace", "scale": {"kind": "learned", "initial": 1.0}},
        "kl": {"weight": 1.0},
        "adversarial": {
            "loss": "hinge",
            "balance": {"kind": "adaptive", "weight": 0.5, "max_ratio": 1e4 / sizes.values_per_image},
            "shows": "reconstructions",
            "start_images": 20_001 * sizes.images_per_step,
        },
    }


def _pythae(_sizes: Sizes) -> Tree:
    """Pythae's VAE on images in [0, 1]: 1/2 sum (x - x')^2 + KL; its sigma of 1 is 2 in [-1, 1]."""
    return {
        "kind": "vae",
        "reconstruction": {"kind": "gaussian", "scale": {"kind": "fixed", "value": 2.0}},
        "kl": {"weight": 1.0},
    }


def _pytorch_vae(sizes: Sizes) -> Tree:
    """PyTorch-VAE on images in [0, 1]: mean (x - x')^2 + 2.5e-4 KL, so that beta grows with N.

    A squared difference in [0, 1] is a quarter of ours, so sigma^2 = 2 makes the two errors equal.
    """
    return {
        "kind": "vae",
        "reconstruction": {"kind": "gaussian", "scale": {"kind": "fixed", "value": 2.0**0.5}},
        "kl": {"weight": 2.5e-4 * sizes.values_per_image},
    }


def _titok(sizes: Sizes) -> Tree:
    """TA-TiTok's KL variant on images in [0, 1]: mean (x - x')^2 + 1e-6 KL, fixed adversarial weight, LeCAM.

    The perceptual term of the original is not part of this preset. A squared difference in [0, 1] is a
    quarter of ours, so sigma^2 = 2 makes the two errors equal.
    """
    return {
        "kind": "vae_gan",
        "reconstruction": {"kind": "gaussian", "scale": {"kind": "fixed", "value": 2.0**0.5}},
        "kl": {"weight": 1e-6 * sizes.values_per_image},
        "adversarial": {
            "loss": "hinge",
            "balance": {"kind": "fixed", "weight": 0.1},
            "shows": "reconstructions",
            "start_images": 200_000 * sizes.images_per_step,
            "lecam": {"weight": 1e-3, "decay": 0.999},
        },
    }


LARSEN_GAMMA = 1e-2
"""Weight of the feature likelihood against the adversarial loss in the decoder: the default of the
authors' code, where both are sums over the batch."""


def _larsen(sizes: Sizes) -> Tree:
    """VAE/GAN (Larsen et al. 2016): encoder from KL + L_like, decoder from gamma L_like - L_GAN.

    Our decoder minimises (1/N) L_like + lambda L_adversarial, where L_adversarial is the mean of what the
    paper sums over its two kinds of fakes; lambda = 2 / (gamma N) keeps the ratio. The decoder minimises
    -log D(x') where the paper has it maximise -log(1 - D(x')), which saturates while D wins.
    """
    return {
        "kind": "vae_gan",
        "reconstruction": {"kind": "discriminator_features"},
        "kl": {"weight": 1.0},
        "adversarial": {
            "loss": "non_saturating",
            "balance": {"kind": "equilibrium", "weight": 2 / (LARSEN_GAMMA * sizes.values_per_image)},
            "shows": "both",
            "reaches_encoder": False,
        },
    }


PRESETS: dict[str, Callable[[Sizes], Tree]] = {
    "larsen": _larsen,
    "ldm": _ldm,
    "pythae": _pythae,
    "pytorch_vae": _pytorch_vae,
    "sgm": _sgm,
    "titok": _titok,
}
