"""The figures by which searches are compared, on histories small enough to work out by hand."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from tests.search.samples import search_job
from vaegen_ray.search.quality import Box, Estimate, History, Rung, regrets, volumes

PSNR, SWD = "reconstruction_psnr", "sample_swd"
TOTAL = 96


def rung(spent: float, trial: int, position: int, psnr: float, swd: float = 0.5) -> Rung:
    return Rung(spent, trial, {"number": trial}, position, {PSNR: psnr, SWD: swd})


def test_volume_counts_fully_trained_trials_by_their_true_scores(tmp_path: Path) -> None:
    history = History(search_job(tmp_path), budget=100.0)
    history.rungs += [rung(20, 0, TOTAL, 99.0), rung(40, 1, 64, 99.0), rung(90, 2, TOTAL, 99.0)]
    truth = {0: {PSNR: 15.0, SWD: 0.5}, 1: {PSNR: 20.0, SWD: 0.0}, 2: {PSNR: 20.0, SWD: 0.75}}
    box = Box(ideal=(-20.0, 0.0), worst=(-10.0, 1.0))
    found = volumes(history, box, lambda settings: truth[int(settings["number"])])
    assert found == pytest.approx([0.25, 0.25, 0.25 + 0.125])


def test_trial_that_breaks_a_constraint_has_no_volume(tmp_path: Path) -> None:
    history = History(search_job(tmp_path, constraints=["kl_nats >= 1"]), budget=1.0)
    history.rungs.append(rung(1, 0, TOTAL, 15.0))
    box = Box(ideal=(-20.0, 0.0), worst=(-10.0, 1.0))
    for nats, volume in ((2.0, 0.25), (0.5, 0.0)):
        assert volumes(history, box, lambda _: {PSNR: 15.0, SWD: 0.5, "kl_nats": nats})[-1] == volume  # noqa: B023


def test_point_of_the_front_that_was_never_trained_to_its_end_is_counted(tmp_path: Path) -> None:
    history = History(search_job(tmp_path), budget=100.0, answer=(0, 1))
    history.rungs += [rung(20, 0, TOTAL, 15.0), rung(40, 1, 64, 20.0)]
    assert (history.num_trials, len(history.fully_trained), history.num_untrained_in_answer) == (2, 1, 1)


def test_regret_is_of_the_best_rung_so_far(tmp_path: Path) -> None:
    job = search_job(tmp_path, objectives=[{"metric": PSNR, "goal": "maximize"}])
    history = History(job, budget=100.0)
    history.rungs += [rung(30, 0, 32, 12.0), rung(50, 1, 32, 18.0), rung(60, 0, 64, 11.0)]
    assert regrets(history, best=-20.0, median=-10.0) == pytest.approx([1.0, 0.2, 0.2])


@pytest.mark.parametrize("count", [6, 20, 200])
def test_interval_is_that_of_students_t(count: int) -> None:
    values = np.random.default_rng(count).normal(3.0, 2.0, count)
    estimate = Estimate.of(values.tolist())
    low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
    assert estimate.mean - estimate.half_width == pytest.approx(low, abs=0.01)
    assert estimate.mean + estimate.half_width == pytest.approx(high, abs=0.01)


def test_interval_of_few_values_is_that_of_students_t() -> None:
    assert Estimate.of([0.0, 2.0]).half_width == pytest.approx(12.706, rel=1e-4)
