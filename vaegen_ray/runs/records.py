"""What a run records of itself beside its metrics: its starts, and what the watchdog noticed in it."""

import json
from typing import Any

from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import CheckpointError
from vaegen_ray.storage import Location

Entry = dict[str, Any]


def read_incidents(run: RunDirectory) -> list[Entry]:
    """All incidents of ``incidents.json``, in the order in which they were noticed."""
    return _entries(run.incidents, {"rule", "position", "action"})


def read_starts(run: RunDirectory) -> list[Entry]:
    """All starts of ``provenance.json``, the first one first."""
    return _entries(run.provenance, {"position", "dataset"})


def trained_on(run: RunDirectory) -> str | None:
    """Fingerprint of the dataset of the run's newest beginning from nothing; None where no start is known."""
    starts = read_starts(run)
    began = next((start for start in reversed(starts) if start["position"] == 0), starts[0] if starts else None)
    return None if began is None else str(began["dataset"]["fingerprint"])


def _entries(file: Location, keys: set[str]) -> list[Entry]:
    """The list in ``file``, of which each entry has ``keys``; empty where there is none, CheckpointError if damaged."""
    if not file.exists():
        return []
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file}: must be JSON, is damaged ({error}); restore or remove it") from error
    if not isinstance(found, list) or not all(isinstance(entry, dict) and keys <= entry.keys() for entry in found):
        named = ", ".join(sorted(keys))
        raise CheckpointError(f"{file}: must be a list of entries with {named}, is damaged; restore or remove it")
    return found
