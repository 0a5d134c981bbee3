"""Whole searches on a real cluster of two processors."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from tests.search.samples import BALANCE, SPACE, base_tree, search_job, search_tree
from tests.training.jobs import run_alone
from vaegen_ray.cli.main import app
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.config.search import SearchJob
from vaegen_ray.errors import ClusterError, JobError
from vaegen_ray.on_ray.search import Progress, run_search
from vaegen_ray.on_ray.sole_search import sole_search_of_the_cluster
from vaegen_ray.on_ray.study import WARM_START, open_study
from vaegen_ray.runs.status import status_of
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.forks import fork_of
from vaegen_ray.search.leaderboard import leaderboard
from vaegen_ray.search.log import read_trials
from vaegen_ray.search.open import load_trial
from vaegen_ray.search.trials import TrialState
from vaegen_ray.tracking.json_lines import read_metrics
from vaegen_ray.training.checkpoint import read_checkpoint
from vaegen_ray.training.lineage import newest_checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]

START = "objective.adversarial.start_images"


def base(dataset: Path, **sections: Any) -> dict[str, Any]:
    return base_tree(str(dataset), **sections)


def weights_of(run: RunDirectory) -> bytes:
    return (run.final / "generator.safetensors").read_bytes()


@pytest.fixture(scope="module")
def searched(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchJob:
    """A finished search of four trials; the axes are of every kind."""
    storage = tmp_path_factory.mktemp("searched")
    axes = {
        "objective.kl.weight": {"kind": "log_uniform", "low": 0.01, "high": 10.0},
        "model.latent_dim": {"kind": "integer", "low": 2, "high": 8},
        "objective.adversarial.loss": {"kind": "choice", "values": ["hinge", "non_saturating"]},
        f"{BALANCE}.kind": {"kind": "choice", "values": ["gradient_share", "fixed"]},
        f"{BALANCE}.share": {"kind": "uniform", "low": 0.1, "high": 0.9, "when": {f"{BALANCE}.kind": "gradient_share"}},
        f"{BALANCE}.weight": {"kind": "log_uniform", "low": 0.01, "high": 1.0, "when": {f"{BALANCE}.kind": "fixed"}},
        "optimizer.generator.learning_rate": {"kind": "log_uniform", "low": 1e-4, "high": 1e-2},
    }
    job = search_job(storage, base(dataset), space=axes, scheduler={"kind": "none"}, trials=4)
    run_search(job)
    return job


def test_search_trains_every_trial_and_its_front_holds_trained_trials_only(searched: SearchJob) -> None:
    trials = read_trials(SearchDirectory.of(searched))
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 4
    assert all(sorted(trial.rungs) == [32, 64, 96] for trial in trials)
    board = leaderboard(searched, trials)
    assert board.front
    assert board.best in board.front


def test_every_drawn_value_is_the_one_that_trained(searched: SearchJob, tmp_path: Path) -> None:
    """Read back from the trial's own files: its job, its weights, its metrics; and the base alone gives others."""
    directory = SearchDirectory.of(searched)
    for trial in read_trials(directory):
        run = directory.run(trial.number)
        values = run.load_job().model_dump(mode="json")
        for path, value in trial.settings.items():
            section: Any = values
            for key in path.split("."):
                section = section[key]
            assert section == value
    first = directory.run(1)
    assert weights_of(run_alone(first.load_job(), tmp_path)) == weights_of(first)


def test_study_tells_what_the_log_tells(searched: SearchJob) -> None:
    study = open_study(searched, SearchDirectory.of(searched))
    told = study.trials()
    study.close()
    trials = read_trials(SearchDirectory.of(searched))
    assert [trial.params for trial in told] == [trial.settings for trial in trials]
    assert [trial.values for trial in told] == [
        [trial.scores["reconstruction_psnr"], trial.scores["sample_swd"]] for trial in trials
    ]


def test_finished_search_trains_nothing_again_and_extends(searched: SearchJob) -> None:
    before = (SearchDirectory.of(searched).root / "log").names()
    began = time.monotonic()
    assert len(run_search(searched)) == 4
    assert time.monotonic() - began < 25  # Training one of them takes longer, and so does starting Tune.
    assert before[0] in (SearchDirectory.of(searched).root / "log").names()
    longer = searched.model_copy(update={"trials": 5})
    trials = run_search(longer)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 5
    assert [trial.attempts for trial in trials] == [1] * 5
    status = status_of(SearchDirectory.of(searched).root)
    assert status is not None
    assert status.state == "complete"


def test_trial_of_a_search_is_a_job_to_train_longer(searched: SearchJob) -> None:
    place = str(SearchDirectory.of(searched).root)
    job = load_trial(f"{place}#best", ["training.total_images=1e6"])
    best = leaderboard(searched, read_trials(SearchDirectory.of(searched))).best
    assert job.name == f"search-{best}"
    assert job.training.total_images == 1_000_000
    assert job.training.checkpoint_every_images == 100_000
    assert job.objective == SearchDirectory.of(searched).run(best or 0).load_job().objective


def test_search_of_another_space_is_refused_with_what_differs(searched: SearchJob) -> None:
    other = searched.model_copy(update={"space": {name: searched.space[name] for name in ("objective.kl.weight",)}})
    with pytest.raises(JobError, match=r"holds another search .*space\.model\.latent_dim.*warm_start"):
        run_search(other)


def test_earlier_search_with_other_scores_is_refused(searched: SearchJob, dataset: Path, tmp_path: Path) -> None:
    """FID of 16 images and of 32 are two different numbers."""
    earlier = str(SearchDirectory.of(searched).root)
    job = search_job(tmp_path, base(dataset, evaluation={"images": 32}), warm_start=[earlier])
    with pytest.raises(JobError, match=r"warm_start\[0\]: .* the same evaluation\.images, .*: 16 there, 32 here"):
        run_search(job)


def test_directory_of_a_job_of_another_kind_is_refused(searched: SearchJob, dataset: Path, tmp_path: Path) -> None:
    train_job = TrainJob.model_validate({**base(dataset), "name": "search", "storage": str(tmp_path)})
    RunDirectory.of(train_job).claim(train_job)
    with pytest.raises(JobError, match="search is the directory of a train run; give this job another name"):
        run_search(search_job(tmp_path, base(dataset)))
    with pytest.raises(JobError, match="search is the directory of a search; give this job another name"):
        RunDirectory(SearchDirectory.of(searched).root).claim(train_job)


def test_request_to_stop_while_the_cluster_starts_is_heard(dataset: Path, tmp_path: Path) -> None:
    """One that an earlier start left is not; that of this start was removed together with it."""
    tree = search_tree(tmp_path, base(dataset), scheduler={"kind": "none"}, trials=2)
    file = tmp_path / "search.yaml"
    file.write_text(json.dumps(tree))
    directory = SearchDirectory.of(search_job(tmp_path, base(dataset)))
    directory.stop_request.write_text("15")
    driver = subprocess.Popen(
        [sys.executable, "-m", "vaegen_ray", "search", str(file)], stdout=subprocess.PIPE, text=True
    )
    while directory.stop_request.exists():
        assert driver.poll() is None
        time.sleep(0.02)
    assert not directory.job_file.exists()  # Ray has not started yet.
    directory.stop_request.write_text("15")
    output, _ = driver.communicate(timeout=300)
    assert "0 of 2 trials over" in output
    assert "not finished" in output


def test_forked_trials_share_the_beginning_and_end_like_alone(dataset: Path, tmp_path: Path) -> None:
    job = search_job(
        tmp_path,
        base(dataset, objective={"adversarial": {"start_images": 48}}),
        space={f"{BALANCE}.share": SPACE[f"{BALANCE}.share"]},
        scheduler={"kind": "none"},
        trials=3,
    )
    run_search(job)
    directory = SearchDirectory.of(job)
    assert len(directory.forks.names()) == 1
    fork = fork_of(directory.run(0).load_job())
    assert fork is not None
    starts = [json.loads(directory.run(number).provenance.read_text())[0]["position"] for number in range(3)]
    assert sorted(starts) == [0, 48, 48]
    for number in range(3):
        run = directory.run(number)
        assert weights_of(run_alone(run.load_job(), tmp_path / "alone")) == weights_of(run)


def test_population_copies_states_and_its_schedule_trains_to_the_same_bits(dataset: Path, tmp_path: Path) -> None:
    job = search_job(
        tmp_path,
        base(dataset, evaluation={"every_images": 16}),
        objectives=[{"metric": "reconstruction_psnr", "goal": "maximize"}],
        space={
            "objective.kl.weight": SPACE["objective.kl.weight"],
            "optimizer.generator.learning_rate": {"kind": "log_uniform", "low": 1e-6, "high": 1e-2},
        },
        scheduler={"kind": "pbt", "replaced_fraction": 0.5},
        trials=2,
    )
    trials = run_search(job)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    copies = [trial for trial in trials if trial.parent is not None]
    assert copies
    run = SearchDirectory.of(job).run(copies[0].number)
    assert run.load_job().changes
    assert weights_of(run_alone(run.load_job(), tmp_path / "alone")) == weights_of(run)


def test_trial_of_two_workers_runs_on_ray_train_and_reports_its_rungs(dataset: Path, tmp_path: Path) -> None:
    resources = {"workers": 2, "cpus_per_worker": 0.4}
    job = search_job(tmp_path, base(dataset, resources=resources), trials=1, scheduler={"kind": "pareto"})
    trials = run_search(job)
    assert [trial.state for trial in trials] == [TrialState.COMPLETE]
    assert sorted(trials[0].rungs)[:2] == [32, 64]


def test_trial_that_always_fails_is_retried_told_and_does_not_end_the_search(dataset: Path, tmp_path: Path) -> None:
    """A learning rate of this size diverges in the first steps."""
    rate = "optimizer.generator.learning_rate"
    job = search_job(
        tmp_path,
        base(dataset),
        space={rate: {"kind": "choice", "values": [1e-3, 1e30]}},
        points=[{rate: 1e30}, {rate: 1e-3}],
        trials=2,
    )
    trials = run_search(job)
    assert [trial.state for trial in trials] == [TrialState.FAILED, TrialState.COMPLETE]
    assert "not finite" in trials[0].reason or "must be finite" in trials[0].reason


def test_search_that_the_cluster_can_never_place_is_refused(dataset: Path, tmp_path: Path) -> None:
    job = search_job(tmp_path, base(dataset, resources={"cpus_per_worker": 64.0}))
    with pytest.raises(ClusterError, match=r"can never place one trial of 1 worker\(s\) of 64 CPU"):
        run_search(job)


def test_driver_killed_in_mid_search_goes_on_without_losing_or_repeating_a_trial(
    dataset: Path, s3_bucket: str, tmp_path: Path
) -> None:
    """SIGKILL to the whole process: its local cluster dies with it. All that it knew is in the object store."""
    tree = search_tree(s3_bucket, base(dataset), scheduler={"kind": "none"}, trials=4)
    file = tmp_path / "search.yaml"
    file.write_text(json.dumps(tree))
    command = [sys.executable, "-m", "vaegen_ray", "search", str(file)]
    directory = SearchDirectory.of(search_job(s3_bucket, base(dataset)))
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not directory.job_file.exists() or not read_trials(directory).in_state(TrialState.COMPLETE):
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = read_trials(directory)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300)
    after = read_trials(directory)
    assert [trial.state for trial in after] == [TrialState.COMPLETE] * 4
    for trial in before.in_state(TrialState.COMPLETE):
        assert after[trial.number] == trial
    for trial in before:
        assert after[trial.number].settings == trial.settings
        assert after[trial.number].rungs.items() >= trial.rungs.items()
    last = directory.run(3)
    assert read_checkpoint(last.checkpoint(96))
    study = open_study(search_job(s3_bucket, base(dataset)), directory)
    assert [trial.params for trial in study.trials()] == [trial.settings for trial in after]
    study.close()


def test_second_search_on_the_same_cluster_is_refused_and_told_of_the_first(dataset: Path, tmp_path: Path) -> None:
    first = search_job(tmp_path / "first", base(dataset))
    with (
        sole_search_of_the_cluster(SearchDirectory.of(first)),
        pytest.raises(ClusterError, match=r"runs another search \(.*first/search"),
    ):
        run_search(search_job(tmp_path / "second", base(dataset)))


def test_trial_whose_process_is_killed_goes_on_from_its_checkpoint(dataset: Path, tmp_path: Path) -> None:
    longer = base(
        dataset, training={"total_images": 3200, "checkpoint_every_images": 80}, evaluation={"every_images": 1600}
    )
    job = search_job(tmp_path, longer, trials=1, scheduler={"kind": "none"})
    directory, killed = SearchDirectory.of(job), threading.Event()

    def kill_when_it_has_a_checkpoint() -> None:
        while not newest_checkpoint(directory.run(0)):
            time.sleep(0.05)
        while not killed.is_set():
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):  # Processes of Ray come and go.
                    if "ImplicitFunc" in " ".join(process.cmdline()):  # Tune's name of a trial's process.
                        process.kill()
                        killed.set()

    killer = threading.Thread(target=kill_when_it_has_a_checkpoint, daemon=True)
    killer.start()
    trials = run_search(job)
    assert killed.is_set()
    assert (trials[0].state, trials[0].attempts) == (TrialState.COMPLETE, 2)
    starts = json.loads(directory.run(0).provenance.read_text())
    assert starts[1]["position"] >= 80


def test_search_asked_to_stop_saves_its_trials_and_goes_on(dataset: Path, tmp_path: Path) -> None:
    longer = base(dataset, training={"total_images": 6400}, evaluation={"every_images": 3200})
    job = search_job(tmp_path, longer, trials=1, scheduler={"kind": "none"})
    directory = SearchDirectory.of(job)

    def stop_when_it_trains(progress: Progress) -> None:
        trained = any(line["position"] > 0 for line in read_metrics(directory.run(0)))
        if trained and not progress.is_stopping:
            assert CliRunner().invoke(app, ["search", "stop", str(directory.root)]).exit_code == 0

    trials = run_search(job, stop_when_it_trains)
    assert trials[0].state is TrialState.RUNNING
    (stopped_at, *_) = reversed(directory.run(0).checkpoint_positions())
    assert 0 < stopped_at < 6400
    trials = run_search(job)
    assert trials[0].state is TrialState.COMPLETE
    starts = json.loads(directory.run(0).provenance.read_text())
    assert [start["position"] for start in starts] == [0, stopped_at]


def test_search_learns_from_an_earlier_one_and_leaves_when_its_time_is_used_up(
    searched: SearchJob, tmp_path: Path
) -> None:
    earlier = SearchDirectory.of(searched).root.url
    changes = {"name": "later", "storage": str(tmp_path), "warm_start": [earlier], "time_budget_s": 0.5}
    file = tmp_path / "later.yaml"
    file.write_text(yaml.safe_dump(searched.model_dump(mode="json") | changes))
    told = CliRunner().invoke(app, ["search", str(file)])
    assert told.exit_code == 0, told.output
    assert "not finished, time_budget_s: 0.5 is used up; go on with: vaegen search resume" in told.output
    assert "running" not in told.output[told.output.rindex("on the front") :]  # They are called interrupted.
    later = searched.model_copy(update=changes)
    study = open_study(later, SearchDirectory.of(later))
    assert [trial.user_attrs[WARM_START] for trial in study.optuna.trials[:4]] == [f"{earlier}#{n}" for n in range(4)]
    assert len(study.trials()) == len(read_trials(SearchDirectory.of(later))) > 0
    study.close()


def test_population_asked_to_stop_leaves_although_members_wait_for_each_other(dataset: Path, tmp_path: Path) -> None:
    longer = base(dataset, training={"total_images": 16000}, evaluation={"every_images": 160})
    job = search_job(
        tmp_path,
        longer,
        objectives=[{"metric": "reconstruction_psnr", "goal": "maximize"}],
        space={"objective.kl.weight": SPACE["objective.kl.weight"]},
        scheduler={"kind": "pbt", "replaced_fraction": 0.5},
        trials=2,
    )
    directory = SearchDirectory.of(job)

    def stop_after_a_generation(progress: Progress) -> None:
        if all(trial.rungs for trial in progress.trials) and len(progress.trials) == 2 and not progress.is_stopping:
            directory.stop_request.write_text("stop")

    trials = run_search(job, stop_after_a_generation)
    assert [trial.state for trial in trials] == [TrialState.RUNNING] * 2


def test_search_goes_on_by_its_directory_from_another_working_directory(
    searched: SearchJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = SearchDirectory.of(searched).root.local_path
    monkeypatch.chdir(place.parent)
    told = CliRunner().invoke(app, ["search", "resume", place.name])
    assert told.exit_code == 0, told.output
    assert not (place.parent / "runs").exists()
    moved = tmp_path / "elsewhere" / place.name
    moved.parent.mkdir()
    shutil.copytree(place, moved)
    assert load_trial(f"{moved}#1").storage == str(moved.parent)
