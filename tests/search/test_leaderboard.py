"""The answer of a search is in its log: the front of fully trained trials, the knee, the best."""

import csv
import io
import json
from pathlib import Path

import pytest

from tests.search.samples import search_job
from vaegen_ray.config.search import SearchJob
from vaegen_ray.runs.lease import Lease
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.leaderboard import hypervolumes, is_over, leaderboard
from vaegen_ray.search.log import TrialLog
from vaegen_ray.search.open import current_trials
from vaegen_ray.search.trials import Event, Trials, TrialState, asked, ended, scored, started


def trials_with(*scores: tuple[TrialState, float, float]) -> Trials:
    """Trials of (state, PSNR, SWD), ended one after the other; those that are not complete have it as a rung."""
    events: list[Event] = []
    for number, (state, psnr, swd) in enumerate(scores):
        values = {"reconstruction_psnr": psnr, "sample_swd": swd, "kl_nats": 5.0}
        events += [asked(number, {"objective.kl.weight": 0.5}), started(number), scored(number, 32, values)]
        if state is TrialState.COMPLETE:
            events.append(ended(number, state, scores=values))
        elif state.is_over:
            events.append(ended(number, state, reason="because"))
    return Trials.of({**event, "time_s": float(index)} for index, event in enumerate(events))


COMPLETE, STOPPED, FAILED, RUNNING = (
    TrialState.COMPLETE,
    TrialState.STOPPED,
    TrialState.FAILED,
    TrialState.RUNNING,
)


@pytest.fixture
def job(tmp_path: Path) -> SearchJob:
    return search_job(tmp_path)


def test_front_holds_what_no_fully_trained_trial_dominates(job: SearchJob) -> None:
    trials = trials_with((COMPLETE, 20, 0.5), (COMPLETE, 22, 0.4), (COMPLETE, 18, 0.1), (COMPLETE, 25, 0.9))
    assert set(leaderboard(job, trials).front) == {1, 2, 3}


@pytest.mark.parametrize("state", [STOPPED, FAILED, RUNNING])
def test_trial_that_was_not_fully_trained_is_never_on_the_front(job: SearchJob, state: TrialState) -> None:
    board = leaderboard(job, trials_with((COMPLETE, 20, 0.5), (state, 30, 0.1)))
    assert board.front == (0,)
    assert board.best == 0
    assert [trial.number for trial in board.trials] == [0, 1]


def test_trial_that_breaks_a_constraint_is_not_on_the_front_and_says_so(tmp_path: Path) -> None:
    job = search_job(tmp_path, constraints=["reconstruction_psnr >= 21"])
    board = leaderboard(job, trials_with((COMPLETE, 20, 0.1), (COMPLETE, 22, 0.4)))
    assert board.front == (1,)
    assert [row["keeps_constraints"] for row in board.rows()] == [True, False]


def test_best_of_several_objectives_is_the_knee(job: SearchJob) -> None:
    board = leaderboard(job, trials_with((COMPLETE, 10, 0.1), (COMPLETE, 19, 0.15), (COMPLETE, 20, 0.9)))
    assert board.best == 1


@pytest.mark.parametrize(("goal", "best"), [("minimize", 1), ("maximize", 2)])
def test_best_of_one_objective_is_the_extreme(tmp_path: Path, goal: str, best: int) -> None:
    job = search_job(tmp_path, objectives=[{"metric": "sample_swd", "goal": goal}])
    board = leaderboard(job, trials_with((COMPLETE, 0, 0.5), (COMPLETE, 0, 0.2), (COMPLETE, 0, 0.7)))
    assert board.best == best
    assert board.trials[0].number == best


def test_search_without_a_trained_trial_has_no_best(job: SearchJob) -> None:
    board = leaderboard(job, trials_with((RUNNING, 1, 1)))
    assert (board.best, board.front) == (None, ())
    assert leaderboard(job, Trials()).to_csv() == "place\n"


def test_hypervolume_never_falls_and_counts_only_trained_trials(job: SearchJob) -> None:
    trials = trials_with((COMPLETE, 20, 0.5), (STOPPED, 40, 0.0), (COMPLETE, 25, 0.9), (COMPLETE, 22, 0.4))
    volumes = hypervolumes(job, list(trials))
    assert len(volumes) == 3
    assert volumes == sorted(volumes)


def test_hypervolume_of_two_trials_is_the_area_that_they_cover(job: SearchJob) -> None:
    # Scaled to [0, 1], the trials lie at (0, 1) and (1, 0) below the reference (1.1, 1.1).
    volumes = hypervolumes(job, list(trials_with((COMPLETE, 20, 0.5), (COMPLETE, 10, 0.1))))
    assert volumes == pytest.approx([1.1 * 0.1, 1.1 * 0.1 + 0.1 * 1.0])


def test_csv_and_json_tell_of_every_trial(job: SearchJob) -> None:
    board = leaderboard(job, trials_with((COMPLETE, 20, 0.5), (FAILED, 1, 1), (STOPPED, 2, 2)))
    rows = list(csv.DictReader(io.StringIO(board.to_csv())))
    assert [(row["trial"], row["state"], row["reason"]) for row in rows] == [
        ("0", "complete", ""),
        ("2", "stopped", "because"),
        ("1", "failed", "because"),
    ]
    content = json.loads(board.to_json({}))
    assert content["front"] == [0]
    assert len(content["trials"]) == 3


def test_trial_that_runs_is_interrupted_once_nobody_drives_the_search(job: SearchJob) -> None:
    directory = SearchDirectory.of(job)
    lease, log = Lease(directory.lease), TrialLog(directory)
    for event in (asked(0, {"objective.kl.weight": 0.5}), started(0)):
        log.record(event)
    log.flush()
    assert current_trials(directory)[0].state is TrialState.RUNNING
    log.close()
    lease.release()
    trials = current_trials(directory)
    assert trials[0].state is TrialState.INTERRUPTED
    assert (trials.num_counted, trials.num_over) == (1, 0)


def test_search_whose_space_holds_no_other_valid_settings_is_over(tmp_path: Path) -> None:
    """It would be resumed for ever."""
    axis = {"kind": "choice", "values": ["hinge", "non_saturating"]}
    job = search_job(tmp_path, space={"objective.adversarial.loss": axis}, trials=2)
    scores = {"reconstruction_psnr": 20.0, "sample_swd": 0.5}
    events = [
        asked(0, {"objective.adversarial.loss": "hinge"}),
        started(0),
        ended(0, TrialState.COMPLETE, scores=scores),
        asked(1, {"objective.adversarial.loss": "non_saturating"}),
        ended(1, TrialState.INVALID, reason="makes no job"),
    ]
    assert [is_over(job, Trials.of({**e, "time_s": 0.0} for e in events[:n])) for n in (3, 4, 5)] == [
        False,
        False,
        True,
    ]
