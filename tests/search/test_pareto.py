"""Fronts and volumes against closed forms and against Optuna's own functions."""

import math
import time

import numpy as np
import pytest
from optuna._hypervolume import compute_hypervolume
from optuna.study._multi_objective import _fast_non_domination_rank

from vaegen_ray.search.pareto import front, hypervolume, knee


def random_costs(trials: int, objectives: int, *, seed: int = 0, digits: int | None = None) -> np.ndarray:
    costs = np.random.default_rng(seed).random((trials, objectives))
    return costs if digits is None else costs.round(digits)


@pytest.mark.parametrize("digits", [None, 1], ids=["all different", "many ties"])
@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_front_is_that_of_optuna(objectives: int, digits: int | None) -> None:
    costs = random_costs(300, objectives, digits=digits)
    assert sorted(front(costs)) == np.flatnonzero(_fast_non_domination_rank(costs) == 0).tolist()


def test_front_is_in_order_of_the_first_cost_and_holds_equal_trials() -> None:
    costs = np.array([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0], [2.0, 2.0], [2.0, 3.0]])
    assert front(costs) == [1, 2, 3, 0]
    assert front(np.empty((0, 2))) == []


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_volume_is_that_of_optuna(objectives: int) -> None:
    costs, reference = random_costs(60, objectives, digits=2), np.full(objectives, 0.9)
    theirs = compute_hypervolume(costs[(costs < 0.9).all(1)], reference)
    assert hypervolume(costs, reference.tolist()) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize(("objectives", "orthant"), [(2, math.pi / 4), (3, math.pi / 6), (4, math.pi**2 / 32)])
def test_volume_approaches_that_of_a_ball_in_an_orthant(objectives: int, orthant: float) -> None:
    directions = np.abs(np.random.default_rng(0).normal(size=(300, objectives)))
    costs = 1 - directions / np.linalg.norm(directions, axis=1, keepdims=True)
    assert orthant - {2: 0.01, 3: 0.05, 4: 0.09}[objectives] < hypervolume(costs, [1.0] * objectives) < orthant


def test_volume_of_boxes_is_their_union() -> None:
    assert hypervolume(np.array([[0.0, 0.5, 0.0], [0.5, 0.0, 0.0]]), [1.0, 1.0, 2.0]) == 2 * 0.75
    assert hypervolume(np.array([[0.0, 2.0]]), [1.0, 1.0]) == 0
    assert hypervolume(np.empty((0, 2)), [1.0, 1.0]) == 0


def test_knee_is_the_corner_of_the_front() -> None:
    assert knee(np.array([[0.0, 1.0], [0.1, 0.15], [1.0, 0.0], [1.0, 1.0]])) == 1
    assert knee(np.empty((0, 2))) is None
    assert knee(np.array([[3.0, 4.0]])) == 0


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_front_of_ten_thousand_trials_is_found_and_measured_in_seconds(objectives: int) -> None:
    costs, began = random_costs(10_000, objectives), time.process_time()
    members = front(costs)
    assert 0 < hypervolume(costs, [1.0] * objectives) < 1
    assert members
    assert time.process_time() - began < 20
