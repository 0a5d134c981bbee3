"""What is kept of a submission beside its run, and what must not be kept."""

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from vaegen_ray.runs import attempts
from vaegen_ray.runs.attempts import (
    Attempt,
    AttemptState,
    LogArchive,
    announce_attempt,
    attempt_folder,
    now,
    read_attempts,
    redacted,
    write_attempt,
)
from vaegen_ray.storage import Location


def an_attempt(number: int = 1) -> Attempt:
    return Attempt(number, f"tiny-a{number}", "http://head:8265", "process 7 on head", now(), now())


def test_attempts_are_read_back_in_their_order(tmp_path: Path) -> None:
    root = Location.of(tmp_path)
    failed = replace(
        an_attempt(2), state=AttemptState.FAILED, exit_code=75, error="lost", error_kind="WorkersLostError"
    )
    write_attempt(root, failed)
    write_attempt(root, an_attempt(1))
    assert [attempt.number for attempt in read_attempts(root)] == [1, 2]
    assert read_attempts(root)[1] == replace(failed, heard=read_attempts(root)[1].heard)


def test_attempt_whose_driver_is_silent_counts_as_lost() -> None:
    moment = datetime.now(UTC)
    assert an_attempt().seen(moment).state is AttemptState.RUNNING
    assert an_attempt().seen(moment + timedelta(minutes=5)).state is AttemptState.LOST
    waiting = replace(an_attempt(), driver="")
    assert waiting.seen(moment + timedelta(minutes=5)).state is AttemptState.RUNNING
    assert waiting.seen(moment + timedelta(minutes=50)).state is AttemptState.LOST


def test_record_that_a_kill_cut_off_is_passed_over(tmp_path: Path) -> None:
    root = Location.of(tmp_path)
    write_attempt(root, an_attempt(1))
    (attempt_folder(root, 2) / "attempt.json").write_text('{"number": 2, ')
    assert [attempt.number for attempt in read_attempts(root)] == [1]


def test_log_is_kept_while_it_grows_and_whole_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "UPLOAD_S", 0.05)
    log, target = tmp_path / "log", Location.of(tmp_path / "kept" / "driver.log")
    log.write_text("one\n")
    with LogArchive(target, [log, tmp_path / "of nobody"]):
        while not target.exists():
            pass
        with log.open("a") as file:
            file.write("two\n")
    assert target.read_text() == "one\ntwo\n"


def test_secrets_are_blotted_out_of_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "planted-password")
    (tmp_path / "auth_token").write_text("planted-token\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "auth_token"))
    text = "key planted-secret, Bearer planted-token, http://me:planted-password@host/ and s3://a:b@c; the rest stays"
    assert redacted(text, os.environ) == "key ***, Bearer ***, http://***@host/ and s3://***@c; the rest stays"


@pytest.mark.parametrize(
    "name",
    [
        "AZURE_STORAGE_CONNECTION_STRING",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_KEY",
        "SSH_PASSPHRASE",
        "KAGGLE_KEY",
        "DB_PWD",
    ],
)
def test_value_of_a_variable_with_the_name_of_a_secret_is_blotted_out(name: str) -> None:
    assert redacted("it is planted-secret here", {name: "planted-secret"}) == "it is *** here"


def test_values_of_other_variables_stay() -> None:
    ordinary = {"PWD": "/home/me", "OLDPWD": "/home/me", "KEYBOARD": "/home/me", "RAY_AUTH_TOKEN_PATH": ""}
    assert redacted("in /home/me", ordinary) == "in /home/me"


def test_announced_attempt_counts_until_its_driver_tells_of_itself(tmp_path: Path) -> None:
    root = Location.of(tmp_path)
    announced = replace(an_attempt(3), driver="")
    announce_attempt(root, announced)
    assert [(attempt.number, attempt.driver) for attempt in read_attempts(root)] == [(3, "")]
    complete = replace(an_attempt(3), state=AttemptState.COMPLETE)
    write_attempt(root, complete)
    announce_attempt(root, announced)
    assert read_attempts(root)[0].state is AttemptState.COMPLETE


def test_secret_of_a_variable_that_ends_in_a_line_break_is_blotted_out() -> None:
    """As of a file that a secret of Kubernetes was made from."""
    assert redacted("my key is hunter22-abc, yes", {"WANDB_API_KEY": "hunter22-abc\n"}) == "my key is ***, yes"
