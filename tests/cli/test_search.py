"""What `vaegen search` refuses and says, without a cluster."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_validate import vaegen
from tests.search.samples import search_job
from vaegen_ray.cli.search import _with_trials
from vaegen_ray.config.loading import dump_job
from vaegen_ray.runs.lease import Lease
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.log import TrialLog
from vaegen_ray.search.open import load_search
from vaegen_ray.search.trials import TrialState, asked, ended, started

SCORES = {"reconstruction_psnr": 20.0, "sample_swd": 0.5}


@pytest.fixture
def directory(tmp_path: Path) -> SearchDirectory:
    """A search of four trials, of which three are over and one was interrupted."""
    job = search_job(tmp_path)
    directory = SearchDirectory.of(job)
    directory.job_file.write_text(dump_job(job))
    log = TrialLog(directory)
    for number in range(4):
        log.record(asked(number, {"objective.kl.weight": 0.5}))
        log.record(started(number))
        if number < 3:
            log.record(complete(number))
    log.close()
    return directory


@pytest.fixture
def finished(directory: SearchDirectory) -> SearchDirectory:
    """The search with its four trials over."""
    log = TrialLog(directory)
    log.record(complete(3))
    log.close()
    return directory


def complete(number: int) -> dict[str, object]:
    return ended(number, TrialState.COMPLETE, scores=SCORES)


@pytest.fixture
def search(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What the verb printed."""

    def run(*arguments: object, code: int = 2) -> str:
        exit_code, out, err = vaegen(capsys, monkeypatch, "search", *arguments)
        assert exit_code == code, (out, err)
        assert "Traceback" not in err
        return out + err

    return run


@pytest.mark.parametrize("trials", ["²", "+²", "+", "-3", "many", ""])
def test_number_of_trials_that_is_none_is_refused(
    search: Callable[..., str], directory: SearchDirectory, trials: str
) -> None:
    told = search("extend", directory.root, f"--trials={trials}")
    assert f"--trials: must be a number, or +N for N more, got '{trials}'" in told


@pytest.mark.parametrize("action", ["extend", "resume"])
def test_fewer_trials_than_there_are_already_are_refused(
    search: Callable[..., str], directory: SearchDirectory, action: str
) -> None:
    told = search(action, directory.root, "--trials", 3)
    assert f"--trials: must be at least 4, the trials that {directory.root} has already, got '3'" in told
    assert "for 50 more give --trials +50" in told


def test_job_file_with_fewer_trials_than_there_are_already_is_refused(
    search: Callable[..., str], directory: SearchDirectory, tmp_path: Path
) -> None:
    tree = json.loads(directory.job_file.read_text())
    (tmp_path / "fewer.json").write_text(json.dumps({**tree, "trials": 3}))
    told = search(tmp_path / "fewer.json")
    assert f"trials: must be at least 4, the trials that {directory.root} has already, got 3" in told


@pytest.mark.parametrize(("trials", "total"), [("4", 4), ("9", 9), ("+50", 54)])
def test_as_many_trials_as_there_are_or_more_extend_the_search(
    directory: SearchDirectory, trials: str, total: int
) -> None:
    place = str(directory.root)
    assert _with_trials(load_search(directory), trials, place).trials == total


def test_stop_of_a_search_that_runs_asks_it_to(search: Callable[..., str], directory: SearchDirectory) -> None:
    lease = Lease(directory.lease)
    try:
        assert f"asked {directory.root} to stop" in search("stop", directory.root, code=0)
    finally:
        lease.release()
    assert directory.stop_request.exists()


def test_stop_of_a_search_that_nobody_drives_says_that_nothing_runs(
    search: Callable[..., str], directory: SearchDirectory
) -> None:
    Lease(directory.lease).release()
    told = search("stop", directory.root)
    assert f"{directory.root}: is driven by nobody, and nothing runs" in told
    assert f"`vaegen search resume {directory.root}` goes on" in told
    assert not directory.stop_request.exists()


def test_stop_of_a_finished_search_says_that_nothing_runs(
    search: Callable[..., str], finished: SearchDirectory
) -> None:
    told = search("stop", finished.root)
    assert f"{finished.root}: is finished, and nothing runs; there is nothing to stop" in told
    assert not finished.stop_request.exists()


@pytest.mark.parametrize(
    ("option", "refusal"),
    [
        ("--trials=+5", "--trials: must be left out with `stop`, got '+5'; `vaegen search extend` takes it"),
        ("--set=trials=5", "--set: a search goes on as it was begun, got trials=5"),
    ],
)
def test_stop_with_an_option_that_means_nothing_there_is_refused(
    search: Callable[..., str], directory: SearchDirectory, option: str, refusal: str
) -> None:
    assert refusal in search("stop", directory.root, option)
    assert not directory.stop_request.exists()
