"""The node cache: what it keeps, who waits, who goes, and what is left when a process or a disk fails."""

import errno
import gc
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.data.samples import prepare_job, random_pixels, write_images
from vaegen_ray.data.cache import CacheLease, NodeCache
from vaegen_ray.data.dataset import Dataset
from vaegen_ray.data.prepare import prepare
from vaegen_ray.errors import CacheFullError, StorageError

FILL = (
    "import sys\nfrom vaegen_ray.data.dataset import Dataset\n"
    "images = Dataset.open(sys.argv[1]).decoded('train', cache=sys.argv[2])\n"
)


def keep(cache: NodeCache, name: str, num_bytes: int = 1000) -> CacheLease:
    """An entry of so many bytes."""

    def make(file: Path) -> None:
        file.write_bytes(name.encode().ljust(num_bytes))

    return cache.entry(name, num_bytes=num_bytes, is_whole=Path.exists, make=make)


def names(cache: NodeCache) -> list[str]:
    """The entries that are there, whole or not."""
    return sorted(str(path.relative_to(cache.folder)) for path in cache.folder.glob("*/*") if path.suffix != ".lock")


def expected_sum() -> int:
    return sum(int(random_pixels(number).sum(dtype=int)) for number in range(40))


# ---------------------------------------------------------------------------- room


def test_entry_used_longest_ago_makes_room(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, limit_bytes=3000)
    for name in ("a/1", "a/2", "b/1", "a/1"):  # The first is used again.
        keep(cache, name).close()
        time.sleep(0.01)
    keep(cache, "b/2").close()
    assert names(cache) == ["a/1", "b/1", "b/2"]
    keep(cache, "c/1", num_bytes=2500).close()
    assert names(cache) == ["c/1"]


def test_entry_in_use_stays_and_is_named_as_the_reason(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, limit_bytes=2000)
    lease = keep(cache, "a/used")
    keep(cache, "a/idle").close()
    with pytest.raises(
        CacheFullError,
        match=r"must have room for 0.0 MB .* of data.cache_bytes 2000 beside what is in use; raise data",
    ):
        keep(cache, "b/large", num_bytes=1500)
    keep(cache, "b/small").close()
    assert names(cache) == ["a/used", "b/small"]
    lease.close()
    keep(cache, "b/large", num_bytes=1500).close()
    assert names(cache) == ["b/large"]


def test_damaged_entry_gives_its_room_to_its_successor(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, limit_bytes=1500)
    keep(cache, "a/1").close()

    def is_whole(path: Path) -> bool:
        return path.exists() and path.stat().st_size == 1000

    def make(file: Path) -> None:
        file.write_bytes(b"anew".ljust(1000))

    (tmp_path / "a/1").write_bytes(b"a/1".ljust(999))
    cache.entry("a/1", num_bytes=1000, is_whole=is_whole, make=make).close()
    assert (tmp_path / "a/1").read_bytes().startswith(b"anew")


def test_request_that_can_never_fit_costs_no_entry(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, limit_bytes=3000)
    lease = keep(cache, "a/used")
    keep(cache, "a/idle").close()
    with pytest.raises(CacheFullError, match=r"got 0\.0 MB of data.cache_bytes 3000"):
        keep(cache, "b/large", num_bytes=2500)
    assert names(cache) == ["a/idle", "a/used"]
    lease.close()


def test_cache_without_a_limit_leaves_a_reserve_of_the_disk(tmp_path: Path) -> None:
    disk = shutil.disk_usage(tmp_path)
    reserved_bytes = min(disk.total // 20, 10**10)
    with pytest.raises(CacheFullError, match=rf"{reserved_bytes / 1e6:,.1f} MB that stay free; set data.cache_bytes"):
        keep(NodeCache(tmp_path), "a/1", num_bytes=disk.free - reserved_bytes // 2)


def test_images_of_a_living_process_stay_until_it_is_killed(made: Path, tmp_path: Path) -> None:
    code = FILL + "images = images[3:5]\nprint('ready', flush=True)\nsys.stdin.read()\n"
    arguments = [sys.executable, "-c", code, str(made), str(tmp_path / "cache")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        cache = NodeCache(tmp_path / "cache", limit_bytes=40_000)
        with pytest.raises(CacheFullError):
            keep(cache, "b/large", num_bytes=30_000)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        keep(cache, "b/large", num_bytes=30_000).close()
    assert names(cache) == ["b/large"]


def test_mapped_images_hold_their_entry_and_let_it_go_with_the_last_view(made: Path, tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "cache", limit_bytes=40_000)
    view = Dataset.open(str(made)).decoded("train", cache)[5:6]
    gc.collect()
    with pytest.raises(CacheFullError):
        keep(cache, "b/large", num_bytes=30_000)
    assert np.array_equal(view[0], random_pixels(5))
    del view
    keep(cache, "b/large", num_bytes=30_000).close()


def test_versions_of_a_dataset_have_entries_of_their_own(made: Path, tmp_path: Path) -> None:
    source = {"kind": "folder", "path": str(write_images(tmp_path / "images", 40))}
    prepare(prepare_job(source, tmp_path / "half", held_out_fraction=0.5))
    cache = NodeCache(tmp_path / "cache")
    whole, half = (Dataset.open(str(path)).decoded("train", cache) for path in (made, tmp_path / "half"))
    assert len(whole) == 40
    assert 0 < len(half) < 40


# ---------------------------------------------------------------------------- several processes


def test_processes_that_start_together_fill_the_cache_once(made: Path, cache: Path) -> None:
    code = FILL + "print(images.sum(dtype='int64'))\n"
    arguments = [sys.executable, "-c", code, str(made), str(cache)]
    processes = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert {int(process.communicate(timeout=60)[0]) for process in processes} == {expected_sum()}
    assert [name.split("/")[1] for name in names(NodeCache(cache))] == ["train.npy"]


def test_processes_that_looked_at_the_same_time_do_not_wait_for_the_lease_of_the_one_that_made(tmp_path: Path) -> None:
    """Two ranks did: one held the entry that it had made, and waited in a collective for the other."""
    have_looked = threading.Barrier(2)
    leases: list[CacheLease] = []

    def enter() -> None:
        first = True

        def is_whole(path: Path) -> bool:
            nonlocal first
            whole = path.exists()
            if first:
                first = False
                have_looked.wait(10)
            return whole

        leases.append(NodeCache(tmp_path).entry("a/train.npy", num_bytes=1, is_whole=is_whole, make=Path.touch))

    threads = [threading.Thread(target=enter, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(leases) == 2


def test_workspaces_that_vanish_while_room_is_counted_do_no_harm(tmp_path: Path) -> None:
    done = threading.Event()

    def make_and_remove() -> None:
        while not done.is_set():
            folder = tmp_path / "a" / "1.unfinished" / "content" / "inner"
            folder.mkdir(parents=True)
            shutil.rmtree(folder.parents[1])

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.lock").touch()
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(make_and_remove)
        try:
            for number in range(100):
                keep(NodeCache(tmp_path), f"b/{number % 3}", num_bytes=number).close()
                (tmp_path / "b" / str(number % 3)).unlink()
        finally:
            done.set()
        making.result()


def test_cache_killed_in_mid_filling_is_filled_by_the_next_reader(made: Path, cache: Path) -> None:
    shard = made / "train-00003.parquet"
    content = shard.read_bytes()
    shard.unlink()
    os.mkfifo(shard)  # Whoever reads it waits for a writer.
    process = subprocess.Popen([sys.executable, "-c", FILL, str(made), str(cache)])
    with shard.open("wb"):  # Until the process is there, after the shards before.
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    shard.unlink()
    shard.write_bytes(content)
    assert [name.split("/")[1] for name in names(NodeCache(cache))] == ["train.npy.unfinished"]
    assert Dataset.open(str(made)).decoded("train", str(cache)).sum(dtype=int) == expected_sum()
    assert [name.split("/")[1] for name in names(NodeCache(cache))] == ["train.npy"]


def test_what_a_killed_process_was_making_goes_when_its_room_is_needed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom vaegen_ray.data.cache import NodeCache\n"
        "NodeCache(Path(sys.argv[1])).entry('a/1', num_bytes=5000, is_whole=Path.exists,"
        " make=lambda file: os.kill(os.getpid(), signal.SIGKILL))\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -signal.SIGKILL
    cache = NodeCache(tmp_path, limit_bytes=6000)
    assert names(cache) == ["a/1.unfinished"]
    keep(cache, "b/1", num_bytes=4000).close()
    assert names(cache) == ["b/1"]


# ---------------------------------------------------------------------------- disks that fail


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("cannot mount a file system here; run as root to enable it")
    yield folder
    gc.collect()
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_disk_without_room_is_refused_and_left_clean_until_there_is_some(made: Path, tiny_disk: Path) -> None:
    (tiny_disk / "other").write_bytes(bytes(50_000))
    with pytest.raises(CacheFullError, match=r"must have room for 0.0 MB of images, got 0.0 MB beside what is in use"):
        Dataset.open(str(made)).decoded("train", str(tiny_disk / "cache"))
    assert names(NodeCache(tiny_disk / "cache")) == []
    (tiny_disk / "other").unlink()
    assert Dataset.open(str(made)).decoded("train", str(tiny_disk / "cache")).sum(dtype=int) == expected_sum()


def test_write_that_fails_is_a_clear_error_and_leaves_nothing(made: Path, cache: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(
            StorageError, match=r"cache: cannot keep images there: .*File too large; free space, or set"
        ):
            Dataset.open(str(made)).decoded("train", str(cache))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert names(NodeCache(cache)) == []
    assert Dataset.open(str(made)).decoded("train", str(cache)).sum(dtype=int) == expected_sum()


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT])
def test_disk_that_turns_out_full_is_no_room(reason: int, tmp_path: Path) -> None:
    def make(_: Path) -> None:
        raise OSError(reason, os.strerror(reason))

    with pytest.raises(CacheFullError, match=r"cannot keep images there: .*; free space, or set data.cache"):
        NodeCache(tmp_path).entry("a/1", num_bytes=10, is_whole=Path.exists, make=make)
    assert names(NodeCache(tmp_path)) == []


def test_folder_that_cannot_be_made_is_refused_with_the_key(made: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot keep images there: .* set data.cache or \$VAEGEN_CACHE"):
        Dataset.open(str(made)).decoded("train", str(tmp_path / "file" / "cache"))


def test_folder_comes_from_the_environment(made: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAEGEN_CACHE", str(cache))
    Dataset.open(str(made)).decoded("train")
    assert [name.split("/")[1] for name in names(NodeCache(cache))] == ["train.npy"]
