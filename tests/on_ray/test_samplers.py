"""What is drawn is what Optuna would draw, from any history, at a small cost."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState as StudyState

from tests.on_ray.searches import BATCH, FRONT, KL, ONE, SHARE, TOTAL, evaluate, run, search_job
from vaegen_ray.config.search import SearchJob, Settings
from vaegen_ray.on_ray.samplers import distributions, make_sampler, num_good_of_a_front, seed_of
from vaegen_ray.search.pareto import hypervolume
from vaegen_ray.search.trials import TrialState


def history(job: SearchJob, *, ended: int, running: int) -> optuna.Study:
    """A study of random trials, some of them pruned, and of running ones."""
    study = optuna.create_study(directions=[goal.goal for goal in job.objectives])
    rng, space = RandomSampler(0), distributions(job)
    for index in range(ended + running):
        settings: Settings = {n: rng.sample_independent(study, None, n, d) for n, d in space.items()}  # type: ignore[arg-type]
        state = StudyState.RUNNING if index >= ended else StudyState.PRUNED if index % 5 == 0 else StudyState.COMPLETE
        scores = evaluate(settings, TOTAL)
        values = [scores[goal.metric] for goal in job.objectives] if state == StudyState.COMPLETE else None
        study.add_trial(optuna.trial.create_trial(state=state, params=settings, distributions=space, values=values))
    return study


def drawn(study: optuna.Study, sampler: optuna.samplers.BaseSampler, job: SearchJob) -> Settings:
    trial = study._storage.get_trial(study._storage.create_new_trial(study._study_id))
    together = sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial))
    space = distributions(job)
    return {n: together[n] if n in together else sampler.sample_independent(study, trial, n, space[n]) for n in space}


@pytest.mark.filterwarnings("ignore:.*gamma.*deprecated:FutureWarning")
@pytest.mark.parametrize(("ended", "running"), [(5, 0), (10, 0), (40, 7), (200, 20)])
@pytest.mark.parametrize("objectives", [FRONT, ONE], ids=["front", "one"])
def test_tpe_draws_what_optuna_draws(objectives: Any, ended: int, running: int) -> None:
    sampler = {"kind": "tpe", "startup_trials": 1, "random_fraction": 0.0}
    job = search_job("runs", objectives=objectives, sampler=sampler, seed=3)
    number = ended + running
    ours = drawn(history(job, ended=ended, running=running), make_sampler(job, max_concurrent=8)(number), job)
    study = history(job, ended=ended, running=running)
    gamma = {"gamma": num_good_of_a_front} if objectives is FRONT else {}
    study.sampler = TPESampler(seed=seed_of(3, number), constant_liar=True, n_startup_trials=1, **gamma)
    asked = study.ask()
    theirs = {
        KL: asked.suggest_float(KL, 0.05, 10.0, log=True),
        SHARE: asked.suggest_float(SHARE, 0.05, 0.9),
        BATCH: asked.suggest_int(BATCH, 8, 64, log=True),
    }
    assert ours == pytest.approx(theirs)


def test_front_of_a_short_search_is_learnt_from_four_trials_at_least() -> None:
    assert [num_good_of_a_front(count) for count in (10, 30, 31, 41, 200)] == [4, 4, 4, 5, 20]


@pytest.mark.parametrize("steps", [1, 40], ids=["one batch", "the batch is an axis"])
def test_stopped_trials_are_compared_with_the_first_ones_where_both_were(steps: int) -> None:
    """The first trials have nobody to be stopped by: that they were trained to their end makes them no better.

    Where batches differ, trials come to the same rung at different positions.
    """
    job = search_job("runs", objectives=ONE, space={SHARE: {"kind": "uniform", "low": 0.0, "high": 1.0}})
    space, study = distributions(job), optuna.create_study(direction="minimize")
    for index, share in enumerate(np.linspace(0.0, 1.0, 40)):
        is_first, cost = share < 0.3, abs(share - 0.8)
        study.add_trial(
            optuna.trial.create_trial(
                state=StudyState.COMPLETE if is_first else StudyState.PRUNED,
                params={SHARE: share},
                distributions=space,
                values=[cost],
                intermediate_values={1000 + index % steps: cost, **({TOTAL: cost} if is_first else {})},
            )
        )
    sampler_of = make_sampler(job, max_concurrent=4)
    shares = [drawn(study, sampler_of(number), job)[SHARE] for number in range(40, 60)]
    assert abs(float(np.median(shares)) - 0.8) < 0.15


def test_tpe_begins_after_the_startup_trials_and_mixes_random_ones_in() -> None:
    job = search_job("runs", sampler={"kind": "tpe", "random_fraction": 0.3})
    sampler_of = make_sampler(job, max_concurrent=20)
    kinds = [type(sampler_of(number)) is RandomSampler for number in range(640)]
    assert all(kinds[:40])
    assert 0.2 < sum(kinds[40:]) / 600 < 0.4


@pytest.mark.parametrize(
    ("objectives", "scheduler", "part"), [(ONE, "pareto", 1 / 3), (ONE, "none", 0.0), (FRONT, "pareto", 0.0)]
)
def test_a_third_is_drawn_at_random_where_trials_of_one_objective_are_stopped_early(
    objectives: Any, scheduler: str, part: float
) -> None:
    job = search_job("runs", objectives=objectives, scheduler={"kind": scheduler})
    sampler_of = make_sampler(job, max_concurrent=4)
    drawn_at_random = sum(type(sampler_of(number)) is RandomSampler for number in range(100, 700)) / 600
    assert drawn_at_random == pytest.approx(part, abs=0.07)


def test_one_fit_serves_many_trials_of_a_large_search_and_one_of_a_small() -> None:
    job = search_job("runs", sampler={"kind": "tpe", "startup_trials": 1})
    for running, expected in ((20, 1), (200, 5)):
        study = history(job, ended=60, running=running)
        sampler_of, fits = make_sampler(job, max_concurrent=running), Counter[int]()
        settings = []
        for number in range(10):
            sampler = sampler_of(100 + number)
            fits[number // expected] += not sampler._drawn  # type: ignore[attr-defined]
            settings.append(drawn(study, sampler, job))
        assert set(fits.values()) == {1}
        assert len({tuple(each.values()) for each in settings}) == 10


@pytest.mark.parametrize("objectives", [FRONT, ONE], ids=["front", "one"])
def test_draw_from_a_long_history_is_cheap(objectives: Any) -> None:
    job = search_job("runs", objectives=objectives, sampler={"kind": "tpe", "startup_trials": 1})
    study = history(job, ended=4000, running=500)
    sampler_of, began = make_sampler(job, max_concurrent=500), time.process_time()
    for number in range(80):
        drawn(study, sampler_of(5000 + number), job)
    assert (time.process_time() - began) / 80 < 0.05  # Without the cap on the history: 0.3 s.


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "nsga3", "gp", "qmc", "random"])
@pytest.mark.parametrize("objectives", [FRONT, ONE], ids=["front", "one"])
def test_each_sampler_searches(kind: str, objectives: Any, tmp_path: Path) -> None:
    trials = 14 if kind == "gp" else 30
    job = search_job(
        tmp_path, objectives=objectives, trials=trials, sampler={"kind": kind}, constraints=("kl_nats >= 1",)
    )
    driver = run(job, max_concurrent=4)
    assert len(driver.log.trials.in_state(TrialState.COMPLETE, TrialState.STOPPED)) == trials
    settings = [tuple(trial.settings.values()) for trial in driver.log.trials]
    assert len(set(settings)) == trials


def test_sobol_points_fill_the_space_more_evenly_than_chance(tmp_path: Path) -> None:
    def largest_gap(kind: str) -> float:
        job = search_job(tmp_path, name=kind, trials=64, sampler={"kind": kind}, scheduler={"kind": "none"})
        shares = sorted(float(trial.settings[SHARE]) for trial in run(job).log.trials)
        return float(np.diff([0.05, *shares, 0.9]).max())

    assert largest_gap("qmc") < 2 * 0.85 / 64 < largest_gap("random")


def test_tpe_finds_a_better_front_than_chance(tmp_path: Path) -> None:
    def volume(kind: str, seed: int) -> float:
        sections: Any = {"sampler": {"kind": kind}, "scheduler": {"kind": "none"}, "seed": seed}
        job = search_job(tmp_path, name=f"{kind}{seed}", trials=80, **sections)
        trials = run(job).log.trials.in_state(TrialState.COMPLETE)
        return hypervolume(np.array([job.costs(trial.scores) for trial in trials]), [-15.0, 80.0])

    gains = [volume("tpe", seed) / volume("random", seed) for seed in range(2)]
    assert min(gains) > 1


def test_diverged_trial_is_none_that_was_stopped_early() -> None:
    """One was enough to have all trials judged at their first rungs, by which bad ones came first."""
    job = search_job("runs", objectives=ONE, space={SHARE: {"kind": "uniform", "low": 0.0, "high": 1.0}})
    space, chosen = distributions(job), []
    for has_diverged in (False, True):
        study = optuna.create_study(direction="minimize")
        for index, share in enumerate(np.linspace(0.0, 1.0, 20)):
            is_lost = has_diverged and index == 19
            study.add_trial(
                optuna.trial.create_trial(
                    state=StudyState.PRUNED if is_lost else StudyState.COMPLETE,
                    params={SHARE: float(share)},
                    distributions=space,
                    values=None if is_lost else [float(share)],
                    intermediate_values={1: 1.0 - float(share)} | ({} if is_lost else {8: float(share)}),
                )
            )
        sampler = make_sampler(job, max_concurrent=8)
        chosen.append([drawn(study, sampler(number), job)[SHARE] for number in range(20, 40)])
    assert np.mean(chosen[1]) == pytest.approx(np.mean(chosen[0]), abs=0.15)
    assert np.mean(chosen[0]) < 0.45


@pytest.mark.parametrize(
    ("given", "earlier", "first"), [(3, 0, 3), (5, 0, 5), (None, 0, 16), (None, 12, 4), (None, 40, 0)]
)
def test_sampler_learns_from_the_trial_that_was_asked_for(given: int | None, earlier: int, first: int) -> None:
    settings = {"kind": "tpe", "random_fraction": 0.0, "startup_trials": given}
    job = search_job("runs", objectives=FRONT, sampler=settings)
    sampler_of = make_sampler(job, max_concurrent=8, num_earlier=earlier)
    assert next(n for n in range(40) if not isinstance(sampler_of(n), RandomSampler)) == first
