"""Notices that a run has collapsed, from its metrics alone.

The rules are a fold over lines of metrics, so what a run did while it trained can be told again from
`metrics.jsonl`. All ranks see the same numbers, and so decide alike.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vaegen_ray.config import watchdog as rules
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.objective import AdaptiveBalance, GradientShareBalance, Objective, VaeGanObjective

PATIENCE_PART = 20
"""By default a rule must be broken for this part of the run."""

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Incident:
    """A rule that was broken for longer than its patience."""

    rule: str
    position: int
    """Where the patience was over."""
    good_position: int
    """The last look at which the rule was kept; where the run began, if it never was."""
    evidence: dict[str, float]
    """The numbers that broke it, and the threshold."""
    sentence: str


@dataclass(frozen=True)
class _Reading:
    """One look at one rule."""

    is_broken: bool
    evidence: dict[str, float]
    sentence: str


@dataclass
class Watchdog:
    """The rules of a job, and since when each is broken."""

    job: TrainJob
    begun_at: int = 0
    """Where its first line is after; what was before counts as kept."""
    incidents: Sequence[Mapping[str, Any]] = ()
    """Of the run, with the rollbacks whose factors hold behind them."""
    _good: dict[str, int] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)
    _most_diverse: float = 0.0
    _objectives: dict[tuple[int, int], Objective] = field(default_factory=dict)

    def look(self, position: int, metrics: Metrics) -> list[Incident]:
        """The rules of which the patience is over with this line; each is told once, until it was kept again."""
        incidents: list[Incident] = []
        if position == 0:
            return incidents  # Nothing is trained yet.
        for name, rule in self.job.watchdog.rules().items():
            reading = READINGS[name](self, rule, position, metrics)
            if reading is None:
                continue
            if not reading.is_broken:
                if position >= self._good.get(name, position):  # Scores measured beside training come late.
                    self._good[name] = position
                    self._told.discard(name)
                continue
            good = self._good.setdefault(name, self.begun_at)
            if name not in self._told and position - good >= self._patience_images(rule):
                self._told.add(name)
                sentence = f"watchdog.{name}: at {position:,} images {reading.sentence}, since {good:,} images"
                incidents.append(Incident(name, position, good, reading.evidence, sentence))
        return incidents

    def _patience_images(self, rule: rules.Rule) -> int:
        if rule.patience_images is not None:
            return rule.patience_images
        return self.job.training.total_images // PATIENCE_PART

    def oldest_good_position(self) -> int:
        """Where the run would go back to, if what is broken now and rolls back stays broken; 0 where nothing does."""
        rules_in_force = self.job.watchdog.rules()
        return min((at for name, at in self._good.items() if rules_in_force[name].action == "roll_back"), default=0)

    def _objective(self, position: int) -> Objective:
        """That of the steps before ``position``: with the changes and the rollbacks up to there."""
        changes = sum(change.at_images < position for change in self.job.changes)
        rollbacks = [entry for entry in self.incidents if "to" in entry and entry["to"] < position]
        key = (changes, len(rollbacks))
        if key not in self._objectives:
            factors = rollback_factors(rollbacks)
            self._objectives[key] = self.job.leg(position - 1, factors)[0].objective if any(key) else self.job.objective
        return self._objectives[key]

    def _is_contested(self, position: int) -> bool:
        """Whether the generator feels the discriminator in full.

        Before, the rules of their contest are kept: patience must not count from the beginning of the run.
        """
        objective = self._objective(position)
        if objective.kind == "vae":
            return False
        return position >= objective.adversarial.start_images + objective.adversarial.ramp_images

    # ------------------------------------------------------------------ the rules

    def _dead_discriminator(self, rule: rules.DeadDiscriminator, _: int, metrics: Metrics) -> _Reading | None:
        real, fake = metrics.get("real_logit"), metrics.get("fake_logit")
        if real is None or fake is None:
            return None
        gap, least = abs(real - fake), rule.smallest_logit_gap
        return _Reading(
            gap < least,
            {"logit_gap": gap, "threshold": least},
            f"the discriminator says the same of real and fake images (logits {gap:.3g} apart, below {least:g})",
        )

    def _dead_generator(self, rule: rules.DeadGenerator, position: int, metrics: Metrics) -> _Reading | None:
        accuracy = metrics.get("discriminator_accuracy") if self._is_contested(position) else 0.0
        if accuracy is None or self.job.objective.kind == "vae":
            return None
        return _Reading(
            accuracy > rule.largest_accuracy,
            {"discriminator_accuracy": accuracy, "threshold": rule.largest_accuracy},
            f"the discriminator tells all images apart (accuracy {accuracy:.4f}, above {rule.largest_accuracy:g})",
        )

    def _posterior_collapse(self, rule: rules.PosteriorCollapse, _: int, metrics: Metrics) -> _Reading | None:
        kl = metrics.get("train_kl_nats")
        if kl is None:
            return None
        least = rule.smallest_kl_nats
        return _Reading(
            kl < least,
            {"train_kl_nats": kl, "threshold": least},
            f"the latent code carries nothing (KL {kl:.3g} nats an image, below {least:g})",
        )

    def _weight_at_clamp(self, rule: rules.WeightAtClamp, position: int, metrics: Metrics) -> _Reading | None:
        objective = self._objective(position)
        weight = metrics.get("adversarial_weight") if self._is_contested(position) else 0.0
        if not isinstance(objective, VaeGanObjective) or weight is None:
            return None
        balance = objective.adversarial.balance
        if isinstance(balance, GradientShareBalance):
            clamp = balance.max_weight
        elif isinstance(balance, AdaptiveBalance):
            clamp = balance.weight * balance.max_ratio
        else:
            return None
        return _Reading(
            weight >= rule.part_of_clamp * clamp,
            {"adversarial_weight": weight, "threshold": rule.part_of_clamp * clamp},
            f"the adversarial weight stands at its clamp ({weight:.4g} of {clamp:g})",
        )

    def _diverging_logits(self, rule: rules.DivergingLogits, _: int, metrics: Metrics) -> _Reading | None:
        real, fake = metrics.get("real_logit"), metrics.get("fake_logit")
        if real is None or fake is None:
            return None
        largest = max(abs(real), abs(fake))
        return _Reading(
            largest > rule.largest_logit,
            {"logit": largest, "threshold": rule.largest_logit},
            f"the discriminator's logits diverge (mean {largest:.4g}, above {rule.largest_logit:g})",
        )

    def _falling_diversity(self, rule: rules.FallingDiversity, _: int, metrics: Metrics) -> _Reading | None:
        diversity = metrics.get("sample_diversity")
        if diversity is None:
            return None
        self._most_diverse = max(self._most_diverse, diversity)
        least = max(rule.smallest_part_of_best * self._most_diverse, rule.smallest_diversity)
        return _Reading(
            diversity < least,
            {"sample_diversity": diversity, "threshold": least},
            f"samples are alike (diversity {diversity:.3g}, below {least:.3g}; real images have 1)",
        )


READINGS: dict[str, Callable[..., _Reading | None]] = {
    "dead_discriminator": Watchdog._dead_discriminator,
    "dead_generator": Watchdog._dead_generator,
    "posterior_collapse": Watchdog._posterior_collapse,
    "weight_at_clamp": Watchdog._weight_at_clamp,
    "diverging_logits": Watchdog._diverging_logits,
    "falling_diversity": Watchdog._falling_diversity,
}
"""Rule to what is read for it; None where a line does not tell, or the job has no such thing."""


def rollback_factors(entries: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """What the rollbacks among a run's incidents multiply: dotted path to factor."""
    factors: dict[str, float] = {}
    for entry in entries:
        for path, factor in entry.get("multiply", {}).items():
            factors[path] = factors.get(path, 1.0) * factor
    return factors


def incidents_in(
    job: TrainJob, lines: Iterable[Metrics], incidents: Sequence[Mapping[str, Any]] = ()
) -> list[Incident]:
    """What the watchdog would have said of these lines of `metrics.jsonl`, of a run that met ``incidents``."""
    return _fold(Watchdog(job, incidents=incidents), lines)


def watchdog_after(
    job: TrainJob, lines: Iterable[Metrics], position: int, incidents: Sequence[Mapping[str, Any]] = ()
) -> Watchdog:
    """The watchdog of a run that goes on at ``position``, as it was after the ``lines`` before.

    Where they are gone, or are another run's that this one goes on from, patience begins here.
    """
    before = [line for line in lines if line["position"] <= position]
    watchdog = Watchdog(job, begun_at=0 if before else position, incidents=incidents)
    _fold(watchdog, before)
    return watchdog


def _fold(watchdog: Watchdog, lines: Iterable[Metrics]) -> list[Incident]:
    return [incident for line in lines for incident in watchdog.look(int(line["position"]), line)]
