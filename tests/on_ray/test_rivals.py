"""Searches of others and ours on one budget: what was spent, what was trained, what is called the answer."""

from pathlib import Path
from typing import Any

import pytest

from tests.on_ray.searches import EVERY, FRONT, ONE, TOTAL, evaluate, search_job
from vaegen_ray.config.search import NoStopping, Sampler, Settings
from vaegen_ray.on_ray.rivals import Rival, optunas_tpe, ours, rays, run, syne_tunes
from vaegen_ray.on_ray.simulation import STARTING_S, World
from vaegen_ray.search.quality import History

AT_ONCE, FULL_TRAININGS = 4, 10


def best_at_first(settings: Settings, position: int) -> dict[str, float]:
    """As with a VAE-GAN, whose reconstructions are best before the adversarial start."""
    scores = evaluate(settings, position)
    return {**scores, "reconstruction_psnr": scores["reconstruction_psnr"] - 12 * position / TOTAL}


def search(rival: Rival, tmp_path: Path, **sections: Any) -> History:
    job = search_job(tmp_path, trials=10_000, **sections)
    budget = float(FULL_TRAININGS * TOTAL)
    return run(rival, job, World(best_at_first), max_concurrent=AT_ONCE, budget=budget, in_images=True)


def check(history: History) -> None:
    """Every trial's rungs are whole, and the budget is kept to within the trials that run at once."""
    positions: dict[int, list[int]] = {}
    for rung in history.rungs:
        positions.setdefault(rung.trial, []).append(rung.position)
    assert all(each == list(range(EVERY, each[-1] + 1, EVERY)) for each in positions.values())
    assert len(history.rungs) == FULL_TRAININGS * TOTAL // EVERY
    assert [rung.spent for rung in history.rungs] == [EVERY * count for count in range(1, 1 + len(history.rungs))]
    assert len(positions) == history.num_trials


def test_our_front_holds_trials_trained_to_their_end_and_that_of_the_stock_stack_does_not(tmp_path: Path) -> None:
    our, stock = search(ours(), tmp_path), search(rays("reconstruction_psnr"), tmp_path)
    for history in (our, stock):
        check(history)
        assert history.answer
    assert our.num_untrained_in_answer == 0
    assert stock.num_untrained_in_answer > 0


def test_search_of_the_same_seed_is_the_same_and_of_another_is_not(tmp_path: Path) -> None:
    once, again, other = (search(ours(), tmp_path, seed=seed) for seed in (3, 3, 4))
    assert once.rungs == again.rungs
    assert once.rungs != other.rungs


def test_seconds_are_counted_by_the_clock_of_the_event_loop(tmp_path: Path) -> None:
    rival = ours(NoStopping(kind="none"), Sampler(kind="random"))
    world = World(evaluate, rung_s=lambda _: 10.0)
    history = run(rival, search_job(tmp_path, objectives=ONE), world, max_concurrent=2, budget=66.0, in_images=False)
    spent = [rung.spent for rung in history.rungs if rung.spent <= history.budget]
    assert spent == [STARTING_S + 10.0 * count for count in range(1, 7) for _ in "ab"]


def test_optunas_tpe_trains_everything_to_the_end_and_reports_feasible_trials(tmp_path: Path) -> None:
    history = search(optunas_tpe(), tmp_path, constraints=["reconstruction_psnr >= 0"])
    check(history)
    ends = {rung.trial: rung.scores["reconstruction_psnr"] for rung in history.fully_trained}
    assert len(history.fully_trained) > FULL_TRAININGS - AT_ONCE
    assert history.answer
    assert all(ends[number] >= 0 for number in history.answer)


def test_syne_tunes_search_runs_on_the_same_loop(tmp_path: Path) -> None:
    pytest.importorskip("syne_tune")
    history = search(syne_tunes("ASHA"), tmp_path, objectives=FRONT[1:])
    check(history)
    assert 0 < len(history.fully_trained) < FULL_TRAININGS < history.num_trials
