"""What the scheduler records of rungs, stops and lost attempts, and that it goes on where it was."""

from pathlib import Path

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler

from tests.on_ray.searches import EVERY, FRONT, ONE, TOTAL, Driver, evaluate, run, search_job
from vaegen_ray.on_ray.reports import report_of
from vaegen_ray.on_ray.simulation import World
from vaegen_ray.on_ray.trial_scheduler import LogScheduler
from vaegen_ray.search.trials import TrialState

LATE = 6000


def decide(scheduler: LogScheduler, number: int, fid: float, position: int = LATE) -> str:
    trial = TuneTrial("none", stub=True, config={"number": number, "settings": {}})
    return scheduler.on_trial_result(None, trial, report_of(position, {"sample_fid": fid}))


def test_stop_is_in_the_log_with_its_reason_before_tune_hears_of_it(tmp_path: Path) -> None:
    driver = Driver(search_job(tmp_path, objectives=ONE), max_concurrent=10)
    scheduler = LogScheduler(driver.job, driver.log)
    for number in range(4):
        driver.searcher.suggest(f"{number}")
    decisions = [decide(scheduler, number, 10.0 + number) for number in range(4)]
    assert decisions == ["CONTINUE", "CONTINUE", "CONTINUE", "STOP"]
    trial = driver.log.trials[3]
    assert (trial.state, trial.rungs) == (TrialState.STOPPED, {LATE: {"sample_fid": 13.0}})
    assert trial.reason == "at 6000 images 3 of 4 trials dominate it in all objectives and 3 rank before it"
    driver.close()


def test_rungs_survive_a_restart(tmp_path: Path) -> None:
    """The same reports are judged the same, with a restart in between and without."""
    decisions = {}
    for name, restarts in (("whole", False), ("restarted", True)):
        job = search_job(tmp_path, name=name, objectives=ONE)
        driver = Driver(job, max_concurrent=10)
        for number in range(10):
            driver.searcher.suggest(f"{number}")
        scheduler = LogScheduler(job, driver.log)
        first = [decide(scheduler, number, 20.0 + number) for number in range(5)]
        if restarts:
            driver.close()
            driver = Driver(job, max_concurrent=10)
            scheduler = LogScheduler(job, driver.log)
        decisions[name] = first + [decide(scheduler, number, 20.0 + number) for number in range(5, 10)]
        driver.close()
    assert decisions["whole"] == decisions["restarted"]
    assert set(decisions["whole"]) == {TrialScheduler.STOP, TrialScheduler.CONTINUE}


def test_scores_of_the_end_are_not_judged(tmp_path: Path) -> None:
    driver = run(search_job(tmp_path, objectives=ONE, trials=8, scheduler={"kind": "none"}))
    assert all(trial.position == TOTAL for trial in driver.log.trials)
    driver = run(search_job(tmp_path, name="other", objectives=FRONT, trials=20))
    stopped = driver.log.trials.in_state(TrialState.STOPPED)
    assert stopped
    assert all(trial.position < TOTAL for trial in stopped)


def test_lost_attempt_is_recorded_with_its_reason_and_retried(tmp_path: Path) -> None:
    def fault(number: int, attempt: int, position: int) -> Exception | None:
        lost = (number == 1 and attempt == 1) or number == 2
        return RuntimeError("the node was taken away") if lost and position == 3 * EVERY else None

    job = search_job(tmp_path, trials=4, max_failures=2, scheduler={"kind": "none"})
    driver = run(job, World(evaluate, fault=fault))
    trials = driver.log.trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2 + [TrialState.FAILED, TrialState.COMPLETE]
    assert [trial.attempts for trial in trials] == [1, 2, 3, 1]
    assert trials[2].reason == "the node was taken away"
    assert trials[2].was_lost
    assert list(trials[1].rungs) == list(range(EVERY, TOTAL + 1, EVERY))
    assert [trial.state.name for trial in driver.study.trials()] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
