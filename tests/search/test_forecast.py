"""Where trials will end is learnt from those that ended: against brute force, and by who is stopped."""

import math
from typing import Any

import numpy as np
import pytest

from tests.on_ray.searches import EVERY, FRONT, KL, SHARE, TOTAL, search_job
from vaegen_ray.search.forecast import FEWEST_ENDS, RIDGE, Ends, Forecast, features_of
from vaegen_ray.search.stopping import StoppingRule, make_rule
from vaegen_ray.search.trials import Trial

LATE = TOTAL // 2 // EVERY * EVERY
SPACE = {SHARE: {"kind": "uniform", "low": 0.0, "high": 1.0}}


def test_error_of_a_forecast_is_that_of_leaving_each_trial_out() -> None:
    random = np.random.default_rng(0)
    features, noise = random.normal(size=(15, 3)), random.normal(size=(15, 2))
    changes = features @ random.normal(size=(3, 2)) + noise + 5
    scaled = features / features.std(0)
    left_out = []
    for index in range(15):
        rest = np.arange(15) != index
        design = np.column_stack([np.ones(14), scaled[rest]])  # The intercept is not held back.
        weights = np.linalg.solve(design.T @ design + np.diag([0, *[RIDGE] * 3]), design.T @ changes[rest])
        left_out.append(changes[index] - np.array([1, *scaled[index]]) @ weights)
    np.testing.assert_allclose(Forecast.fitted(features, changes).error, np.std(left_out, axis=0), rtol=1e-9)


def test_forecast_follows_what_settings_do_and_knows_its_error() -> None:
    random = np.random.default_rng(1)
    features = random.uniform(size=(400, 3))
    changes = np.column_stack([3 - 2 * features[:, 0], features[:, 1] + 4 * features[:, 2]])
    forecast = Forecast.fitted(features, changes + 0.1 * random.normal(size=changes.shape))
    np.testing.assert_allclose(forecast.changes(features), changes, atol=0.06)
    np.testing.assert_allclose(forecast.error, 0.1, rtol=0.15)


def test_features_are_numbers_of_every_axis() -> None:
    space: dict[str, Any] = {
        KL: {"kind": "log_uniform", "low": 0.01, "high": 100.0},
        "objective.adversarial.loss": {"kind": "choice", "values": ["hinge", "non_saturating", "least_squares"]},
        "model.latent_dim": {
            "kind": "integer", "low": 10, "high": 20, "when": {"objective.adversarial.loss": "hinge"},
        },
    }  # fmt: skip
    space = dict(search_job("runs", space=space).space)
    hinge = {KL: 1.0, "objective.adversarial.loss": "hinge", "model.latent_dim": 15}
    assert features_of(space, hinge) == pytest.approx([0.5, 1, 0, 0, 0.5])
    assert features_of(space, {KL: 100.0, "objective.adversarial.loss": "least_squares"}) == [1, 0, 0, 1, 0]


def test_nobody_can_say_who_is_behind_before_enough_have_ended() -> None:
    ends = Ends(2)
    for number in range(FEWEST_ENDS):
        assert ends.is_behind(number - 1) is None if number else True
        ends.enter(number, [0.1 * number], [float(number), 1.0])
        ends.ended(number, [float(number), 1.0])
    ends.enter(99, [0.5], [50.0, 2.0])
    assert ends.is_behind(99) is True


def test_trial_that_broke_the_constraints_in_the_end_is_ahead_of_nobody() -> None:
    ends = Ends(2)
    for number in range(20):
        ends.enter(number, [0.05 * number], [1.0, 1.0])
        ends.ended(number, [math.inf, math.inf] if number % 2 else [10.0, 10.0])
    ends.enter(99, [0.5], [0.9, 0.9])
    assert ends.is_behind(99) is False


def scores(share: float, luck: float, position: int) -> dict[str, float]:
    """A high share shows late: until the half it harms both scores, then it gives the best samples."""
    late = position > LATE
    return {
        "reconstruction_psnr": 20 - 4 * share - luck / 2 + late,
        "sample_fid": 20 + 60 * share + 5 * luck - 70 * share * late,
        "kl_nats": 5.0,
    }


def verdict(rule: StoppingRule, number: int, share: float, luck: float) -> str | None:
    trial = Trial(number, {SHARE: share})
    trial.rungs[LATE] = scores(share, luck, LATE)
    reason = rule.reached(trial, LATE)
    trial.rungs[TOTAL] = scores(share, luck, TOTAL)
    rule.reached(trial, TOTAL)
    return reason


def test_trial_that_will_come_late_goes_on_and_one_that_will_not_is_stopped() -> None:
    rule = make_rule(search_job("runs", objectives=FRONT, space=SPACE))
    assert rule is not None
    random = np.random.default_rng(0)
    first = [verdict(rule, n, float(random.uniform()), float(random.normal())) for n in range(FEWEST_ENDS)]
    assert any(first), "at the rung alone, high shares look dominated"
    for number in range(FEWEST_ENDS, 30):
        verdict(rule, number, float(random.uniform()), float(random.normal()))
    assert verdict(rule, 100, 0.95, -2.5) is None
    assert "dominate it in all objectives" in (verdict(rule, 101, 0.1, 10.0) or "")
