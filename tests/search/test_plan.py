"""What a search will cost: a bound that holds whatever its trials draw."""

from typing import Any

import pytest

from tests.search.samples import base_tree, search_job
from vaegen_ray.config.search import SearchJob
from vaegen_ray.search.forks import num_beginnings
from vaegen_ray.search.plan import SearchPlan, plan_search

START, STEP = "objective.adversarial.start_images", "training.images_per_step"
RAMP = "objective.adversarial.ramp_images"


def job(start_images: int, axes: dict[str, Any]) -> SearchJob:
    base = base_tree(objective={"adversarial": {"start_images": start_images}})
    return search_job(
        "runs", base, space={**axes, RAMP: {"kind": "integer", "low": 0, "high": 40}}, trials=10, points=[]
    )


def plan(start_images: int, axes: dict[str, Any]) -> SearchPlan:
    return plan_search(job(start_images, axes))


def choice(*values: Any, **when: Any) -> dict[str, Any]:
    return {"kind": "choice", "values": values, **when}


def test_phase_of_the_base_is_shared_where_all_that_is_drawn_acts_later() -> None:
    found = plan(40, {})
    assert (found.shared_images, found.beginnings, found.saved_images) == (40, 1, 9 * 40)
    assert found.most_images == 10 * 96 - 9 * 40


@pytest.mark.parametrize("start_of_base", [0, 40, 80])
def test_phases_of_a_drawn_adversarial_start_save_at_least_the_shortest(start_of_base: int) -> None:
    found = plan(start_of_base, {START: choice(30, 64)})
    assert (found.shared_images, found.beginnings, found.saved_images) == (32, 2, 8 * 32)


def test_nothing_is_sure_to_be_saved_where_the_adversarial_term_may_act_from_the_first_step() -> None:
    assert plan(40, {START: choice(0, 40)}).saved_images == 0


def test_phase_ends_with_a_step_of_the_size_that_is_drawn() -> None:
    assert plan(20, {STEP: choice(8, 16)}).shared_images == 24


def test_adversarial_start_that_is_not_always_drawn_may_be_that_of_the_base() -> None:
    axes = {START: choice(40, 64, when={RAMP: 0})}
    found = plan(16, axes)
    assert (found.shared_images, found.beginnings, found.saved_images) == (16, 3, 7 * 16)
    assert plan(0, axes).saved_images == 0


def test_adversarial_start_that_a_setting_of_the_beginning_decides_adds_no_beginning() -> None:
    loss = "objective.adversarial.loss"
    axes = {loss: choice("hinge", "non_saturating"), START: choice(40, 64, when={loss: "hinge"})}
    assert num_beginnings(job(16, axes)) == 4
    assert plan(16, axes).shared_images == 16


def test_beginning_that_is_continuous_is_not_shared() -> None:
    found = plan(40, {"objective.kl.weight": {"kind": "log_uniform", "low": 0.1, "high": 1.0}})
    assert (found.shared_images, found.saved_images, found.most_images) == (0, 0, 10 * 96)
