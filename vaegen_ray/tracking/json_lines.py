"""``metrics.jsonl``: the record of a run that needs no program to be read.

One JSON object a line: ``position`` (images), ``time_s`` (Unix time), then the metrics by name. Positions
rise from line to line. JSON has no NaN and no infinity: such a value is ``null``, and ``not_finite`` maps its
name to "nan", "inf" or "-inf", so a column of numbers stays one and nothing is lost.
"""

import bisect
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

from PIL.Image import Image

from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import CheckpointError
from vaegen_ray.storage import Location

SECONDS_BETWEEN_UPLOADS = 10.0
"""An object store has no append, so the whole object is written each time."""

Line = dict[str, Any]


class JsonLines:
    """Writes ``file``: a local file grows line by line, an object is replaced every ten seconds and at a flush."""

    def __init__(self, file: Location, position: int, check_writer: Callable[[], None] = lambda: None) -> None:
        """Go on after ``position``: lines beyond it, and a line that a kill cut off, are dropped.

        ``check_writer`` raises where somebody else writes the file now. It is asked before an object is replaced: what
        one holds that had lost the run would take the place of its successor's.
        """
        self._file, self._check_writer = file, check_writer
        self._lines = [line for line in _read_lines(file) if line["position"] <= position]
        self._uploaded_s = time.monotonic()
        self._is_dirty = False
        self._stream: BinaryIO | None = None
        if file.is_local:
            self._rewrite()
            self._open()

    def scalars(self, record: Mapping[str, float], position: int) -> None:
        """Add a line, or add to the line of the same position where there is one.

        What comes late, because it was measured beside training, takes its place among the earlier lines.
        """
        line = _line_of(record, position)
        if self._lines and position < self._lines[-1]["position"]:
            self._insert(line, position)
            return
        is_same = bool(self._lines) and self._lines[-1]["position"] == position
        if is_same:
            line = _merged(self._lines.pop(), line)
        self._lines.append(line)
        self._write_last(replaces_last=is_same)

    def image(self, name: str, picture: Image, position: int) -> None:
        """Nothing: pictures lie in the run directory as files."""

    def flush(self) -> None:
        """Upload what is new; a local file is complete at any time."""
        if self._stream is None and self._is_dirty:
            self._rewrite()

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        if self._stream is not None:
            self._stream.close()

    def _write_last(self, *, replaces_last: bool) -> None:
        if self._stream is None:
            self._is_dirty = True
            if time.monotonic() - self._uploaded_s >= SECONDS_BETWEEN_UPLOADS:
                self._rewrite()
            return
        if not replaces_last:
            self._end_of_last_but_one = self._stream.seek(0, 2)
        self._stream.seek(self._end_of_last_but_one)
        content = _encoded(self._lines[-1:])
        while content:  # A disk that becomes full takes a part, and says so only at the next write.
            content = content[self._stream.write(content) :]
        self._stream.truncate()

    def _insert(self, line: Line, position: int) -> None:
        at = bisect.bisect_left(self._lines, position, key=lambda other: int(other["position"]))
        if self._lines[at]["position"] == position:
            self._lines[at] = _merged(self._lines[at], line)
        else:
            self._lines.insert(at, line)
        if self._stream is None:
            self._is_dirty = True
            return
        self._stream.close()
        self._rewrite()
        self._open()

    def _open(self) -> None:
        self._stream = self._file.local_path.open("r+b", buffering=0)
        self._stream.seek(0, 2)
        self._end_of_last_but_one = self._stream.tell() - len(_encoded(self._lines[-1:]))

    def _rewrite(self) -> None:
        if self._stream is None:
            self._check_writer()
        self._file.write_bytes(_encoded(self._lines))
        self._uploaded_s, self._is_dirty = time.monotonic(), False


def read_metrics(run: RunDirectory) -> list[Line]:
    """The lines of ``metrics.jsonl`` in the order of position, values that are not finite restored as floats.

    Empty when there are none yet; a last line that is being written, or was cut off, is left out. Raises
    CheckpointError where another line is damaged.
    """
    lines = _read_lines(run.metrics)
    for line in lines:
        line.update({name: float(text) for name, text in line.pop("not_finite", {}).items()})
    return lines


def evaluations(lines: Iterable[Line]) -> list[Line]:
    """The lines that hold an evaluation's scores: every evaluation measures this distance, and nothing else does."""
    return [line for line in lines if "sample_swd" in line]


def finite_points(lines: Iterable[Line], name: str) -> list[tuple[int, float]]:
    """Position and value of the metric ``name`` in the lines that have a finite one."""
    found = [(line["position"], line.get(name)) for line in lines]
    return [(at, value) for at, value in found if isinstance(value, int | float) and math.isfinite(value)]


def _read_lines(file: Location) -> list[Line]:
    if not file.exists():
        return []
    try:
        texts = file.read_text().split("\n")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{file}: must be text, is damaged ({error}); restore it") from error
    # What follows the last line break is empty, or a line cut off.
    return [_parsed(text, file, number) for number, text in enumerate(texts[:-1], start=1)]


def _parsed(text: str, file: Location, number: int) -> Line:
    try:
        line = json.loads(text)
        if isinstance(line["position"], int):
            return dict(line)
    except (ValueError, TypeError, KeyError):
        pass
    rule = f"line {number} must be a JSON object with a position"
    raise CheckpointError(f"{file}: {rule}, got {text[:60]!r}; remove the line")


def _line_of(record: Mapping[str, float], position: int) -> Line:
    line: Line = {"position": position, "time_s": round(time.time(), 3)}
    not_finite = {name: str(float(value)) for name, value in record.items() if not math.isfinite(value)}
    line |= {name: None if name in not_finite else value for name, value in record.items()}
    return line | ({"not_finite": not_finite} if not_finite else {})


def _merged(old: Line, new: Line) -> Line:
    not_finite = {name: kind for name, kind in old.pop("not_finite", {}).items() if name not in new}
    not_finite |= new.pop("not_finite", {})
    return {**old, **new} | ({"not_finite": not_finite} if not_finite else {})


def _encoded(lines: list[Line]) -> bytes:
    return "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode()
