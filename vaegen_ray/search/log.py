"""The append-only record of a search: what happened to each trial, one JSON object a line.

The truth about a search. Writing costs the new event, however many trials there are. Segments
(``log/000000.jsonl``, ...) are numbered, and so are the lines through all of them, so that a lost line is seen.
A writer begins a new segment at each start and after some hundred lines; on an object store, which has no
append, only the newest segment is written again.
"""

import json
import logging
import threading
import time
from typing import IO, Any

from vaegen_ray.errors import CheckpointError
from vaegen_ray.runs.lease import Fence
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.trials import Event, Trials
from vaegen_ray.storage import Location

logger = logging.getLogger(__name__)

LINES_PER_SEGMENT = 500
SECONDS_BETWEEN_UPLOADS = 5.0


def read_trials(directory: SearchDirectory) -> Trials:
    """All that the log tells, from storage alone; a line that is being written is left out.

    Raises CheckpointError where the log is damaged before its end, or is gone although there are trials.
    """
    return Trials.of(_events(directory)[0])


class TrialLog:
    """The log with its writer. One process at a time may hold it."""

    def __init__(self, directory: SearchDirectory, fence: Fence | None = None) -> None:
        """Read what is there; a damaged end of the newest segment is set aside, loudly.

        ``fence`` is the driver's: once another has taken the search over, this one writes nothing more.
        """
        events, damage = _events(directory)
        if damage is not None:
            _set_aside(*damage)
        self.trials = Trials.of(events)
        self._directory, self._fence = directory, fence
        self._next_line = len(events)
        self._segment = self._new_segment()

    def record(self, event: Event) -> None:
        """Apply ``event`` to :attr:`trials` and append it. Waits for no object store."""
        event = {"line": self._next_line, "time_s": round(time.time(), 3), **event}
        self.trials.apply(event)
        self._next_line += 1
        if self._segment.num_lines == LINES_PER_SEGMENT:
            self._segment.close()
            self._segment = self._new_segment()
        self._segment.append(json.dumps(event, allow_nan=False) + "\n")

    def flush(self) -> None:
        """Everything recorded is in storage when this returns."""
        self._segment.flush()

    def close(self) -> None:
        """Flush and close."""
        self._segment.close()

    def _new_segment(self) -> "_Segment":
        log = self._directory.log
        return _Segment(_segment_file(log, _next_segment(log)), self._fence)


class _Segment:
    """One file, grown line by line on a disk, or replaced every few seconds in an object store."""

    def __init__(self, file: Location, fence: Fence | None) -> None:
        self.num_lines = 0
        self._file, self._fence = file, fence
        self._text = ""
        self._stream: IO[bytes] | None = None
        self._failure: Exception | None = None
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._closed = False
        self._uploaded_lines = 0
        self._check_fence()
        file.write_bytes(b"")
        if file.is_local:
            self._stream = file.local_path.open("ab")
        else:
            self._uploader = threading.Thread(target=self._upload_now_and_then, name="trial-log", daemon=True)
            self._uploader.start()

    def append(self, line: str) -> None:
        if self._failure is not None:
            raise self._failure
        self.num_lines += 1
        if self._stream is not None:
            self._stream.write(line.encode())
            self._stream.flush()  # A kill of this process loses nothing from here on.
            return
        with self._lock:
            self._text += line

    def flush(self) -> None:
        if self._stream is None:
            self._upload()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            return
        self._closed = True
        self._wake.set()
        self._uploader.join()
        self._upload()

    def _upload_now_and_then(self) -> None:
        while not self._closed:
            self._wake.wait(SECONDS_BETWEEN_UPLOADS)
            try:
                self._upload()
                self._failure = None
            except Exception as error:  # noqa: BLE001 (raised where the search sees it: at the next event)
                self._failure = error

    def _upload(self) -> None:
        with self._lock:
            text, num_lines = self._text, self.num_lines
        if num_lines > self._uploaded_lines:
            self._check_fence()
            self._file.write_text(text)
            self._uploaded_lines = num_lines

    def _check_fence(self) -> None:
        if self._fence is not None:
            self._fence.check()


# ---------------------------------------------------------------------------- reading

WRONG_NUMBER = "must be number"

Damage = tuple[Location, list[str], str]
"""Newest segment, its good lines, what is wrong with the next."""


def _events(directory: SearchDirectory) -> tuple[list[Event], Damage | None]:
    """All events in order, and the damage at the end of the newest segment if there is any."""
    events: list[Event] = []
    segments = _segments(directory.log)
    for index, name in enumerate(segments):
        file = directory.log / name
        lines = file.read_bytes().decode(errors="replace").splitlines(keepends=True)
        for position, text in enumerate(lines):
            problem, event = _parse(text, len(events))
            if event is None:
                is_gap = position == 0 and problem.startswith(WRONG_NUMBER)
                if is_gap or any((directory.log / later).read_bytes() for later in segments[index + 1 :]):
                    raise CheckpointError(
                        f"{file}: line {position + 1} {problem}: lines before the newest segment are lost; restore "
                        "the log, or begin another search"
                    )
                _refuse_nothing(events, directory)
                return events, (file, lines[:position], f"line {position + 1} {problem}")
            events.append(event)
    _refuse_nothing(events, directory)
    return events, None


def _parse(text: str, expected_line: int) -> tuple[str, Event | None]:
    if not text.endswith("\n"):
        return "is cut off", None
    try:
        event: Any = json.loads(text)
        if event["line"] != expected_line:
            return f"{WRONG_NUMBER} {expected_line} of the log, is {event['line']}", None
    except (ValueError, TypeError, KeyError):
        return "is no event", None
    return "", dict(event)


def _refuse_nothing(events: list[Event], directory: SearchDirectory) -> None:
    if not events and directory.trials.names():
        raise CheckpointError(
            f"{directory.log}: must tell of the trials that {directory.trials} holds, but is empty; restore it. "
            "To begin again from nothing, remove the search's directory"
        )


def _set_aside(file: Location, good: list[str], problem: str) -> None:
    logger.warning("%s: %s; the search falls back to what stands before it", file, problem)
    (file.parent / f"{file.name}.damaged").write_bytes(file.read_bytes())
    file.write_text("".join(good))


def _segments(log: Location) -> list[str]:
    return [name for name in log.names() if name.endswith(".jsonl")]


def _segment_file(log: Location, number: int) -> Location:
    return log / f"{number:06d}.jsonl"


def _next_segment(log: Location) -> int:
    newest = _segments(log)[-1:]
    return int(newest[0].split(".")[0]) + 1 if newest else 0
