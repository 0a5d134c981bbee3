"""Statistics in one pass, against those that numpy computes from all images at once."""

import tracemalloc

import numpy as np
import pytest

from vaegen_ray.data.statistics import ImageStatistics, block_size


def statistics_of(images: np.ndarray) -> ImageStatistics:
    _, size, _, channels = images.shape
    statistics = ImageStatistics(size, channels)
    for image in images:
        statistics.add(image)
    return statistics


def smooth_images(count: int, size: int, channels: int) -> np.ndarray:
    """Sums of slow waves, as photographs mostly are, and a little noise."""
    random = np.random.default_rng(0)
    waves = np.cos(np.pi * np.outer(np.arange(6), (np.arange(size) + 0.5) / size))
    weights = random.normal(size=(count, 6, 6, channels)) / (1 + np.add.outer(np.arange(6), np.arange(6)))[..., None]
    images = np.einsum("nabc,ay,bx->nyxc", weights, waves, waves)
    return np.clip(128 + 30 * images + random.normal(size=images.shape), 0, 255).astype(np.uint8)


def exact_eigenvalue(images: np.ndarray) -> float:
    values = images.reshape(len(images), -1) / 255
    centred = values - values.mean(0)
    # The smaller of the two matrices with the same eigenvalues.
    gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    return float(np.linalg.eigvalsh(gram)[-1] / len(images))


def test_eigenvalue_of_small_images_is_exact_even_without_a_leading_direction() -> None:
    images = np.random.default_rng(1).integers(0, 256, (300, 16, 16, 3), dtype=np.uint8)
    assert statistics_of(images).largest_eigenvalue() == pytest.approx(exact_eigenvalue(images), rel=1e-5)


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (64, 1), (32, 5)])
def test_eigenvalue_of_larger_smooth_images_is_a_close_lower_bound(size: int, channels: int) -> None:
    images = smooth_images(400, size, channels)
    exact = exact_eigenvalue(images)
    assert 0.99 * exact < statistics_of(images).largest_eigenvalue() < 1.00001 * exact


def test_eigenvalue_of_images_above_256_pixels_comes_from_block_means_and_stays_close() -> None:
    images = smooth_images(40, 512, 1)
    assert block_size(512) == 4
    statistics = statistics_of(images)
    # Rounding the means adds up to a twelfth of a level squared to each direction.
    assert 0.99 < statistics.largest_eigenvalue() / exact_eigenvalue(images) < 1.0001
    assert statistics.mean() == pytest.approx(images.mean((0, 1, 2)) / 255, abs=1e-12)
    assert statistics.std() == pytest.approx(images.std((0, 1, 2)) / 255, abs=1e-12)


@pytest.mark.parametrize(("size", "side"), [(32, 1), (256, 1), (257, 2), (320, 2), (1021, 7), (1024, 8), (4096, 32)])
def test_blocks_leave_at_least_128_a_side(size: int, side: int) -> None:
    assert block_size(size) == side


def test_statistics_of_large_images_take_megabytes() -> None:
    tracemalloc.start()
    try:
        statistics = ImageStatistics(1021, 3)
        statistics.add(np.zeros((1021, 1021, 3), np.uint8))
        statistics.mean()
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("count", [1, 2, 7])
def test_eigenvalue_of_few_images_is_exact_because_they_span_less_than_the_probes(count: int) -> None:
    images = np.random.default_rng(2).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    assert statistics_of(images).largest_eigenvalue() == pytest.approx(exact_eigenvalue(images), rel=1e-5, abs=1e-6)


def test_equal_images_have_no_spread() -> None:
    statistics = statistics_of(np.full((5, 16, 16, 1), 200, np.uint8))
    assert (statistics.mean(), statistics.std(), statistics.largest_eigenvalue()) == ((200 / 255,), (0.0,), 0.0)


def test_any_division_and_order_gives_the_same_bits() -> None:
    images = smooth_images(200, 64, 3)
    whole = statistics_of(images)
    parts = [statistics_of(part) for part in np.split(images[::-1], [3, 77, 150])]
    merged = ImageStatistics(64, 3)
    for part in (parts[2], parts[0], parts[3], parts[1]):
        merged.merge(ImageStatistics.from_bytes(part.to_bytes(), 64, 3))
    assert merged.num_images == 200
    for quantity in ("mean", "std", "largest_eigenvalue"):
        assert getattr(merged, quantity)() == getattr(whole, quantity)()
    assert whole.mean() == pytest.approx(images.mean((0, 1, 2)) / 255, abs=1e-12)
    assert whole.std() == pytest.approx(images.std((0, 1, 2)) / 255, abs=1e-12)
