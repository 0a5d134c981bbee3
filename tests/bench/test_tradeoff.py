"""The surrogate of the trade-off predicts runs that it has not seen; its noise is a function of its arguments."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.search.samples import search_job
from vaegen_ray.bench.run_table import METRICS, RunTable
from vaegen_ray.bench.tradeoff import TradeOff, fitted_table, left_out_correlations
from vaegen_ray.config.loading import dump_job
from vaegen_ray.config.search import Population, Settings
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.log import TrialLog
from vaegen_ray.search.stopping import perturbed
from vaegen_ray.search.trials import TrialState, asked, ended, scored, started

NUM_RUNS, NUM_RUNGS = 16, 3


def curves(points: np.ndarray) -> np.ndarray:
    """Smooth functions of two axes, rung by rung."""
    heights = np.stack([points[:, 0], np.sin(3 * points[:, 1]), points.prod(1)], 1)
    return np.concatenate([heights * rung for rung in range(1, NUM_RUNGS + 1)], 1)


def test_left_out_runs_of_a_smooth_function_are_predicted() -> None:
    points = np.random.default_rng(0).random((NUM_RUNS, 2))
    assert left_out_correlations(points, curves(points)).min() > 0.8


@pytest.fixture(scope="module")
def tradeoff() -> TradeOff:
    return TradeOff.shipped()


def settings_of(tradeoff: TradeOff, **changes: float) -> Settings:
    middle = {name: (axis.low + axis.high) / 2 for name, axis in tradeoff.job.space.items()}  # type: ignore[union-attr]
    return middle | {next(name for name in middle if name.endswith(end)): value for end, value in changes.items()}


def test_shipped_surrogate_knows_the_trade_off(tradeoff: TradeOff) -> None:
    """A large KL weight blurs reconstructions and empties the code."""
    light, heavy = (tradeoff.final(settings_of(tradeoff, weight=weight)) for weight in (0.1, 10.0))
    assert light["reconstruction_psnr"] > heavy["reconstruction_psnr"] + 1
    assert light["kl_nats"] > 2 * heavy["kl_nats"]


def test_noise_depends_on_settings_position_and_seed_alone(tradeoff: TradeOff) -> None:
    settings, other = settings_of(tradeoff), settings_of(tradeoff, weight=1.0)
    position = tradeoff.job.base.training.total_images
    once = tradeoff.observed(settings, position, 0)
    assert once == tradeoff.observed(dict(reversed(settings.items())), position, 0)
    truth = tradeoff.truth(settings, position)
    errors = {once[name] - truth[name] for name in METRICS}
    assert 0.0 not in errors
    for elsewhere in (tradeoff.observed(settings, position, 1), tradeoff.observed(other, position, 0)):
        assert all(elsewhere[name] != once[name] for name in METRICS)


def test_box_is_filled_in_part_by_a_few_random_settings(tradeoff: TradeOff) -> None:
    rng, population = np.random.default_rng(1), Population(kind="pbt", redraw_fraction=0.999)
    drawn = [tradeoff.final(perturbed(tradeoff.job, {}, population, rng)) for _ in range(200)]
    costs = np.array([tradeoff.job.costs(scores) for scores in drawn if tradeoff.job.is_feasible(scores)])
    assert 0.3 < tradeoff.box().volume(costs) < 1


def test_data_file_is_made_from_the_log_of_a_search(tmp_path: Path) -> None:
    """Trials that were not trained to their end are left out, and the curves come back but for their noise."""
    objectives = [{"metric": "reconstruction_psnr", "goal": "maximize"}, {"metric": "sample_swd", "goal": "minimize"}]
    job = search_job(tmp_path, objectives=objectives, sampler={"kind": "random"}, scheduler={"kind": "none"})
    directory = SearchDirectory.of(job)
    directory.job_file.write_text(dump_job(job))
    log, rng = TrialLog(directory), np.random.default_rng(0)
    weight, share = job.space
    for number in range(12):
        settings = {weight: float(10 ** rng.uniform(-2, 1)), share: float(rng.uniform(0.1, 0.9))}
        log.record(asked(number, settings))
        log.record(started(number))
        for position in (32, 64, 96):
            psnr = 12 + position / 32 - 2 * settings[share]
            log.record(
                scored(
                    number, position, {"reconstruction_psnr": psnr, "sample_fid": 30.0 - psnr, "kl_nats": 5.0 + number}
                )
            )
        if number:
            log.record(ended(number, TrialState.COMPLETE, scores=log.trials[number].rungs[96]))
    log.close()
    table = fitted_table(directory)
    assert (len(table["trials"]), table["positions"]) == (11, [32, 64, 96])
    tradeoff = TradeOff(json.loads(json.dumps(table)))
    for trial in table["trials"]:
        assert tradeoff.final(trial["settings"])["reconstruction_psnr"] == pytest.approx(
            trial["scores"]["reconstruction_psnr"][-1], abs=0.15
        )
    runs = RunTable(table)
    for trial in table["trials"]:
        near = {name: value * 1.001 for name, value in trial["settings"].items()}
        assert runs.observed(near, 64, 0) == {name: scores[1] for name, scores in trial["scores"].items()}
        assert runs.final(near)["kl_nats"] == trial["scores"]["kl_nats"][-1]
