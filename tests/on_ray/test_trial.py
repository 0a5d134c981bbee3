"""What a trial's process makes of failures, without a cluster."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.search.samples import base_tree, search_job
from vaegen_ray.on_ray.reports import ENDING, REASON
from vaegen_ray.on_ray.trial import job_of_trial, run_trial

CONFIG: dict[str, Any] = {"number": 3, "settings": {"objective.kl.weight": 0.5}}

SHORT_OF_MEMORY = """
import json, resource, sys
from tests.search.samples import base_tree, search_job
from vaegen_ray.on_ray.trial import run_trial
training = {"images_per_step": 2**18, "total_images": 2**19}
base = base_tree(sys.argv[2], training=training, evaluation={"every_images": 2**18})
job = search_job(sys.argv[1], base, scheduler={"kind": "none"})
import torch
torch.zeros(1).sum()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 2**30,) * 2)
print(json.dumps(run_trial(job, ".", None, {"number": 0, "settings": {}})))
"""


def test_trial_without_the_memory_says_so_and_is_not_tried_again(dataset: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SHORT_OF_MEMORY, str(tmp_path), str(dataset)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert '"ending": "failed"' in said.stdout, said.stderr
    assert '"reason": "out of memory: ' in said.stdout
    assert "lower training.images_per_step" in said.stdout


def test_trial_whose_dataset_is_gone_fails_with_the_sentence(tmp_path: Path) -> None:
    job = search_job(tmp_path, base_tree(str(tmp_path / "nothing")))
    report = run_trial(job, str(Path.cwd()), None, CONFIG)
    assert report[ENDING] == "failed"
    assert str(tmp_path / "nothing") in report[REASON]


def test_bug_is_raised_so_that_tune_tries_again(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaegen_ray.on_ray.trial.run_training", lambda *_, **__: 1 / 0)
    job = search_job(tmp_path, base_tree(str(dataset)))
    with pytest.raises(ZeroDivisionError):
        run_trial(job, str(Path.cwd()), None, CONFIG)


def test_trial_is_a_run_in_the_searchs_directory(tmp_path: Path) -> None:
    job = job_of_trial(search_job(tmp_path), CONFIG)
    assert (job.storage, job.name) == (f"{tmp_path}/search/trials", "trial-00003")
    assert job.objective.kl.weight == 0.5
