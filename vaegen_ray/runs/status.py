"""How a run stands, from its storage alone."""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import CheckpointError, StorageError, VaegenError
from vaegen_ray.runs.attempts import PREPARE_JOB, Attempt, AttemptState, read_attempts
from vaegen_ray.runs.lease import holder_of, newest_holder
from vaegen_ray.storage import Location

JOB_FILES = {"job.json": "train", "search.json": "search", "compare.json": "compare", PREPARE_JOB: "prepare"}

DAMAGED = "damaged"

OVER = "over"
"""An empty file in the directory of a search or a comparison of which all has ended; without it, a driver that ended
was asked to, and the rest is still to be done."""


@dataclass(frozen=True)
class RunStatus:
    """Of a run or a search; of a dataset that is being prepared, its attempts only."""

    root: Location
    kind: str
    """`train`, `search`, `compare`, `prepare`, or empty while the driver has not begun."""
    state: str
    """complete, running, stopped, failed, lost, damaged, or unfinished: it was begun, and nobody is at it."""
    position: int | None = None
    total_images: int | None = None
    images_per_s: float | None = None
    heard: str = ""
    """When the last line of metrics was written, or the driver was heard of."""
    holder: str | None = None
    error: str = ""
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come by itself."""
        return self.state != AttemptState.RUNNING


def status_of(root: Location) -> RunStatus | None:
    """The status of what lies in ``root``; None where it is no run and no search."""
    names = root.names()
    kind = next((kind for file, kind in JOB_FILES.items() if file in names), "")
    attempts = read_attempts(root) if "logs" in names else []
    if not kind and not attempts:
        return None
    writer = newest_holder(root / "lease") if "lease" in names else None
    holder = holder_of(root / "lease") if writer is not None else None
    is_by_hand = writer is not None and not writer.submission  # Of which no attempt tells.
    error = attempts[-1].error if attempts else ""
    if kind != "train":
        state = attempts[-1].state if attempts else (AttemptState.RUNNING if holder else "unfinished")
        if kind in ("search", "compare") and state in (AttemptState.COMPLETE, "unfinished"):
            has_stopped = AttemptState.STOPPED if attempts else "unfinished"
            state = AttemptState.COMPLETE if OVER in names else has_stopped
        state = AttemptState.RUNNING if is_by_hand else state
        heard = attempts[-1].heard if attempts else ""
        return RunStatus(root, kind, state, heard=heard, holder=holder, error=error, attempts=attempts)
    run = RunDirectory(root)
    line = _last_line(run) if "metrics.jsonl" in names else {}
    stamp = line.get("time_s")
    state = AttemptState.RUNNING if is_by_hand and not run.is_complete() else _state(run, attempts, holder)
    return RunStatus(
        root,
        kind,
        state,
        position=int(line.get("position", 0)),
        total_images=run.load_job().training.total_images,
        images_per_s=line.get("images_per_s"),
        heard=datetime.fromtimestamp(stamp, UTC).isoformat(timespec="seconds") if stamp else "",
        holder=holder if state == AttemptState.RUNNING else None,
        error=error if state in (AttemptState.FAILED, AttemptState.LOST) else "",
        attempts=attempts,
    )


def list_runs(storage: Location) -> list[RunStatus]:
    """The runs and searches in ``storage``, by name; what cannot be read is told as its error."""
    found = []
    for entry in storage.entries():
        if not entry.is_folder or entry.name.startswith("."):
            continue
        root = storage / entry.name
        try:
            status = status_of(root)
        except VaegenError as error:
            if isinstance(error, StorageError) and not isinstance(error.__cause__, PermissionError):
                raise
            status = RunStatus(root, "", DAMAGED, error=str(error))
        if status is not None:
            found.append(status)
    return found


def _state(run: RunDirectory, attempts: list[Attempt], holder: str | None) -> str:
    if run.is_complete():
        return AttemptState.COMPLETE
    if attempts and attempts[-1].state is not AttemptState.LOST:
        return attempts[-1].state
    if holder is not None and not attempts:
        return AttemptState.RUNNING
    return AttemptState.LOST if attempts else "unfinished"


def _last_line(run: RunDirectory) -> dict[str, Any]:
    """The last whole line of metrics."""
    try:
        texts = run.metrics.read_text().split("\n")[:-1]
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{run.metrics}: must be text, is damaged ({error}); restore it") from error
    for text in reversed(texts):
        with suppress(ValueError, TypeError):
            line = dict(json.loads(text))
            if isinstance(line.get("position"), int) and isinstance(line.get("time_s", 0), int | float):
                return line
    return {}
