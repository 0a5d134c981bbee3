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
    """AutoencoderKL of latent diffusion (Rombach et al. 2022): sum (|x - x'| + LPIPS) + 1e-6 KL, adaptive weight 0.5.

    Their LPIPS is added to every value before the sum, so it counts N times, as ours of the weight 1 does. Until the
    start their discriminator does not learn either; ours always does, here and in the presets that begin later too.
    """
    return {
        "kind": "vae_gan",
        "reconstruction": {"kind": "laplace", "scale": {"kind": "fixed", "value": 1.0}},
        "perceptual": {"network": "vgg16", "weight": 1.0},
        "discriminator": {"kind": "patch"},
        "kl": {"weight": 1e-6},
        "adversarial": {
            "loss": "hinge",
            "balance": {"kind": "adaptive", "weight": 0.5, "max_ratio": 1e4 / sizes.values_per_image},
            "shows": "reconstructions",
            "start_images": 50_001 * sizes.images_per_step,
        },
    }


def _sgm(sizes: Sizes) -> Tree:
    """Stable Diffusion's later autoencoders: sum (|x - x'| + LPIPS / 4) / e^s + N s + KL, with s learned.

    There the learned scale divides the perceptual term too; here LPIPS keeps the weight that it has at the start.
    """
    return {
        "kind": "vae_gan",
        "reconstruction": {"kind": "laplace", "scale": {"kind": "learned", "initial": 1.0}},
        "perceptual": {"network": "vgg16", "weight": 0.25},
        "discriminator": {"kind": "patch"},
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


def _ta_titok(sizes: Sizes) -> Tree:
    """TA-TiTok's KL variant on images in [0, 1]: mean (x - x')^2 + 1.1 perceptual + 1e-6 KL, fixed weight, LeCAM.

    Their perceptual term mixes LPIPS with ConvNeXt features, here it is LPIPS. A squared difference in [0, 1] is a
    quarter of ours, so sigma^2 = 2 makes the two errors equal.
    """
    return {
        "kind": "vae_gan",
        "reconstruction": {"kind": "gaussian", "scale": {"kind": "fixed", "value": 2.0**0.5}},
        "perceptual": {"network": "vgg16", "weight": 1.1},
        "discriminator": {"kind": "patch"},
        "kl": {"weight": 1e-6 * sizes.values_per_image},
        "adversarial": {
            "loss": "hinge",
            "balance": {"kind": "fixed", "weight": 0.1},
            "shows": "reconstructions",
            "start_images": 200_000 * sizes.images_per_step,
            "lecam": {"weight": 1e-3, "decay": 0.999},
        },
    }


def _va_vae(sizes: Sizes) -> Tree:
    """VA-VAE's fork of latent diffusion's code, without its alignment to a foundation model: an earlier start."""
    tree = _ldm(sizes)
    return tree | {"adversarial": {**tree["adversarial"], "start_images": 5_001 * sizes.images_per_step}}


def _monai(sizes: Sizes) -> Tree:
    """MONAI's tutorials in [0, 1]: mean |x - x'| + 0.001 perceptual + 1e-6 KL + 0.01 least-squares adversarial.

    A difference in [0, 1] is half of ours, so a scale of 2 makes the two errors equal. Their least-squares loss is
    E (D(x') - 1)^2, twice ours, which has the half of Mao et al. 2017. Left out is the leaky ReLU (0.05) that theirs
    puts on the logits. The adversary begins at their tenth epoch; here at 10,000 steps.
    """
    return {
        "kind": "vae_gan",
        "reconstruction": {"kind": "laplace", "scale": {"kind": "fixed", "value": 2.0}},
        "perceptual": {"network": "alexnet", "weight": 1e-3},
        "discriminator": {"kind": "patch"},
        "kl": {"weight": 1e-6 * sizes.values_per_image},
        "adversarial": {
            "loss": "least_squares",
            "balance": {"kind": "fixed", "weight": 0.02},
            "shows": "reconstructions",
            "start_images": 10_000 * sizes.images_per_step,
        },
    }


def _ldm_modern(sizes: Sizes) -> Tree:
    """The terms of latent diffusion with what later tokenizers do: a small fixed weight, LeCAM, a ramp.

    The discriminator learns from the first step and the generator feels it over a ramp of 5,000 steps. The weights
    of the adversarial loss and of LeCAM are those of Open-MAGVIT2 and TA-TiTok.
    """
    return {
        "kind": "vae_gan",
        "reconstruction": {"kind": "laplace", "scale": {"kind": "fixed", "value": 1.0}},
        "perceptual": {"network": "vgg16", "weight": 1.0},
        "discriminator": {"kind": "patch"},
        "kl": {"weight": 1e-6},
        "adversarial": {
            "loss": "hinge",
            "balance": {"kind": "fixed", "weight": 0.1},
            "shows": "reconstructions",
            "ramp_images": 5_000 * sizes.images_per_step,
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
    "ldm_modern": _ldm_modern,
    "monai": _monai,
    "pythae": _pythae,
    "pytorch_vae": _pytorch_vae,
    "sgm": _sgm,
    "ta_titok": _ta_titok,
    "va_vae": _va_vae,
}
