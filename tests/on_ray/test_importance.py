"""What mattered in a search, where it is known."""

import logging

import numpy as np
import optuna
import pytest

from tests.search.samples import BALANCE, search_job
from vaegen_ray.on_ray.importance import FEWEST_TRIALS, importances
from vaegen_ray.search.trials import Event, Trials, TrialState, asked, ended, started

KL, SHARE = "objective.kl.weight", f"{BALANCE}.share"


def trials_of(count: int) -> Trials:
    """PSNR depends on the KL weight alone, SWD on the share alone."""
    random, events = np.random.default_rng(0), list[Event]()
    for number in range(count):
        kl, share = float(np.exp(random.uniform(np.log(0.01), np.log(10)))), float(random.uniform(0.1, 0.9))
        scores = {"reconstruction_psnr": 20 - abs(np.log(kl)), "sample_swd": (share - 0.5) ** 2}
        events += [asked(number, {KL: kl, SHARE: share}), started(number)]
        events.append(ended(number, TrialState.COMPLETE, scores=scores))
    return Trials.of({**event, "time_s": 0.0} for event in events)


def test_importance_of_an_axis_is_its_part_of_what_an_objective_depends_on() -> None:
    found = importances(search_job("runs"), trials_of(40))
    assert found["reconstruction_psnr"][KL] > 0.8
    assert found["sample_swd"][SHARE] > 0.8
    for parts in found.values():
        assert sum(parts.values()) == pytest.approx(1)


def test_importances_are_found_without_a_word_of_optuna(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    monkeypatch.setattr(logging.getLogger("optuna"), "propagate", True)
    assert importances(search_job("runs"), trials_of(FEWEST_TRIALS))
    assert caplog.messages == []


def test_too_few_trials_tell_nothing_of_importance() -> None:
    assert importances(search_job("runs"), trials_of(FEWEST_TRIALS - 1)) == {}
