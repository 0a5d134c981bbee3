"""What a probe tells, as the user's machine reads it: without Ray."""

import json
from dataclasses import dataclass, field
from typing import Self

from vaegen_ray.on_ray.connection import is_loopback

MARK = "vaegen-probe: "
"""Before the line of JSON that a probe prints."""


@dataclass
class Findings:
    """Of a cluster, for a job; plain values only."""

    nodes: int = 0
    cpus: float = 0.0
    gpus: float = 0.0
    python: str = ""
    dashboard: str = ""
    """Host at which the dashboard listens."""
    attempts: int = 0
    """Number of the newest attempt at this run, as its storage knows it."""
    is_complete: bool = False
    problems: list[str] = field(default_factory=list)
    """A sentence each."""

    @classmethod
    def parsed(cls, line: str) -> Self:
        """From the line that the probe printed."""
        return cls(**json.loads(line.removeprefix(MARK)))

    @property
    def is_exposed(self) -> bool:
        """Whether the dashboard listens to more than its own machine."""
        return bool(self.dashboard) and not is_loopback(self.dashboard)
