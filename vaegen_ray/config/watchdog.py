"""The rules by which a run that has collapsed is noticed, and what then happens."""

from typing import Literal, Self

from pydantic import Field, model_validator

from vaegen_ray.config.base import Count, Fraction, Images, PositiveFloat, Section, Weight

CHANGEABLE = (
    "objective.kl.",
    "objective.adversarial.",
    "optimizer.generator.learning_rate",
    "optimizer.discriminator.learning_rate",
)
"""Numbers that may change in the middle of a run: no parameter and no moment depends on them."""


class Rule(Section):
    """What happens where the rule is broken for long enough."""

    action: Literal["warn", "stop", "roll_back"] = "warn"
    """`stop` ends the run as failed; `roll_back` goes on from the last checkpoint before the trouble."""
    patience_images: Images | None = None
    """The rule must be broken at every look for so long; by default a twentieth of the run."""
    multiply: dict[str, PositiveFloat] = Field(default={})
    """For `roll_back`: dotted path of a number to what it is multiplied by, such as a KL weight by 0.5."""
    at_most: Count = 2
    """Rollbacks of this rule; after so many it stops the run."""

    @model_validator(mode="after")
    def _multiply_goes_with_roll_back(self) -> Self:
        if self.action == "roll_back" and not self.multiply:
            raise ValueError(
                "multiply: is needed by the action 'roll_back', which would meet the same again; give a path and a "
                "factor, such as {objective.kl.weight: 0.5}"
            )
        if self.action != "roll_back" and self.multiply:
            raise ValueError(f"multiply: has no effect with the action '{self.action}'; remove it, or use 'roll_back'")
        if self.action != "roll_back" and self.at_most != type(self).model_fields["at_most"].default:
            raise ValueError(f"at_most: has no effect with the action '{self.action}'; remove it, or use 'roll_back'")
        for path in self.multiply:
            if not path.startswith(CHANGEABLE):
                raise ValueError(f"multiply: must name keys under {', '.join(CHANGEABLE)}, got '{path}'")
        return self


class DeadDiscriminator(Rule):
    """The discriminator says the same of real and of fake images."""

    smallest_logit_gap: PositiveFloat = 0.005
    """Between the mean logits of real and of fake images."""


class DeadGenerator(Rule):
    """The discriminator tells all images apart, and the generator learns nothing that changes it."""

    largest_accuracy: Fraction = 0.9999


class PosteriorCollapse(Rule):
    """The latent code carries nothing."""

    smallest_kl_nats: PositiveFloat = 0.1
    """An image."""


class WeightAtClamp(Rule):
    """The balance wants a larger adversarial weight than its `max_weight` or `max_ratio` allows."""

    part_of_clamp: Fraction = 0.999


class DivergingLogits(Rule):
    """The discriminator's answers grow without bound."""

    largest_logit: PositiveFloat = 100.0
    """Of the means of real and of fake images, either sign."""


class FallingDiversity(Rule):
    """Samples have become alike: judged at evaluations."""

    patience_images: Images | None = 0
    smallest_part_of_best: Fraction = 0.3
    """`sample_diversity`, as a part of its highest value in the run."""
    smallest_diversity: Weight = 0.1
    """`sample_diversity` itself, the deviation of samples as a part of that of real images."""


class Watchdog(Section):
    """Each rule is looked at with every report of metrics; `null` switches it off."""

    dead_discriminator: DeadDiscriminator | None = DeadDiscriminator()
    dead_generator: DeadGenerator | None = DeadGenerator()
    posterior_collapse: PosteriorCollapse | None = PosteriorCollapse()
    weight_at_clamp: WeightAtClamp | None = WeightAtClamp()
    diverging_logits: DivergingLogits | None = DivergingLogits()
    falling_diversity: FallingDiversity | None = FallingDiversity()

    def rules(self) -> dict[str, Rule]:
        """Those that are switched on, by name."""
        named = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: rule for name, rule in named.items() if rule is not None}


COLLAPSES = ("dead_discriminator", "dead_generator", "posterior_collapse", "diverging_logits", "falling_diversity")
"""Rules by which a run counts as collapsed; a weight at its clamp is a warning only."""
