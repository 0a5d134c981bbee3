"""The VAE-GAN: L = (1/N) [ NLL(x | x') + beta KL ] + lambda(t) L_adversarial (+ LPIPS) (+ feature matching).

The decoder runs once a step. At its images x', as leaves, a is the gradient of the reconstruction side and b
that of the adversarial loss through the frozen discriminator; the balance chooses lambda from them, and one
backward pass carries a + lambda b through decoder and encoder. The discriminator then judges the same x'.
"""

from collections.abc import Iterable
from itertools import combinations_with_replacement
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vaegen_ray.config.model import Model
from vaegen_ray.config.objective import (
    AdaptiveBalance,
    DiscriminatorFeatureReconstruction,
    EquilibriumBalance,
    FixedBalance,
    GradientShareBalance,
    VaeGanObjective,
)
from vaegen_ray.models.generator import Generator
from vaegen_ray.models.judges import AnyDiscriminator
from vaegen_ray.objectives.adversarial import feature_matching_loss, generator_loss
from vaegen_ray.objectives.adversary import Adversary, Look
from vaegen_ray.objectives.autoencoding import KlTerm, Likelihood, encode
from vaegen_ray.objectives.balance import (
    GradientSizes,
    adaptive_weight,
    constant_weight,
    gradient_share_weight,
    last_layer_gradients,
)
from vaegen_ray.objectives.objective import Batch, PhaseName, Portion, backward_in_portions
from vaegen_ray.objectives.perceptual import PerceptualTerm

Means = dict[str, Tensor]


class _Judgement(NamedTuple):
    """What the losses say of a portion's images."""

    values: dict[str, Tensor]
    """Mean over images of each loss at the images, by its name."""
    gradients: dict[str, Tensor]
    """Gradient at the images of each loss summed over images, by its name; shape FCHW."""
    costs: dict[str, Tensor]


class _Forward(NamedTuple):
    """One portion after the forward pass. F images: B reconstructions, then B generated ones where shown."""

    num_images: int
    kl_BZ: Tensor
    decoder_features: Tensor
    images_FCHW: Tensor
    """The decoder's output, with its graph."""
    judgement: _Judgement


class _Decision(NamedTuple):
    """What holds for the global batch."""

    means: Means
    """Over images: ``value LOSS``, ``product LOSS LOSS`` of gradients at the images, ``last layer LOSS``, ``kl_Z``."""
    weights: dict[str, Tensor]
    """What multiplies each loss at the images in L, by its name; lambda included."""


class VaeGan(nn.Module):
    """Encoder, decoder and discriminator (Larsen et al. 2016; Esser et al. 2021; Rombach et al. 2022)."""

    held_weight: Tensor | None
    """Lambda of the newest step with LPIPS, where some steps are without; a buffer, so that it is resumed."""

    def __init__(self, settings: VaeGanObjective, model: Model) -> None:
        super().__init__()
        self.settings = settings
        self.values_per_image = model.values_per_image
        self.generator = Generator(model)
        self.adversary = Adversary(settings.adversarial, settings.discriminator, model)
        self.kl = KlTerm(settings.kl, model.values_per_image)
        self.perceptual = PerceptualTerm(settings.perceptual) if settings.perceptual is not None else None
        is_lazy = settings.perceptual is not None and settings.perceptual.every_steps > 1
        self.register_buffer("held_weight", torch.full((), torch.nan) if is_lazy else None)
        reconstruction = settings.reconstruction
        self.likelihood: Likelihood | None = None
        if not isinstance(reconstruction, DiscriminatorFeatureReconstruction):
            self.likelihood = Likelihood(reconstruction, model.values_per_image)

    @property
    def discriminator(self) -> AnyDiscriminator:
        """The adversary's network."""
        return self.adversary.discriminator

    def groups(self, phase: PhaseName) -> dict[str, list[nn.Parameter]]:
        """Encoder (unless it is frozen), decoder and the learned scale in one phase; the discriminator in the other."""
        if phase == "discriminator":
            return {"discriminator": list(self.discriminator.parameters())}
        groups = self.generator.groups()
        scale = list(self.likelihood.parameters()) if self.likelihood is not None else []
        return groups | ({"scale": scale} if scale else {})

    def generator_backward(self, batch: Batch) -> None:
        """Gradients of L, its terms as metrics, and the decoder's images for the discriminator."""
        judgements: dict[int, _Judgement] = {}
        decision = backward_in_portions(
            batch,
            forward=lambda portion: self._forward(portion, batch, judgements),
            statistics=self._statistics,
            decide=lambda means: _Decision(means, self._weights(means, batch)),
            backward=lambda forward, decision: self._backward(forward, decision, batch),
            is_decided_by_all=self._is_decided_by_all(batch),
        )
        self.adversary.decide_who_waits(batch, decision.means)
        self._record(decision, batch)

    def discriminator_backward(self, batch: Batch) -> None:
        """Gradients of the discriminator's loss."""
        self.adversary.backward(batch)

    def _is_decided_by_all(self, batch: Batch) -> bool:
        by_likelihood = self.likelihood is not None and self.likelihood.is_decided_by_all
        has_balance = not isinstance(self.settings.adversarial.balance, FixedBalance | EquilibriumBalance)
        by_balance = has_balance and self.adversary.factor(batch.position) > 0
        return by_likelihood or by_balance or self.kl.is_decided_by_all

    # ------------------------------------------------------------------ forward

    def _forward(self, portion: Portion, batch: Batch, judgements: dict[int, _Judgement]) -> _Forward:
        """Images of a portion, and what ``judgements`` has of them or is given now.

        A second pass makes the same images: LPIPS and the discriminator need not look again.
        """
        latents_FZ, kl_BZ = encode(self.generator, portion, batch)
        shows = self.settings.adversarial.shows
        if shows != "reconstructions":
            prior_BZ = portion.draws.normal("prior", *self.generator.latent_shape)
            latents_FZ = torch.cat([latents_FZ, prior_BZ])
        with batch.networks():
            features = self.generator.decoder.body(latents_FZ)
            images_FCHW = self.generator.decoder.to_images(features).float()
        num_images = len(portion.images_BCHW)
        batch.shown[portion.index] = images_FCHW.detach()[num_images if shows == "generated" else 0 :]
        if portion.index not in judgements:
            judgements[portion.index] = self._judgement(images_FCHW, portion, batch)
        return _Forward(num_images, kl_BZ, features, images_FCHW, judgements[portion.index])

    def _judgement(self, images_FCHW: Tensor, portion: Portion, batch: Batch) -> _Judgement:
        num_images = len(portion.images_BCHW)
        with torch.enable_grad():
            leaf_FCHW = images_FCHW.detach().requires_grad_()
            values, costs = self._losses_at(leaf_FCHW, portion, batch)
            gradients = {
                name: torch.autograd.grad(value, leaf_FCHW, retain_graph=True)[0] * num_images
                for name, value in values.items()
            }
        values = {name: value.detach() for name, value in values.items()}
        for name, value in values.items():
            batch.note(name, value)
        return _Judgement(values, gradients, {name: cost.detach() for name, cost in costs.items()})

    def _losses_at(
        self, leaf_FCHW: Tensor, portion: Portion, batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses at the decoder's images, and the costs of the gate."""
        adversarial, reconstruction = self.settings.adversarial, self.settings.reconstruction
        values: dict[str, Tensor] = {}
        if self.likelihood is not None:
            reconstructions_BCHW = leaf_FCHW[: len(portion.images_BCHW)]
            values["reconstruction"] = self.likelihood.error_B(reconstructions_BCHW, portion.images_BCHW).mean()
        if self.perceptual is not None and self.perceptual.is_due(batch):
            values["perceptual"] = self.perceptual.mean(leaf_FCHW[: len(portion.images_BCHW)], portion, batch)
        factor = self.adversary.factor(batch.position)
        by_features = isinstance(reconstruction, DiscriminatorFeatureReconstruction)
        if factor == 0 and not by_features:
            return values, {}
        real, fake, fake_logits = self._looks(leaf_FCHW, portion, batch)
        if isinstance(reconstruction, DiscriminatorFeatureReconstruction):
            assert real is not None
            values["reconstruction"] = _feature_error(real, fake, reconstruction.layer)
        if factor == 0:
            return values, {}
        if adversarial.feature_matching is not None:
            assert real is not None
            first = [feature[: len(portion.images_BCHW)] for feature in fake.features]
            values["feature_matching"] = feature_matching_loss(real.features, first)
        values["adversarial"] = generator_loss(adversarial.loss, real.logits_B if real else None, fake_logits)
        return values, self.adversary.costs(real, fake_logits)

    def _looks(self, leaf_FCHW: Tensor, portion: Portion, batch: Batch) -> tuple[Look | None, Look, Tensor]:
        """What the discriminator says of real images (where needed) and of the decoder's; and its logits of fakes."""
        adversarial = self.settings.adversarial
        compares_features = self.likelihood is None or adversarial.feature_matching is not None
        draws_BD = self.adversary.augmentation_draws(portion, "generator")
        real = None
        if compares_features or self.adversary.generator_needs_real:
            with torch.no_grad():
                real = self.adversary.look(portion.images_BCHW, draws_BD, batch)
        num_images = len(portion.images_BCHW)
        only_generated = adversarial.shows == "generated"
        fake = self.adversary.look(
            leaf_FCHW[num_images:] if only_generated and not compares_features else leaf_FCHW, draws_BD, batch
        )
        fake_logits = fake.logits_B[-num_images:] if only_generated else fake.logits_B
        return real, fake, fake_logits

    # ------------------------------------------------------------------ statistics of the global batch

    def _statistics(self, forward: _Forward) -> Means:
        """Means over images from which all ranks decide alike."""
        judgement = forward.judgement
        means = {"kl_Z": forward.kl_BZ.mean(0), **judgement.costs}
        means |= {f"value {name}": value for name, value in judgement.values.items()}
        gradients = judgement.gradients
        for one, other in _pairs_of_reconstruction(gradients):
            means[f"product {one} {other}"] = (gradients[one] * gradients[other]).sum() / forward.num_images
        if "adversarial" in gradients:
            means["squared adversarial"] = gradients["adversarial"].square().sum() / forward.num_images
        if isinstance(self.settings.adversarial.balance, AdaptiveBalance) and "adversarial" in gradients:
            weight = self.generator.decoder.to_images.weight
            layers = last_layer_gradients(forward.decoder_features, weight, gradients)
            means |= {f"last layer {name}": layer / forward.num_images for name, layer in layers.items()}
        return means

    def _weights(self, means: Means, batch: Batch) -> dict[str, Tensor]:
        """What multiplies each loss at the images in L, lambda included."""
        error = means["value reconstruction"]
        scale = (
            self.likelihood.error_weight(error)
            if self.likelihood is not None
            else torch.full_like(error, 1 / self.values_per_image)
        )
        weights = {"reconstruction": scale}
        if "value perceptual" in means and self.perceptual is not None:
            weights["perceptual"] = torch.full_like(error, self.perceptual.weight)
        factor = self.adversary.factor(batch.position)
        matching = self.settings.adversarial.feature_matching
        if "value feature_matching" in means and matching is not None:
            weights["feature_matching"] = torch.full_like(error, factor * matching.weight)
        if "value adversarial" in means:
            weights["adversarial"] = factor * self._lambda(weights, means)
        return weights

    def _lambda(self, weights: dict[str, Tensor], means: Means) -> Tensor:
        """What the balance says. Where some steps are without LPIPS, those with it decide, and the others follow.

        There LPIPS counts as if it were a term of every step: else lambda would rise and fall with it.
        """
        if self.held_weight is None or self.settings.perceptual is None:
            return self._balanced(weights, means)
        if "perceptual" not in weights:
            return torch.where(self.held_weight.isnan(), self._balanced(weights, means), self.held_weight)
        every_steps = self.settings.perceptual.every_steps
        decided = self._balanced(weights | {"perceptual": weights["perceptual"] / every_steps}, means)
        self.held_weight.copy_(decided)
        return decided

    def _balanced(self, weights: dict[str, Tensor], means: Means) -> Tensor:
        balance = self.settings.adversarial.balance
        if isinstance(balance, GradientShareBalance):
            return gradient_share_weight(balance, _sizes(weights, means))
        if isinstance(balance, AdaptiveBalance):
            reconstruction = torch.stack([weight * means[f"last layer {name}"] for name, weight in weights.items()])
            return adaptive_weight(balance, reconstruction.sum(0), means["last layer adversarial"])
        return constant_weight(balance, like=means["kl_Z"])

    # ------------------------------------------------------------------ backward

    def _backward(self, forward: _Forward, decision: _Decision, batch: Batch) -> None:
        share = 1 / (forward.num_images * batch.num_portions)
        gradients_at_images = forward.judgement.gradients
        cotangents = {name: share * decision.weights[name] * each for name, each in gradients_at_images.items()}
        if self.settings.adversarial.reaches_encoder is False and "adversarial" in cotangents:
            self._adversarial_backward_to_decoder(forward.images_FCHW, cotangents.pop("adversarial"))
        roots = [forward.images_FCHW]
        gradients: list[Tensor | None] = [torch.stack(list(cotangents.values())).sum(0)]
        if forward.kl_BZ.requires_grad:  # It does not where the encoder is frozen.
            roots.append(self.kl.loss(forward.kl_BZ, decision.means["kl_Z"], batch.position) / batch.num_portions)
            gradients.append(None)
        error = forward.judgement.values["reconstruction"]
        scale_loss = self.likelihood.scale_loss(error) if self.likelihood is not None else None
        if scale_loss is not None:
            roots.append(scale_loss / batch.num_portions)
            gradients.append(None)
        torch.autograd.backward(roots, gradients)

    def _adversarial_backward_to_decoder(self, images_FCHW: Tensor, cotangent: Tensor) -> None:
        """Larsen et al. 2016, algorithm 1: the encoder does not hear the discriminator's verdict."""
        parameters = [parameter for parameter in self.generator.decoder.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(images_FCHW, parameters, cotangent, retain_graph=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    # ------------------------------------------------------------------ metrics

    def _record(self, decision: _Decision, batch: Batch) -> None:
        means, weights = decision
        self.kl.record(batch, means["kl_Z"])
        error = means["value reconstruction"]
        if self.likelihood is not None:
            self.likelihood.record(batch, error, means["kl_Z"])
            reconstruction_loss = self.likelihood.nll(error) / self.values_per_image
        else:
            batch.record("feature_error", error)
            reconstruction_loss = error / self.values_per_image
        sizes = _sizes(weights, means)
        batch.record("reconstruction_gradient_norm", sizes.reconstruction)
        total = reconstruction_loss + self.kl.value(means["kl_Z"], batch.position)
        if "perceptual" in weights:
            batch.record("perceptual_loss", means["value perceptual"])
            total = total + weights["perceptual"] * means["value perceptual"]
        if "feature_matching" in weights:
            batch.record("feature_matching_loss", means["value feature_matching"])
            total = total + weights["feature_matching"] * means["value feature_matching"]
        if "adversarial" in weights:
            adversarial = weights["adversarial"] * sizes.adversarial
            batch.record("adversarial_loss", means["value adversarial"])
            batch.record("adversarial_weight", weights["adversarial"])
            batch.record("adversarial_gradient_norm", adversarial)
            batch.record("adversarial_share", adversarial / (adversarial + sizes.reconstruction).clamp(min=1e-30))
            total = total + weights["adversarial"] * means["value adversarial"]
        batch.record("generator_loss", total)


def _feature_error(real: Look, fake: Look, layer: int) -> Tensor:
    """Mean over images of half the squared distance of their features: -log N(f(x) | f(x'), I) less its constant.

    Larsen et al. 2016, eq. 7 and 8.
    """
    real_features = real.features[layer].float()
    fake_features = fake.features[layer][: len(real_features)].float()
    return 0.5 * (fake_features - real_features).square().flatten(1).sum(1).mean()


def _pairs_of_reconstruction(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Of the losses on the reconstruction side, each with itself and with each after it."""
    return combinations_with_replacement([name for name in names if name != "adversarial"], 2)


def _sizes(weights: dict[str, Tensor], means: Means) -> GradientSizes:
    """Norms at the images: of the weighted reconstruction side, and of the unweighted adversarial loss."""
    squared = torch.zeros_like(means["value reconstruction"])
    for one, other in _pairs_of_reconstruction(weights):
        product = weights[one] * weights[other] * means[f"product {one} {other}"]
        squared = squared + (product if one == other else 2 * product)
    adversarial = means.get("squared adversarial", torch.zeros_like(squared))
    # Rounding can make the sum of products a little negative.
    return GradientSizes(squared.clamp(min=0).sqrt(), adversarial.clamp(min=0).sqrt())
