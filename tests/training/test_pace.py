"""Where the time of a run goes, as it records it."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.jobs import OBJECTIVES, run_job
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.data.batches import ImageBatches
from vaegen_ray.tracking.json_lines import read_metrics
from vaegen_ray.training import recorder
from vaegen_ray.training.local_session import LocalSession
from vaegen_ray.training.run import run_training

CPU = torch.device("cpu")


class Kept:
    """A tracker that keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[dict[str, float]] = []

    def scalars(self, record: Mapping[str, float], position: int) -> None:
        self.records.append({**record, "position": position})

    def image(self, *_: Any) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def test_slow_input_and_slow_checkpoints_show_where_they_belong(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"total_images": 64, "report_every_images": 16, "checkpoint_every_images": 32}
    job = run_job(dataset, tmp_path, OBJECTIVES["vae"], training=training)
    following, save = ImageBatches.__next__, recorder.save_checkpoint

    def slow_input(self: Iterator[torch.Tensor]) -> torch.Tensor:
        time.sleep(0.05)
        return following(self)  # type: ignore[arg-type]

    def slow_save(*arguments: Any, **named: Any) -> None:
        time.sleep(0.3)
        save(*arguments, **named)

    monkeypatch.setattr(ImageBatches, "__next__", slow_input)
    monkeypatch.setattr(recorder, "save_checkpoint", slow_save)
    kept = Kept()
    run_training(job, LocalSession(0, 1, CPU), own_tracker=kept)
    lines = read_metrics(RunDirectory.of(job))
    assert [line["position"] for line in lines] == [16, 32, 48, 64]
    for line in lines:
        assert line["input_s"] >= 2 * 0.05, "two steps a line"
        assert line["training_s"] > 0
    # Told with the line that follows; what is no part of training is not counted in its rate.
    saved = [line for line in lines if "checkpoint_s" in line]
    assert [line["position"] for line in saved] == [48]
    assert saved[0]["checkpoint_s"] >= 0.3
    assert 16 / saved[0]["images_per_s"] < saved[0]["input_s"] + saved[0]["training_s"] + 0.1
    assert [record["position"] for record in kept.records if "training_s" in record] == [16, 32, 48, 64]
    assert kept.records[-1].keys() >= {"sample_swd"}
