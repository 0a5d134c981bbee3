"""The record of what the watchdog noticed in a run, and did: ``incidents.json``."""

import json
from typing import Any

from vaegen_ray.config.run_directory import RunDirectory

Entry = dict[str, Any]


def read_incidents(run: RunDirectory) -> list[Entry]:
    """All incidents of a run, in the order in which they were noticed."""
    return list(json.loads(run.incidents.read_text())) if run.incidents.exists() else []
