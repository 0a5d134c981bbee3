"""The driver on the user's machine: from a job to its end on a cluster, however many attempts that takes.

Imports no torch. A submission is one attempt at a run, and its id, `<name>-a<attempt>`, says so: Ray lets an id be used
once, so of two that submit the same attempt one does, and the other joins it.
"""

import asyncio
import logging
import re
import shlex
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from vaegen_ray.config.compare import CompareJob
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.loading import AnyJob, dump_job, job_of
from vaegen_ray.config.places import places
from vaegen_ray.config.prepare import PrepareJob
from vaegen_ray.config.search import SearchJob
from vaegen_ray.config.settings import with_settings
from vaegen_ray.errors import ClusterError, ClusterUnavailableError, JobError, StorageError
from vaegen_ray.on_ray.connection import Connection, connect
from vaegen_ray.on_ray.driver import ATTEMPT, CLUSTER, resources_of
from vaegen_ray.on_ray.packing import JOB_FILE, fingerprint, packed
from vaegen_ray.on_ray.probe_findings import MARK, Findings
from vaegen_ray.runs.attempts import Attempt, announce_attempt, now, read_attempts, root_of
from vaegen_ray.runs.lease import SUBMISSION
from vaegen_ray.storage import Location

logger = logging.getLogger(__name__)

RUN, JOB = "vaegen_run", "vaegen_job"
"""Keys of a submission's metadata: the run's directory, and the fingerprint of its job."""
OVER = ("SUCCEEDED", "STOPPED", "FAILED")
POLL_S = 1.0
PROBE_S = 300.0
AWAY_S = 120.0
"""A head that does not answer for so long is gone, with the job."""
FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 300.0
TRANSIENT = 75
"""Exit code of a verb whose failure was not the job's: os.EX_TEMPFAIL."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Submission:
    """An attempt that the cluster has."""

    id: str
    run: Location
    joined: bool
    """Whether it ran already."""
    is_announced: bool = True
    """Whether its run's directory tells of it, also before its driver has begun."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    exit_code: int
    """0 for a run that is complete; 75 where the cluster or the store failed."""
    message: str = ""

    @property
    def is_transient(self) -> bool:
        """Whether another attempt may succeed."""
        return self.exit_code == TRANSIENT


# ---------------------------------------------------------------------------- before


def absolute(job: AnyJob) -> AnyJob:
    """``job`` with every local path made absolute: they begin where the command was given."""
    if isinstance(job, SearchJob | CompareJob):
        tree = job.model_dump(mode="json")
        tree |= {"storage": _absolute(job.storage), "base": _absolute_train(job.base).model_dump(mode="json")}
        if isinstance(job, SearchJob):
            tree["warm_start"] = [_absolute(place) for place in job.warm_start]
        return job_of(tree, job.name)
    if isinstance(job, PrepareJob):
        tree = job.model_dump(mode="json")
        tree["destination"] = _absolute(job.destination)
        tree["source"] |= {key: _absolute(tree["source"][key]) for key in ("path", "root") if key in tree["source"]}
        return job_of(tree, job.name)
    return _absolute_train(job)


def _absolute_train(job: TrainJob) -> TrainJob:
    settings = {key: _absolute(place) for key, place in places(job).items()}
    return TrainJob.model_validate(with_settings(job.model_dump(mode="json"), settings))


def _absolute(path: str) -> str:
    return Location.of(path).url


def check_exposure(connection: Connection, findings: Findings | None = None) -> None:
    """Refuse a cluster on which anybody who reaches it may run code."""
    where = connection.address
    if not connection.is_exposed:
        if connection.needs_token or findings is None or findings.exposed_at is None:
            return
        where = findings.exposed_at
    raise ClusterError(
        f"the cluster has no authentication and can be reached from outside ({where}): whoever reaches it can run any "
        "code there. Start it with RAY_AUTH_MODE=token (`ray get-auth-token --generate` makes one); where a firewall "
        "keeps others away, --insecure submits all the same"
    )


def preflight(connection: Connection, job: AnyJob, package: Path, say: Say) -> Findings:
    """Have the cluster look at itself and at the job's storage and data; ClusterError with all that is wrong."""
    name = f"{job.name}-probe-{uuid.uuid4().hex[:8]}"
    with _answered(connection):
        connection.client.submit_job(
            entrypoint=f"python -m vaegen_ray.on_ray.probe {JOB_FILE}",
            submission_id=name,
            runtime_env={"working_dir": str(package), "env_vars": {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}},
        )
        info = _wait_for_probe(connection, name, say)
        log = connection.client.get_job_logs(name)
        with suppress(RuntimeError):
            connection.client.delete_job(name)
    lines = [line for line in log.splitlines() if line.startswith(MARK)]
    if not lines:
        raise ClusterError(
            f"the cluster could not look at the job ({info.status}): {_last_words(log) or info.message or 'no output'}"
        )
    findings = Findings.parsed(lines[-1])
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not findings.python.startswith(f"{ours}."):
        findings.problems.insert(
            0,
            f"the cluster runs Python {findings.python}, this machine {ours}; they must be the same: use an image "
            f"with Python {ours}, or submit with the cluster's",
        )
    if findings.problems:
        raise ClusterError("\n".join(findings.problems))
    return findings


def _wait_for_probe(connection: Connection, name: str, say: Say) -> Any:
    begun_s, said_s = time.monotonic(), time.monotonic()
    while True:
        info = connection.client.get_job_info(name)
        if info.status in OVER:
            return info
        elapsed_s = time.monotonic() - begun_s
        if elapsed_s > PROBE_S:
            connection.client.stop_job(name)
            raise ClusterUnavailableError(
                f"the cluster did not start a small job within {PROBE_S:.0f} s ({info.status}: {info.message}); look "
                "at its dashboard, or use `ray status` there"
            )
        if time.monotonic() - said_s > 15:
            said_s = time.monotonic()
            say(f"the cluster prepares the code ({info.status.lower()} for {elapsed_s:.0f} s)")
        time.sleep(0.5)


# ---------------------------------------------------------------------------- an attempt


@contextmanager
def package_of(job: AnyJob) -> Iterator[tuple[Path, str]]:
    """The archive of code and job as a file, and its fingerprint."""
    content = packed(dump_job(job))
    name = fingerprint(content)
    with tempfile.TemporaryDirectory(prefix="vaegen-submit-") as folder:
        package = Path(folder) / f"vaegen-{name[:16]}.zip"
        package.write_bytes(content)
        yield package, name


def running_attempt(connection: Connection, job: AnyJob) -> Submission | None:
    """The attempt at this run that the cluster is at; JobError where it is at another job in the same place."""
    root = root_of(job)
    for info in _jobs(connection):
        metadata = info.metadata or {}
        if metadata.get(RUN) != root.url or info.status in OVER:
            continue
        if metadata.get(JOB) != _job_fingerprint(job):
            raise JobError(
                f"name: {root} is being written by {info.submission_id}, which is another job; wait for it, stop it "
                f"with `vaegen stop {root}`, or give this job another name"
            )
        return Submission(info.submission_id, root, joined=True)
    return None


def request_of(job: AnyJob, attempt: int, connection_address: str) -> dict[str, Any]:
    """What is asked of Ray for an attempt, without the code. Holds no secret: the cluster's nodes have their own."""
    resources = resources_of(job)
    name = f"{job.name}-a{attempt}"
    return {
        "submission_id": name,
        "entrypoint": shlex.join(["python", "-m", "vaegen_ray.on_ray.driver", JOB_FILE]),
        "metadata": {RUN: root_of(job).url, JOB: _job_fingerprint(job), "vaegen_kind": job.kind},
        "env_vars": {
            SUBMISSION: name,
            ATTEMPT: str(attempt),
            CLUSTER: connection_address,
            # Ray's 3 s would kill the run before it has saved; a little more than the driver takes at most.
            "RAY_JOB_STOP_SIGNAL": "SIGTERM",
            "RAY_JOB_STOP_WAIT_TIME_S": str(int(resources.stop_window_s) + 15),
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        },
    }


def submit(connection: Connection, job: AnyJob, package: Path, known_attempts: int) -> Submission:
    """Begin the next attempt at ``job``, or join the one that somebody has begun meanwhile."""
    root = root_of(job)
    ids = [info.submission_id or "" for info in _jobs(connection)]
    taken = [int(match.group(1)) for name in ids if (match := re.fullmatch(rf"{re.escape(job.name)}-a(\d+)", name))]
    number = max([known_attempts, *taken]) + 1
    request = request_of(job, number, connection.address)
    env_vars = request.pop("env_vars")
    with _answered(connection):
        try:
            connection.client.submit_job(**request, runtime_env={"working_dir": str(package), "env_vars": env_vars})
        except RuntimeError as error:
            if "already exists" not in str(error) and "already been used" not in str(error):
                raise
            other = running_attempt(connection, job)
            if other is None:
                raise ClusterError(
                    f"{request['submission_id']} was taken by another run just now; submit again"
                ) from error
            return other
    is_announced = _announce(root, number, request["submission_id"], connection.address)
    return Submission(request["submission_id"], root, joined=False, is_announced=is_announced)


def _announce(root: Location, number: int, submission: str, cluster: str) -> bool:
    """Leave the attempt's record for `status` and `stop`; whether this machine can write to the run's directory."""
    if root.is_local and not root.exists():
        return False  # The probe has made it, where the cluster's disk is.
    attempt = Attempt(number=number, submission=submission, cluster=cluster, driver="", begun=now(), heard=now())
    try:
        announce_attempt(root, attempt)
    except StorageError as error:
        logger.debug("%s is not announced: %s", submission, error)
        return False
    return True


def follow(connection: Connection, submission: Submission, *, show_log: bool) -> Outcome:
    """Wait for the end of an attempt, and print what it prints where ``show_log``."""
    printed = 0
    while True:
        try:
            if show_log:
                printed = asyncio.run(_print_log(connection, submission.id, printed))
            info = _status_patiently(connection, submission.id)
        except ClusterUnavailableError as error:
            return Outcome(TRANSIENT, str(error))
        if info.status in OVER:
            return _outcome(info)
        time.sleep(POLL_S)


async def _print_log(connection: Connection, name: str, printed: int) -> int:
    """Print the log from character ``printed`` on until it ends or the connection does; returns how far it came."""
    seen = 0
    try:
        async for text in connection.client.tail_job_logs(name):
            seen += len(text)
            if seen > printed:
                sys.stdout.write(text[len(text) - min(seen - printed, len(text)) :])
                sys.stdout.flush()
                printed = seen
    except Exception as error:  # noqa: BLE001  (aiohttp's, or Ray's RuntimeError: the status tells whether it matters)
        logger.debug("the log of %s ended: %r", name, error)
    return printed


def _status_patiently(connection: Connection, name: str) -> Any:
    """What the cluster says of the job; ClusterUnavailableError when it has not answered for a while, or forgot it."""
    until_s = time.monotonic() + AWAY_S
    while True:
        try:
            return connection.client.get_job_info(name)
        except requests.exceptions.RequestException as error:
            failure: Exception = error
        except RuntimeError as error:
            failure = error
            if not _is_passing(error):
                if "404" not in str(error) and "does not exist" not in str(error):
                    raise ClusterError(f"{connection.address}: {error}") from error
                raise ClusterUnavailableError(
                    f"the cluster at {connection.address} does not know {name}: its head has begun anew"
                ) from error
        if time.monotonic() > until_s:
            raise ClusterUnavailableError(
                f"{connection.address} has not answered for {AWAY_S:.0f} s; {name} is lost with its head"
            ) from failure
        time.sleep(POLL_S)


def _is_passing(error: RuntimeError) -> bool:
    """Whether Ray's error is an answer 5xx: `No available agent`, of a head that has just begun, or a proxy's."""
    return "status code 5" in str(error)


def _outcome(info: Any) -> Outcome:
    if info.status == "SUCCEEDED":
        return Outcome(0)
    if info.status == "STOPPED":
        return Outcome(128 + 15, "stopped")
    if info.driver_exit_code is not None and info.error_type in (None, "JOB_ENTRYPOINT_COMMAND_ERROR"):
        code = int(info.driver_exit_code)
        return Outcome(TRANSIENT if code < 0 else code, _last_words(info.message or ""))
    # The driver never came to run, or went with its node: the cluster's fault.
    return Outcome(TRANSIENT, f"{info.error_type or 'lost'}: {_last_words(info.message or '')}")


# ---------------------------------------------------------------------------- several attempts


@dataclass
class Retries:
    """Whether to begin again after an attempt, and how long to wait before."""

    left: int
    waited: int = 0
    last: Attempt | None = None

    def may_follow(self, outcome: Outcome, root: Location) -> str | None:
        """None where another attempt may follow; else why not."""
        if not outcome.is_transient:
            return "a failure of the job would come again"
        attempt = _newest_attempt(root)
        before, self.last = self.last, attempt
        if attempt is not None and before is not None and _is_crash_loop(before, attempt):
            return f"it failed twice in the same way at the same place: {attempt.error}"
        if self.left == 0:
            return "no retries are left"
        self.left -= 1
        return None

    def wait_s(self) -> float:
        """Longer each time."""
        self.waited += 1
        return float(min(FIRST_WAIT_S * 2 ** (self.waited - 1), LONGEST_WAIT_S))


def _is_crash_loop(before: Attempt, after: Attempt) -> bool:
    """Whether workers died twice in the same way with no checkpoint between: something in the job kills them."""
    if before.number >= after.number or not before.error_kind == after.error_kind == "WorkersLostError":
        return False
    return (before.error, before.position) == (after.error, after.position)


def _newest_attempt(root: Location) -> Attempt | None:
    with suppress(StorageError):
        attempts = read_attempts(root)
        return attempts[-1] if attempts else None
    return None


def reconnected(address: str, say: Say) -> Connection:
    """A connection to a head that may just be coming back."""
    until_s, wait_s = time.monotonic() + 10 * AWAY_S, FIRST_WAIT_S
    while True:
        try:
            return connect(address)
        except ClusterUnavailableError:
            if time.monotonic() > until_s:
                raise
            say(f"{address} is away; trying again in {wait_s:.0f} s")
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 60.0)


# ---------------------------------------------------------------------------- what Ray knows


def stop(connection: Connection, submission: str) -> bool:
    """Ask Ray to stop a submission; whether it was running."""
    with _answered(connection):
        return bool(connection.client.stop_job(submission))


def submissions(connection: Connection) -> list[Any]:
    """Ray's records of all submissions of this project, the newest first."""
    found = [info for info in _jobs(connection) if (info.metadata or {}).get(RUN)]
    return sorted(found, key=lambda info: info.start_time or 0, reverse=True)


def _jobs(connection: Connection) -> list[Any]:
    with _answered(connection):
        return list(connection.client.list_jobs())


@contextmanager
def _answered(connection: Connection) -> Iterator[None]:
    """Give Ray's errors of one request as ours."""
    try:
        yield
    except requests.exceptions.RequestException as error:
        raise ClusterUnavailableError(f"{connection.address} no longer answers ({error})") from error
    except RuntimeError as error:
        if isinstance(error, ClusterError):
            raise
        if _is_passing(error):
            raise ClusterUnavailableError(f"{connection.address} is not ready: {error}") from error
        raise ClusterError(f"{connection.address} refuses: {error}") from error


def _job_fingerprint(job: AnyJob) -> str:
    return fingerprint(dump_job(job).encode())[:16]


def _last_words(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]
