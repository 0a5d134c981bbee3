"""Who is stopped, when and why, on made-up trials."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.on_ray.searches import BALANCE, EVERY, FRONT, KL, ONE, SHARE, SPACE, TOTAL, search_job
from vaegen_ray.config.search import Population, SearchJob, Settings
from vaegen_ray.search.stopping import START_IMAGES, StoppingRule, donor_of, make_rule, perturbed
from vaegen_ray.search.trials import Trial

LATE = TOTAL // 2 // EVERY * EVERY


def pareto(job_sets: tuple[str, ...] = (), objectives: Any = FRONT, **sections: Any) -> tuple[SearchJob, StoppingRule]:
    job = search_job("runs", *job_sets, objectives=objectives, **sections)
    rule = make_rule(job)
    assert rule is not None
    return job, rule


class Race:
    """Trials whose scores are constant, which all come to a rung before any comes to the next."""

    def __init__(self, rule: StoppingRule, scores: Mapping[int, Mapping[str, float]], settings: Any = None) -> None:
        self.rule, self.scores = rule, scores
        self.trials = {number: Trial(number, (settings or {}).get(number, {})) for number in scores}
        self.reasons: dict[int, tuple[int, str]] = {}

    def to(self, end: int, begin: int = EVERY) -> dict[int, int]:
        """Number of the stopped trials to where they were."""
        for position in range(begin, end + 1, EVERY):
            for number, trial in self.trials.items():
                if number not in self.reasons:
                    trial.rungs[position] = dict(self.scores[number])
                    if reason := self.rule.reached(trial, position):
                        self.reasons[number] = (position, reason)
        return {number: position for number, (position, _) in self.reasons.items()}


def front_and_worse(count: int = 12) -> dict[int, dict[str, float]]:
    """Even trials trade PSNR for FID on a front; each odd one is dominated by the even ones before it."""
    return {
        number: {
            "reconstruction_psnr": 20.0 + number - (6 * (number % 2)) * count,
            "sample_fid": 10.0 + number + (6 * (number % 2)) * count,
            "kl_nats": 5.0,
            "active_units": 4.0,
        }
        for number in range(count)
    }


def test_trials_on_the_front_are_never_stopped_and_dominated_ones_only_when_all_objectives_are_judged() -> None:
    _, rule = pareto()
    race = Race(rule, front_and_worse())
    stopped = race.to(TOTAL - EVERY)
    assert set(stopped) <= {1, 3, 5, 7, 9, 11}
    assert len(stopped) >= 3
    assert set(stopped.values()) == {LATE}, "sample quality may be judged from half of the run on"
    assert "dominate it in all objectives" in race.reasons[11][1]


def test_stopping_is_gentle() -> None:
    """Of trials that come one after another in a random order of quality, about half go on."""
    _, rule = pareto(objectives=ONE)
    quality = np.random.default_rng(0).permutation(400)
    stopped = Race(rule, {n: {"sample_fid": float(q)} for n, q in enumerate(quality)}).to(LATE, begin=LATE)
    assert 0.4 < 1 - len(stopped) / 400 < 0.55
    assert all(quality[number] > 20 for number in stopped)


def test_one_objective_alone_never_stops_a_trial_of_a_search_with_two() -> None:
    _, rule = pareto()
    scores = {n: {"reconstruction_psnr": 30.0 - n, "sample_fid": 10.0 - n / 10, "kl_nats": 5.0} for n in range(20)}
    assert Race(rule, scores).to(TOTAL - EVERY) == {}


def test_distortion_is_judged_after_the_adversarial_start_and_the_grace_period() -> None:
    _, rule = pareto(
        ("objective.adversarial.start_images=3000",),
        objectives=({"metric": "reconstruction_psnr", "goal": "maximize"},),
    )
    stopped = Race(rule, {n: {"reconstruction_psnr": 30.0 - n} for n in range(10)}).to(TOTAL - EVERY)
    assert min(stopped.values()) == 5000, "the start and 15 % of the run, at the next rung"


def test_distortion_is_not_judged_before_the_adversarial_start_however_short_the_grace() -> None:
    scheduler = {"kind": "pareto", "grace_images": 0}
    _, rule = pareto(("objective.adversarial.start_images=3000",), objectives=FRONT[:1], scheduler=scheduler)
    stopped = Race(rule, {n: {"reconstruction_psnr": 30.0 - n} for n in range(10)}).to(TOTAL - EVERY)
    assert min(stopped.values()) == 4000


def test_trials_with_other_starts_are_compared_at_the_same_age() -> None:
    """PSNR falls with the age of the adversarial term: at equal positions late starters would always look better."""
    space = {KL: SPACE[KL], START_IMAGES: {"kind": "integer", "low": 0, "high": 2000}}
    scheduler = {"kind": "pareto", "grace_images": 4000}
    _, rule = pareto(objectives=FRONT[:1], space=space, scheduler=scheduler)

    def verdict(number: int, start: int, position: int, psnr: float) -> str | None:
        trial = Trial(number, {START_IMAGES: start}, rungs={position: {"reconstruction_psnr": psnr}})
        return rule.reached(trial, position)

    assert [verdict(number, 0, 4000, 20.0) for number in range(10)] == [None] * 10
    assert verdict(10, 2000, 6000, 20.1) is None
    assert verdict(11, 2000, 6000, 19.9), "worse than ten of its age"
    assert verdict(12, 0, 6000, 19.0) is None, "the first of its age"


def test_rate_constraint_is_judged_from_the_first_rung() -> None:
    _, rule = pareto(constraints=("kl_nats >= 5",))
    scores = front_and_worse()
    for number in range(6):
        scores[number]["kl_nats"] = 1.0 + number / 10
    race = Race(rule, {n: scores[n] for n in [*range(6, 12), *range(6)]})
    stopped = race.to(2 * EVERY)
    assert stopped
    assert set(stopped) <= set(range(6))
    assert set(stopped.values()) == {EVERY}
    assert "in all constraints" in race.reasons[min(stopped)][1]


def test_score_that_no_adversarial_start_upsets_is_judged_from_the_first_rung() -> None:
    _, rule = pareto(objectives=({"metric": "val_accuracy", "goal": "maximize"},))
    stopped = Race(rule, {n: {"val_accuracy": 90.0 - n} for n in range(10)}).to(EVERY)
    assert set(stopped) == set(range(3, 10)), "four are needed to judge one"


def test_value_is_the_mean_of_the_newest_rungs_and_not_the_best() -> None:
    _, rule = pareto(objectives=ONE, scheduler={"kind": "pareto", "smoothing_rungs": 2})
    trials = {number: Trial(number, {}) for number in range(11)}
    for number, trial in trials.items():
        # Number 10 was the best once, early.
        trial.rungs = {EVERY: {"sample_fid": 1.0 if number == 10 else 50.0}}
        trial.rungs |= {LATE - EVERY: {"sample_fid": 40.0}, LATE: {"sample_fid": 20.0 + number}}
    verdicts = {number: rule.reached(trial, LATE) for number, trial in trials.items()}
    assert verdicts[10] is not None
    assert verdicts[0] is None


def test_rungs_of_long_ago_do_not_count_for_the_mean() -> None:
    """Of a run with four rungs the last but one says how the trial was a quarter of the run ago."""
    _, rule = pareto(objectives=ONE, scheduler={"kind": "pareto", "smoothing_rungs": 2})
    late = TOTAL * 3 // 4
    trials = {number: Trial(number, {}) for number in range(8)}
    for number, trial in trials.items():
        # The later in the race, the better now, and the worse a quarter of the run ago.
        trial.rungs = {TOTAL // 2: {"sample_fid": 100.0 * number}, late: {"sample_fid": 20.0 - number}}
    assert [rule.reached(trial, late) for trial in trials.values()] == [None] * 8


def test_collapsed_code_stops_after_two_rungs_where_reconstructions_are_asked_for() -> None:
    healthy = {"reconstruction_psnr": 20.0, "sample_fid": 10.0, "kl_nats": 6.0, "active_units": 4.0}
    collapsed = healthy | {"kl_nats": 1e-4, "active_units": 0.0}
    race = Race(pareto()[1], {0: healthy, 1: collapsed})
    assert race.to(TOTAL - EVERY) == {1: 2 * EVERY}, "15 % of the run, and two rungs"
    assert "collapsed" in race.reasons[1][1]
    assert Race(pareto(objectives=ONE)[1], {0: healthy, 1: collapsed}).to(TOTAL - EVERY) == {}


def test_repeated_rung_of_a_retried_trial_is_not_judged_again() -> None:
    _, rule = pareto(objectives=ONE)
    trials = [Trial(number, {}, rungs={LATE: {"sample_fid": float(number)}}) for number in range(10)]
    first = [rule.reached(trial, LATE) for trial in trials]
    assert any(first)
    assert [rule.reached(trial, LATE) for trial in trials] == [None] * 10


def test_asha_keeps_a_third_at_each_rung() -> None:
    _, rule = pareto(objectives=ONE, scheduler={"kind": "asha", "reduction": 3.0, "grace_images": EVERY})
    quality = np.random.default_rng(0).permutation(300)
    race = Race(rule, {n: {"sample_fid": float(q)} for n, q in enumerate(quality)})
    stopped = race.to(TOTAL - EVERY)
    assert sorted(Counter(stopped.values())) == [1000, 3000]
    assert 0.6 < len([n for n, position in stopped.items() if position == 1000]) / 300 < 0.72
    assert int(np.argmin(quality)) not in stopped


def test_median_stops_who_is_worse_than_half_of_those_before() -> None:
    _, rule = pareto(objectives=ONE, scheduler={"kind": "median", "minimum_trials": 4})
    scores = {number: {"sample_fid": float(value)} for number, value in enumerate([3, 1, 2, 4, 9, 0, 9])}
    stopped = Race(rule, scores).to(TOTAL - EVERY)
    assert stopped == {4: 2000, 6: 2000}, "a fifth of the run, at the next rung"


def test_constraints_rank_before_the_metric_in_one_metric_rules() -> None:
    for scheduler in ({"kind": "asha", "grace_images": EVERY}, {"kind": "median", "grace_images": 0}):
        _, rule = pareto(objectives=ONE, scheduler=scheduler, constraints=("kl_nats >= 5",))
        scores = {number: {"sample_fid": 50.0, "kl_nats": 6.0} for number in range(6)}
        scores[6] = {"sample_fid": 1.0, "kl_nats": 1.0}
        assert 6 in Race(rule, scores).to(2 * EVERY)


def test_no_scheduler_has_no_rule() -> None:
    assert make_rule(search_job("runs", scheduler={"kind": "none"})) is None


# ---------------------------------------------------------------------------- population


POPULATION = Population(kind="pbt")


def test_worst_quarter_copies_the_best_quarter() -> None:
    costs = {number: float(number) for number in range(8)}
    rng = np.random.default_rng(0)
    donors = {number: {donor_of(costs, number, POPULATION, rng) for _ in range(40)} for number in costs}
    assert donors == {**{number: {None} for number in range(6)}, 6: {0, 1}, 7: {0, 1}}
    assert donor_of({0: 1.0, 1: 2.0}, 1, POPULATION, rng) is None


def test_copied_settings_are_perturbed_within_their_axes() -> None:
    space = {**SPACE, BALANCE: {"kind": "choice", "values": ("fixed", "gradient_share")}}
    job = search_job("runs", space=space, objectives=ONE)
    donor: Settings = {KL: 9.0, SHARE: 0.5, "training.images_per_step": 16, BALANCE: "fixed"}
    rng = np.random.default_rng(0)
    drawn = [perturbed(job, donor, POPULATION, rng) for _ in range(200)]
    kls = Counter(round(float(settings[KL]), 6) for settings in drawn)
    assert kls[7.2] > 50
    assert kls[10.0] > 50, "1.25 times as much is beyond the axis"
    assert 20 < sum(count for value, count in kls.items() if value not in (7.2, 10.0)) < 80
    for settings in drawn:
        assert settings.keys() == donor.keys()
        assert 0.05 <= float(settings[SHARE]) <= 0.9
        assert isinstance(settings["training.images_per_step"], int)
        assert math.isfinite(float(settings[KL]))
