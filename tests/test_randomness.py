"""Random numbers by (seed, position, purpose), whoever draws them."""

import math

import pytest
import torch
from torch import Tensor

from vaegen_ray.randomness import Draws, derived_seed

CPU = torch.device("cpu")


def draws(seed: int = 0, position: int = 0, first: int = 0, last: int = 8, images_per_step: int = 8) -> Draws:
    """The draws of a step, by default all of it."""
    return Draws(seed, position, images_per_step, first, last, CPU)


def numbers(kind: str, some: Draws, purpose: str = "posterior") -> Tensor:
    """Five numbers an image."""
    return some.normal(purpose, 5) if kind == "normal" else some.uniform(purpose, 5)


KINDS = pytest.mark.parametrize("kind", ["normal", "uniform"])


@KINDS
def test_draws_are_the_same_each_time(kind: str) -> None:
    torch.manual_seed(1)
    first = numbers(kind, draws())
    torch.manual_seed(2)
    assert torch.equal(first, numbers(kind, draws()))


@KINDS
@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8])
def test_draws_of_the_ranks_are_those_of_one(kind: str, num_ranks: int) -> None:
    length = 8 // num_ranks
    parts = [numbers(kind, draws(first=rank * length, last=(rank + 1) * length)) for rank in range(num_ranks)]
    assert torch.equal(torch.cat(parts), numbers(kind, draws()))


@KINDS
def test_draws_of_portions_of_a_rank_are_its_own(kind: str) -> None:
    rank = draws(first=4, last=8)
    parts = [numbers(kind, rank.rows(first, first + 2)) for first in (0, 2)]
    assert torch.equal(torch.cat(parts), numbers(kind, rank))
    assert torch.equal(torch.cat(parts), numbers(kind, draws())[4:8])


@KINDS
def test_draws_do_not_touch_the_global_generator(kind: str) -> None:
    before = torch.get_rng_state()
    numbers(kind, draws())
    assert torch.equal(torch.get_rng_state(), before)


@KINDS
@pytest.mark.parametrize("other", [{"seed": 1}, {"position": 8}, {"purpose": "prior"}])
def test_draws_differ_by_seed_position_and_purpose(kind: str, other: dict[str, int | str]) -> None:
    purpose = str(other.get("purpose", "posterior"))
    changed = draws(seed=int(other.get("seed", 0)), position=int(other.get("position", 0)))
    assert not (numbers(kind, changed, purpose) == numbers(kind, draws())).any()


def test_draws_of_many_steps_are_standard_normal_and_independent() -> None:
    steps = torch.stack(
        [draws(position=64 * step, last=64, images_per_step=64).normal("prior", 8) for step in range(200)]
    )
    count = steps.numel()
    assert float(steps.mean()) == pytest.approx(0, abs=4 / math.sqrt(count))
    assert float(steps.var()) == pytest.approx(1, abs=4 * math.sqrt(2 / count))
    assert float((steps**4).mean()) == pytest.approx(3, abs=4 * math.sqrt(96 / count))
    for left, right in ((steps[1:], steps[:-1]), (steps[:, 1:], steps[:, :-1]), (steps[..., 1:], steps[..., :-1])):
        assert float((left * right).mean()) == pytest.approx(0, abs=4 / math.sqrt(left.numel()))


def test_uniform_draws_fill_the_unit_interval_evenly() -> None:
    steps = torch.stack(
        [draws(position=64 * step, last=64, images_per_step=64).uniform("flip", 8) for step in range(200)]
    )
    assert 0 <= float(steps.min()) < 1e-4
    assert 1 - 1e-4 < float(steps.max()) < 1
    histogram = torch.histc(steps, bins=20, min=0, max=1)
    expected = steps.numel() / 20
    assert float(((histogram - expected) ** 2 / expected).sum()) < 50  # Chi squared of 19 degrees: 1 in 10^4.


def test_draws_take_any_shape() -> None:
    assert draws(last=3).normal("a").shape == (3,)
    assert draws(last=3).uniform("a", 2, 5).shape == (3, 2, 5)
    assert draws().normal("a").dtype == torch.float32


def test_derived_seeds_depend_on_every_argument_and_its_type() -> None:
    seeds = [
        derived_seed(*arguments)
        for arguments in [
            (0,),
            (1,),
            (0, "a"),
            (0, "b"),
            (0, "a", "b"),
            (0, "ab"),
            (0, 1),
            (0, "1"),
            (0, 1, 2),
            (0, 12),
        ]
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed(0, "a") == derived_seed(0, "a")


def test_derived_seed_is_the_same_in_every_process_and_version() -> None:
    assert derived_seed(0, "parameters") == 5871182536237544411
