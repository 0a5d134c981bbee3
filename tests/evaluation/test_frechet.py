import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from vaegen_ray.evaluation.frechet import Gaussian, RunningSums, frechet_distance


def features(count: int, dimensions: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=generator, dtype=torch.float64)
    return scale * torch.randn(count, dimensions, generator=generator, dtype=torch.float64) @ mixing + 0.3 * seed


class Features(nn.Module):
    """Takes features for images."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def torchmetrics_distance(first: Tensor, second: Tensor) -> float:
    metric = FrechetInceptionDistance(feature=Features(first.shape[1]))
    metric.update(first, real=True)
    metric.update(second, real=False)
    return float(metric.compute())


def test_frechet_distance_of_two_gaussians_is_the_closed_form() -> None:
    deviations = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64), torch.tensor([3.0, 2.0, 0.0], dtype=torch.float64)
    means = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64), torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    first, second = (
        Gaussian(mean, torch.diag(deviation**2)) for mean, deviation in zip(means, deviations, strict=True)
    )
    expected = (means[0] - means[1]).square().sum() + (deviations[0] - deviations[1]).square().sum()
    assert float(frechet_distance(first, second)) == pytest.approx(float(expected), rel=1e-12)


def test_frechet_distance_of_rotated_gaussians_is_the_closed_form() -> None:
    # Covariances that commute: the distance is that of their eigenvalues.
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)).double())
    eigenvalues = torch.tensor([1.0, 4.0, 9.0, 16.0], dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    first, second = (Gaussian(torch.zeros(4).double(), rotation @ torch.diag(e) @ rotation.T) for e in eigenvalues)
    assert float(frechet_distance(first, second)) == pytest.approx(0 + 1 + 4 + 9, rel=1e-12)


def test_frechet_distance_of_a_set_from_itself_is_zero() -> None:
    gaussian = Gaussian.of(features(50, 20, seed=1))
    assert float(frechet_distance(gaussian, gaussian)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("count", [500, 30], ids=["full_rank", "fewer_images_than_features"])
def test_frechet_distance_of_samples_agrees_with_torchmetrics(count: int) -> None:
    first, second = features(count, 40, seed=1), features(count, 40, seed=2, scale=1.3)
    ours = float(frechet_distance(Gaussian.of(first), Gaussian.of(second)))
    assert ours == pytest.approx(torchmetrics_distance(first, second), rel=1e-5)


def test_frechet_distance_is_symmetric() -> None:
    first, second = Gaussian.of(features(100, 8, seed=1)), Gaussian.of(features(100, 8, seed=2))
    assert float(frechet_distance(first, second)) == pytest.approx(float(frechet_distance(second, first)), rel=1e-9)


def test_running_sums_of_parts_give_the_gaussian_of_the_whole() -> None:
    features = torch.randn(500, 16, generator=torch.Generator().manual_seed(0)) * 3 + 100
    sums = RunningSums()
    for part in features.split(77):
        sums.add(part)
    gaussian = sums.gaussian()
    assert torch.allclose(gaussian.mean, features.double().mean(0), rtol=1e-12)
    assert torch.allclose(gaussian.covariance, torch.cov(features.double().T), rtol=1e-8, atol=1e-9)
