"""When a trial is stopped early: pure rules over the trials of a log."""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vaegen_ray.config.search import (
    AshaStopping,
    Choice,
    Integer,
    MedianStopping,
    ParetoStopping,
    Population,
    SearchJob,
    Settings,
)
from vaegen_ray.config.space import in_order, is_active
from vaegen_ray.search.forecast import Ends, features_of
from vaegen_ray.search.rows import Rows
from vaegen_ray.search.trials import Trial

DISTORTION, QUALITY = "reconstruction_", "sample_"
"""Scores that the adversarial start upsets; the rate after 8 % of a run ranks trials as at its end (Spearman 0.87)."""

COLLAPSED_NATS = 0.01
"""Of KL an image: the code carries nothing."""

SMOOTHED_PART = 0.15
"""Of the run: older rungs say how a trial was, not how it is."""

FEWEST_TO_JUDGE = 4
"""Trials at a rung before one of them is stopped for its rank there: of two, one is always the worse half."""

START_IMAGES = "objective.adversarial.start_images"


class StoppingRule(Protocol):
    """Hears of every rung of every trial, once, and says which trials go no further."""

    def reached(self, trial: Trial, position: int) -> str | None:
        """``trial`` was evaluated at ``position``; why it is to be stopped, in words, or None.

        At its end, too, where the answer means nothing.
        """
        ...


def make_rule(job: SearchJob) -> StoppingRule | None:
    """The rule of the job's scheduler; None where no trial is stopped."""
    match job.scheduler:
        case ParetoStopping() as settings:
            return ParetoRule(job, settings)
        case AshaStopping() as settings:
            return AshaRule(job, settings)
        case MedianStopping() as settings:
            return MedianRule(job, settings)
        case _:
            return None


# ---------------------------------------------------------------------------- Pareto


class ParetoRule:
    """Stop trials that many dominate in every objective at once (after Deb et al. 2002 and Li et al. 2020).

    Trials are ranked at a rung by how many others dominate them (Fonseca & Fleming 1993). One that is dominated and
    not in the best ``1/reduction`` of those that reached the rung, four at least, goes no further. A trial that breaks
    constraints is dominated by all that break them less.

    Who is behind at a rung may come late: the lower the weight of a loss, the later it shows. So once some trials have
    ended, where the others will is forecast from their settings and costs (:mod:`vaegen_ray.search.forecast`), and a
    trial goes on unless another's end is clearly ahead of its own in all objectives.

    What may be judged when: the rate, and whatever is neither distortion nor sample quality, from the first rung;
    distortion after the grace period and the trial's adversarial start, among trials of the same age since theirs;
    sample quality late. While one objective of several may not be judged yet, only constraints are: who is dominated
    in some objectives may well be the best in the one that is missing, which for a VAE-GAN is the rule.
    """

    def __init__(self, job: SearchJob, settings: ParetoStopping) -> None:
        self._job, self._settings = job, settings
        self._total_images = job.base.training.total_images
        adversarial = getattr(job.base.objective, "adversarial", None)
        self._base_start_images: int | None = None if adversarial is None else adversarial.start_images
        self._rungs: dict[tuple[object, ...], _Rung] = {}

    def reached(self, trial: Trial, position: int) -> str | None:
        if position >= self._total_images:
            self._learn(trial, trial.rungs[position])
            return None
        if collapse := self._collapse(trial, position):
            return collapse
        scores = self._smoothed(trial, position)
        judged = self._judged(trial, position) & scores.keys()
        has_costs = all(goal.metric in judged for goal in self._job.objectives)
        costs = self._job.costs(scores) if has_costs else ()
        excesses = [max(0.0, bound.excess(scores)) for bound in self._job.constraints if bound.metric in judged]
        if not costs and not excesses:
            return None
        key = (*self._clock(trial, position), bool(costs), len(excesses))
        if key not in self._rungs:
            self._rungs[key] = _Rung(len(costs))
        rung = self._rungs[key]
        place = rung.enter(trial.number, sum(excesses), costs)
        if place is not None and costs and not any(excesses):
            rung.ends.enter(trial.number, features_of(self._job.space, trial.settings), costs)
        if place is None or place.num_dominating == 0 or place.num_trials < FEWEST_TO_JUDGE:
            return None
        if place.num_better < place.num_trials / self._settings.reduction:
            return None
        if costs and not any(excesses) and rung.ends.is_behind(trial.number) is False:
            return None
        what = "objectives" if costs else "constraints"
        return (
            f"at {position} images {place.num_dominating} of {place.num_trials} trials dominate it in all {what} "
            f"and {place.num_better} rank before it"
        )

    def _learn(self, trial: Trial, scores: Mapping[str, float]) -> None:
        """Where a trial ended tells where others will that stand where it stood."""
        if all(metric in scores for metric in self._job.metrics):
            costs = self._job.costs(scores)
            ends = costs if self._job.is_feasible(scores) else [math.inf] * len(costs)
            for rung in self._rungs.values():
                rung.ends.ended(trial.number, ends)

    def _judged(self, trial: Trial, position: int) -> set[str]:
        start, late = self._start_images(trial), self._settings.quality_from_fraction * self._total_images
        judged = set()
        for metric in self._job.metrics:
            if metric.startswith(DISTORTION):
                is_judged = position >= self._grace_images(start) and position > start
            elif metric.startswith(QUALITY):
                is_judged = position >= max(self._grace_images(start), late)
            else:
                is_judged = True
            if is_judged:
                judged.add(metric)
        return judged

    def _grace_images(self, start: int) -> float:
        grace = self._settings.grace_images
        return start + 0.15 * self._total_images if grace is None else grace

    def _start_images(self, trial: Trial) -> int:
        """When the trial's generator begins to feel the discriminator; 0 where none is felt."""
        start = trial.settings.get(START_IMAGES, self._base_start_images)
        return int(start or 0)

    def _clock(self, trial: Trial, position: int) -> tuple[str, int]:
        start = self._start_images(trial)
        since, images = ("start", position - start) if position > start else ("beginning", position)
        return since, self._job.rung_at(images)

    def _smoothed(self, trial: Trial, position: int) -> dict[str, float]:
        """Means over the newest rungs; those before the adversarial start tell nothing of those after it.

        Nor do those of long ago: over rungs of a quarter of the run each, the mean of two lost a twelfth of the trials
        that would have been on the front, where the newest alone lost a fiftieth.
        """
        start, oldest = self._start_images(trial), position - SMOOTHED_PART * self._total_images
        rungs = [at for at in trial.rungs if oldest <= at <= position and (at > start or position <= start)]
        newest = [trial.rungs[at] for at in sorted(rungs)[-self._settings.smoothing_rungs :]]
        return {
            name: math.fsum(scores[name] for scores in newest) / len(newest)
            for name in (newest[-1] if newest else ())
            if all(name in scores for scores in newest)
        }

    def _collapse(self, trial: Trial, position: int) -> str | None:
        """Two rungs with an unused code after the grace period, where the search asks for reconstructions."""
        if not any(metric.startswith(DISTORTION) for metric in self._job.metrics):
            return None
        if position < self._grace_images(self._start_images(trial)):
            return None
        newest = [trial.rungs[at] for at in sorted(at for at in trial.rungs if at <= position)[-2:]]
        if len(newest) == 2 and all(_is_collapsed(scores) for scores in newest):
            return f"at {position} images the latent code carries nothing: its posterior has collapsed"
        return None


def _is_collapsed(scores: Mapping[str, float]) -> bool:
    return scores.get("kl_nats", math.inf) < COLLAPSED_NATS or scores.get("active_units", 1) == 0


@dataclass(frozen=True)
class _Place:
    num_trials: int
    num_dominating: int
    num_better: int
    """Trials that fewer dominate."""


class _Rung:
    """The trials that reached a rung; entering costs one comparison with each."""

    def __init__(self, num_costs: int) -> None:
        self.numbers = set[int]()
        self.ends = Ends(num_costs)
        self._rows = Rows(1 + num_costs + 1)
        """Excess over the constraints, the costs, and by how many others the trial is dominated."""

    def enter(self, number: int, excess: float, costs: Sequence[float]) -> _Place | None:
        """Add a trial; None if it was here before."""
        if number in self.numbers:
            return None
        excesses, *columns, dominated_by = self._rows.values.T
        no_worse, no_better = np.ones(len(self._rows), dtype=bool), np.ones(len(self._rows), dtype=bool)
        for column, value in zip(columns, costs, strict=True):
            no_worse &= column <= value
            no_better &= column >= value
        less, more = excesses < excess, excesses > excess
        as_much = ~(less | more)
        dominating = less | (as_much & no_worse & ~no_better)
        dominated_by += more | (as_much & no_better & ~no_worse)
        own = int(np.count_nonzero(dominating))
        num_better = int(np.count_nonzero(dominated_by < own))
        self._rows.add([excess, *costs, own])
        self.numbers.add(number)
        return _Place(len(self._rows), own, num_better)


# ---------------------------------------------------------------------------- one metric

_Key = tuple[float, float]
"""Excess over the constraints, then cost."""


def _key(job: SearchJob, scores: Mapping[str, float]) -> _Key | None:
    if not all(metric in scores for metric in job.metrics):
        return None
    return sum(max(0.0, bound.excess(scores)) for bound in job.constraints), job.costs(scores)[0]


class AshaRule:
    """Asynchronous successive halving, stopping variant: at a rung, only the best ``1/reduction`` go on."""

    def __init__(self, job: SearchJob, settings: AshaStopping) -> None:
        self._job, self._reduction = job, settings.reduction
        total = job.base.training.total_images
        first = settings.grace_images or job.rung_images
        self._positions = []
        while first < total:
            self._positions.append(first)
            first = math.ceil(first * settings.reduction)
        self._rungs: list[list[_Key]] = [[] for _ in self._positions]
        self._entered: list[set[int]] = [set() for _ in self._positions]

    def reached(self, trial: Trial, position: int) -> str | None:
        index = bisect.bisect_right(self._positions, position) - 1
        key = _key(self._job, trial.rungs[position])
        if index < 0 or key is None or trial.number in self._entered[index]:
            return None
        rung = self._rungs[index]
        self._entered[index].add(trial.number)
        place = bisect.bisect_left(rung, key)
        bisect.insort(rung, key)
        if place < max(1, len(rung) / self._reduction):
            return None
        return f"at {position} images it was number {place + 1} of {len(rung)} in {self._job.objectives[0].metric}"


class MedianRule:
    """Stop a trial whose mean so far is worse than the median of the means of those that came as far."""

    def __init__(self, job: SearchJob, settings: MedianStopping) -> None:
        self._job, self._settings = job, settings
        total = job.base.training.total_images
        self._grace_images = total / 5 if settings.grace_images is None else settings.grace_images
        self._means: dict[int, list[_Key]] = {}
        self._entered: set[tuple[int, int]] = set()

    def reached(self, trial: Trial, position: int) -> str | None:
        rung = self._job.rung_at(position)
        keys = [_key(self._job, trial.rungs[at]) for at in trial.rungs if at <= position]
        whole = [key for key in keys if key is not None]
        if not whole or (rung, trial.number) in self._entered:
            return None
        self._entered.add((rung, trial.number))
        mean = (math.fsum(key[0] for key in whole) / len(whole), math.fsum(key[1] for key in whole) / len(whole))
        others = self._means.setdefault(rung, [])
        is_judged = position >= self._grace_images and len(others) >= self._settings.minimum_trials
        # The lower of two in the middle would stop more.
        is_worse = is_judged and mean > others[len(others) // 2]
        bisect.insort(others, mean)
        if not is_worse:
            return None
        return (
            f"at {position} images its mean {self._job.objectives[0].metric} was worse than the median of {len(others)}"
        )


# ---------------------------------------------------------------------------- population-based training


def donor_of(
    costs: Mapping[int, tuple[float, ...]], number: int, settings: Population, draw: np.random.Generator
) -> int | None:
    """Whose state the trial ``number`` takes over: one of the best, if it is among the worst; else None.

    ``costs`` are the newest of all members of the population, by number; they are compared as tuples are.
    """
    num_replaced = int(len(costs) * settings.replaced_fraction)
    ordered = sorted(costs, key=lambda member: (costs[member], member))
    if num_replaced == 0 or number not in ordered[-num_replaced:]:
        return None
    return int(draw.choice(ordered[:num_replaced]))


def perturbed(job: SearchJob, donor: Settings, settings: Population, draw: np.random.Generator) -> Settings:
    """The settings of ``donor``, each multiplied by 0.8 or 1.25, or now and then drawn anew, within its axis."""
    changed: Settings = {}
    for name, axis in in_order(job.space):
        if not is_active(axis, changed):
            continue
        is_redrawn = name not in donor or draw.random() < settings.redraw_fraction
        if isinstance(axis, Choice):
            changed[name] = axis.values[int(draw.integers(len(axis.values)))] if is_redrawn else donor[name]
            continue
        low, high = float(axis.low), float(axis.high)
        if is_redrawn:
            is_log = axis.kind == "log_uniform" or (isinstance(axis, Integer) and axis.log)
            value = math.exp(draw.uniform(math.log(low), math.log(high))) if is_log else float(draw.uniform(low, high))
        else:
            value = float(donor[name]) * (0.8 if draw.random() < 0.5 else 1.25)
        value = min(max(value, low), high)
        changed[name] = round(value) if isinstance(axis, Integer) else value
    return changed
