"""Precision, recall, density and coverage, against their definitions written out, and on sets where they are known."""

import pytest
import torch
from torch import Tensor

from vaegen_ray.evaluation.manifolds import coverage


def normal(count: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)) + shift


def radius(points: Tensor, index: int, k: int) -> float:
    distances = sorted(float((points[index] - other).norm()) for at, other in enumerate(points) if at != index)
    return distances[k - 1]


def test_coverage_is_what_the_definitions_say() -> None:
    real, samples = normal(30, 0).double(), normal(20, 1, shift=0.7).double()
    found = coverage(real, samples)

    def inside(points: Tensor, index: int, other: Tensor, k: int) -> bool:
        return float((points[index] - other).norm()) <= radius(points, index, k)

    precision = [any(inside(real, i, sample, 3) for i in range(30)) for sample in samples]
    recall = [any(inside(samples, j, image, 3) for j in range(20)) for image in real]
    balls = [[inside(real, i, sample, 5) for sample in samples] for i in range(30)]
    assert found.precision == pytest.approx(sum(precision) / 20)
    assert found.recall == pytest.approx(sum(recall) / 30)
    assert found.density == pytest.approx(sum(map(sum, balls)) / (5 * 20))
    assert found.coverage == pytest.approx(sum(map(any, balls)) / 30)


def test_coverage_of_equal_distributions_is_high_and_of_distant_ones_nothing() -> None:
    real = normal(600, 0)
    alike, apart = coverage(real, normal(600, 1)), coverage(real, normal(600, 1, shift=50))
    assert min(alike.precision, alike.recall, alike.coverage) > 0.8
    assert alike.density == pytest.approx(1, abs=0.15)
    assert (apart.precision, apart.recall, apart.density, apart.coverage) == (0, 0, 0, 0)


def test_coverage_of_a_collapsed_set_has_precision_without_recall() -> None:
    real = normal(600, 0)
    collapsed = coverage(real, real[:1] + 0.01 * normal(600, 1))
    assert collapsed.precision > 0.95
    assert collapsed.recall < 0.05
    assert collapsed.coverage < 0.05


def test_coverage_of_fewer_images_than_neighbours_uses_those_that_there_are() -> None:
    found = coverage(normal(3, 0), normal(2, 1))
    assert 0 <= found.precision <= 1
