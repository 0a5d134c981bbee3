"""The sampler of each trial: Optuna's, seeded by the trial's number, at a cost that stays small in long searches."""

import math
import warnings
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIIISampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler

# Optuna is pinned. A test compares what is drawn here with what its own TPESampler draws.
from optuna.samplers._tpe.parzen_estimator import _ParzenEstimator
from optuna.samplers._tpe.probability_distributions import (
    _BatchedCategoricalDistributions,
    _MixtureOfProductDistribution,
)
from optuna.samplers._tpe.sampler import (
    _get_infeasible_trial_score,
    _split_trials,
    default_gamma,
    default_gamma_multiobjective,
)
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from vaegen_ray.config.search import Axis, Choice, Integer, LogUniform, SearchJob

Space = dict[str, BaseDistribution]
"""Dotted path to what Optuna draws for it."""

STARTUP_TRIALS = 10
"""Optuna's; also how many must have ended before there is anything to learn from."""

REFIT_PART = 0.02
"""A fit serves so large a part of the running trials, or of a long history. With 1,000 trials at once the newest
results are missing at each draw anyway."""

LONG_HISTORY = 2_000
MOST_KERNELS = 200
"""Of each estimator where a fit serves several trials: the history is thinned evenly, the newest trial always in it.
Optuna makes no kernel narrower than a hundredth of its axis."""

LEAST_GOOD = 4
"""Trials that count as good where Optuna would take fewer: of several objectives it takes a tenth, and until 31 trials
have ended that is a front of three at most. On the surrogate of `vaegen bench search --quality` fronts then filled 5 %
more (440 pairs of seeds, 95 % interval 1 % to 8 %); six good ones, or a fifth, were no better than Optuna's tenth."""
ENOUGH_AT_A_RUNG, GOOD_PART = 15, 0.15
"""How trials of one objective, some of them stopped early, are divided: see :func:`_split_at_a_rung`."""
RANDOM_FRACTION, WIDER = 1 / 3, 3.0
"""For such searches, and BOHB's too: some trials at random, and candidates drawn from kernels that are wider than those
that judge them. Without both, regret on LCBench was 0.16 to 0.20 where it is 0.11 now."""


def distribution_of(axis: Axis) -> BaseDistribution:
    """Optuna's word for ``axis``."""
    if isinstance(axis, Choice):
        return CategoricalDistribution(axis.values)
    if isinstance(axis, Integer):
        return IntDistribution(axis.low, axis.high, log=axis.log)
    return FloatDistribution(axis.low, axis.high, log=isinstance(axis, LogUniform))


def distributions(job: SearchJob) -> Space:
    """All axes of the search."""
    return {name: distribution_of(axis) for name, axis in job.space.items()}


SamplerOfTrial = Callable[[int], BaseSampler]


def make_sampler(job: SearchJob, *, max_concurrent: int, num_earlier: int = 0) -> SamplerOfTrial:
    """Return what gives the sampler of the trial with a number.

    Each trial has its own, which knows nothing but the study, the job's seed and the number: so an interrupted
    search goes on as if nothing had happened.
    """
    settings = job.sampler
    startup = settings.startup_trials or max(STARTUP_TRIALS, 2 * max_concurrent)
    random_fraction = _random_fraction(job)
    groups, drawn = _groups(job), deque[Drawn]()
    always = {name: distribution for name, distribution in distributions(job).items() if not job.space[name].when}

    def sampler_of(number: int) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return chosen(number)

    def chosen(number: int) -> BaseSampler:
        seed = seed_of(job.seed, number)
        learns = settings.kind in ("tpe", "gp")
        if (
            settings.kind == "random"
            or (learns and number + num_earlier < startup)
            or (learns and _falls_under(seed, random_fraction))
        ):
            return RandomSampler(seed)
        match settings.kind:
            case "tpe":
                return _Tpe(groups, drawn, job.rung_at, seed, min(startup, STARTUP_TRIALS))
            case "gp":
                return GPSampler(
                    seed=seed, n_startup_trials=min(startup, STARTUP_TRIALS), warn_independent_sampling=False
                )
            case "nsga2":
                return NSGAIISampler(seed=seed)
            case "nsga3":
                return NSGAIIISampler(seed=seed)
            case _:
                return _Qmc(always, number, job.seed, seed)

    return sampler_of


def _random_fraction(job: SearchJob) -> float:
    if job.sampler.random_fraction is not None:
        return job.sampler.random_fraction
    is_stopped_early = job.scheduler.kind in ("pareto", "asha", "median")
    return RANDOM_FRACTION if is_stopped_early and len(job.objectives) == 1 else 0.0


def seed_of(seed: int, number: int) -> int:
    """The seed of the trial's own random numbers."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])


def _falls_under(seed: int, part: float) -> bool:
    # Another stream than the sampler's own, which begins from the same seed.
    return part > 0 and bool(np.random.default_rng(seed).random() < part)


# ---------------------------------------------------------------------------- TPE


def _groups(job: SearchJob) -> list[Space]:
    """Axes whose density is fitted together.

    One objective: those that are drawn under the same conditions (multivariate TPE, grouped). Several: each alone;
    so are Optuna's defaults, and fitted together they found no better fronts.
    """
    space = distributions(job)
    if len(job.objectives) > 1:
        return [{name: distribution} for name, distribution in space.items()]
    by_conditions: dict[str, Space] = {}
    for name, distribution in sorted(space.items()):
        conditions = sorted((other, repr(value)) for other, value in job.space[name].when.items())
        by_conditions.setdefault(repr(conditions), {})[name] = distribution
    return list(by_conditions.values())


Drawn = dict[str, Any]
"""A value for every axis, also for those that are not active."""


class _Tpe(TPESampler):
    """Optuna's TPE with constant liar, fitted anew only when there is enough to learn.

    What differs from TPESampler: the groups are known from the job instead of found by a scan of all trials; the
    good trials are chosen once a fit instead of once an axis; long histories are thinned; and in large searches a
    fit serves several trials, whose candidates are compared all at once, whole numbers as continuous ones.
    """

    def __init__(
        self, groups: Sequence[Space], drawn: deque[Drawn], rung_at: Callable[[int], int], seed: int, fewest: int
    ) -> None:
        super().__init__(seed=seed, n_startup_trials=STARTUP_TRIALS, constant_liar=True)
        self._groups, self._drawn, self._rung_at, self._fewest = groups, drawn, rung_at, fewest

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:  # noqa: ARG002
        return {name: distribution for group in self._groups for name, distribution in group.items()}

    def sample_relative(
        self,
        study: Study,
        trial: FrozenTrial,
        search_space: Mapping[str, BaseDistribution],  # noqa: ARG002
    ) -> Drawn:
        if not self._drawn:
            self._drawn.extend(self._fit_and_draw(study, trial))
        return self._drawn.popleft()

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._random_sampler.sample_independent(study, trial, param_name, param_distribution)

    def _fit_and_draw(self, study: Study, trial: FrozenTrial) -> list[Drawn]:
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        trials = [t for t in study.get_trials(deepcopy=False, states=states) if t.number != trial.number]
        num_running = sum(t.state == TrialState.RUNNING for t in trials)
        num_ended = len(trials) - num_running
        if num_ended < self._fewest:
            return [{}]
        drawn: list[Drawn] = [{} for _ in range(1 + int(REFIT_PART * max(num_running, num_ended - LONG_HISTORY)))]
        is_split_at_a_rung = len(study.directions) == 1 and _some_were_stopped(trials)
        if is_split_at_a_rung:
            good, other = _split_at_a_rung(study, trials, self._rung_at)
        else:
            good, other = _split_trials(study, trials, _num_good(study, num_ended))
        is_exact = len(drawn) == 1
        for group in self._groups:
            fitted = group if is_exact else {name: _continuous(axis) for name, axis in group.items()}
            members = [_members(trials, group, LONG_HISTORY if is_exact else MOST_KERNELS) for trials in (good, other)]
            below = self._build_parzen_estimator(study, fitted, members[0], handle_below=True)
            above = self._build_parzen_estimator(study, fitted, members[1], handle_below=False)
            source = _wider(below) if is_split_at_a_rung else below._mixture_distribution
            candidates = below._untransform(source.sample(self._rng.rng, len(drawn) * self._n_ei_candidates))
            gains = self._compute_acquisition_func(candidates, below, above).reshape(len(drawn), -1)
            best = gains.argmax(1) + np.arange(len(drawn)) * self._n_ei_candidates
            for name, distribution in group.items():
                for values, value in zip(drawn, candidates[name][best], strict=True):
                    values[name] = _drawn_value(distribution, value.item())
        return drawn


def _some_were_stopped(trials: list[FrozenTrial]) -> bool:
    return any(trial.state == TrialState.PRUNED and trial.values is not None for trial in trials)


def _wider(estimator: _ParzenEstimator) -> _MixtureOfProductDistribution:
    """The density of ``estimator`` with ``WIDER`` kernels of its numbers."""
    mixture = estimator._mixture_distribution
    wide = [
        part if isinstance(part, _BatchedCategoricalDistributions) else part._replace(sigma=WIDER * part.sigma)
        for part in mixture.distributions
    ]
    return _MixtureOfProductDistribution(mixture.weights, wide)


def _num_good(study: Study, num_ended: int) -> int:
    return num_good_of_a_front(num_ended) if len(study.directions) > 1 else default_gamma(num_ended)


def num_good_of_a_front(num_ended: int) -> int:
    """How many of so many trials count as good where there are several objectives."""
    return max(LEAST_GOOD, default_gamma_multiobjective(num_ended))


def _split_at_a_rung(
    study: Study, trials: list[FrozenTrial], rung_at: Callable[[int], int]
) -> tuple[list[FrozenTrial], list[FrozenTrial]]:
    """Compare trials that were stopped early with the others where both were: after Falkner et al. 2018 (BOHB).

    That is the farthest rung that enough trials reached. Optuna takes every fully trained trial for better than any
    that was stopped. But the first trials of a search are trained to their end for want of others to be compared
    with, and draws then stay near those: on LCBench, with stopping from the first rungs on, that was worse than chance.
    """
    judged = [
        (trial, {rung_at(position): value for position, value in trial.intermediate_values.items()})
        for trial in trials
        if trial.state != TrialState.RUNNING and trial.intermediate_values and _get_infeasible_trial_score(trial) <= 0
    ]
    if not judged:
        return [], trials
    reached = Counter(rung for _, values in judged for rung in values)
    rung = max((rung for rung, count in reached.items() if count >= ENOUGH_AT_A_RUNG), default=min(reached))
    here = [(values[rung], trial.number) for trial, values in judged if rung in values]
    here.sort(key=lambda pair: pair[0], reverse=study.direction == StudyDirection.MAXIMIZE)
    num_good = max(LEAST_GOOD, math.ceil(GOOD_PART * len(here)))
    good = {number for _, number in here[:num_good]}
    return [trial for trial in trials if trial.number in good], [trial for trial in trials if trial.number not in good]


def _continuous(distribution: BaseDistribution) -> BaseDistribution:
    """Whole numbers as the numbers that round to them: Optuna's masses of whole numbers cost a Python call each."""
    if not isinstance(distribution, IntDistribution):
        return distribution
    return FloatDistribution(distribution.low - 0.5, distribution.high + 0.5, log=distribution.log)


def _drawn_value(distribution: BaseDistribution, value: float) -> Any:
    if isinstance(distribution, IntDistribution):
        return min(max(round(value), distribution.low), distribution.high)
    return distribution.to_external_repr(value)


def _members(trials: Sequence[FrozenTrial], group: Space, most: int) -> list[FrozenTrial]:
    """The trials that drew the axes of ``group``, of which one tells of all, evenly thinned to ``most``."""
    name = next(iter(group))
    members = [trial for trial in trials if name in trial.params]
    if len(members) <= most:
        return members
    return [members[index] for index in np.linspace(0, len(members) - 1, most).round().astype(int)]


# ---------------------------------------------------------------------------- QMC


class _Qmc(QMCSampler):
    """Sobol points: the point of a trial is the one with its number; conditional axes are drawn at random."""

    def __init__(self, space: Space, number: int, sequence_seed: int, seed: int) -> None:
        super().__init__(
            scramble=True, seed=sequence_seed, independent_sampler=RandomSampler(seed), warn_independent_sampling=False
        )
        self._space, self._number = space, number

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Space:  # noqa: ARG002
        return self._space

    def _find_sample_id(self, study: Study, search_space: Mapping[str, BaseDistribution]) -> int:  # noqa: ARG002
        return self._number
