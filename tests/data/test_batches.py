"""Batches for ranks: their images, their order, resuming, failing, closing."""

import threading
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vaegen_ray.data.batches import ImageBatches, to_float
from vaegen_ray.data.order import order_of
from vaegen_ray.errors import DataError, JobError

IMAGES = np.arange(23 * 4 * 4 * 3, dtype=np.uint32).astype(np.uint8).reshape(23, 4, 4, 3)
NUMBERED = np.arange(23, dtype=np.uint8).reshape(23, 1, 1, 1)
"""Image i has the one value i."""


def numbers(batches: ImageBatches, num_steps: int) -> list[list[int]]:
    with batches:
        return [next(batches).flatten().tolist() for _ in range(num_steps)]


def test_batch_holds_the_images_of_its_positions() -> None:
    with ImageBatches(IMAGES, seed=5, images_per_step=8) as batches:
        first, second = next(batches), next(batches)
    for batch, position in ((first, 0), (second, 8)):
        indices = order_of(5, np.arange(position, position + 8), 23).astype(int)
        assert torch.equal(batch, torch.from_numpy(IMAGES[indices]).permute(0, 3, 1, 2))
    assert first.dtype == torch.uint8
    assert first.is_contiguous(memory_format=torch.channels_last)


@settings(max_examples=10, deadline=None)
@given(
    images_per_rank=st.integers(1, 5),
    num_ranks=st.integers(1, 4),
    first_step=st.integers(0, 9),
    seed=st.integers(0, 99),
)
def test_ranks_together_read_the_sequence_of_one_rank(
    images_per_rank: int, num_ranks: int, first_step: int, seed: int
) -> None:
    images_per_step = images_per_rank * num_ranks
    position = first_step * images_per_step
    alone = numbers(ImageBatches(NUMBERED, seed=seed, images_per_step=images_per_step, position=position), 3)
    shares = [
        numbers(
            ImageBatches(
                NUMBERED, seed=seed, images_per_step=images_per_step, rank=rank, num_ranks=num_ranks, position=position
            ),
            3,
        )
        for rank in range(num_ranks)
    ]
    assert [list(chain.from_iterable(share[step] for share in shares)) for step in range(3)] == alone


def test_batches_resumed_at_a_position_go_on_as_if_never_stopped() -> None:
    undisturbed = numbers(ImageBatches(NUMBERED, seed=1, images_per_step=10), 9)
    with ImageBatches(NUMBERED, seed=1, images_per_step=10) as first:
        before = [next(first).flatten().tolist() for _ in range(4)]
        position = first.position
    assert position == 40
    assert before + numbers(ImageBatches(NUMBERED, seed=1, images_per_step=10, position=position), 5) == undisturbed


def test_position_counts_what_was_returned_and_not_what_was_read_ahead() -> None:
    with ImageBatches(NUMBERED, seed=1, images_per_step=6) as batches:
        assert batches.position == 0
        next(batches)
        assert batches.position == 6


def test_batch_larger_than_the_dataset_spans_epochs() -> None:
    [batch] = numbers(ImageBatches(NUMBERED, seed=1, images_per_step=46), 1)
    assert sorted(batch[:23]) == sorted(batch[23:]) == list(range(23))
    assert batch[:23] != batch[23:]


def test_sequence_goes_on_where_a_block_of_looked_up_positions_ends() -> None:
    steps = numbers(ImageBatches(NUMBERED, seed=3, images_per_step=5), 13)
    assert list(chain.from_iterable(steps)) == order_of(3, np.arange(65), 23).tolist()


def test_failure_while_reading_ahead_reaches_the_consumer() -> None:
    words = np.full((23, 1, 1, 1), "damaged", dtype=object)
    with ImageBatches(words, seed=0, images_per_step=4) as batches:
        with pytest.raises(ValueError, match=r"invalid literal for int\(\) with base 10: 'damaged'"):
            next(batches)
        with pytest.raises(StopIteration):
            next(batches)


def test_close_ends_the_thread_and_the_iterator() -> None:
    batches = ImageBatches(NUMBERED, seed=0, images_per_step=4)
    next(batches)
    batches.close()
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "image-batches"]
    assert list(batches) == []


def test_step_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(JobError, match=r"training.images_per_step: must be a multiple of .* ranks \(3\), got 8; try 6"):
        ImageBatches(NUMBERED, seed=0, images_per_step=8, num_ranks=3)
    with pytest.raises(JobError, match=r"got 2; try 3"):
        ImageBatches(NUMBERED, seed=0, images_per_step=2, num_ranks=3)


def test_rank_outside_the_group_and_empty_images_are_refused() -> None:
    with pytest.raises(JobError, match=r"rank: must be from 0 to 1, got 2"):
        ImageBatches(NUMBERED, seed=0, images_per_step=4, rank=2, num_ranks=2)
    with pytest.raises(DataError, match=r"must have at least one image, got none"):
        ImageBatches(NUMBERED[:0], seed=0, images_per_step=4)


def test_floats_span_exactly_minus_one_to_one() -> None:
    values = to_float(torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)).flatten()
    assert values.dtype == torch.float32
    assert values[[0, 255]].tolist() == [-1.0, 1.0]
    assert torch.equal(((values + 1) * 127.5).round(), torch.arange(256, dtype=torch.float32))


def test_floats_keep_the_channels_last_memory() -> None:
    with ImageBatches(IMAGES, seed=0, images_per_step=4) as batches:
        assert to_float(next(batches)).is_contiguous(memory_format=torch.channels_last)
