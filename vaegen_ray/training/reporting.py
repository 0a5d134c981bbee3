"""From scalars on the device to lines of metrics: averaged over steps and ranks, finite, with rates and costs."""

import math
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from vaegen_ray.training.collectives import mean_over_ranks


class MetricMeans:
    """Means of scalars since the last report. Adding waits for nothing; reading waits for the device once."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Count in one step's scalars; a scalar may be missing in some steps, on all ranks alike."""
        for name, value in metrics.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.detach().clone()
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means over steps and ranks, as Python floats; starts anew."""
        if not self._sums:
            return {}
        names = list(self._sums)
        means = torch.stack([self._sums[name].float() / self._counts[name] for name in names])
        values = mean_over_ranks(means).tolist()
        self._sums, self._counts = {}, {}
        return {name: float(value) for name, value in zip(names, values, strict=True) if math.isfinite(value)}


class Pace:
    """How fast it goes since the last question, on a host clock that can be stopped."""

    def __init__(self, position: int) -> None:
        self.position = position
        self._since = time.perf_counter()
        self._stopped_at = 0.0
        self._waited_s = 0.0

    def waited(self, seconds: float) -> None:
        """So long the loop waited for images."""
        self._waited_s += seconds

    def take(self, position: int, images_per_step: int) -> dict[str, float]:
        """Images a second, all ranks together; seconds a step, and of them this rank's wait for images."""
        now = time.perf_counter()
        images, seconds = position - self.position, max(now - self._since, 1e-9)
        steps = images / images_per_step
        pace = {"images_per_s": images / seconds, "step_s": seconds / steps, "data_wait_s": self._waited_s / steps}
        self.position, self._since, self._waited_s = position, now, 0.0
        return pace

    def stop(self) -> None:
        """The time from now on is not training's."""
        self._stopped_at = time.perf_counter()

    def go_on(self) -> None:
        """The time from now on is training's again."""
        self._since += time.perf_counter() - self._stopped_at


Activity = Literal["input", "evaluation", "checkpoint"]
"""What may keep training waiting."""


class TimeSpent:
    """Where the seconds of this process went since the last question. On an accelerator these are the host's."""

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._waited: dict[str, float] = {}

    @contextmanager
    def on(self, activity: Activity) -> Iterator[None]:
        """The time in here belongs to ``activity``."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._waited[activity] = self._waited.get(activity, 0.0) + time.perf_counter() - begun

    def take(self) -> dict[str, float]:
        """Metrics ``<activity>_s``, and ``training_s`` for the rest; starts anew."""
        now = time.perf_counter()
        spent = {f"{activity}_s": seconds for activity, seconds in self._waited.items()}
        spent["training_s"] = max(now - self._since - sum(self._waited.values()), 0.0)
        self._since, self._waited = now, {}
        return spent


def peak_memory_bytes(device: torch.device) -> float:
    """The most that this process has held so far: of the accelerator's memory, or on a CPU of the machine's."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
