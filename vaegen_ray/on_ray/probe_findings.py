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
    head: str = ""
    """Address of the head's other services, which start processes for whoever reaches them."""
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
    def exposed_at(self) -> str | None:
        """What listens to more than its own machine, in words."""
        hosts = {"dashboard": self.dashboard, "head": self.head}
        return next(
            (f"its {name} listens at {host}" for name, host in hosts.items() if host and not is_loopback(host)), None
        )
