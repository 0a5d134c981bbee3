"""What operators see: a run's metrics as a node exports them to Prometheus."""

import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray
import torch

from tests.training.jobs import OBJECTIVES, run_job
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.on_ray.metrics import RayMetrics, count_preemption
from vaegen_ray.tracking.json_lines import read_metrics
from vaegen_ray.training.local_session import LocalSession
from vaegen_ray.training.run import run_training

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]

EXPORT_S = 90
"""Ray's processes hand over their metrics every ten seconds."""


class Worker:
    """A process of Ray that trains, and lives on, because its metrics go with it."""

    def train(self, job: TrainJob) -> None:
        run_training(job, LocalSession(0, 1, torch.device("cpu")), own_tracker=RayMetrics(job, 0))
        other = RayMetrics(job, 1)
        for position in (960, 976):
            other.scalars({"training_s": 0.2, "input_s": 0.4, "generator_loss": 7.0}, position)
        count_preemption(job.name)
        count_preemption(job.name)


def scraped(run: str) -> dict[str, float]:
    """The samples of ``run`` on this node, by ``name{labels of ours}``."""
    (node,) = (node for node in ray.nodes() if node["Alive"])
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    text = urllib.request.urlopen(url, timeout=10).read().decode()
    samples = {}
    for name, labels, value in re.findall(r"^(ray_vaegen\w+)\{(.*)\} (\S+)$", text, re.M):
        ours = {key: of for key, of in re.findall(r'(\w+)="([^"]*)"', labels) if key in ("run", "rank", "name")}
        if ours.pop("run", None) == run and 'le="' not in labels:
            samples[f"{name}{','.join(f'{key}={of}' for key, of in sorted(ours.items()))}"] = float(value)
    return samples


def test_node_exports_what_the_run_recorded(dataset: Path, tmp_path: Path) -> None:
    training = {"total_images": 64, "report_every_images": 16, "checkpoint_every_images": 32}
    job = run_job(dataset, tmp_path, OBJECTIVES["vae_gan"], training=training)
    worker = ray.remote(num_cpus=0)(Worker).remote()
    ray.get(worker.train.remote(job))
    lines = read_metrics(RunDirectory.of(job))
    deadline_s = time.monotonic() + EXPORT_S
    while "ray_vaegen_preemptions_total" not in (seen := scraped(job.name)):
        assert time.monotonic() < deadline_s, seen
        time.sleep(0.5)
    newest = {name: value for line in lines for name, value in line.items()}
    assert seen["ray_vaegen_position_imagesrank=0"] == job.training.final_position
    assert seen["ray_vaegen_images_per_srank=0"] == pytest.approx(newest["images_per_s"])
    assert seen["ray_vaegen_lossname=generator_loss,rank=0"] == pytest.approx(newest["generator_loss"])
    assert seen["ray_vaegen_scorename=sample_swd,rank=0"] == pytest.approx(newest["sample_swd"])
    assert seen["ray_vaegen_preemptions_total"] == 2
    last = [line for line in lines if "training_s" in line][-1]  # Of the 16 images of two steps.
    assert seen["ray_vaegen_step_srank=0"] == pytest.approx((last["training_s"] + last.get("input_s", 0)) / 2)
    assert seen["ray_vaegen_checkpoint_s_countrank=0"] == sum("checkpoint_s" in line for line in lines) > 0
    # Of the other ranks only what is their own.
    assert seen["ray_vaegen_data_wait_srank=1"] == pytest.approx(0.2)
    assert not any("loss" in name and "rank=1" in name for name in seen)
    ray.kill(worker)
