"""LCBench: learning curves of 2,000 networks on 34 tables (Zimmer et al. 2021), by the surrogate of YAHPO Gym.

The surrogate's files (Pfisterer et al. 2022) are not part of this project.
"""

import importlib.util
import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vaegen_ray.config.search import SearchJob, Settings
from vaegen_ray.errors import JobError

FILES = ("model.onnx", "encoding.json")
SOURCE = "https://github.com/slds-lmu/yahpo_data, scenario lcbench"

EPOCHS = 52
TASKS = ("3945", "34539", "126026", "167168")
METRIC = "val_accuracy"
RANDOM_SETTINGS = 5_000
"""Of which the best is the regret 0, and the median the regret 1."""

SPACE: dict[str, dict[str, Any]] = {
    "batch_size": {"kind": "integer", "low": 16, "high": 512, "log": True},
    "learning_rate": {"kind": "log_uniform", "low": 1e-4, "high": 0.1},
    "momentum": {"kind": "uniform", "low": 0.1, "high": 0.99},
    "weight_decay": {"kind": "uniform", "low": 1e-5, "high": 0.1},
    "num_layers": {"kind": "integer", "low": 1, "high": 5},
    "max_units": {"kind": "integer", "low": 64, "high": 1024, "log": True},
    "max_dropout": {"kind": "uniform", "low": 0.0, "high": 1.0},
}
"""In the order of the surrogate's inputs, after the epoch."""

NOT_LOOKED_AT: dict[str, Any] = {
    "kind": "train",
    "name": "lcbench",
    "data": {"source": "shipped:fashion_mnist"},
    "model": {"kind": "convolutional", "image_size": 32, "channels": 1},
    "objective": {"kind": "vae"},
}
"""What a train job says of a model; of this one only the length counts."""


class LcBench:
    """One of its tasks as a search with one objective: an image of the job is an epoch."""

    def __init__(self, folder: Path, task: str) -> None:
        """Read the surrogate."""
        self.task = task
        self._session = _session(folder)
        self._task_index = json.loads((folder / "encoding.json").read_text())["OpenML_task_id"][task]
        self._curve = lru_cache(maxsize=None)(self._predicted)
        rng = np.random.default_rng(0)
        at_the_end = np.array([self._curve(_drawn(rng))[-1] for _ in range(RANDOM_SETTINGS)])
        self.best_cost, self.median_cost = -float(at_the_end[:, 1].max()), -float(np.median(at_the_end[:, 1]))
        self.median_training_s = float(np.median(at_the_end[:, 0]))

    def evaluate(self, settings: Settings, position: int) -> dict[str, float]:
        """The score after so many epochs."""
        return {METRIC: float(self._curve(_key(settings))[position - 1][1])}

    def epoch_s(self, settings: Settings) -> float:
        """How long an epoch takes."""
        return max(0.1, float(self._curve(_key(settings))[-1][0]) / EPOCHS)

    def _predicted(self, key: tuple[float, ...]) -> Any:
        inputs = np.empty((EPOCHS, 1 + len(SPACE)), dtype=np.float32)
        inputs[:, 0], inputs[:, 1:] = np.arange(1, EPOCHS + 1), key
        tasks = np.full((EPOCHS, 1), self._task_index, dtype=np.int32)
        return self._session.run(None, {"x_cat": tasks, "x_cont": inputs})[0]


def lcbench_job(seed: int) -> SearchJob:
    """The search of a task."""
    return SearchJob.model_validate(
        {
            "kind": "search",
            "name": "lcbench",
            "base": {
                **NOT_LOOKED_AT,
                "training": {"total_images": EPOCHS, "images_per_step": 1},
                "evaluation": {"every_images": 1},
            },
            "space": SPACE,
            "objectives": [{"metric": METRIC, "goal": "maximize"}],
            "trials": 100_000,
            "points": [],
            "seed": seed,
        }
    )


def check_folder(folder: Path) -> None:
    """JobError unless the surrogate's files and all that the comparison needs are there."""
    if missing := [name for name in FILES if not (folder / name).exists()]:
        raise JobError(
            f"--lcbench: must be a folder with {' and '.join(FILES)}, {folder} has no {missing[0]}; take both from "
            f"{SOURCE}"
        )
    if missing := [module for module in ("onnxruntime", "syne_tune") if importlib.util.find_spec(module) is None]:
        raise JobError(
            f"--lcbench: needs {missing[0]}, which is not installed; install vaegen_ray with its extra `bench`"
        )


def _session(folder: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(folder / "model.onnx", options)


def _key(settings: Settings) -> tuple[float, ...]:
    return tuple(float(settings[name]) for name in SPACE)


def _drawn(rng: np.random.Generator) -> tuple[float, ...]:
    values = []
    for axis in SPACE.values():
        low, high = axis["low"], axis["high"]
        is_log = axis["kind"] == "log_uniform" or axis.get("log", False)
        value = math.exp(rng.uniform(math.log(low), math.log(high))) if is_log else rng.uniform(low, high)
        values.append(round(value) if axis["kind"] == "integer" else value)
    return tuple(values)
