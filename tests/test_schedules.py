"""Weights and rates as functions of the position in images."""

import math

import pytest

from vaegen_ray.config.job import ConstantRate, CosineRate, LinearRate
from vaegen_ray.config.objective import ConstantKl, CyclicalKl, LinearKl
from vaegen_ray.schedules import ema_decay, kl_factor, learning_rate_factor, ramp


@pytest.mark.parametrize(
    ("position", "expected"),
    [(0, 0.0), (99, 0.0), (100, 0.0), (101, 0.02), (125, 0.5), (149, 0.98), (150, 1.0), (999, 1.0)],
)
def test_ramp_is_a_line_from_its_start_over_its_length(position: int, expected: float) -> None:
    assert ramp(position, 100, 50) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("position", "expected"), [(0, 0.0), (99, 0.0), (100, 1.0), (101, 1.0)])
def test_ramp_without_length_is_a_step_at_its_start(position: int, expected: float) -> None:
    assert ramp(position, 100, 0) == expected


def test_kl_factor_of_the_constant_schedule_is_one_from_the_first_image() -> None:
    assert kl_factor(ConstantKl(kind="constant"), 0) == 1.0


@pytest.mark.parametrize(("position", "expected"), [(0, 0.0), (1000, 0.0), (1500, 0.25), (3000, 1.0), (10**9, 1.0)])
def test_kl_factor_of_the_linear_schedule_warms_up_in_images(position: int, expected: float) -> None:
    assert kl_factor(LinearKl(kind="linear", start_images=1000, warmup_images=2000), position) == pytest.approx(
        expected
    )


@pytest.mark.parametrize(
    ("position", "expected"), [(0, 0.0), (100, 0.4), (249, 0.996), (250, 1.0), (999, 1.0), (1000, 0.0), (2125, 0.5)]
)
def test_kl_factor_of_the_cyclical_schedule_begins_again_with_each_cycle(position: int, expected: float) -> None:
    schedule = CyclicalKl(kind="cyclical", cycle_images=1000, ramp_fraction=0.25)
    assert kl_factor(schedule, position) == pytest.approx(expected)


def test_kl_factor_of_fu_et_al_at_every_step() -> None:
    total, cycles, fraction = 4000, 4, 0.5
    schedule = CyclicalKl(kind="cyclical", cycle_images=total // cycles, ramp_fraction=fraction)
    for t in range(1, total + 1):
        tau = (t - 1) % math.ceil(total / cycles) / (total / cycles)
        assert kl_factor(schedule, t - 1) == pytest.approx(tau / fraction if tau <= fraction else 1.0)


RATES = {
    "constant": ConstantRate(kind="constant", warmup_images=100),
    "cosine": CosineRate(kind="cosine", warmup_images=100, final_fraction=0.1),
    "linear": LinearRate(kind="linear", warmup_images=100, final_fraction=0.1),
}


@pytest.mark.parametrize("name", RATES)
def test_learning_rate_warms_up_in_a_line_and_never_stands_still(name: str) -> None:
    factors = [learning_rate_factor(RATES[name], position, 10_000) for position in (0, 24, 49, 99)]
    assert factors == pytest.approx([0.01, 0.25, 0.5, 1.0])


@pytest.mark.parametrize(
    ("name", "middle", "end"), [("constant", 1.0, 1.0), ("cosine", 0.55, 0.1), ("linear", 0.55, 0.1)]
)
def test_learning_rate_falls_to_its_final_fraction(name: str, middle: float, end: float) -> None:
    assert learning_rate_factor(RATES[name], 100, 2100) == pytest.approx(1.0)
    assert learning_rate_factor(RATES[name], 1100, 2100) == pytest.approx(middle)
    assert learning_rate_factor(RATES[name], 2100, 2100) == pytest.approx(end)
    assert learning_rate_factor(RATES[name], 5000, 2100) == pytest.approx(end)


def test_learning_rate_of_the_cosine_is_half_a_period() -> None:
    schedule = CosineRate(kind="cosine")
    for position in range(0, 1000, 100):
        expected = 0.5 * (1 + math.cos(math.pi * position / 1000))
        assert learning_rate_factor(schedule, position, 1000) == pytest.approx(expected)


@pytest.mark.parametrize("name", RATES)
def test_learning_rate_of_a_run_shorter_than_its_warm_up_stays_in_bounds(name: str) -> None:
    factors = [learning_rate_factor(RATES[name], position, 50) for position in range(0, 60)]
    assert all(0 < factor <= 1 for factor in factors)


@pytest.mark.parametrize("images_per_step", [1, 64, 1000])
def test_ema_forgets_half_in_its_half_life_whatever_the_batch(images_per_step: int) -> None:
    decay = ema_decay(10_000, 10**9, images_per_step)
    assert decay ** (10_000 / images_per_step) == pytest.approx(0.5)


def test_ema_half_life_is_at_most_a_twentieth_of_the_images_seen() -> None:
    assert ema_decay(10_000, 20_000, 100) == pytest.approx(0.5 ** (100 / 1000))
    assert ema_decay(10_000, 200_000, 100) == pytest.approx(0.5 ** (100 / 10_000))


def test_ema_of_the_first_step_leaves_the_initial_weights() -> None:
    for position in (0, 64):
        assert ema_decay(10_000, position, 64) < 1e-5
