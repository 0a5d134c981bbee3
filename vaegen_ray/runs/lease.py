"""The right to write one run, held by one driver at a time.

A lease is a row of numbered files in the run's directory. To take the run over is to create the next number, which
an object store, like a disk, lets only one of several do; the holder shows that it lives by rewriting its own file.
So nothing is ever compared across machines' clocks, and no store needs more than "create if absent".

The number fences: a driver that was stopped for longer than its lease finds a higher number before it writes
again, and what it may have written in between carries the lower number, which readers pass over.
"""

import getpass
import json
import logging
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vaegen_ray.errors import JobError, LeaseLostError, StorageError
from vaegen_ray.storage import Location

logger = logging.getLogger(__name__)

BEAT_S = 10.0
"""Time between two signs of life."""
SILENCE_S = 45.0
"""After so long without one a holder counts as gone."""
UNLISTED_POLL_S, MOST_REFUSALS = 0.5, 20
"""How often a number is asked for that is taken and not listed, and how many times."""
LOOK_S = 2.0
KEPT = 2
"""Files of former holders that stay, to be read by people."""

SUBMISSION = "VAEGEN_SUBMISSION"
"""Environment variable that names the submission whose driver a process is."""


@dataclass(frozen=True)
class Holder:
    """A process that may write a run."""

    host: str
    pid: int
    born: str
    """When the process started, in the words of its system: a number may be given again to another process."""
    user: str
    submission: str = ""
    pid_namespace: str = ""
    """Within which the number means this process: containers may share their machine's name, and count alone."""

    @classmethod
    def this_process(cls) -> "Holder":
        """The one that asks."""
        pid, submission = os.getpid(), os.environ.get(SUBMISSION, "")
        return cls(socket.gethostname(), pid, _birth(pid), _user(), submission, _pid_namespace())

    def __str__(self) -> str:
        submitted = f"submission {self.submission}, " if self.submission else ""
        return f"{submitted}process {self.pid} on {self.host} of {self.user}"

    def is_near(self) -> bool:
        """Whether its number means a process of this machine, and of this container."""
        return (self.host, self.pid_namespace) == (socket.gethostname(), _pid_namespace())

    def is_known_dead(self) -> bool:
        """Whether it was a process of this machine, and of this container, that is no more."""
        # Where the system does not tell when processes began, only silence tells.
        return self.is_near() and bool(self.born) and _birth(self.pid) != self.born


@dataclass(frozen=True)
class Fence:
    """A number of the lease, in a form that crosses processes: what a driver's workers write under."""

    folder: Location
    number: int

    def check(self) -> None:
        """Raise LeaseLostError when somebody has taken the run over."""
        newest = max(_numbers(self.folder), default=0)
        if newest > self.number:
            raise LeaseLostError(
                f"{self.folder.parent} was taken over by {_described(_record(self.folder, newest))}, because "
                "this driver had given no sign of life; it writes nothing more"
            )


class Lease:
    """Held from its making until :meth:`release`."""

    def __init__(self, folder: Location, *, above: int = 0) -> None:
        """Take the lease whose files lie in ``folder``, with a number higher than ``above``.

        Waits until it is known whether a silent holder lives, at most ``SILENCE_S``; JobError, which names the
        holder, when it does.
        """
        self._holder = Holder.this_process()
        self._beats, self._token = 0, uuid.uuid4().hex
        refusals = 0
        while True:
            newest = max(_numbers(folder), default=0)
            if newest:
                _wait_for_silence(folder, newest)
            self.fence = Fence(folder, max(newest, above) + 1)
            if self._file.create(self._content()):
                break
            if newest == max(_numbers(folder), default=0):
                refusals += 1  # By somebody whose file a store does not list yet, or never will.
                time.sleep(UNLISTED_POLL_S)
            if refusals > MOST_REFUSALS:
                raise StorageError(f"{self._file}: is there, but its folder does not list it; use another storage")
        for number in sorted(_numbers(folder))[: -KEPT - 1]:
            (folder / _name(number)).remove()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let go, so that the next holder need not wait."""
        self._ended.set()
        self._thread.join()
        try:
            self._file.write_bytes(self._content(released=True))
        except StorageError as error:
            logger.warning("%s; the next driver of this run will wait for %.0f s", error, SILENCE_S)

    @property
    def _file(self) -> Location:
        return self.fence.folder / _name(self.fence.number)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            self._beats += 1
            try:
                self._file.write_bytes(self._content())
            except StorageError as error:
                logger.warning("%s; this driver cannot show that it lives", error)

    def _content(self, *, released: bool = False) -> bytes:
        record = {
            **vars(self._holder),
            "beats": self._beats,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "released": released,
            "token": self._token,
        }
        return json.dumps(record, indent=2).encode()


@contextmanager
def sole_writer(root: Location, lock: Location, lease: Location, timeout_s: float, refusal: str) -> Iterator[Fence]:
    """Keep a second process from writing ``root``: on a local disk as :func:`locked`, everywhere by a new lease."""
    with locked(root, lock, lease, timeout_s, refusal):
        held = Lease(lease)
        try:
            yield held.fence
        finally:
            held.release()


@contextmanager
def locked(root: Location, lock: Location, lease: Location, timeout_s: float, refusal: str) -> Iterator[None]:
    """Keep a second process of this machine from writing the local ``root``; nothing for one in an object store.

    The lock goes with its holder, however it dies. ``refusal`` is the message of the JobError where another process has
    it; its ``{holder}`` becomes that process in brackets, where the ``lease`` tells.
    """
    if not root.is_local:
        yield
        return
    root.local_path.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock.local_path, timeout=timeout_s):
            yield
    except Timeout as error:
        holder = holder_of(lease)
        raise JobError(refusal.format(root=root, holder=f" ({holder})" if holder else "")) from error


def holder_of(folder: Location) -> str | None:
    """The newest holder in words, where it has not let go and is not known to be dead."""
    record = _living(folder)
    return None if record is None else _described(record)


def newest_holder(folder: Location) -> Holder | None:
    """The process that writes, where it has not let go and is not known to be dead."""
    record = _living(folder)
    return None if record is None else _holder(record)


def _living(folder: Location) -> dict[str, Any] | None:
    newest = max(_numbers(folder), default=0)
    record = _record(folder, newest) if newest else None
    return None if record is None or _has_gone(record) else record


def _wait_for_silence(folder: Location, number: int) -> None:
    record = _record(folder, number)
    if record is None or _has_gone(record):
        return
    logger.warning("%s: held by %s; looking whether it lives", folder.parent, _described(record))
    until = time.monotonic() + SILENCE_S
    while time.monotonic() < until:
        time.sleep(LOOK_S)
        now = _record(folder, number)
        if now is None or _has_gone(now):
            return
        if now["beats"] != record["beats"]:
            raise JobError(
                f"name: {folder.parent} is being written by another process ({_described(now)}, which lives); wait for "
                "it, stop it with `vaegen stop`, or give this job another name"
            )


def _has_gone(record: dict[str, Any]) -> bool:
    return bool(record["released"]) or _holder(record).is_known_dead()


def _holder(record: dict[str, Any]) -> Holder:
    return Holder(**{name: record[name] for name in Holder.__dataclass_fields__ if name in record})


def _described(record: dict[str, Any] | None) -> str:
    return "another process" if record is None else f"{_holder(record)}, last heard of at {record['time']}"


def _record(folder: Location, number: int) -> dict[str, Any] | None:
    """What the holder wrote; None where the file has gone, or was cut off by a full disk."""
    try:
        record = json.loads((folder / _name(number)).read_text())
        _holder(record)
        return {**record, "beats": int(record["beats"]), "released": record["released"], "time": record["time"]}
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    except (ValueError, KeyError, TypeError):
        return None


def _name(number: int) -> str:
    return f"{number:06d}.json"


def _numbers(folder: Location) -> list[int]:
    return [int(match.group(1)) for name in folder.names() if (match := re.fullmatch(r"(\d{6,})\.json", name))]


def _birth(pid: int) -> str:
    """Clock ticks since the system's start at which the process began, and the system's start; empty if it is not."""
    try:
        # The name in brackets may hold anything.
        ticks = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}-{ticks}"
    except (OSError, IndexError):
        return ""


def _pid_namespace() -> str:
    """What tells it from others of this machine; empty where the system has none."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
