"""`vaegen bench input`: what it measures, on a small dataset."""

import sys
import textwrap
from pathlib import Path

import pytest
import torch

from tests.faults.proxy import FaultyProxy
from tests.training.jobs import OBJECTIVES, run_job
from vaegen_ray.bench.input import LoaderTimes, measure_input
from vaegen_ray.bench.peer import Peer
from vaegen_ray.storage import Location

CPU = torch.device("cpu")

PEER = """
import numpy as np

def convert(images, folder):
    import pathlib
    pathlib.Path(folder).mkdir()
    np.save(f"{folder}/images.npy", images)

def batches(source, cache_folder, images_per_batch):
    images = np.load(f"{source}/images.npy")
    print("what libraries print is no answer")
    return lambda: (images[first : first + images_per_batch] for first in range(0, len(images), images_per_batch))
"""


def peer(folder: Path, name: str, source: str) -> Peer:
    module = folder / f"{name}.py"
    module.write_text(textwrap.dedent(source))
    return Peer(name, sys.executable, module)


def test_loader_training_and_peers_are_timed_side_by_side(dataset: Path, tmp_path: Path) -> None:
    peers = [
        peer(tmp_path, "peer_that_reads", PEER),
        peer(tmp_path, "peer_that_is_missing", "import no_such_package"),
        peer(tmp_path, "peer_that_breaks", PEER.replace("np.load", "np.lode")),
    ]
    said: list[str] = []
    job = run_job(dataset, tmp_path, OBJECTIVES["vae"])
    times = measure_input(job, peers, device=CPU, rounds=2, steps=1, on_progress=said.append)
    assert times.num_images == 124
    assert times.reads is None
    assert min(times.training_images_per_s, times.memory_images_per_s) > 0
    assert times.ours.images_per_s > times.training_images_per_s
    read, missing, broken = times.peers.values()
    assert isinstance(read, LoaderTimes)
    assert min(read.cold_images_per_s, read.images_per_s, read.first_batch_s, read.cold_first_batch_s) > 0
    assert missing == (f"not installed in {sys.executable} (ModuleNotFoundError: No module named 'no_such_package')")
    assert broken == "AttributeError: module 'numpy' has no attribute 'lode'"
    assert "round 2 of 2: peer_that_reads" in said


@pytest.mark.s3
def test_reads_of_the_first_epoch_are_counted_as_the_server_counts_them(
    dataset: Path, s3_bucket: str, s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    for file in dataset.iterdir():
        (Location.of(f"{s3_bucket}/squares") / file.name).upload(file)
    job = run_job(Path("unused"), tmp_path, OBJECTIVES["vae"], data={"source": f"{s3_bucket}/squares"})
    num_before, bytes_before = len(s3_proxy.requests()), s3_proxy.bytes_read()
    times = measure_input(job, [], device=CPU, rounds=1, steps=1, on_progress=lambda _: None)
    assert times.reads is not None
    assert s3_proxy.bytes_read("GET .*/train-") == (dataset / "train-00000.parquet").stat().st_size
    # What comes after the first epoch reads the description again, and no image.
    descriptions = s3_proxy.bytes_read("dataset.json")
    assert times.reads.bytes > s3_proxy.bytes_read() - bytes_before - descriptions
    assert 0 < times.reads.requests < len(s3_proxy.requests()) - num_before
