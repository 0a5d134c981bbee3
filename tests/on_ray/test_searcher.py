"""What is handed out, what is recorded, and what the study is told."""

import math
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from tests.on_ray.searches import (
    BALANCE,
    BATCH,
    FRONT,
    KL,
    ONE,
    SHARE,
    SPACE,
    TOTAL,
    Driver,
    evaluate,
    run,
    say,
    search_job,
)
from vaegen_ray.config.search import Settings
from vaegen_ray.errors import JobError
from vaegen_ray.on_ray.reports import report_of
from vaegen_ray.on_ray.simulation import World
from vaegen_ray.search.trials import TrialState

POINT: Settings = {KL: 1.0, SHARE: 0.4, BATCH: 16}
SCORES = {"reconstruction_psnr": 20.0, "sample_fid": 30.0, "kl_nats": 4.0}


def complete(scores: dict[str, float]) -> dict[str, Any]:
    return report_of(TOTAL, scores, ending="complete")


def suggested(driver: Driver, count: int) -> list[dict[str, Any]]:
    return [driver.searcher.suggest(f"trial {index}") for index in range(count)]


# ---------------------------------------------------------------------------- what is handed out


def test_points_come_first_and_once_ever(tmp_path: Path) -> None:
    job = search_job(tmp_path, trials=5)
    points = [POINT, {**POINT, KL: 2.0}]
    driver = Driver(job, points=points)
    assert suggested(driver, 1) == [{"number": 0, "settings": points[0]}]
    driver.close()
    driver = Driver(job, points=points)
    configs = suggested(driver, 4)
    assert [config["number"] for config in configs] == [0, 1, 2, 3]
    assert [config["settings"] for config in configs[:2]] == points
    driver.close()
    assert sum(trial.settings in points for trial in driver.log.trials) == 2


def test_no_more_than_asked_for_are_handed_out(tmp_path: Path) -> None:
    driver = Driver(search_job(tmp_path, trials=3), max_concurrent=2)
    assert [config and config["number"] for config in suggested(driver, 3)] == [0, 1, None]
    driver.searcher.on_trial_complete("trial 0", complete(SCORES))
    assert driver.searcher.suggest("trial 3")["number"] == 2
    driver.searcher.on_trial_complete("trial 1", complete(SCORES))
    assert driver.searcher.suggest("trial 4") == Searcher.FINISHED
    driver.close()


def test_unfinished_trials_of_an_interrupted_search_come_first(tmp_path: Path) -> None:
    job = search_job(tmp_path, trials=6)
    driver = Driver(job)
    configs = suggested(driver, 4)
    driver.searcher.on_trial_complete("trial 1", complete(SCORES))
    driver.searcher.on_trial_complete("trial 2", report_of(3000, {}, ending="interrupted"))
    driver.close()
    driver = Driver(job)
    again = suggested(driver, 4)
    assert again[:3] == [configs[0], configs[2], configs[3]]
    assert again[3]["number"] == 4
    driver.close()


def test_conditional_axes_are_drawn_where_they_act(tmp_path: Path) -> None:
    space = {
        BALANCE: {"kind": "choice", "values": ("fixed", "gradient_share")},
        SHARE: {**SPACE[SHARE], "when": {BALANCE: "gradient_share"}},
        "objective.adversarial.balance.weight": {
            "kind": "log_uniform", "low": 0.001, "high": 1.0, "when": {BALANCE: "fixed"},
        },
        KL: SPACE[KL],
    }  # fmt: skip
    for objectives in (FRONT, ONE):
        driver = run(search_job(tmp_path, name=objectives[0]["metric"], trials=60, space=space, objectives=objectives))
        kinds = [trial.settings[BALANCE] for trial in driver.log.trials]
        assert min(kinds.count("fixed"), kinds.count("gradient_share")) > 5
        for trial in driver.log.trials:
            fixed = trial.settings[BALANCE] == "fixed"
            inner = "objective.adversarial.balance.weight" if fixed else SHARE
            assert trial.settings.keys() == {BALANCE, KL, inner}


def test_settings_that_make_no_job_are_told_and_drawn_again(tmp_path: Path) -> None:
    def problem(settings: Settings) -> str | None:
        return "a batch of more than 30" if float(settings[BATCH]) > 30 else None

    driver = run(search_job(tmp_path, trials=40), problem=problem)
    invalid = driver.log.trials.in_state(TrialState.INVALID)
    assert invalid
    assert {trial.reason for trial in invalid} == {"a batch of more than 30"}
    assert all(trial.attempts == 0 for trial in invalid)
    assert len(driver.log.trials) == 40 + len(invalid)
    told = driver.study.trials()
    assert all(told[trial.number].state.name == "PRUNED" for trial in invalid)
    # It is learnt: of the first trials, drawn at random, more make no job than of the last.
    is_invalid = [trial.state is TrialState.INVALID for trial in driver.log.trials]
    assert sum(is_invalid[-20:]) < sum(is_invalid[:20])


def test_space_that_makes_hardly_any_job_is_refused(tmp_path: Path) -> None:
    driver = Driver(search_job(tmp_path), problem=lambda _: "model.latent_dim: too many")
    with pytest.raises(JobError, match=r"space: must make valid jobs, 200 draws in a row make none .*latent_dim"):
        driver.searcher.suggest("a")
    driver.close()


def test_no_settings_come_twice_and_a_space_of_choices_ends_early(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    space = {
        BALANCE: {"kind": "choice", "values": ("fixed", "gradient_share")},
        BATCH: {"kind": "integer", "low": 8, "high": 10},
        "objective.adversarial.loss": {"kind": "choice", "values": ("hinge", "least_squares"), "when": {BATCH: 9}},
    }
    driver = run(search_job(tmp_path, trials=50, space=space))
    settings = [trial.settings for trial in driver.log.trials]
    assert len(settings) == 2 * (1 + 2 + 1)
    assert all(settings.count(each) == 1 for each in settings)
    assert "ends early" in caplog.text


def test_trial_that_may_not_begin_waits_for_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaegen_ray.on_ray.searcher.SECONDS_BETWEEN_LOOKS", 0.0)
    allowed = {1}
    driver = Driver(search_job(tmp_path, trials=3), may_begin=lambda number, _: number in allowed, max_concurrent=3)
    assert driver.searcher.suggest("a")["number"] == 1
    assert driver.searcher.suggest("b") is None
    allowed |= {0, 2}
    assert [driver.searcher.suggest(name)["number"] for name in "bc"] == [0, 2]
    driver.close()


def test_trials_that_wait_for_another_keep_new_ones_from_being_drawn(tmp_path: Path) -> None:
    """They would be drawn from no results: eleven of forty were before the first trial had begun."""
    driver = Driver(search_job(tmp_path, trials=40), may_begin=lambda number, _: number == 0, max_concurrent=2)
    assert driver.searcher.suggest("a")["number"] == 0
    assert [driver.searcher.suggest(f"b{index}") for index in range(10)] == [None] * 10
    driver.close()
    assert len(driver.log.trials) == 2


def test_search_that_is_told_to_finish_begins_nothing_more(tmp_path: Path) -> None:
    driver = Driver(search_job(tmp_path))
    driver.searcher.suggest("a")
    driver.searcher.finish()
    assert driver.searcher.suggest("b") == Searcher.FINISHED
    driver.close()


# ---------------------------------------------------------------------------- repeatability


def settings_of(driver: Driver) -> list[Settings]:
    return [driver.log.trials[number].settings for number in sorted(driver.log.trials.by_number)]


@pytest.mark.parametrize("kind", ["tpe", "random", "nsga2", "nsga3", "qmc"])
def test_sequential_search_is_repeated_by_its_seed_also_across_an_interruption(kind: str, tmp_path: Path) -> None:
    sections = {"trials": 24, "sampler": {"kind": kind, "startup_trials": 10 if kind == "tpe" else None}, "seed": 5}
    whole = run(search_job(tmp_path, name="whole", **sections), max_concurrent=1)
    other = run(search_job(tmp_path, name="other", **{**sections, "seed": 6}), max_concurrent=1)
    assert settings_of(whole) != settings_of(other)

    job = search_job(tmp_path, name="halves", **sections)
    driver = Driver(job, max_concurrent=1)

    def interrupt(_: object) -> None:
        if len(driver.log.trials) == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        driver.simulate(after_event=interrupt)
    driver.close()
    assert settings_of(run(job, max_concurrent=1)) == settings_of(whole)


# ---------------------------------------------------------------------------- what is told


@pytest.mark.parametrize(
    ("result", "error", "state", "told", "reason"),
    [
        (complete(SCORES), False, TrialState.COMPLETE, "COMPLETE", ""),
        (complete(SCORES | {"sample_fid": math.nan}), False, TrialState.FAILED, "PRUNED", "sample_fid is nan"),
        (complete(SCORES | {"sample_fid": math.inf}), False, TrialState.FAILED, "PRUNED", "sample_fid is inf"),
        (complete({"sample_fid": 3.0}), False, TrialState.FAILED, "PRUNED", "reconstruction_psnr is missing"),
        (report_of(9, {}, ending="failed", reason="no memory"), False, TrialState.FAILED, "PRUNED", "no memory"),
        (None, True, TrialState.FAILED, "FAIL", "its process was lost"),
        (report_of(9, {}, ending="interrupted"), False, TrialState.WAITING, "RUNNING", ""),
        (None, False, TrialState.WAITING, "RUNNING", ""),
    ],
)  # fmt: skip
def test_ending_is_recorded_and_told(
    result: dict[str, Any] | None, error: bool, state: TrialState, told: str, reason: str, tmp_path: Path
) -> None:
    driver = Driver(search_job(tmp_path))
    driver.searcher.suggest("a")
    driver.searcher.on_trial_complete("a", result, error=error)
    driver.close()
    assert driver.log.trials[0].state is state
    assert reason in driver.log.trials[0].reason
    assert driver.study.trials()[0].state.name == told


def test_rung_is_recorded_once_and_without_what_is_no_number(tmp_path: Path) -> None:
    driver = Driver(search_job(tmp_path))
    driver.searcher.suggest("a")
    for scores in (SCORES | {"active_units": math.nan}, {"sample_fid": 1.0}):
        driver.searcher.on_trial_result("a", report_of(1000, scores))
    assert driver.log.trials[0].rungs == {1000: SCORES}
    driver.close()


def test_settings_that_diverge_repel_the_sampler(tmp_path: Path) -> None:
    """What TPE makes of trials that break the constraint: those that diverge at small weights move it away."""

    sections = {"trials": 100, "objectives": ONE, "scheduler": {"kind": "none"}, "space": {KL: SPACE[KL]}}

    def drawn_below(kl: float, failure: Any, name: str) -> int:
        job = search_job(tmp_path, name=name, **sections)
        flat = World(lambda _settings, _position: {"sample_fid": 1.0}, failure=failure)
        late = settings_of(run(job, flat, max_concurrent=2))[30:]
        return sum(float(settings[KL]) < kl for settings in late)

    never = drawn_below(0.7, lambda _settings, _position: "", "never")
    often = drawn_below(0.7, lambda settings, _: "diverged" if float(settings[KL]) < 0.7 else "", "often")
    assert often < 0.5 * never


def test_draws_ahead_are_all_used_or_kept_for_the_next_start(tmp_path: Path) -> None:
    """From 64 trials at once the sampler runs in a thread."""
    job = search_job(tmp_path, trials=300)
    driver = Driver(job, max_concurrent=100)
    configs = []
    while len(configs) < 100:
        config = driver.searcher.suggest(f"trial {len(configs)}")
        configs += [config] if config else []
    driver.close()
    drawn = settings_of(driver)
    assert len(drawn) >= 100
    driver = run(job, World(evaluate), max_concurrent=100)
    assert settings_of(driver)[: len(drawn)] == drawn
    assert len(driver.log.trials) == 300
    assert len(driver.log.trials.in_state(TrialState.COMPLETE, TrialState.STOPPED)) == 300
    assert {state for _, state, *_ in say(driver.study)} == {"COMPLETE", "PRUNED"}
