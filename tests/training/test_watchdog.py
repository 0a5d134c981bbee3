"""Each way in which a run collapses, driven for real on small models, and what the watchdog does about it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.models.test_kl_autoencoder import model_of, published
from tests.training.jobs import KL_AUTOENCODER, NETWORK, job_with, run_job
from vaegen_ray.config.job import Best, TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import CollapsedError, JobError
from vaegen_ray.runs.records import read_incidents
from vaegen_ray.storage import Location
from vaegen_ray.tracking.json_lines import read_metrics
from vaegen_ray.training.incidents import record_warning, roll_back
from vaegen_ray.training.local_session import local_session
from vaegen_ray.training.run import RunResult, run_training
from vaegen_ray.training.watchdog import Incident, Watchdog, incidents_in, watchdog_after

GAN: dict[str, Any] = {
    "kind": "gan",
    "adversarial": {"balance": {"kind": "fixed", "weight": 1.0}},
    "discriminator": NETWORK,
}
VAE_GAN: dict[str, Any] = {
    "kind": "vae_gan",
    "adversarial": {"balance": {"kind": "gradient_share", "share": 0.9, "max_weight": 1e-6}},
    "discriminator": NETWORK,
}
FROZEN, RAGING = {"learning_rate": 1e-9}, {"learning_rate": 1.0}

FAILURES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # Rule: objective, optimizer, thresholds.
    "dead_discriminator": (GAN, {"discriminator": FROZEN}, {"smallest_logit_gap": 0.2, "patience_images": 80}),
    "dead_generator": (
        GAN,
        {"generator": FROZEN, "discriminator": {"learning_rate": 3e-3}},
        {"largest_accuracy": 0.9, "patience_images": 80},
    ),
    "posterior_collapse": (
        {"kind": "vae", "kl": {"weight": 1e6}},
        {"generator": {"learning_rate": 5e-3}},
        {"patience_images": 240},
    ),
    "weight_at_clamp": (VAE_GAN, {}, {"patience_images": 80}),
    "diverging_logits": (GAN, {"discriminator": RAGING}, {"largest_logit": 50.0, "patience_images": 40}),
    "falling_diversity": ({"kind": "vae", "kl": {"weight": 1e6}}, {"generator": {"learning_rate": 1e-2}}, {}),
}


def failing_job(rule: str, dataset: Path, storage: Path, action: dict[str, Any], **sections: Any) -> TrainJob:
    objective, optimizer, thresholds = FAILURES[rule]
    others = {name: None for name in FAILURES if name != rule}
    return run_job(
        dataset,
        storage,
        objective,
        optimizer=optimizer,
        training={"total_images": 800, "report_every_images": 40, "checkpoint_every_images": 80, "keep_checkpoints": 9},
        evaluation={"every_images": 160},
        watchdog={**others, rule: {**thresholds, **action}},
        **sections,
    )


def run(job: TrainJob) -> RunResult:
    with local_session() as session:
        return run_training(job, session)


@pytest.mark.parametrize("rule", FAILURES)
def test_watchdog_stops_a_run_that_fails_and_leaves_the_evidence(rule: str, dataset: Path, tmp_path: Path) -> None:
    job = failing_job(rule, dataset, tmp_path, {"action": "stop"})
    with pytest.raises(CollapsedError, match=rf"watchdog\.{rule}: at [\d,]+ images .*; change the job, or set"):
        run(job)
    directory = RunDirectory.of(job)
    (entry,) = read_incidents(directory)
    assert (entry["rule"], entry["action"]) == (rule, "stop")
    line = next(line for line in read_metrics(directory) if f"watchdog_{rule}" in line)
    assert line["position"] == entry["position"] < 800
    assert line[f"watchdog_{rule}"] == pytest.approx(next(iter(entry["evidence"].values())))
    assert not directory.is_complete()


def test_watchdog_warns_once_and_the_run_goes_on(
    dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = failing_job("posterior_collapse", dataset, tmp_path, {"action": "warn"})
    assert run(job).position == 800
    assert [entry["action"] for entry in read_incidents(RunDirectory.of(job))] == ["warn"]
    assert sum("the latent code carries nothing" in message for message in caplog.messages) == 1


def test_watchdog_rolls_back_with_a_changed_setting_until_the_run_is_well(dataset: Path, tmp_path: Path) -> None:
    action = {"action": "roll_back", "multiply": {"objective.kl.weight": 1e-8}}
    job = failing_job("posterior_collapse", dataset, tmp_path, action)
    assert run(job).position == 800
    directory = RunDirectory.of(job)
    (entry,) = read_incidents(directory)
    assert entry["set"] == {"objective.kl.weight": pytest.approx(0.01)}
    evaluated = [line["position"] for line in read_metrics(directory) if "sample_swd" in line]
    assert evaluated[0] == entry["to"] == 0
    events = EventAccumulator(str(tmp_path / job.name / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("sample_swd")] == evaluated
    assert entry["to"] <= entry["good_position"]
    lines = read_metrics(directory)
    marked = next(line for line in lines if "rolled_back_from_images" in line)
    assert (marked["position"], marked["rolled_back_from_images"]) == (entry["to"], entry["position"])
    assert [line["position"] for line in lines] == sorted({line["position"] for line in lines})
    assert lines[-1]["beta"] == pytest.approx(0.01)
    assert lines[-1]["train_kl_nats"] > 0.1
    # The changed setting outlives the process.
    (directory.final / "scores.json").remove()
    longer = job.model_copy(update={"training": job.training.model_copy(update={"keep_checkpoints": 8})})
    assert run(longer).position == 800


def test_rollback_to_the_beginning_begins_with_the_published_model_again(dataset: Path, tmp_path: Path) -> None:
    """The frozen encoder was a random one from then on."""
    section = {**KL_AUTOENCODER, "image_size": 16, "channels": 1}
    published(model_of(**section), tmp_path / "published")
    section |= {"start_from": str(tmp_path / "published"), "freeze_encoder": True}
    objective = {
        "kind": "vae_gan",
        "adversarial": {"balance": {"kind": "fixed", "weight": 1.0}},
        "discriminator": NETWORK,
    }
    action = {"action": "roll_back", "multiply": {"objective.adversarial.balance.weight": 0.5}}
    rule = {**action, "smallest_logit_gap": 1e6, "patience_images": 8}
    others: dict[str, Any] = dict.fromkeys(FAILURES)

    def begun(name: str, watchdog: dict[str, Any]) -> TrainJob:
        training = {"report_every_images": 8, "checkpoint_every_images": 80}
        return run_job(dataset, tmp_path / name, objective, model=section, training=training, watchdog=watchdog)

    alone, rolled_back = (
        begun("alone", dict.fromkeys(FAILURES)),
        begun("rolled", {**others, "dead_discriminator": rule}),
    )
    run(alone)
    with pytest.raises(CollapsedError, match="rolled back 2 times before"):
        run(rolled_back)
    (entry, *_) = read_incidents(RunDirectory.of(rolled_back))
    assert (entry["action"], entry["to"]) == ("roll_back", 0)
    one, other = (read_metrics(RunDirectory.of(job)) for job in (alone, rolled_back))
    assert any("rolled_back_from_images" in line for line in other)
    kl_nats = {line["position"]: line["train_kl_nats"] for line in one if "train_kl_nats" in line}
    again = {line["position"]: line["train_kl_nats"] for line in other if "train_kl_nats" in line}
    assert again
    assert again == {position: kl_nats[position] for position in again}


def test_watchdog_rolls_back_at_most_so_many_times(dataset: Path, tmp_path: Path) -> None:
    action = {"action": "roll_back", "multiply": {"objective.kl.weight": 0.9}, "at_most": 2}
    job = failing_job("posterior_collapse", dataset, tmp_path, action)
    with pytest.raises(CollapsedError, match=r"rolled back 2 times before \(at_most\)"):
        run(job)
    entries = read_incidents(RunDirectory.of(job))
    assert [entry["action"] for entry in entries] == ["roll_back", "roll_back", "stop"]
    assert [entry.get("set", {}).get("objective.kl.weight") for entry in entries] == [
        pytest.approx(9e5),
        pytest.approx(8.1e5),
        None,
    ]


def test_rollback_killed_before_its_record_rolls_back_again(dataset: Path, tmp_path: Path) -> None:
    action = {"action": "roll_back", "multiply": {"objective.kl.weight": 1e-8}}
    job = failing_job("posterior_collapse", dataset, tmp_path, action)
    run(job)
    directory = RunDirectory.of(job)
    for kept in ("incidents.json", "final/scores.json"):
        (directory.root / kept).remove()
    for position in directory.checkpoint_positions():
        directory.checkpoint(position).remove()
    assert run(job).position == 800
    assert len(read_incidents(directory)) == 1


def test_watchdog_says_nothing_of_a_healthy_run(dataset: Path, tmp_path: Path) -> None:
    job = run_job(dataset, tmp_path, {"kind": "vae"}, training={"report_every_images": 8})
    run(job)
    assert read_incidents(RunDirectory.of(job)) == []


def test_watchdog_forgets_a_rule_that_was_kept_again() -> None:
    job = run_job(Path("unused"), "unused", {"kind": "vae"}, watchdog={"posterior_collapse": {"patience_images": 20}})
    dog = Watchdog(job)
    kl = {10: 5.0, 20: 0.0, 30: 0.0, 40: 0.0, 50: 5.0, 60: 0.0, 70: 0.0}
    told = [at for at, value in kl.items() if dog.look(at, {"train_kl_nats": value})]
    assert told == [30, 70]
    lines = [{"position": at, "train_kl_nats": value} for at, value in kl.items()]
    assert [(incident.position, incident.good_position) for incident in incidents_in(job, lines)] == [
        (30, 10),
        (70, 50),
    ]


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ({"action": "roll_back"}, "multiply: is needed by the action 'roll_back'"),
        ({"multiply": {"objective.kl.weight": 0.5}}, "multiply: has no effect with the action 'warn'"),
        (
            {"action": "roll_back", "multiply": {"model.latent_dim": 0.5}},
            "multiply: must name keys under objective.kl.",
        ),
        ({"action": "roll_back", "multiply": {"objective.kl.wight": 0.5}}, "must name a number above 0 of this job"),
        ({"action": "explode"}, "watchdog.posterior_collapse.action"),
    ],
)
def test_watchdog_that_cannot_work_is_refused(rule: dict[str, Any], sentence: str) -> None:
    from vaegen_ray.config.loading import job_of

    tree = json.loads(run_job(Path("unused"), "unused", {"kind": "vae"}).model_dump_json())
    with pytest.raises(JobError) as refused:
        job_of({**tree, "watchdog": {"posterior_collapse": rule}}, "job")
    assert sentence in str(refused.value)


def test_patience_goes_on_where_a_run_that_was_interrupted_goes_on(dataset: Path, tmp_path: Path) -> None:
    """It had been forgotten: the first broken look after a restart counted as one since the beginning of the run."""
    job = failing_job("posterior_collapse", dataset, tmp_path / "whole", {"action": "stop"})
    with pytest.raises(CollapsedError):
        run(job)
    (whole,) = read_incidents(RunDirectory.of(job))
    assert whole["position"] - whole["good_position"] >= 240
    interrupted = job.model_copy(update={"storage": str(tmp_path / "interrupted")})
    with local_session() as session:
        assert run_training(interrupted, session, until=whole["position"] - 80).position == whole["position"] - 80
    with pytest.raises(CollapsedError):
        run(interrupted)
    (entry,) = read_incidents(RunDirectory.of(interrupted))
    assert entry | {"time": whole["time"]} == whole


def test_clamp_is_that_of_the_changes_and_rollbacks_in_force() -> None:
    """Of the base's clamp a rollback to a larger one could not get rid, and ended a healthy run."""
    balance = {"balance": {"kind": "gradient_share", "share": 0.5, "max_weight": 1.0}}
    changes = [{"at_images": 400, "set": {"objective.adversarial.balance.max_weight": 10.0}}]
    rule = {"weight_at_clamp": {"patience_images": 0}}
    objective = {"kind": "vae_gan", "reconstruction": {"kind": "laplace"}, "adversarial": balance}
    job = job_with(objective, changes=changes, watchdog=rule, training={"total_images": 800})
    rollback = {"to": 560, "multiply": {"objective.adversarial.balance.max_weight": 5.0}}
    weights = {400: 1.0, 440: 1.0, 480: 10.0, 560: 10.0, 600: 10.0, 640: 50.0}
    lines = [{"position": at, "adversarial_weight": weight} for at, weight in weights.items()]
    assert [incident.position for incident in incidents_in(job, lines)] == [400, 480]
    assert [incident.position for incident in incidents_in(job, lines, [rollback])] == [400, 480, 640]


def test_checkpoint_that_a_rollback_would_go_back_to_is_kept(dataset: Path, tmp_path: Path) -> None:
    """With patience for longer than the checkpoints that are kept, a run had begun again from nothing."""
    action = {"action": "roll_back", "multiply": {"objective.kl.weight": 1e-8}}
    weights = {8: 0.5, 320: 4e6}
    changes = [{"at_images": at, "set": {"objective.kl.weight": weight}} for at, weight in weights.items()]
    job = failing_job("posterior_collapse", dataset, tmp_path, action, changes=changes)
    few = job.training.model_copy(update={"keep_checkpoints": 1})
    dog = job.watchdog.posterior_collapse
    assert dog is not None
    patient = job.watchdog.model_copy(update={"posterior_collapse": dog.model_copy(update={"patience_images": 280})})
    job = job.model_copy(update={"training": few, "watchdog": patient})
    run(job)
    (entry,) = read_incidents(RunDirectory.of(job))
    assert entry["position"] - entry["good_position"] >= 280
    assert entry["to"] == entry["good_position"] // 80 * 80 > 0
    assert RunDirectory.of(job).checkpoint_positions() == [800]


def test_best_model_of_what_was_rolled_back_is_not_kept(dataset: Path, tmp_path: Path) -> None:
    action = {"action": "roll_back", "multiply": {"objective.kl.weight": 1e-8}}
    best = {"metric": "kl_nats", "goal": "minimize"}
    weights = {8: 0.5, 320: 4e6}
    changes = [{"at_images": at, "set": {"objective.kl.weight": weight}} for at, weight in weights.items()]
    job = failing_job("posterior_collapse", dataset, tmp_path, action, changes=changes)
    evaluation = job.evaluation.model_copy(update={"every_images": 40, "best": Best.model_validate(best)})
    job = job.model_copy(update={"evaluation": evaluation})
    run(job)
    directory = RunDirectory.of(job)
    (entry,) = read_incidents(directory)
    kept = json.loads((directory.best / "scores.json").read_text())
    line = next(line for line in read_metrics(directory) if line["position"] == kept["position"])
    assert line["kl_nats"] == kept["scores"]["kl_nats"]
    after = [
        line["kl_nats"] for line in read_metrics(directory) if "sample_swd" in line and line["position"] > entry["to"]
    ]
    assert kept["scores"]["kl_nats"] <= min(after)


def test_patience_with_the_contest_begins_where_the_generator_feels_the_discriminator_in_full() -> None:
    """A single look had been enough, and the run went back to its beginning."""
    adversarial = {
        "balance": {"kind": "gradient_share", "share": 0.5, "max_weight": 1.0},
        "start_images": 400,
        "ramp_images": 80,
    }
    job = job_with({"kind": "vae_gan", "adversarial": adversarial}, training={"total_images": 8000})
    contest = {"discriminator_accuracy": 1.0, "adversarial_weight": 1.0}
    lines = [{"position": at, **(contest if at > 400 else {})} for at in range(80, 1200, 80)]
    assert [(incident.rule, incident.position, incident.good_position) for incident in incidents_in(job, lines)] == [
        ("dead_generator", 800, 400),
        ("weight_at_clamp", 800, 400),
    ]
    well = {"position": 560, "discriminator_accuracy": 0.9, "adversarial_weight": 0.5}
    assert incidents_in(job, [{"position": 400}, {"position": 480, **contest}, well]) == []
    # Scores measured beside training come late, of a model before the contest.
    late = [{"position": 1200, "discriminator_accuracy": 0.9, "adversarial_weight": 0.5}, {"position": 400, "x": 1.0}]
    assert incidents_in(job, [*late, {"position": 1280, **contest}]) == []


def test_warning_that_comes_again_after_a_kill_is_kept_once(tmp_path: Path) -> None:
    directory = RunDirectory(Location(str(tmp_path)))
    incident = Incident("posterior_collapse", 320, 80, {"train_kl_nats": 0.0, "threshold": 0.1}, "collapsed")
    for _ in range(2):
        record_warning(directory, incident)
    record_warning(directory, replace(incident, position=480))
    assert [entry["position"] for entry in read_incidents(directory)] == [320, 480]


def test_pictures_of_what_was_rolled_back_are_removed(dataset: Path, tmp_path: Path) -> None:
    action = {"action": "roll_back", "multiply": {"objective.kl.weight": 1e-8}}
    job = failing_job("posterior_collapse", dataset, tmp_path, action)
    directory = RunDirectory.of(job)
    kept = {"samples-000000000000.png", "final-sample-4-seed-0.png"}
    for name in (*kept, "samples-000000000160.png", "reconstructions-000000000160.png"):
        (directory.samples / name).write_bytes(b"")
    assert roll_back(job, directory, Incident("posterior_collapse", 320, 80, {}, "collapsed")) == 0
    assert set(directory.samples.names()) == kept


def test_patience_begins_where_a_run_without_lines_of_its_beginning_goes_on() -> None:
    job = job_with({"kind": "vae"}, watchdog={"posterior_collapse": {"patience_images": 80}})
    dog = watchdog_after(job, [], 400)
    assert [bool(dog.look(at, {"train_kl_nats": 0.0})) for at in (440, 480, 520)] == [False, True, False]


def test_rollback_multiplies_what_is_in_force_where_the_run_goes_on(dataset: Path, tmp_path: Path) -> None:
    """The base's number had been multiplied, and then stood against the changes that came later."""
    action = {"action": "roll_back", "multiply": {"objective.kl.weight": 1e-8}}
    weights = {8: 4e6, 720: 2e6}
    changes = [{"at_images": at, "set": {"objective.kl.weight": weight}} for at, weight in weights.items()]
    job = failing_job("posterior_collapse", dataset, tmp_path, action, changes=changes)
    assert run(job).position == 800
    directory = RunDirectory.of(job)
    (entry,) = read_incidents(directory)
    assert 8 <= entry["to"] < 720
    assert entry["set"] == {"objective.kl.weight": pytest.approx(0.04)}
    beta = {line["position"]: line["beta"] for line in read_metrics(directory) if "beta" in line}
    assert beta[720] == pytest.approx(0.04)
    assert beta[760] == pytest.approx(0.02)
