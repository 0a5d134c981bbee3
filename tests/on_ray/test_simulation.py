"""Searches of thousands of trials in virtual time on Tune's own event loop, and a driver that is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.on_ray.searches import EVERY, KL, TOTAL, Driver, evaluate, run, say, search_job
from vaegen_ray.config.search import SearchJob
from vaegen_ray.on_ray.simulation import World
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.log import read_trials
from vaegen_ray.search.trials import TrialState

RUNGS = list(range(EVERY, TOTAL + 1, EVERY))


def fault(number: int, attempt: int, position: int) -> Exception | None:
    is_struck = number % 40 == 7 or (number + attempt + position) % 97 == 0
    return RuntimeError("the node was lost") if is_struck else None


FAULTY = World(
    evaluate,
    rung_s=lambda settings: 30.0 + 5 * float(settings[KL]),
    fault=fault,
    failure=lambda settings, _: "diverged" if float(settings[KL]) > 4 else "",
)


def killable_job(storage: Path) -> SearchJob:
    return search_job(storage, trials=100, max_concurrent=10)


def assert_sound(driver: Driver, num_trials: int) -> None:
    """Each trial once, rungs in order, and a study that says the same."""
    trials = driver.log.trials
    assert sorted(trials.by_number) == list(range(num_trials))
    assert not trials.in_state(TrialState.WAITING, TrialState.RUNNING)
    for trial in trials:
        assert list(trial.rungs) == RUNGS[: len(trial.rungs)]
    told = say(driver.study)
    states = {"complete": "COMPLETE", "stopped": "PRUNED"}
    for trial, (number, state, values, params, attributes, *_) in zip(trials, told, strict=True):
        expected = states.get(trial.state.value, "FAIL" if trial.was_lost else "PRUNED")
        assert (number, state, params, attributes["state"]) == (
            trial.number,
            expected,
            trial.settings,
            trial.state.value,
        )
        if state == "COMPLETE":
            assert values == [trial.scores[goal.metric] for goal in driver.job.objectives]
            assert trial.position == TOTAL


def test_faults_and_failures_do_not_end_a_search(tmp_path: Path) -> None:
    driver = run(search_job(tmp_path, trials=120, max_failures=1), FAULTY, max_concurrent=20)
    assert_sound(driver, 120)
    states = {trial.state for trial in driver.log.trials}
    assert states == {TrialState.COMPLETE, TrialState.STOPPED, TrialState.FAILED}


def lose_nothing(_: SearchDirectory) -> None:
    pass


def cut_the_newest_segment(directory: SearchDirectory) -> None:
    segment = max(file for file in directory.log.local_path.glob("*.jsonl") if file.stat().st_size)
    os.truncate(segment, segment.stat().st_size * 2 // 3)


def empty_the_newest_segment(directory: SearchDirectory) -> None:
    max(directory.log.local_path.glob("*.jsonl")).write_bytes(b"")


def cut_the_journal(directory: SearchDirectory) -> None:
    os.truncate(directory.study.local_path, directory.study.local_path.stat().st_size // 2)


def lose_the_journal(directory: SearchDirectory) -> None:
    directory.study.remove()


@pytest.mark.parametrize(
    "damage", [lose_nothing, cut_the_newest_segment, empty_the_newest_segment, cut_the_journal, lose_the_journal]
)
def test_killed_search_goes_on_and_no_finished_trial_is_lost_repeated_or_counted_twice(
    damage: Callable[[SearchDirectory], None], tmp_path: Path
) -> None:
    job = killable_job(tmp_path)
    directory = SearchDirectory.of(job)
    with subprocess.Popen([sys.executable, __file__, str(tmp_path)], env=os.environ | {"PYTHONPATH": "."}) as process:
        while not directory.log.exists() or sum(t.state.is_over for t in read_trials(directory)) < 40:
            assert process.poll() is None, "the search was over before it was killed"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    before = read_trials(directory)
    over = {trial.number: trial for trial in before if trial.state.is_over}
    assert 40 <= len(over) < 100
    damage(directory)
    driver = Driver(job, max_concurrent=10)
    if damage in (lose_nothing, cut_the_journal, lose_the_journal):
        assert {trial.number: trial for trial in driver.log.trials if trial.state.is_over} == over
    events = driver.simulate(FAULTY)
    driver.close()
    assert_sound(driver, 100)
    if damage in (lose_nothing, cut_the_journal, lose_the_journal):
        assert not over.keys() & events.rungs_trained.keys()
    for number, trial in over.items():
        assert driver.log.trials[number].settings == trial.settings
    again = Driver(job)
    assert say(again.study) == say(driver.study)
    assert again.searcher.suggest("more") == "FINISHED"
    again.close()


def test_many_trials_at_once_are_quick_and_growth_is_linear(tmp_path: Path) -> None:
    job = search_job(tmp_path, trials=1000)
    driver = Driver(job, max_concurrent=150)
    marks: list[tuple[int, float]] = []
    events = driver.simulate(World(evaluate, rung_s=FAULTY.rung_s), after_event=lambda e: mark(marks, e.num_events))
    driver.close()
    # Draws come from a thread in real time, so that a loaded machine falls behind virtual time.
    assert 75 <= events.most_at_once <= 150
    assert_sound(driver, 1000)
    halves = [(marks[index], marks[index + len(marks) // 2]) for index in (0, len(marks) // 2 - 1)]
    rates = [(end - begin) / (until - since) for (begin, since), (end, until) in halves]
    # On an idle core about 1,000 a second; other processes take from it.
    assert min(rates) > 80, rates
    assert rates[1] > 0.2 * rates[0], rates


def mark(marks: list[tuple[int, float]], num_events: int) -> None:
    if num_events >= 1000 * (len(marks) + 1):
        marks.append((num_events, time.process_time()))


if __name__ == "__main__":
    Driver(killable_job(Path(sys.argv[1])), max_concurrent=10).simulate(FAULTY)
