"""One driver writes a run: real processes that die, freeze and come back, on a disk and in an object store."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from vaegen_ray.errors import JobError, LeaseLostError
from vaegen_ray.runs import lease as leases
from vaegen_ray.runs.lease import Holder, Lease, holder_of
from vaegen_ray.storage import Location

HOLDS = """
import sys, time
from vaegen_ray.runs import lease
from vaegen_ray.storage import Location
lease.BEAT_S = 0.1
held = lease.Lease(Location.of(sys.argv[1]))
print("held", flush=True)
for line in sys.stdin:
    try:
        held.fence.check()
        print("mine", flush=True)
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""


@pytest.fixture(params=["disk", "object store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "disk":
        return Location.of(tmp_path / "run" / "lease")
    return Location.of(request.getfixturevalue("s3_bucket")) / "run" / "lease"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT_S", 0.1), ("SILENCE_S", 1.0), ("LOOK_S", 0.05)):
        monkeypatch.setattr(leases, name, seconds)


@pytest.fixture
def holder(folder: Location) -> Iterator["subprocess.Popen[str]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, folder.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def answer(holder: "subprocess.Popen[str]") -> str:
    assert holder.stdin is not None
    assert holder.stdout is not None
    holder.stdin.write("still?\n")
    holder.stdin.flush()
    return holder.stdout.readline()


@pytest.mark.s3
def test_second_driver_is_refused_and_told_who_the_first_is(folder: Location, holder: "subprocess.Popen[str]") -> None:
    with pytest.raises(JobError, match=rf"another process \(process {holder.pid} on .* which lives\)"):
        Lease(folder)
    assert answer(holder) == "mine\n"


@pytest.mark.s3
def test_killed_driver_of_this_machine_is_replaced_at_once(
    folder: Location, holder: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "SILENCE_S", 600.0)
    holder.kill()
    holder.wait()
    assert holder_of(folder) is None
    lease = Lease(folder)
    assert lease.fence.number == 2
    lease.release()


@pytest.mark.s3
def test_frozen_driver_is_replaced_and_writes_nothing_when_it_wakes(
    folder: Location, holder: "subprocess.Popen[str]"
) -> None:
    os.kill(holder.pid, signal.SIGSTOP)
    lease = Lease(folder)
    os.kill(holder.pid, signal.SIGCONT)
    assert "LeaseLostError" in (said := answer(holder))
    assert f"taken over by process {os.getpid()}" in said
    lease.fence.check()
    lease.release()


@pytest.mark.s3
def test_released_lease_is_taken_without_waiting(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "SILENCE_S", 600.0)
    first = Lease(folder)
    assert "process" in str(holder_of(folder))
    first.release()
    assert holder_of(folder) is None
    second = Lease(folder)
    with pytest.raises(LeaseLostError):
        first.fence.check()
    second.release()
    assert [first.fence.number, second.fence.number] == [1, 2]


@pytest.mark.s3
def test_of_many_that_ask_at_once_one_gets_the_lease(folder: Location) -> None:
    outcomes: list[Lease | JobError] = []

    def ask() -> None:
        try:
            outcomes.append(Lease(folder))
        except JobError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [outcome for outcome in outcomes if isinstance(outcome, Lease)]
    assert len(winners) == 1
    assert len(outcomes) == 8
    winners[0].release()


@pytest.mark.s3
def test_file_is_created_by_one_of_many_with_its_whole_content(folder: Location) -> None:
    contents = [bytes([number]) * 1000 for number in range(8)]
    created: list[bytes] = []
    barrier = threading.Barrier(len(contents))

    def create(content: bytes) -> None:
        barrier.wait()
        if (folder / "one").create(content):
            created.append(content)

    threads = [threading.Thread(target=create, args=[content]) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert created == [(folder / "one").read_bytes()]


def test_process_of_another_container_is_not_known_to_be_dead() -> None:
    """It has the machine's name, and its number means nothing here."""
    gone = replace(Holder.this_process(), pid=2**30)
    assert gone.is_known_dead()
    assert not replace(gone, pid_namespace="pid:[1]").is_known_dead()


def test_old_files_of_the_lease_go_and_numbers_do_not_come_again(tmp_path: Path) -> None:
    folder = Location.of(tmp_path / "lease")
    for _ in range(6):
        Lease(folder).release()
    assert folder.names() == ["000004.json", "000005.json", "000006.json"]
    lease = Lease(folder, above=40)
    assert lease.fence.number == 41
    lease.release()


def test_damaged_file_of_the_lease_is_passed_over(tmp_path: Path) -> None:
    folder = Location.of(tmp_path / "lease")
    (folder / "000003.json").write_text('{"host": ')
    started = time.monotonic()
    lease = Lease(folder)
    assert lease.fence.number == 4
    assert time.monotonic() - started < 0.9
    lease.release()


def test_holder_whose_birth_the_system_does_not_tell_is_not_known_to_be_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS: there a second driver took over from a living one at once."""
    monkeypatch.setattr(leases, "_birth", lambda _pid: "")
    assert not Holder.this_process().is_known_dead()
