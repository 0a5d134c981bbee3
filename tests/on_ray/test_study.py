"""The study says what the log says, whatever happened to either."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from tests.on_ray.searches import BATCH, EVERY, FRONT, KL, ONE, SHARE, TOTAL, Driver, run, say, search_job
from vaegen_ray.config.search import SearchJob
from vaegen_ray.errors import JobError, StorageError
from vaegen_ray.on_ray.study import SearchStudy, open_database, open_study, reconcile
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.log import TrialLog, read_trials
from vaegen_ray.search.trials import TrialState, asked, ended, lost, scored, started

SETTINGS = [{KL: 0.5 + number, SHARE: 0.3, BATCH: 16} for number in range(8)]
SCORES = {"reconstruction_psnr": 20.0, "sample_fid": 30.0, "kl_nats": 4.0}


def tell_all(log: TrialLog) -> None:
    """A log with a trial in every state."""
    for number, settings in enumerate(SETTINGS):
        log.record(asked(number, settings))
        if number not in (0, 5):
            log.record(started(number))
            log.record(scored(number, EVERY, SCORES))
    log.record(ended(2, TrialState.COMPLETE, scores=SCORES))
    log.record(ended(3, TrialState.STOPPED, reason="dominated"))
    log.record(ended(4, TrialState.FAILED, reason="sample_fid is nan"))
    log.record(ended(5, TrialState.INVALID, reason="no valid job"))
    log.record(lost(6, "node lost"))
    log.record(ended(6, TrialState.FAILED, reason="node lost", lost=True))
    log.record(ended(7, TrialState.COMPLETE, scores=SCORES | {"kl_nats": 9.0}))


EXPECTED = ["RUNNING", "RUNNING", "COMPLETE", "PRUNED", "PRUNED", "PRUNED", "FAIL", "COMPLETE"]


def opened(job: SearchJob) -> tuple[TrialLog, SearchStudy]:
    directory = SearchDirectory.of(job)
    log, study = TrialLog(directory), open_study(job, directory)
    reconcile(log, study)
    return log, study


def close(log: TrialLog, study: SearchStudy) -> None:
    study.close()
    log.close()


@pytest.mark.parametrize("objectives", [FRONT, ONE], ids=["front", "one"])
def test_every_state_of_the_log_is_told_as_what_it_is(objectives: tuple[dict[str, str], ...], tmp_path: Path) -> None:
    job = search_job(tmp_path, objectives=objectives, constraints=("kl_nats >= 5",))
    log = TrialLog(SearchDirectory.of(job))
    tell_all(log)
    log.close()
    log, study = opened(job)
    trials = study.trials()
    assert [trial.state.name for trial in trials] == EXPECTED
    assert [trial.params for trial in trials] == SETTINGS
    assert trials[2].values == [SCORES[goal["metric"]] for goal in objectives]
    assert trials[2].constraints == {"kl_nats >= 5": 1.0}
    assert trials[7].constraints == {"kl_nats >= 5": -4.0}
    assert trials[3].user_attrs == {"state": "stopped", "reason": "dominated", "rungs": {str(EVERY): SCORES}}
    assert trials[3].intermediate_values == ({EVERY: 30.0} if objectives is ONE else {})
    assert trials[3].values == ([30.0] if objectives is ONE else None)
    assert [max(trial.constraints.values(), default=0) > 100 for trial in trials] == [n in (4, 5) for n in range(8)]
    close(log, study)


def test_what_is_told_live_is_what_is_written_from_the_log(tmp_path: Path) -> None:
    driver = run(search_job(tmp_path, trials=12, constraints=("kl_nats >= 5",)))
    told = say(driver.study)
    assert {state for _, state, *_ in told} == {"COMPLETE", "PRUNED"}
    driver.directory.study.remove()
    log, study = opened(driver.job)
    assert say(study) == told
    close(log, study)


def cut_last_line(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 7)


def drop_last_lines(file: Path) -> None:
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-40]))


def break_a_line_in_the_middle(file: Path) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    lines[len(lines) // 2] = b"\x00\xff{\n"
    file.write_bytes(b"".join(lines))


def lose_a_line_in_the_middle(file: Path) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    creations = [index for index, line in enumerate(lines) if json.loads(line)["op_code"] == 4]
    del lines[creations[3]]
    file.write_bytes(b"".join(lines))


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize(
    "damage", [cut_last_line, drop_last_lines, break_a_line_in_the_middle, lose_a_line_in_the_middle, empty, os.remove]
)
def test_damaged_journal_is_made_good_from_the_log(damage: Callable[[Path], None], tmp_path: Path) -> None:
    driver = run(search_job(tmp_path, trials=12))
    told, before = say(driver.study), read_trials(driver.directory)
    damage(driver.directory.study.local_path)
    log, study = opened(driver.job)
    assert say(study) == told
    assert log.trials == before
    close(log, study)
    # And it can be read by anybody.
    backend = optuna.storages.journal.JournalFileBackend(str(driver.directory.study.local_path))
    loaded = optuna.load_study(study_name="search", storage=optuna.storages.JournalStorage(backend))
    assert [trial.values for trial in loaded.trials] == [values for _, _, values, *_ in told]


def test_end_that_the_log_lost_comes_back_from_the_study(tmp_path: Path) -> None:
    driver = run(search_job(tmp_path, trials=12))
    told, before = say(driver.study), read_trials(driver.directory)
    segment = max((driver.directory.log.local_path).glob("*.jsonl"))
    segment.write_bytes(b"".join(segment.read_bytes().splitlines(keepends=True)[:-30]))
    assert read_trials(driver.directory) != before
    log, study = opened(driver.job)
    assert say(study) == told
    for trial in before:
        restored = log.trials[trial.number]
        assert (restored.settings, restored.state, restored.rungs, restored.scores, restored.reason) == (
            trial.settings, trial.state, trial.rungs, trial.scores, trial.reason
        )  # fmt: skip
    close(log, study)


@pytest.mark.parametrize("storage", ["journal", "database"])
def test_trial_that_was_drawn_and_not_recorded_waits_and_a_half_drawn_one_is_drawn_again(
    storage: str, tmp_path: Path
) -> None:
    job = search_job(tmp_path, study=f"sqlite:///{tmp_path}/study.db" if storage == "database" else None)
    log, study = opened(job)
    whole = study.optuna.ask()
    whole.suggest_float(KL, 0.05, 10, log=True)
    whole.suggest_float(SHARE, 0.05, 0.9)
    whole.suggest_int(BATCH, 8, 64, log=True)
    study.optuna.ask().suggest_float(KL, 0.05, 10, log=True)
    close(log, study)
    driver = Driver(job)
    assert [trial.state for trial in driver.log.trials] == [TrialState.WAITING]
    configs = [driver.searcher.suggest(name) for name in "abc"]
    driver.close()
    assert [config["number"] for config in configs] == [0, 1, 2]
    assert configs[0]["settings"] == whole.params
    assert [trial.params for trial in driver.study.trials()] == [config["settings"] for config in configs]


def test_study_in_a_database_is_made_good_too(tmp_path: Path) -> None:
    job = search_job(tmp_path, trials=6, study=f"sqlite:///{tmp_path}/study.db")
    told = say(run(job, max_concurrent=2).study)
    (tmp_path / "study.db").unlink()
    log, study = opened(job)
    assert say(study) == told
    close(log, study)


@pytest.mark.parametrize(
    ("url", "error", "sentence"),
    [
        ("foo", JobError, "must be the URL of a database, such as sqlite"),
        ("mysql://me:planted@127.0.0.1/x", JobError, "Failed to import DB access module"),
        ("redis://127.0.0.1/0", JobError, "must be the URL of a database"),
        ("sqlite:////no/such/folder/x.db", StorageError, "does not answer"),
    ],
)
def test_database_that_is_none_is_refused_in_one_sentence(url: str, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence) as caught:
        open_database(url)
    assert str(caught.value).startswith("study: ")
    assert "\n" not in str(caught.value)
    assert "planted" not in str(caught.value)


@pytest.mark.s3
def test_journal_of_a_search_in_a_bucket_is_there_at_the_end(s3_bucket: str) -> None:
    job = search_job(f"{s3_bucket}/searches", trials=3)
    driver = Driver(job)
    for name in "abc":
        driver.searcher.suggest(name)
    told = say(driver.study)
    driver.close()
    log, study = opened(job)
    assert say(study) == told
    assert len(log.trials) == 3
    close(log, study)


def test_earlier_searches_teach_and_do_not_count(tmp_path: Path) -> None:
    earlier = run(search_job(tmp_path / "earlier", trials=12))
    num_finished = len(earlier.log.trials.in_state(TrialState.COMPLETE, TrialState.STOPPED))
    narrow = {**search_job(tmp_path).model_dump()["space"], KL: {"kind": "log_uniform", "low": 0.05, "high": 1.0}}
    inside = [trial for trial in earlier.log.trials if trial.settings[KL] <= 1]
    for name, space, expected in (("same", None, num_finished), ("narrow", narrow, len(inside))):
        sections = {"space": space} if space else {}
        job = search_job(tmp_path, trials=4, name=name, warm_start=(str(tmp_path / "earlier/search"),), **sections)
        driver = run(job, max_concurrent=2)
        assert driver.study.num_earlier == expected
        assert sorted(driver.log.trials.by_number) == [0, 1, 2, 3]
        assert [trial.params for trial in driver.study.trials()] == [t.settings for t in driver.log.trials]
        flagged = driver.study.optuna.trials[0]
        assert flagged.user_attrs["warm_start"].startswith(f"{tmp_path}/earlier/search#")
        scores = earlier.log.trials[int(flagged.user_attrs["warm_start"].split("#")[1])].scores
        assert flagged.values == ([scores[goal.metric] for goal in job.objectives] if scores else None)
        told = say(driver.study)
        # Numbers survive a restart, and a journal that is lost.
        for lose in (False, True):
            if lose:
                driver.directory.study.remove()
            log, study = opened(job)
            assert say(study) == told
            close(log, study)


def test_study_that_contradicts_the_log_is_written_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    driver = run(search_job(tmp_path, trials=4))
    told = say(driver.study)
    text = driver.directory.study.read_text()
    assert driver.log.trials[0].scores or driver.log.trials[0].rungs
    value = json.dumps(driver.study.trials()[0].values)[1:-1].split(",")[0]
    driver.directory.study.write_text(text.replace(value, "77.25"))
    log, study = opened(driver.job)
    assert say(study) == told
    assert "written anew" in caplog.text
    close(log, study)


def test_rungs_are_in_the_study_for_the_dashboard(tmp_path: Path) -> None:
    driver = run(search_job(tmp_path, trials=3))
    assert driver.study.optuna.metric_names == ["reconstruction_psnr", "sample_fid"]
    last = driver.study.trials()[0].user_attrs
    assert max(map(int, last["rungs"])) <= TOTAL
