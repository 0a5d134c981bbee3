import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from vaegen_ray.evaluation import kernel_distance as module
from vaegen_ray.evaluation.kernel_distance import kernel_distance


def cubic_kernel(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.T / first.shape[1] + 1) ** 3


def draw(count: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def test_kernel_distance_of_all_rows_is_the_unbiased_estimator() -> None:
    first, second = draw(40, 0), draw(40, 1, shift=0.5)
    off_diagonal = ~torch.eye(40, dtype=torch.bool)
    expected = (
        cubic_kernel(first, first)[off_diagonal].mean()
        + cubic_kernel(second, second)[off_diagonal].mean()
        - 2 * cubic_kernel(first, second).mean()
    )
    assert float(kernel_distance(first, second, seed=0)) == pytest.approx(float(expected), rel=1e-9)


def test_kernel_distance_of_one_distribution_averages_to_zero() -> None:
    distances = [float(kernel_distance(draw(200, 2 * i), draw(200, 2 * i + 1), seed=0)) for i in range(20)]
    mean, deviation = torch.tensor(distances).mean(), torch.tensor(distances).std()
    assert abs(mean) < 3 * deviation / 20**0.5


def test_kernel_distance_of_many_rows_depends_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_AT_ONCE", 100)
    monkeypatch.setattr(module, "SUBSET_SIZE", 50)
    first, second = draw(150, 0), draw(150, 1, shift=0.5)
    once = kernel_distance(first, second, seed=3)
    torch.rand(7)
    assert kernel_distance(first, second, seed=3) == once
    assert kernel_distance(first, second, seed=4) != once


def test_kernel_distance_leaves_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    kernel_distance(draw(20, 0), draw(20, 1), seed=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:.*save all extracted features")
def test_kernel_distance_over_subsets_agrees_with_torchmetrics(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_AT_ONCE", 100)
    monkeypatch.setattr(module, "SUBSET_SIZE", 50)
    first, second = draw(200, 0), draw(150, 1, shift=0.5)
    theirs = KernelInceptionDistance(feature=nn.Identity(), subsets=module.NUM_SUBSETS, subset_size=50)
    theirs.update(first, real=True)
    theirs.update(second, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        mean, _ = theirs.compute()
    assert float(kernel_distance(first, second, seed=3)) == pytest.approx(float(mean), rel=1e-9)
