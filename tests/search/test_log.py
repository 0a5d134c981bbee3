"""The record of a search outlives kills, torn writes and lost files, and never begins again from nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vaegen_ray.errors import CheckpointError, LeaseLostError
from vaegen_ray.runs.lease import Fence
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.log import LINES_PER_SEGMENT, TrialLog, read_trials
from vaegen_ray.search.trials import TrialState, asked, copied, ended, lost, scored, started
from vaegen_ray.storage import Location


@pytest.fixture
def directory(tmp_path: Path) -> SearchDirectory:
    return SearchDirectory(Location.of(tmp_path / "search"))


def write_some_trials(log: TrialLog, numbers: range) -> None:
    for number in numbers:
        log.record(asked(number, {"objective.kl.weight": number + 0.5}))
        log.record(started(number))
        log.record(scored(number, 32, {"sample_swd": 0.5}))


def finish(log: TrialLog, number: int) -> None:
    log.record(ended(number, TrialState.COMPLETE, scores={"sample_swd": 0.25}))


def segments(directory: SearchDirectory) -> list[Path]:
    return sorted(directory.log.local_path.glob("*.jsonl"))


def test_log_tells_again_what_was_recorded(directory: SearchDirectory) -> None:
    log = TrialLog(directory)
    write_some_trials(log, range(6))
    finish(log, 0)
    log.record(ended(1, TrialState.STOPPED, reason="dominated"))
    log.record(lost(2, "its node died"))
    log.record(started(2))
    log.record(ended(3, TrialState.FAILED, reason="diverged"))
    log.record(copied(4, 0, 32, {"objective.kl.weight": 0.6}, {"number": 4}))
    log.record(asked(6, {}))
    log.close()
    trials = read_trials(directory)
    assert trials.by_number == log.trials.by_number
    states = [trial.state.value for trial in trials]
    assert states == ["complete", "stopped", "running", "failed", "running", "running", "waiting"]
    assert trials[0].scores == {"sample_swd": 0.25}
    assert (trials[2].attempts, trials[2].reason) == (2, "its node died")
    assert (trials[4].parent, trials[4].settings) == (0, {"objective.kl.weight": 0.6})
    assert trials[5].rungs == {32: {"sample_swd": 0.5}}
    assert {trial.number for trial in trials.in_state(TrialState.RUNNING)} == {2, 4, 5}


def test_segments_are_bounded_and_each_start_begins_one(directory: SearchDirectory) -> None:
    for start in range(2):
        log = TrialLog(directory)
        write_some_trials(log, range(start * 200, (start + 1) * 200))
        log.close()
    assert [len(file.read_text().splitlines()) for file in segments(directory)] == [LINES_PER_SEGMENT, 100] * 2
    assert len(read_trials(directory)) == 400


@pytest.mark.parametrize("kept", [1, 40, -1])
def test_line_cut_off_by_a_kill_is_set_aside_and_the_rest_kept(directory: SearchDirectory, kept: int) -> None:
    log = TrialLog(directory)
    write_some_trials(log, range(2))
    log.close()
    lines = segments(directory)[-1].read_text().splitlines(keepends=True)
    segments(directory)[-1].write_text("".join(lines[:-1]) + lines[-1][:kept])
    assert read_trials(directory)[1].rungs == {}
    again = TrialLog(directory)
    assert len(again.trials) == 2
    again.record(scored(1, 32, {"sample_swd": 0.5}))
    again.close()
    assert read_trials(directory)[1].rungs == {32: {"sample_swd": 0.5}}
    assert list(directory.log.local_path.glob("*.damaged"))


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"{}\n"])
def test_damaged_newest_segment_falls_back_to_the_one_before(directory: SearchDirectory, content: bytes) -> None:
    for start in range(2):
        log = TrialLog(directory)
        write_some_trials(log, range(start, start + 1))
        log.close()
    segments(directory)[-1].write_bytes(content)
    again = TrialLog(directory)
    assert [trial.number for trial in again.trials] == [0]
    again.close()


def test_damaged_older_segment_is_refused(directory: SearchDirectory) -> None:
    for start in range(2):
        log = TrialLog(directory)
        write_some_trials(log, range(start, start + 1))
        log.close()
    first = segments(directory)[0]
    first.write_text("".join(first.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(CheckpointError, match=r"000001.jsonl: line 1 must be number 2 of the log, is 3"):
        TrialLog(directory)


@pytest.mark.parametrize("damage", ["emptied", "removed"])
def test_lost_log_beside_trials_is_refused_and_not_begun_anew(directory: SearchDirectory, damage: str) -> None:
    log = TrialLog(directory)
    write_some_trials(log, range(1))
    log.close()
    directory.run(0).job_file.write_text("{}")
    for file in segments(directory):
        file.write_bytes(b"") if damage == "emptied" else file.unlink()
    for reading in (TrialLog, read_trials):
        with pytest.raises(CheckpointError, match="must tell of the trials"):
            reading(directory)


def test_new_search_has_an_empty_log(directory: SearchDirectory) -> None:
    assert len(read_trials(directory)) == 0
    log = TrialLog(directory)
    assert len(log.trials) == 0
    log.close()


WRITER = """
import itertools, sys
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.log import TrialLog
from vaegen_ray.search.trials import asked
from vaegen_ray.storage import Location
log = TrialLog(SearchDirectory(Location.of(sys.argv[1])))
for number in itertools.count():
    log.record(asked(number, {"objective.kl.weight": 0.5}))
    print(number, flush=True)
"""


def test_writer_killed_in_the_middle_has_lost_nothing_that_it_recorded(directory: SearchDirectory) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory.root)], stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
    )
    assert writer.stdout is not None
    while int(writer.stdout.readline()) < 700:
        pass
    writer.send_signal(signal.SIGKILL)
    said = [int(line) for line in writer.stdout.read().split("\n")[:-1]]
    writer.wait()
    newest = max(said, default=700)
    assert {trial.number for trial in read_trials(directory)} >= set(range(newest + 1))


@pytest.mark.s3
def test_log_in_an_object_store_is_uploaded_without_being_asked(s3_bucket: str) -> None:
    directory = SearchDirectory(Location.of(f"{s3_bucket}/search"))
    log = TrialLog(directory)
    write_some_trials(log, range(3))
    deadline = time.monotonic() + 30
    while len(read_trials(directory)) < 3 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(read_trials(directory)) == 3
    finish(log, 1)
    log.close()
    assert read_trials(directory)[1].state is TrialState.COMPLETE
    again = TrialLog(directory)
    assert again.trials.by_number == log.trials.by_number
    again.close()


def test_every_line_is_plain_json_with_its_number_and_time(directory: SearchDirectory) -> None:
    log = TrialLog(directory)
    write_some_trials(log, range(2))
    log.close()
    lines = [json.loads(line) for line in segments(directory)[0].read_text().splitlines()]
    assert [line["line"] for line in lines] == list(range(6))
    assert all(abs(line["time_s"] - time.time()) < 60 for line in lines)


def test_driver_that_was_taken_over_writes_nothing_more(tmp_path: Path) -> None:
    """Its lines had numbers that the next one had used, and the log could not be read again."""
    directory = SearchDirectory(Location.of(tmp_path / "search"))
    first = Fence(directory.root / "lease", 1)
    log = TrialLog(directory, first)
    write_some_trials(log, range(2))
    (directory.root / "lease" / "000002.json").write_text("{}")
    before = [file.read_text() for file in segments(directory)]
    with pytest.raises(LeaseLostError):
        TrialLog(directory, first)
    assert [file.read_text() for file in segments(directory)] == before
