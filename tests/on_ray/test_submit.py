"""From a job to an attempt, against a server that answers as Ray's job server does."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.config.samples import tree_of
from tests.on_ray.dashboards import forget_clusters, served, version_of
from vaegen_ray.config.loading import AnyJob, job_of
from vaegen_ray.on_ray import submit
from vaegen_ray.on_ray.connection import Connection, connect
from vaegen_ray.on_ray.submit import Submission, follow, package_of, running_attempt
from vaegen_ray.runs.attempts import AttemptState, read_attempts, root_of
from vaegen_ray.runs.status import status_of
from vaegen_ray.storage import Location


class JobServer:
    """Jobs by their id; of the next requests for one, as many fail as ``failures`` has statuses."""

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.failures: list[int] = []

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, object]:
        name = path.removeprefix("/api/jobs/")
        if path == "/api/version":
            return 200, version_of()
        if path.startswith("/api/packages/"):
            return 200, {}
        if method == "POST" and not name:
            job = json.loads(body)
            self.jobs[job["submission_id"]] = {**job, "type": "SUBMISSION", "status": "RUNNING"}
            return 200, {"job_id": None, "submission_id": job["submission_id"]}
        if not name:
            return 200, list(self.jobs.values())
        if self.failures:
            return self.failures.pop(0), "no head"
        return (200, self.jobs[name]) if name in self.jobs else (404, f"Job {name} does not exist")


@contextmanager
def job_server() -> Iterator[tuple[JobServer, Connection]]:
    jobs = JobServer()

    def answer(request: BaseHTTPRequestHandler) -> tuple[int, bytes]:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        status, content = jobs.answer(request.command, request.path.split("?")[0], body)
        return status, json.dumps(content).encode()

    with served(answer) as address:
        yield jobs, connect(address)


@pytest.fixture(autouse=True)
def _quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_clusters(tmp_path, monkeypatch)
    monkeypatch.setattr(submit, "POLL_S", 0.01)
    monkeypatch.setattr(submit, "AWAY_S", 0.3)


def job_in(storage: Path) -> AnyJob:
    return job_of(tree_of("vae") | {"storage": str(storage)}, "job")


def submitted(connection: Connection, job: AnyJob, known_attempts: int = 0) -> Submission:
    with package_of(job) as (package, _):
        return submit.submit(connection, job, package, known_attempts)


def test_submission_has_a_status_before_its_driver_begins(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    root_of(job).check_writable()  # As the probe does on the cluster.
    with job_server() as (_, connection):
        submission = submitted(connection, job, known_attempts=2)
        (attempt,) = read_attempts(root_of(job))
        status = status_of(root_of(job))
    assert submission.is_announced
    assert (attempt.number, attempt.submission, attempt.driver) == (3, "tiny-a3", "")
    assert attempt.cluster == connection.address
    assert status is not None
    assert status.state is AttemptState.RUNNING


def test_second_submission_joins_the_first_and_the_next_attempt_has_the_next_number(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    root_of(job).check_writable()
    with job_server() as (jobs, connection):
        first = submitted(connection, job)
        second = running_attempt(connection, job)
        assert second is not None
        assert (second.id, second.joined) == (first.id, True)
        jobs.jobs[first.id]["status"] = "FAILED"
        assert running_attempt(connection, job) is None
        known = read_attempts(root_of(job))[-1].number
        assert submitted(connection, job, known).id == "tiny-a2"


def test_folder_that_is_on_the_cluster_only_is_not_made_here(tmp_path: Path) -> None:
    with job_server() as (_, connection):
        assert not submitted(connection, job_in(tmp_path / "elsewhere")).is_announced
    assert not (tmp_path / "elsewhere").exists()


def test_failures_of_a_proxy_do_not_end_the_wait(tmp_path: Path) -> None:
    with job_server() as (jobs, connection):
        submission = submitted(connection, job_in(tmp_path))
        jobs.jobs[submission.id]["status"] = "SUCCEEDED"
        jobs.failures = [502, 503, 500]
        assert follow(connection, submission, show_log=False).exit_code == 0
        assert jobs.failures == []


def test_proxy_that_goes_on_to_fail_ends_the_wait_as_a_lost_cluster(tmp_path: Path) -> None:
    with job_server() as (jobs, connection):
        submission = submitted(connection, job_in(tmp_path))
        jobs.failures = [503] * 10_000
        outcome = follow(connection, submission, show_log=False)
    assert outcome.is_transient
    assert "has not answered for" in outcome.message


def test_head_that_has_forgotten_the_job_is_told_from_one_that_is_away(tmp_path: Path) -> None:
    with job_server() as (_, connection):
        outcome = follow(connection, Submission("tiny-a9", Location.of(tmp_path), joined=True), show_log=False)
    assert outcome.is_transient
    assert "does not know tiny-a9" in outcome.message
