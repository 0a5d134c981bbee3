"""What is minimised: the objectives `vae`, `gan` and `vae_gan` and their terms.

With N values an image, and x' the reconstruction of x:

    L = (1/N) [ NLL(x | x') + beta KL ] + w LPIPS(x, x') + lambda(t) L_adversarial + w L_feature_matching
"""

from typing import Annotated, Literal

from pydantic import Field

from vaegen_ray.config.base import (
    Count,
    Flag,
    Images,
    PositiveFloat,
    PositiveImages,
    ProperFraction,
    Section,
    Text,
    Weight,
)
from vaegen_ray.config.model import Network

# ---------------------------------------------------------------------------- reconstruction


class FixedScale(Section):
    """A likelihood of known scale."""

    kind: Literal["fixed"]
    value: PositiveFloat = 1.0
    """Laplace b or Gaussian sigma, in units of images in [-1, 1]."""


class LearnedScale(Section):
    """A likelihood whose scale is a parameter of the generator."""

    kind: Literal["learned"]
    initial: PositiveFloat = 1.0
    """Scale at the start, in units of images in [-1, 1]."""


class BatchOptimalScale(Section):
    """The scale that maximises the likelihood of the global batch (sigma-VAE, Rybkin et al. 2021)."""

    kind: Literal["batch_optimal"]


Scale = Annotated[FixedScale | LearnedScale | BatchOptimalScale, Field(discriminator="kind")]


class LaplaceReconstruction(Section):
    """Absolute error: the negative log-likelihood of a Laplace distribution, in nats."""

    kind: Literal["laplace"]
    scale: Scale = FixedScale(kind="fixed")


class GaussianReconstruction(Section):
    """Squared error: the negative log-likelihood of a Gaussian, in nats."""

    kind: Literal["gaussian"]
    scale: Scale = FixedScale(kind="fixed")


class DiscriminatorFeatureReconstruction(Section):
    """Unit Gaussian on a layer of the discriminator: Larsen et al. 2016, eq. 7."""

    kind: Literal["discriminator_features"]
    layer: Annotated[int, Field(ge=0, strict=True)] = 2
    """Which feature map of the discriminator, counted from the image."""


Reconstruction = Annotated[
    LaplaceReconstruction | GaussianReconstruction | DiscriminatorFeatureReconstruction, Field(discriminator="kind")
]

# ---------------------------------------------------------------------------- perceptual


LpipsName = Literal["vgg16", "alexnet", "squeezenet"]


class LpipsNetwork(Section):
    """The network whose features LPIPS compares (Zhang et al. 2018, version 0.1)."""

    network: LpipsName = "vgg16"
    weights: Text | None = None
    """File of the trunk and the heads (npz or safetensors; local or s3://), by default `lpips_<network>.safetensors`
    or `.npz` in the folder ``$VAEGEN_LPIPS_WEIGHTS``."""


class Perceptual(LpipsNetwork):
    """LPIPS between an image and its reconstruction: part of the reconstruction side of L."""

    weight: PositiveFloat = 1.0
    """In L, whose likelihood is a mean over values: 1 is latent diffusion's."""
    every_steps: Count = 1
    """Apply it at every so many steps, so many times stronger."""
    images_fraction: Annotated[float, Field(gt=0, le=1, strict=True)] = 1.0
    """Of the images of a step that it sees; its mean over them stands for all."""


# ---------------------------------------------------------------------------- KL


class ConstantKl(Section):
    """The full weight at all times."""

    kind: Literal["constant"]


class LinearKl(Section):
    """Zero until ``start_images``, then a straight line to the full weight."""

    kind: Literal["linear"]
    start_images: Images = 0
    warmup_images: PositiveImages
    """Length of the line."""


class CyclicalKl(Section):
    """Repeated warm-ups (Fu et al. 2019)."""

    kind: Literal["cyclical"]
    cycle_images: PositiveImages
    """Length of a cycle; they go on to the end of the run."""
    ramp_fraction: Annotated[float, Field(gt=0, le=1, strict=True)] = 0.5
    """Part of a cycle that climbs; the rest holds the full weight."""


class PlainPenalty(Section):
    """The KL divergence itself."""

    kind: Literal["plain"]


class FreeBitsPenalty(Section):
    """Sum over dimensions of max(floor, mean KL of the dimension) (Kingma et al. 2016)."""

    kind: Literal["free_bits"]
    nats_per_dimension: PositiveFloat


class CapacityPenalty(Section):
    """Distance of the KL from a capacity that grows from zero (Burgess et al. 2018)."""

    kind: Literal["capacity"]
    nats: PositiveFloat
    """Capacity at the end of the growth."""
    growth_images: PositiveImages
    """Images until then; it grows in a straight line."""


class Kl(Section):
    """The price of information in the latent code."""

    weight: Weight = 1.0
    """beta: 1 is the evidence lower bound, at any image size."""

    schedule: Annotated[ConstantKl | LinearKl | CyclicalKl, Field(discriminator="kind")] = ConstantKl(kind="constant")

    penalty: Annotated[PlainPenalty | FreeBitsPenalty | CapacityPenalty, Field(discriminator="kind")] = PlainPenalty(
        kind="plain"
    )


# ---------------------------------------------------------------------------- adversary


class FixedBalance(Section):
    """lambda is ``weight``."""

    kind: Literal["fixed"]
    weight: Weight


class AdaptiveBalance(Section):
    """lambda is ``weight`` times the ratio of the gradients of the decoder's last layer (Esser et al. 2021, eq. 7)."""

    kind: Literal["adaptive"]
    weight: Weight
    max_ratio: PositiveFloat = 1e4
    """Largest ratio of the two norms; `weight` times it is the clamp of lambda."""


class GradientShareBalance(Section):
    """lambda makes the adversarial gradient the given share of the gradient that reaches the images."""

    kind: Literal["gradient_share"]
    share: ProperFraction
    """|lambda b| / (|a| + |lambda b|), with a the reconstruction's and b the adversarial gradient at the images."""
    max_weight: PositiveFloat = 1e4
    """The clamp of lambda."""


class EquilibriumBalance(Section):
    """Fixed lambda; a side that is too far ahead waits for the other (Larsen et al. 2016, their code)."""

    kind: Literal["equilibrium"]
    weight: Weight
    equilibrium: PositiveFloat = 0.68
    """Cross-entropy of the discriminator, in nats, at which both sides learn."""
    margin: PositiveFloat = 0.35
    """In nats, up and down: a side waits while a cost of the discriminator lies beyond it."""


Balance = Annotated[
    FixedBalance | AdaptiveBalance | GradientShareBalance | EquilibriumBalance, Field(discriminator="kind")
]


class GradientPenalty(Section):
    """Zero-centred gradient penalties of the discriminator (Mescheder et al. 2018)."""

    r1: Weight = 0.0
    """gamma of the penalty at real images."""
    r2: Weight = 0.0
    """gamma of the penalty at the generator's images."""
    every_steps: Count = 1
    """Apply the penalty at every so many steps, so many times stronger (Karras et al. 2020)."""


class Lecam(Section):
    """Pulls the discriminator's answers towards their moving averages (Tseng et al. 2021)."""

    weight: PositiveFloat
    """Beside the discriminator's loss, whose weight is 1."""
    decay: ProperFraction = 0.99
    """Of the moving averages, a step."""


class FeatureMatching(Section):
    """L1 distance between the discriminator's features of an image and of its reconstruction."""

    weight: PositiveFloat
    """Of the mean over layers, in L; it acts from `start_images` and rises with the ramp."""


class Adversarial(Section):
    """The generator's adversarial term and how the discriminator learns."""

    loss: Literal["hinge", "non_saturating", "least_squares", "relativistic"] = "non_saturating"

    balance: Balance

    shows: Literal["reconstructions", "generated", "both"] | None = None
    """Which of the generator's images the discriminator sees; a `gan` has generated ones only."""

    start_images: Images = 0
    """When the generator begins to feel the discriminator, which itself learns from the first step."""

    ramp_images: Images = 0
    """How long the generator's adversarial term takes to reach its full weight."""

    reaches_encoder: Flag | None = None
    """Whether the adversarial gradient at reconstructions passes the latent code, as it does by default; Larsen et
    al. stop it there. Absent where the discriminator sees no reconstructions."""

    gradient_penalty: GradientPenalty | None = None
    lecam: Lecam | None = None
    feature_matching: FeatureMatching | None = None

    augment: tuple[Literal["color", "translation", "cutout"], ...] = ()
    """DiffAugment (Zhao et al. 2020) of what the discriminator sees; an image and its reconstruction share a draw."""


class ConvolutionalDiscriminator(Network):
    """One logit an image, from a network without normalisation layers that mix images."""

    kind: Literal["convolutional"] = "convolutional"
    spectral_norm: Flag = False
    """Of every weight (Miyato et al. 2018)."""

    def num_features(self, image_size: int) -> int:
        """How many feature maps it has."""
        return len(self.widths(image_size))


class PatchDiscriminator(Section):
    """PatchGAN (Isola et al. 2017): one logit for each overlapping patch; 70 pixels wide with three layers."""

    kind: Literal["patch"]
    width: Count = 64
    """Channels after the first layer; they double with each halving, up to eightfold."""
    layers: Count = 3
    """Halvings of the resolution."""
    norm: Literal["group", "spectral"] = "group"
    """Never batch normalisation, by which the images of a batch would judge each other."""

    def num_features(self, image_size: int) -> int:  # noqa: ARG002 (as of the other discriminators)
        """How many feature maps it has."""
        return self.layers + 1


class FrozenFeaturesDiscriminator(LpipsNetwork):
    """Small trained heads on the features of a fixed network (Sauer et al. 2021), the one of LPIPS."""

    kind: Literal["frozen_features"]
    width: Count = 64
    """Channels of each head."""

    def num_features(self, image_size: int) -> int:  # noqa: ARG002 (as of the other discriminators)
        """How many feature maps it has."""
        return 7 if self.network == "squeezenet" else 5


Discriminator = Annotated[
    ConvolutionalDiscriminator | PatchDiscriminator | FrozenFeaturesDiscriminator, Field(discriminator="kind")
]


# ---------------------------------------------------------------------------- objectives


class VaeObjective(Section):
    """Variational autoencoder (Kingma & Welling 2014)."""

    kind: Literal["vae"]
    preset: Text | None = None
    """Convention of another system (`config/presets.py`) that all keys follow which the job does not give."""
    reconstruction: Annotated[LaplaceReconstruction | GaussianReconstruction, Field(discriminator="kind")] = (
        GaussianReconstruction(kind="gaussian")
    )
    perceptual: Perceptual | None = None
    kl: Kl = Kl()


class GanObjective(Section):
    """Generative adversarial network (Goodfellow et al. 2014)."""

    kind: Literal["gan"]
    preset: Text | None = None
    adversarial: Adversarial = Adversarial(balance=FixedBalance(kind="fixed", weight=1.0))
    discriminator: Discriminator = ConvolutionalDiscriminator()


class VaeGanObjective(Section):
    """A VAE whose decoder is also trained against a discriminator (Larsen et al. 2016)."""

    kind: Literal["vae_gan"]
    preset: Text | None = None
    reconstruction: Reconstruction = GaussianReconstruction(kind="gaussian")
    perceptual: Perceptual | None = None
    kl: Kl = Kl()
    adversarial: Adversarial
    discriminator: Discriminator = ConvolutionalDiscriminator()


Objective = Annotated[VaeObjective | GanObjective | VaeGanObjective, Field(discriminator="kind")]
