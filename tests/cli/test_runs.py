"""`vaegen list`, `status`, `logs`, `stop` and `resume`, where there is no cluster."""

import json
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.test_validate import vaegen
from tests.config.samples import tree_of
from tests.evaluation.samples import finished, tiny_job
from vaegen_ray.cli import runs
from vaegen_ray.cli.runs import TAIL_CHARACTERS, beyond
from vaegen_ray.cli.submit import _job_in
from vaegen_ray.config.loading import dump_job, job_of, load_job
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.runs.attempts import (
    DRIVER_LOG,
    PREPARE_JOB,
    Attempt,
    AttemptState,
    attempt_folder,
    now,
    root_of,
    write_attempt,
)
from vaegen_ray.runs.lease import Holder, Lease
from vaegen_ray.runs.status import OVER, status_of
from vaegen_ray.storage import Location


class Verbs:
    """Calls verbs in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def __call__(self, *arguments: object, code: int = 0) -> str:
        ended, out, err = vaegen(self.capsys, self.monkeypatch, *arguments)
        assert ended == code, (out, err)
        assert "Traceback" not in err
        return out + err


@pytest.fixture
def verb(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Verbs:
    """What a verb printed."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "VAEGEN_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    return Verbs(capsys, monkeypatch)


def an_attempt(driver: str = "process 7 on head") -> Attempt:
    return Attempt(1, "tiny-a1", "http://127.0.0.1:9", driver, now(), now())


# ---------------------------------------------------------------------------- list and status


def test_list_of_a_file_is_refused(verb: Verbs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert f"{tmp_path}/file: must be a folder of runs, is a file" in verb("list", tmp_path / "file", code=2)


def test_list_of_a_bucket_that_is_not_there_is_refused(verb: Verbs, s3_bucket: str) -> None:
    """A mistyped name had no runs."""
    assert "no runs in" in verb("list", f"{s3_bucket}/runs")
    refused = verb("list", f"{s3_bucket}-mistyped/runs", code=2)
    assert f"must be in a bucket that is there, got {s3_bucket}-mistyped; correct it, or create the bucket" in refused


def test_list_says_why_a_run_is_damaged(verb: Verbs, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "job.json").write_text("[]")
    printed = verb("list", tmp_path)
    assert f"broken is damaged: {tmp_path}/broken/job.json: is damaged (holds [], no job); restore it" in printed


@pytest.mark.parametrize(
    "end", [b"null", b"123", b'{"position": null}', b'{"position": 8, "time_s": "noon"}', b"\xff\xfe"]
)
def test_list_and_status_of_a_run_with_damaged_metrics_are_no_traceback(
    verb: Verbs, tmp_path: Path, end: bytes
) -> None:
    run = finished(tiny_job(tmp_path))
    run.metrics.write_bytes(b'{"position": 8, "time_s": 1.0}\n' + end + b"\n")
    assert "tiny" in verb("list", tmp_path)
    is_text = not end.startswith(b"\xff")
    told = verb("status", run.root, code=0 if is_text else 1)
    assert ("8 of 1,000" if is_text else "metrics.jsonl: must be text, is damaged") in told


def test_dataset_in_the_storage_is_no_run(dataset: Path) -> None:
    assert status_of(Location.of(dataset)) is None


def test_status_of_what_has_not_begun_says_how_to_ask_the_cluster(verb: Verbs, tmp_path: Path) -> None:
    for name in ("status", "stop"):
        printed = verb(name, tmp_path / "tiny", code=2)
        assert "with --address the submissions that have not begun to write" in printed
        assert "ray job stop" in printed


def test_status_of_a_submission_says_that_its_driver_has_not_begun(verb: Verbs, tmp_path: Path) -> None:
    write_attempt(Location.of(tmp_path) / "tiny", an_attempt(driver=""))
    printed = verb("status", tmp_path / "tiny")
    assert f"{tmp_path}/tiny: running\nits driver has not begun\n" in printed
    assert "tiny-a1" in printed


# ---------------------------------------------------------------------------- logs


def test_log_whose_beginning_is_gone_goes_on_where_it_was() -> None:
    lines = [f"line {number}: trained\n" for number in range(3000)]
    shown, longer = "".join(lines[:2000]), "".join(lines[700:2300])
    assert len(shown) > TAIL_CHARACTERS
    assert beyond(shown, longer) == "".join(lines[2000:2300])


def test_log_that_only_grows_goes_on_where_it_was() -> None:
    assert beyond("", "one\n") == "one\n"
    assert beyond("one\n", "one\none\n") == "one\n"
    assert beyond("one\n", "one\n") == ""


def test_log_that_shares_nothing_with_what_was_shown_is_printed_whole() -> None:
    assert beyond("one\n" * 10, "two\n") == "two\n"


def test_followed_log_is_printed_once_although_its_beginning_goes(
    verb: Verbs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, lines = Location.of(tmp_path) / "tiny", [f"step {number} \N{MICRO SIGN}s\n" for number in range(4000)]
    log = attempt_folder(root, 1) / DRIVER_LOG
    write_attempt(root, an_attempt())
    log.write_text("".join(lines[:2500]) + "step")
    monkeypatch.setattr(runs, "POLL_S", 0.05)

    def go_on() -> None:
        time.sleep(0.5)
        log.write_bytes("".join(lines[1000:]).encode()[8:])  # Begins within a letter.
        write_attempt(root, replace(an_attempt(), state=AttemptState.COMPLETE))

    writer = threading.Thread(target=go_on)
    writer.start()
    printed = verb("logs", "-f", root)
    writer.join()
    assert printed == "".join(lines)


# ---------------------------------------------------------------------------- stop


def test_stop_of_a_process_that_has_just_ended_says_so(tmp_path: Path) -> None:
    gone = replace(Holder.this_process(), pid=2**22 + 1)  # More than Linux gives.
    with pytest.raises(runs.JobError, match=r"process 4194305 .* has just ended"):
        runs._signal(Location.of(tmp_path), gone, 0)


@pytest.mark.timeout(60)
def test_stop_of_what_has_not_begun_on_a_cluster_that_is_gone_waits_for_nobody(verb: Verbs, tmp_path: Path) -> None:
    root = Location.of(tmp_path) / "tiny"
    write_attempt(root, an_attempt(driver=""))
    said = verb("stop", root)
    assert "has not begun, and its cluster, http://127.0.0.1:9, cannot be reached from here" in said
    assert (attempt_folder(root, 1) / "stop").read_text() == "save"


# ---------------------------------------------------------------------------- resume


def test_resume_of_a_damaged_job_is_refused(verb: Verbs, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "job.json").write_text("[]")
    assert f"{tmp_path}/tiny/job.json: must hold 'key: value' lines" in verb("resume", tmp_path / "tiny", code=2)
    (tmp_path / "tiny" / "job.json").write_text("{")
    assert f"{tmp_path}/tiny/job.json: line 1: is not valid YAML" in verb("resume", tmp_path / "tiny", code=2)


def test_resume_of_what_never_began_says_to_submit_its_job(verb: Verbs, tmp_path: Path) -> None:
    write_attempt(Location.of(tmp_path) / "tiny", an_attempt(driver=""))
    assert "is submitted again with its job file" in verb("resume", tmp_path / "tiny", code=2)


def test_resumed_run_is_the_one_in_the_directory_wherever_that_is(tmp_path: Path) -> None:
    job = job_of(tree_of("vae") | {"storage": "s3://before/runs"}, "job")
    RunDirectory(Location.of(tmp_path) / "tiny").job_file.write_text(dump_job(job))
    assert _job_in(Location.of(tmp_path) / "tiny") == job.model_copy(update={"storage": str(tmp_path)})


def test_resumed_dataset_is_the_one_beside_its_submission(tmp_path: Path) -> None:
    job = load_job("jobs/prepare/cifar10.yaml", [f"destination={tmp_path}/cifar10"])
    (root_of(job) / PREPARE_JOB).write_text(dump_job(job))
    assert _job_in(root_of(job)) == job


def test_resume_of_a_renamed_directory_is_refused_instead_of_beginning_another_run(tmp_path: Path) -> None:
    job = job_of(tree_of("vae") | {"storage": str(tmp_path)}, "job")
    RunDirectory(Location.of(tmp_path) / f"{job.name}-old").job_file.write_text(dump_job(job))
    with pytest.raises(runs.JobError, match=rf"{job.name}-old: holds '{job.name}', and would go on in"):
        _job_in(Location.of(tmp_path) / f"{job.name}-old")


def test_stop_ends_no_process_of_another_container(verb: Verbs, tmp_path: Path) -> None:
    """Which may have the name of this machine: there its number means another process."""
    job = job_of(tree_of("vae") | {"storage": str(tmp_path)}, "job")
    RunDirectory.of(job).job_file.write_text(dump_job(job))
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        lease = Lease(RunDirectory.of(job).root / "lease")
        record = next(path for path in (tmp_path / job.name / "lease").iterdir() if path.is_file())
        tree = json.loads(record.read_text()) | {"pid": bystander.pid, "pid_namespace": "pid:[1]"}
        record.write_text(json.dumps(tree))
        said = verb("stop", tmp_path / job.name, "--now", code=2)
        assert "give the command on that machine, in the same container" in said
        assert bystander.poll() is None
        lease.release()
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize(
    ("was_submitted", "is_over", "state"),
    [(True, True, "complete"), (True, False, "stopped"), (False, True, "complete"), (False, False, "unfinished")],
)
def test_search_is_complete_where_its_trials_are_however_its_driver_ended(
    was_submitted: bool,
    is_over: bool,
    state: str,
    tmp_path: Path,
) -> None:
    """One that was asked to stop was called complete, and a finished one that nobody had submitted, unfinished."""
    root = Location.of(tmp_path) / "search"
    (root / "search.json").write_text("{}")
    if was_submitted:
        write_attempt(root, replace(an_attempt(), state=AttemptState.COMPLETE, exit_code=0))
    if is_over:
        (root / OVER).write_text("")
    status = status_of(root)
    assert status is not None
    assert status.state == state


def test_run_that_goes_on_by_hand_after_a_failed_submission_is_running(tmp_path: Path) -> None:
    job = job_of(tree_of("vae") | {"storage": str(tmp_path)}, "job")
    root = RunDirectory.of(job).root
    RunDirectory.of(job).job_file.write_text(dump_job(job))
    write_attempt(root, replace(an_attempt(), state=AttemptState.FAILED, exit_code=1, error="gone"))
    lease = Lease(root / "lease")
    states = [status_of(root)]
    lease.release()
    states.append(status_of(root))
    assert [status.state for status in states if status is not None] == ["running", "failed"]
