"""The attempts at a submitted job, and what their processes printed.

They are kept beside the run, because Ray's records die with its cluster: `logs/attempt-001/` holds `attempt.json`,
which the driver rewrites while it lives, `driver.log`, and of each worker `rank-0.log` and so on.
"""

import dataclasses
import enum
import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from vaegen_ray.config.loading import AnyJob
from vaegen_ray.config.prepare import PrepareJob
from vaegen_ray.config.url_secrets import without_url_secrets
from vaegen_ray.errors import StorageError, VaegenError
from vaegen_ray.storage import Location

LOGS = "VAEGEN_LOGS"
"""Environment variable: the folder of the attempt that a process belongs to."""
FAILURE = "VAEGEN_FAILURE"
"""Environment variable: the local file in which a verb leaves the failure that ends it, for its driver."""
PREPARE_JOB, BESIDE_DATASET = "submission.json", "-submission"
"""The job that makes a dataset, in a folder that is named as the dataset's and this. Datasets have a `prepare.json`."""
DRIVER_LOG, RECORD, STOP = "driver.log", "attempt.json", "stop"
BEAT_S = 10.0
SILENCE = timedelta(seconds=90)
"""After so long without a word a driver counts as lost."""
PATIENCE = timedelta(minutes=30)
"""Before its driver begins, an attempt waits for nodes, and for them to unpack its code."""
FIRST_UPLOAD_S, UPLOAD_S = 1.0, 10.0
KEPT_BYTES = 4 * 2**20
"""Of each file of a log, the end: an object store has no append, so all of it is written each time."""


class AttemptState(enum.StrEnum):
    """How an attempt stands."""

    RUNNING = "running"
    COMPLETE = "complete"
    STOPPED = "stopped"
    FAILED = "failed"
    LOST = "lost"
    """Its driver has not been heard of for a while."""


@dataclass(frozen=True)
class Attempt:
    """One submission of a job, as its driver tells of it; until it begins, as it was submitted."""

    number: int
    submission: str
    cluster: str
    """Address of the dashboard, as it was submitted to."""
    driver: str
    """Empty until it begins."""
    begun: str
    heard: str
    state: AttemptState = AttemptState.RUNNING
    exit_code: int | None = None
    error: str = ""
    error_kind: str = ""
    position: int | None = None
    """Of the newest checkpoint when it ended; None for what is not a train job."""

    def seen(self, now: datetime) -> Self:
        """The same, with the state LOST where its driver has been silent for too long."""
        silence = now - datetime.fromisoformat(self.heard)
        if self.state is AttemptState.RUNNING and silence > (SILENCE if self.driver else PATIENCE):
            return dataclasses.replace(self, state=AttemptState.LOST)
        return self


def root_of(job: AnyJob) -> Location:
    """Where the records of ``job`` lie: its run or search, or beside its dataset."""
    if isinstance(job, PrepareJob):
        return Location.of(f"{Location.of(job.destination)}{BESIDE_DATASET}")
    return Location.of(job.storage) / job.name


def attempt_folder(root: Location, number: int) -> Location:
    """The folder of an attempt at the run in ``root``."""
    return root / "logs" / f"attempt-{number:03d}"


def rank_log(rank: int) -> str:
    """Name of the file with what a worker printed."""
    return f"rank-{rank}.log"


def read_attempts(root: Location) -> list[Attempt]:
    """All attempts at the run in ``root``, in their order."""
    names = (root / "logs").names()
    numbers = sorted(int(match.group(1)) for name in names if (match := re.fullmatch(r"attempt-(\d{3,})", name)))
    attempts = (_read(attempt_folder(root, number)) for number in numbers)
    return [attempt.seen(datetime.now(UTC)) for attempt in attempts if attempt is not None]


def write_attempt(root: Location, attempt: Attempt) -> None:
    """Keep ``attempt``, as of now."""
    (attempt_folder(root, attempt.number) / RECORD).write_text(_record(attempt))


def announce_attempt(root: Location, attempt: Attempt) -> None:
    """Keep ``attempt`` unless its driver has begun, and keeps it itself."""
    (attempt_folder(root, attempt.number) / RECORD).create(_record(attempt).encode())


def _record(attempt: Attempt) -> str:
    return json.dumps({**dataclasses.asdict(attempt), "heard": now()}, indent=2) + "\n"


def now() -> str:
    """The time, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read(folder: Location) -> Attempt | None:
    """The record in ``folder``; None where the driver was killed before it wrote one whole."""
    try:
        record = json.loads((folder / RECORD).read_text())
        return Attempt(**{**record, "state": AttemptState(record["state"])})
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    except (ValueError, TypeError, KeyError):
        return None


# ---------------------------------------------------------------------------- failures


def keep_failure(error: VaegenError) -> None:
    """Leave ``error`` for the driver of this process, if it has one."""
    if path := os.environ.get(FAILURE):
        Path(path).write_text(json.dumps({"kind": type(error).__name__, "message": str(error)}))


# ---------------------------------------------------------------------------- logs


class LogArchive:
    """Copies the end of local files to ``target``, while it is open and once more at its end; without secrets."""

    def __init__(self, target: Location, files: Sequence[str | Path]) -> None:
        self._target, self._files = target, [Path(file) for file in files if str(file)]
        self._ended = threading.Event()
        self._kept = b""
        self._thread = threading.Thread(target=self._follow, name="log-archive", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        is_over, wait_s = False, FIRST_UPLOAD_S
        while not is_over:
            is_over = self._ended.wait(wait_s)
            wait_s = min(2 * wait_s, UPLOAD_S)  # The first words soon: what is wrong is often said there.
            content = redacted(b"".join(map(_end_of, self._files)).decode(errors="replace"), os.environ).encode()
            if content == self._kept:
                continue
            try:
                self._target.write_bytes(content)
                self._kept = content
            except StorageError:
                continue  # Object stores recover; a log is not worth a run.


SECRET_NAMES = re.compile(
    r"SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|_PWD$|ACCESS_KEY|API_?KEY|(^|_)KEY$|CONNECTION_STRING|CREDENTIAL|PRIVATE",
    re.IGNORECASE,
)
SHORTEST_SECRET = 6
"""Characters; shorter values would blot out words."""


def redacted(text: str, environment: Mapping[str, str]) -> str:
    """``text`` with the values of secret environment variables, Ray's token and secrets in URLs blotted out."""
    secrets = [
        value.strip() for name, value in environment.items() if SECRET_NAMES.search(name) and not name.endswith("_PATH")
    ]
    for secret in sorted([*secrets, _ray_token(environment)], key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, "***")
    return without_url_secrets(text)


def _ray_token(environment: Mapping[str, str]) -> str:
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""


def _end_of(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            stream.seek(max(stream.seek(0, os.SEEK_END) - KEPT_BYTES, 0))
            return stream.read()
    except FileNotFoundError:
        return b""
