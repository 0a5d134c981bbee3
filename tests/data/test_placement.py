"""Where images wait: the same batches from every place, windows fetched ahead within their room."""

import os
import resource
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.samples import image_bytes, prepare_job, random_pixels
from vaegen_ray.config.data import Data
from vaegen_ray.data.batches import ImageBatches
from vaegen_ray.data.cache import NodeCache
from vaegen_ray.data.dataset import Dataset
from vaegen_ray.data.order import WindowedOrder
from vaegen_ray.data.placement import (
    DeviceImages,
    HostImages,
    Images,
    StreamedImages,
    WindowedImages,
    training_images,
)
from vaegen_ray.data.prepare import prepare
from vaegen_ray.errors import CacheFullError, DataError, StorageError

CPU = torch.device("cpu")
EXPECTED = np.stack([random_pixels(number) for number in range(40)])
IMAGE_BYTES = 16 * 16 * 3


def data_of(made: Path, cache: Path, **settings: Any) -> Data:
    return Data(source=str(made), cache=str(cache), **settings)


def placed(data: Data, device: torch.device = CPU) -> Images:
    return training_images(Dataset.open(data.source), data, device)


def batches_of(images: Images, num_steps: int = 12, **where: int) -> list[torch.Tensor]:
    with closing(images), ImageBatches(images, seed=3, images_per_step=6, **where) as batches:
        return [next(batches) for _ in range(num_steps)]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def files(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.glob("*/*") if path.suffix != ".lock")


@pytest.mark.parametrize(
    ("placement", "form", "kept"),
    [
        ("auto", HostImages, ["train.npy"]),
        ("host", HostImages, ["train.npy"]),
        ("device", HostImages, ["train.npy"]),  # There is no GPU.
        ("stream", StreamedImages, ["train.arrow"]),
    ],
)
@pytest.mark.parametrize("max_images", [None, 31])
def test_batches_are_the_same_from_every_place(
    made: Path, cache: Path, placement: str, form: type[Images], kept: list[str], max_images: int | None
) -> None:
    images = placed(data_of(made, cache, placement=placement, max_images=max_images))
    assert type(images) is form
    expected = batches_of(HostImages(EXPECTED[:max_images]))
    found = batches_of(images)
    assert same(found, expected)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert files(cache) == (kept if max_images is None else [name.replace(".", "-first-4-shards.") for name in kept])


def test_batches_from_device_memory_are_those_of_the_host() -> None:
    found = batches_of(DeviceImages(EXPECTED, CPU))
    assert same(found, batches_of(HostImages(EXPECTED)))
    assert found[0].is_contiguous(memory_format=torch.channels_last)


def test_images_too_large_for_the_disk_when_decoded_are_streamed_by_auto_only(made: Path, cache: Path) -> None:
    encoded_bytes = sum(shard.stat().st_size for shard in made.glob("*.parquet")) + 40 * 24
    room = {"cache_bytes": max(encoded_bytes, 40 * IMAGE_BYTES)}
    assert encoded_bytes != 40 * IMAGE_BYTES
    # Noise does not compress: here it is the encoded form that is too large.
    small = {"cache_bytes": min(encoded_bytes, 40 * IMAGE_BYTES) - 1}
    with pytest.raises(CacheFullError, match=r"or set data.shuffle_window_images, which keeps a part of the images"):
        placed(data_of(made, cache, **small))
    with pytest.raises(CacheFullError, match=r"or use data.placement: stream"):
        placed(data_of(made, cache, placement="host", **small))
    assert files(cache) == []
    assert isinstance(placed(data_of(made, cache, cache_bytes=room["cache_bytes"] + 200)), HostImages)


def test_auto_streams_images_whose_decoded_form_finds_no_room_at_every_start(tmp_path: Path, cache: Path) -> None:
    for number in range(40):  # Which compress, unlike noise.
        flat = np.full((16, 16, 3), number, np.uint8)
        (tmp_path / "flat").mkdir(exist_ok=True)
        (tmp_path / "flat" / f"{number:02}.png").write_bytes(image_bytes(flat))
    source = {"kind": "folder", "path": str(tmp_path / "flat")}
    prepare(prepare_job(source, tmp_path / "made", held_out_fraction=0.0))
    data = data_of(tmp_path / "made", cache, cache_bytes=40 * IMAGE_BYTES)
    kept = set()
    for _ in range(2):
        images = placed(data)
        assert isinstance(images, StreamedImages)
        images.close()
        kept |= {path.stat().st_ino for path in cache.glob("*/*.arrow")}
    assert files(cache) == ["train.arrow"]
    assert len(kept) == 1


@settings(max_examples=15, deadline=None)
@given(
    window=st.integers(1, 50),
    images_per_rank=st.integers(1, 5),
    num_ranks=st.integers(1, 3),
    first_step=st.integers(0, 20),
    max_images=st.one_of(st.none(), st.integers(1, 40)),
)
def test_windows_give_the_images_of_their_order_to_any_ranks_from_any_beginning(
    window_cache: tuple[Path, Path],
    window: int,
    images_per_rank: int,
    num_ranks: int,
    first_step: int,
    max_images: int | None,
) -> None:
    images_per_step = images_per_rank * num_ranks
    data = data_of(*window_cache, shuffle_window_images=window, max_images=max_images)
    sizes = [min(9, (max_images or 40) - first) for first in range(0, max_images or 40, 9)]
    position, end = first_step * images_per_step, (first_step + 3) * images_per_step
    order = WindowedOrder(3, sizes, window)
    expected = torch.from_numpy(EXPECTED[order.indices(np.arange(position, end)).astype(int)]).permute(0, 3, 1, 2)
    shares = []
    for rank in range(num_ranks):
        where = {"rank": rank, "num_ranks": num_ranks, "position": position}
        with (
            closing(placed(data)) as images,
            ImageBatches(images, seed=3, images_per_step=images_per_step, **where) as batches,
        ):
            shares.append([next(batches) for _ in range(3)])
    found = torch.cat([share[step] for step in range(3) for share in shares])
    assert torch.equal(found, expected)


@pytest.fixture(scope="module")
def window_cache(_made_once: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A dataset and a cache of its own."""
    return _made_once, tmp_path_factory.mktemp("cache")


def test_disk_that_holds_two_windows_is_enough_for_all_epochs(made: Path, cache: Path) -> None:
    largest_bytes = max(shard.stat().st_size for shard in made.glob("*.parquet")) + 9 * 24
    data = data_of(made, cache, shuffle_window_images=9, cache_bytes=3 * largest_bytes)
    used_bytes, seen = [], set()
    with closing(placed(data)) as images:
        order = images.order(seed=3)
        for position in range(0, 126, 6):
            images.read(order.indices(np.arange(position, position + 6)), position)
            with suppress(FileNotFoundError):  # Shards come and go meanwhile.
                used_bytes.append(sum(path.stat().st_size for path in cache.glob("*/*")))
            seen |= {name for name in files(cache) if name.endswith(".arrow")}
    assert seen == {f"train-{number:05d}.arrow" for number in range(5)}
    assert largest_bytes < max(used_bytes) <= 3 * largest_bytes


def test_next_window_is_fetched_before_it_is_needed(made: Path, cache: Path) -> None:
    data = data_of(made, cache, shuffle_window_images=9)
    with closing(placed(data)) as images:
        assert isinstance(images, WindowedImages)
        order = images.order(seed=3)
        assert isinstance(order, WindowedOrder)
        images.read(order.indices(np.arange(2)), 0)
        images._fetchers.shutdown()
        now, following = order.window_at(0), order.window_at(order.window_at(0).last)
    assert files(cache) == sorted(f"train-{shard:05d}.arrow" for shard in now.shards + following.shards)


def test_shard_that_could_not_be_fetched_ahead_is_fetched_when_it_is_needed(made: Path, cache: Path) -> None:
    with closing(placed(data_of(made, cache, shuffle_window_images=9))) as images:
        assert isinstance(images, WindowedImages)
        order = images.order(seed=3)
        assert isinstance(order, WindowedOrder)
        following = order.window_at(order.window_at(0).last)
        in_the_way = cache / images._dataset.metadata.fingerprint[:32] / f"train-{following.shards[0]:05d}.arrow.lock"
        in_the_way.mkdir(parents=True)
        images.read(order.indices(np.arange(2)), 0)
        assert isinstance(images._open[following.shards[0]].exception(), StorageError)
        in_the_way.rmdir()
        images.read(order.indices(np.arange(following.first, following.first + 2)), following.first)


def test_next_window_gives_way_to_the_current_one_where_the_disk_holds_only_one(made: Path, cache: Path) -> None:
    largest_bytes = max(shard.stat().st_size for shard in made.glob("*.parquet")) + 9 * 24
    with closing(placed(data_of(made, cache, shuffle_window_images=9, cache_bytes=largest_bytes))) as images:
        assert isinstance(images, WindowedImages)
        order = images.order(seed=3)
        assert isinstance(order, WindowedOrder)
        (following,) = order.window_at(order.window_at(0).last).shards
        images._begin(following).result()
        images.read(order.indices(np.arange(2)), 0)


def test_windows_may_have_more_shards_than_the_soft_limit_of_open_files(made: Path, cache: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 8, hard))
    try:
        batches_of(placed(data_of(made, cache, shuffle_window_images=40)))
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_window_larger_than_the_disk_is_refused_with_the_remedy(made: Path, cache: Path) -> None:
    data = data_of(made, cache, shuffle_window_images=40, cache_bytes=20_000)
    remedies = r"raise data.cache_bytes, .*; or lower data.shuffle_window_images, .* rows_per_shard: this shard has 9"
    with pytest.raises(CacheFullError, match=remedies):
        batches_of(placed(data))


def test_damaged_shard_of_a_later_window_stops_training_when_it_is_needed(made: Path, cache: Path) -> None:
    for shard in made.glob("*.parquet"):
        if shard.name != "train-00000.parquet":
            shard.write_bytes(shard.read_bytes()[:-5])
    order = WindowedOrder(3, [9, 9, 9, 9, 4], 9)
    windows = [order.window_at(first) for first in range(0, 40, 9)]
    begin = next(window.first for window in windows if window.shards == (0,))
    with (
        closing(placed(data_of(made, cache, shuffle_window_images=9))) as images,
        ImageBatches(images, seed=3, images_per_step=1, position=begin) as batches,
    ):
        for _ in range(9):
            next(batches)
        with pytest.raises(DataError, match=r"train-0000[1-4].parquet: must have \d+ bytes, got \d+; the shard is dam"):
            next(batches)


def test_closed_images_fetch_no_more(made: Path, cache: Path) -> None:
    images = placed(data_of(made, cache, shuffle_window_images=9))
    images.close()
    images.close()
    assert files(cache) == []
    assert NodeCache(cache).folder == cache
