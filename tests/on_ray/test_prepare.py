"""Ray Data prepares the dataset that one process would, also when it loses a worker."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.data.samples import files_of, image_bytes, prepare_job, random_pixels, write_images
from vaegen_ray.data.prepare import prepare
from vaegen_ray.errors import DataError
from vaegen_ray.on_ray.prepare import prepare_on_ray

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]


def kill_a_worker_when(is_time: Callable[[], bool]) -> list[int]:
    """Kill a process that does a task of Ray Data once it is time; gives its id."""
    killed: list[int] = []

    def watch() -> None:
        while not killed:
            for process in psutil.Process().children(recursive=True) if is_time() else []:
                if "ray::Map" in " ".join(process.cmdline()):
                    process.kill()
                    killed.append(process.pid)
                    break
            time.sleep(0.002)

    threading.Thread(target=watch, daemon=True).start()
    return killed


def test_ray_gives_the_bytes_of_one_process_although_a_worker_is_killed(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 900)
    (folder / "image-0100.png").write_bytes(b"damaged")
    (folder / "image-0500b.png").write_bytes(image_bytes(random_pixels(7)))
    on_ray, here = (
        prepare_job({"kind": "folder", "path": str(folder)}, tmp_path / name, rows_per_shard=60, remove_duplicates=True)
        for name in ("on_ray", "here")
    )
    killed = kill_a_worker_when((tmp_path / "on_ray" / ".unfinished" / "00003.converted.json").exists)
    shown: list[tuple[int, int | None]] = []
    prepare_on_ray(on_ray, lambda done, total: shown.append((done, total)))
    assert killed
    assert (901, 901) in shown
    prepare(here)
    assert files_of(tmp_path / "on_ray") == files_of(tmp_path / "here")


def test_failure_of_a_task_is_the_sentence_that_it_raised(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "images", 30)
    job = prepare_job({"kind": "folder", "path": str(folder)}, tmp_path / "made", rows_per_shard=10)
    prepare(job)
    plain = tmp_path / "plain"
    plain.mkdir()
    source = {"kind": "parquet", "path": str(plain), "id_column": "id"}
    content = bytearray((tmp_path / "made" / "train-00001.parquet").read_bytes())
    content[100:2000] = bytes(1900)  # The footer stays whole, so the plan finds nothing.
    (plain / "images.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"^.*images.parquet: must be readable Parquet, got .*; restore it$"):
        prepare_on_ray(prepare_job(source, tmp_path / "again"))
    assert not (tmp_path / "again" / "dataset.json").exists()
