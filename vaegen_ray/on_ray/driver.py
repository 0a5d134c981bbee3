"""What Ray runs of a submission: a verb as a child, with what a cluster needs around it.

The child's output is kept in the run directory, its end is recorded there, and a request to stop reaches it:
SIGTERM, so that it saves and leaves; after the job's window, SIGKILL.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from vaegen_ray.config.compare import CompareJob
from vaegen_ray.config.job import Resources, TrainJob
from vaegen_ray.config.loading import AnyJob, dump_job, load_job
from vaegen_ray.config.prepare import PrepareJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.config.search import SearchJob
from vaegen_ray.errors import StorageError, VaegenError, exit_code
from vaegen_ray.runs.attempts import (
    BEAT_S,
    DRIVER_LOG,
    FAILURE,
    LOGS,
    PREPARE_JOB,
    STOP,
    Attempt,
    AttemptState,
    LogArchive,
    attempt_folder,
    now,
    redacted,
    root_of,
    write_attempt,
)
from vaegen_ray.runs.lease import SUBMISSION, Holder

ATTEMPT, CLUSTER = "VAEGEN_ATTEMPT", "VAEGEN_CLUSTER"
LOOK_S = 1.0


def main(job_file: str) -> int:
    """Run the verb of the job in ``job_file`` to its end; its exit code, or that of the failure to begin it."""
    try:
        return _run(job_file)
    except VaegenError as error:
        print(f"error: {redacted(str(error), os.environ)}", flush=True)  # noqa: T201
        return exit_code(error)


def _run(job_file: str) -> int:
    job = load_job(job_file)
    root, number = root_of(job), int(os.environ[ATTEMPT])
    if isinstance(job, PrepareJob):  # The others' verbs keep theirs.
        (root / PREPARE_JOB).write_text(dump_job(job))
    attempt = Attempt(
        number=number,
        submission=os.environ[SUBMISSION],
        cluster=os.environ[CLUSTER],
        driver=str(Holder.this_process()),
        begun=now(),
        heard=now(),
    )
    write_attempt(root, attempt)
    with tempfile.TemporaryDirectory(prefix="vaegen-driver-") as spool:
        log, failure = Path(spool) / DRIVER_LOG, Path(spool) / "failure.json"
        with LogArchive(attempt_folder(root, number) / DRIVER_LOG, [log]):
            code = _Child(job, job_file, attempt, log, failure).run()
        found = json.loads(failure.read_text()) if failure.exists() else {}
    message = redacted(found.get("message", ""), os.environ) or ("" if code == 0 else _end_in_words(code))
    ended = replace(attempt, state=_state(code), exit_code=code, error=message, error_kind=found.get("kind", ""))
    try:
        write_attempt(root, replace(ended, position=_newest_position(job)))
    except StorageError as error:
        # The verb has ended as it has; its own code is what the submitter needs.
        print(f"{error}; cannot record how this attempt ended", flush=True)  # noqa: T201
    return code


def _newest_position(job: AnyJob) -> int | None:
    """Of the checkpoints of a train job; 0 where there is none."""
    return max(RunDirectory.of(job).checkpoint_positions(), default=0) if isinstance(job, TrainJob) else None


class _Child:
    """The verb, while it runs."""

    def __init__(self, job: AnyJob, job_file: str, attempt: Attempt, log: Path, failure: Path) -> None:
        self._root, self._attempt, self._log = root_of(job), attempt, log
        self._folder = attempt_folder(self._root, attempt.number)
        self._resources = resources_of(job)
        environment = {**os.environ, LOGS: self._folder.url, FAILURE: str(failure)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "vaegen_ray", job.kind, job_file],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        self._kill_at_s: float | None = None

    def run(self) -> int:
        """Wait for its end; 128 + N where signal N ended it."""
        assert self._process.stdout is not None
        copier = threading.Thread(target=_copy, args=[self._process.stdout, self._log], daemon=True)
        copier.start()
        end_s = time.monotonic() + (self._resources.max_duration_s or float("inf"))
        beat_s = time.monotonic()
        with _signals_forwarded(self._ask_to_stop):
            while self._process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(LOOK_S)
                moment_s = time.monotonic()
                if moment_s > end_s and self._kill_at_s is None:
                    print(f"resources.max_duration_s ({self._resources.max_duration_s:g}) is over", flush=True)  # noqa: T201
                    self._ask_to_stop(signal.SIGTERM)
                if self._kill_at_s is not None and moment_s > self._kill_at_s:
                    self._process.kill()
                if moment_s - beat_s >= BEAT_S:
                    beat_s = moment_s
                    self._beat()
                self._obey_request()
        copier.join()
        code = self._process.returncode
        return 128 - code if code < 0 else code

    def _ask_to_stop(self, number: int) -> None:
        if self._kill_at_s is None:
            self._kill_at_s = time.monotonic() + self._resources.stop_window_s
            self._process.send_signal(number)

    def _obey_request(self) -> None:
        """Look for the file by which `vaegen stop` asks where it cannot reach the cluster."""
        try:
            request = self._folder / STOP
            if request.exists():
                if request.read_text() == "now":
                    self._process.kill()
                self._ask_to_stop(signal.SIGTERM)
        except StorageError:
            return  # Object stores recover; the next look sees it.

    def _beat(self) -> None:
        try:
            write_attempt(self._root, self._attempt)
        except StorageError as error:
            print(f"{error}; cannot record that this driver lives", flush=True)  # noqa: T201


def resources_of(job: AnyJob) -> Resources:
    """Of the train job that ``job`` is or searches; the defaults for a dataset."""
    if isinstance(job, PrepareJob):
        return Resources()
    return job.base.resources if isinstance(job, SearchJob | CompareJob) else job.resources


def _copy(stream: IO[bytes], log: Path) -> None:
    """Print what the child prints and keep it, without secrets."""
    with log.open("ab", buffering=0) as file:
        for line in stream:
            text = redacted(line.decode(errors="replace"), os.environ)
            with suppress(OSError):  # A full disk costs a part of the log; a child whose words nobody takes would hang.
                file.write(text.encode())
                sys.stdout.write(text)
                sys.stdout.flush()


@contextmanager
def _signals_forwarded(ask_to_stop: Callable[[int], None]) -> Iterator[None]:
    def forward(number: int, _frame: object) -> None:
        ask_to_stop(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, forward)
    yield


def _state(code: int) -> AttemptState:
    if code == 0:
        return AttemptState.COMPLETE
    return AttemptState.STOPPED if code in (128 + signal.SIGTERM, 128 + signal.SIGINT) else AttemptState.FAILED


def _end_in_words(code: int) -> str:
    if code == 128 + signal.SIGKILL:
        return "the driver was killed (SIGKILL): by `vaegen stop --now`, at the end of its time to stop, or for memory"
    if code in (128 + signal.SIGTERM, 128 + signal.SIGINT):
        return "asked to stop"
    return f"the command ended with exit code {code}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
