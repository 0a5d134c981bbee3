"""The order of images: one-to-one, a function of the position alone, in constant memory."""

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaegen_ray.bench.shuffle import label_drift, labels_per_batch
from vaegen_ray.data.order import FullOrder, Order, WindowedOrder, order_of, permute
from vaegen_ray.errors import DataError

SEEDS = st.integers(0, 2**64)
EPOCHS = st.integers(0, 10**6)


@given(size=st.integers(1, 3000), seed=SEEDS, epoch=EPOCHS)
def test_permutation_of_any_size_hits_each_index_once(size: int, seed: int, epoch: int) -> None:
    permuted = permute(seed, epoch, np.arange(size), size)
    assert np.array_equal(np.sort(permuted), np.arange(size))


@given(size=st.integers(1, 2**40), seed=SEEDS, data=st.data())
def test_permutation_of_part_of_the_indices_agrees_with_one_at_a_time(
    size: int, seed: int, data: st.DataObject
) -> None:
    indices = data.draw(st.lists(st.integers(0, size - 1), max_size=20))
    together = permute(seed, 3, np.array(indices, dtype=np.uint64), size)
    alone = [int(permute(seed, 3, np.array([index]), size)[0]) for index in indices]
    assert together.tolist() == alone
    assert len(set(alone)) == len(set(indices))


@given(
    size=st.integers(1, 200),
    seed=SEEDS,
    position=st.integers(0, 10**9),
    images_per_rank=st.integers(1, 7),
    num_ranks=st.integers(1, 6),
)
def test_order_is_the_same_for_any_number_of_ranks(
    size: int, seed: int, position: int, images_per_rank: int, num_ranks: int
) -> None:
    images_per_step = images_per_rank * num_ranks
    whole = order_of(seed, np.arange(position, position + images_per_step), size)
    starts = [position + rank * images_per_rank for rank in range(num_ranks)]
    shares = [order_of(seed, np.arange(start, start + images_per_rank), size) for start in starts]
    assert np.array_equal(np.concatenate(shares), whole)


@given(size=st.integers(1, 50), seed=SEEDS, first=st.integers(0, 30))
def test_order_shows_each_image_once_in_each_epoch(size: int, seed: int, first: int) -> None:
    epochs = order_of(seed, np.arange(first * size, (first + 3) * size), size).reshape(3, size)
    assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(size), (3, 1)))


def test_order_differs_between_epochs_and_between_seeds() -> None:
    orders = [permute(seed, epoch, np.arange(1000), 1000).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_order_is_pinned_so_that_old_runs_resume() -> None:
    assert order_of(7, np.arange(12), 10).tolist() == [1, 5, 2, 7, 4, 8, 6, 9, 3, 0, 0, 8]


def test_permutation_spreads_each_index_evenly() -> None:
    size, num_seeds = 7, 7000
    counts = np.zeros((size, size))
    for seed in range(num_seeds):
        counts[np.arange(size), permute(seed, 0, np.arange(size), size).astype(int)] += 1
    expected = num_seeds / size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    # 36 degrees of freedom: 80 has a probability below 1e-4.
    assert chi_square < 80


def test_permutation_leaves_no_runs_of_neighbours() -> None:
    permuted = permute(0, 0, np.arange(100_000), 100_000).astype(np.int64)
    assert abs(np.corrcoef(permuted[:-1], permuted[1:])[0, 1]) < 0.02
    assert (np.abs(np.diff(permuted)) == 1).sum() < 20


SHARDS = st.lists(st.integers(1, 40), min_size=1, max_size=12)


@given(shards=SHARDS, window=st.integers(1, 300), seed=SEEDS, first=st.integers(0, 30))
def test_windowed_order_shows_each_image_once_in_each_epoch(
    shards: list[int], window: int, seed: int, first: int
) -> None:
    size = sum(shards)
    epochs = WindowedOrder(seed, shards, window).indices(np.arange(first * size, (first + 3) * size)).reshape(3, size)
    assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(size), (3, 1)))


@given(shards=SHARDS, window=st.integers(1, 300), position=st.integers(0, 10**9))
def test_images_of_a_window_are_all_those_of_its_shards(shards: list[int], window: int, position: int) -> None:
    order = WindowedOrder(5, shards, window)
    at = order.window_at(position)
    assert at.first <= position < at.last
    assert order.window_at(at.first) == order.window_at(at.last - 1) == at
    assert order.window_at(at.last).first == at.last
    ends = np.cumsum(shards)
    inside = np.concatenate([np.arange(ends[shard] - shards[shard], ends[shard]) for shard in at.shards])
    assert np.array_equal(np.sort(order.indices(np.arange(at.first, at.last))), np.sort(inside))


@given(
    shards=SHARDS,
    window=st.integers(1, 300),
    seed=SEEDS,
    position=st.integers(0, 10**9),
    images_per_rank=st.integers(1, 7),
    num_ranks=st.integers(1, 6),
)
def test_windowed_order_is_the_same_for_any_number_of_ranks_and_any_beginning(
    shards: list[int], window: int, seed: int, position: int, images_per_rank: int, num_ranks: int
) -> None:
    whole = WindowedOrder(seed, shards, window).indices(np.arange(position, position + images_per_rank * num_ranks))
    starts = [position + rank * images_per_rank for rank in range(num_ranks)]
    shares = [
        WindowedOrder(seed, shards, window).indices(np.arange(start, start + images_per_rank)) for start in starts
    ]
    assert np.array_equal(np.concatenate(shares), whole)


@given(num_shards=st.integers(1, 50), per_shard=st.integers(1, 30), window=st.integers(1, 900))
def test_windows_have_the_size_asked_for_to_less_than_a_shard_each_way(
    num_shards: int, per_shard: int, window: int
) -> None:
    order = WindowedOrder(0, [per_shard] * num_shards, window)
    position, sizes = 0, []
    while position < order.size:
        at = order.window_at(position)
        sizes.append(at.last - at.first)
        position = at.last
    share = order.size / -(-order.size // window)
    assert share <= window
    assert all(abs(size - share) < per_shard for size in sizes)


def test_windowed_order_differs_between_epochs_and_between_seeds() -> None:
    orders = [WindowedOrder(seed, [100] * 10, 200).indices(np.arange(2000)) for seed in (0, 1)]
    epochs = [tuple(order[first : first + 1000].tolist()) for order in orders for first in (0, 1000)]
    assert len(set(epochs)) == 4


def test_windowed_order_is_pinned_so_that_old_runs_resume() -> None:
    assert WindowedOrder(7, [4, 3, 5], 6).indices(np.arange(14)).tolist() == [
        8,
        10,
        11,
        4,
        5,
        9,
        6,
        7,
        3,
        1,
        2,
        0,
        5,
        6,
    ]


@pytest.mark.parametrize("window_images", [None, 1_000_000])
def test_hundred_million_images_start_in_a_second_and_a_few_megabytes(window_images: int | None) -> None:
    size, per_shard = 10**8, 10_000
    tracemalloc.start()
    start_s = time.process_time()
    order: Order = (
        FullOrder(0, size)
        if window_images is None
        else WindowedOrder(0, [per_shard] * (size // per_shard), window_images)
    )
    order.indices(np.arange(5 * size - 2000, 5 * size + 2000))  # The end of an epoch, and the beginning of the next.
    elapsed_s = time.process_time() - start_s
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert elapsed_s < 2  # A permutation in memory takes longer than this, and 800 MB.
    assert peak_bytes < 4e6


def test_windows_of_mixed_shards_shuffle_like_the_full_order() -> None:
    labels = np.random.default_rng(0).integers(0, 20, 20_000)
    windowed = labels_per_batch(WindowedOrder(0, [1000] * 20, 2000), labels, 64)
    assert windowed == pytest.approx(labels_per_batch(FullOrder(0, 20_000), labels, 64), rel=0.01)


def test_windows_of_sorted_shards_mix_the_labels_of_their_shards() -> None:
    labels = np.repeat(np.arange(20), 1000)
    order = WindowedOrder(0, [1000] * 20, 5000)
    assert labels_per_batch(order, labels, 64) == pytest.approx(5, abs=0.1)
    assert label_drift(order, labels, 5000) == pytest.approx(0.75, abs=0.01)


def test_positions_outside_the_sequence_are_refused() -> None:
    with pytest.raises(DataError, match=r"position: must be at least 0, got -1"):
        order_of(0, np.array([-1]), 10)
    with pytest.raises(DataError, match=r"index: must be below the 10 images, got 10"):
        permute(0, 0, np.array([10]), 10)
    with pytest.raises(DataError, match=r"size: must be at least 1 image, got 0"):
        order_of(0, np.array([0]), 0)
    with pytest.raises(DataError, match=r"position: must be at least 0, got -1"):
        WindowedOrder(0, [5], 2).indices(np.array([-1]))
