"""A real cluster: jobs submitted, followed, stopped, resumed; nodes drained and killed; the head killed.

One job goes through all of it, because every start of its workers costs many seconds: each scene begins where the one
before has left it. They are one test, because a scene cannot be tried again alone: tried again by itself, the first one
met the run that its first try had left behind, and the others failed one after the other, the cause among none of them.
"""

import json
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import yaml

from tests.cluster.conftest import SECRET, LocalCluster, put
from tests.training.jobs import OBJECTIVES, run_job
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.runs.attempts import AttemptState, read_attempts
from vaegen_ray.tracking.json_lines import read_metrics
from vaegen_ray.training.lineage import newest_checkpoint

pytestmark = [pytest.mark.cluster, pytest.mark.ray, pytest.mark.s3, pytest.mark.slow]

CHECKPOINT_EVERY = 400


@dataclass(frozen=True)
class Stage:
    """A job, and the cluster that it is submitted to."""

    cluster: LocalCluster
    job: TrainJob
    file: str

    @property
    def storage(self) -> str:
        return self.job.storage

    @property
    def run(self) -> RunDirectory:
        return RunDirectory.of(self.job)

    @property
    def address(self) -> str:
        return self.cluster.environment["RAY_ADDRESS"]

    def done(self, *arguments: str, code: int = 0) -> str:
        return self.cluster.done(*arguments, code=code)

    def stop(self) -> str:
        return self.done("stop", self.job.name, "--storage", self.storage)


@pytest.fixture
def stage(cluster: LocalCluster, dataset: Path, tmp_path: Path) -> Stage:
    """A cluster that knows of nothing, and a job whose storage is empty, also where the test is tried again.

    The job is longer than the test, with a rate at which rounding does not grow, so that numbers can be compared.
    """
    cluster.down()
    cluster.up()
    job = run_job(
        Path("unused"),
        f"s3://cluster/{tmp_path.name}",
        OBJECTIVES["vae"],
        name="elastic",
        data={"source": put(dataset, "s3://cluster/squares"), "horizontal_flip": True},
        optimizer={"generator": {"learning_rate": 1e-6}},
        training={
            "total_images": 10**6,
            "report_every_images": 40,
            "checkpoint_every_images": CHECKPOINT_EVERY,
            "keep_checkpoints": 10,
        },
        resources={"workers": {"min": 1, "max": 2, "grow_every_s": 3.0}, "max_failures": 2},
    )
    file = tmp_path / "elastic.yaml"
    file.write_text(yaml.safe_dump(job.model_dump(mode="json")))
    return Stage(cluster, job, str(file))


@pytest.mark.timeout(1800)
def test_run_goes_through_drain_growth_kill_stop_and_a_new_head_with_the_numbers_of_one_that_did_not(
    stage: Stage, tmp_path: Path
) -> None:
    job_is_submitted_once_however_often_it_is_given(stage)
    second_driver_of_the_run_is_refused_with_the_first_ones_name(stage)
    node_about_to_be_taken_away_costs_no_image(stage)
    new_node_is_used_and_costs_no_image(stage)
    killed_node_costs_what_came_after_the_newest_checkpoint(stage)
    stop_saves_leaves_and_is_told_by_ray_and_by_storage(stage)
    resumed_run_survives_the_head_and_begins_again_on_a_new_one(stage)
    the_numbers_are_those_of_a_run_that_went_through_nothing(stage, tmp_path)
    secret_of_the_store_is_found_nowhere(stage)


def wait_until(holds: Callable[[], Any], run: RunDirectory, what: str, timeout_s: float = 240) -> Any:
    until_s = time.monotonic() + timeout_s
    while not (found := holds()):
        assert time.monotonic() < until_s, f"{what}; the driver says:\n{driver_log(run)}"
        time.sleep(0.3)
    return found


def driver_log(run: RunDirectory) -> str:
    log = run.root / "logs" / f"attempt-{read_attempts(run.root)[-1].number:03d}" / "driver.log"
    return log.read_text()[-5000:] if log.exists() else "nothing"


def starts(run: RunDirectory) -> list[dict[str, Any]]:
    return json.loads(run.provenance.read_text()) if run.provenance.exists() else []


def wait_for_start(run: RunDirectory, number: int, num_ranks: int) -> int:
    """The position at which the workers began for the ``number``-th time, as so many; when they have trained on."""
    start = wait_until(lambda: len(starts(run)) >= number and starts(run)[number - 1], run, f"no start {number}")
    assert start["num_ranks"] == num_ranks, starts(run)
    position = int(start["position"])
    wait_until(lambda: newest_checkpoint(run) >= position + CHECKPOINT_EVERY, run, f"start {number} trains nothing")
    return position


def attempt(run: RunDirectory) -> Any:
    attempts = read_attempts(run.root)
    return attempts[-1] if attempts else None


def job_is_submitted_once_however_often_it_is_given(stage: Stage) -> None:
    output = stage.done("submit", stage.file)
    assert "3 nodes with 2 CPU and 0 GPU in all" in output
    assert f"submitted elastic-a1, which writes to {stage.run.root.url}" in output
    assert "joined elastic-a1" in stage.done("submit", stage.file)
    other = stage.done("submit", stage.file, "--set", "seed=1", code=2)
    assert "is being written by elastic-a1, which is another job" in other
    assert wait_for_start(stage.run, 1, num_ranks=2) == 0
    listed = stage.done("list", stage.storage, "--address", stage.address)
    assert re.search(r"elastic\s*│ train\s*│ running", listed)
    assert "elastic-a1" in listed


def second_driver_of_the_run_is_refused_with_the_first_ones_name(stage: Stage) -> None:
    output = stage.done("train", stage.file, "--set", "resources.workers=1", code=2)
    assert "is being written by another process (submission elastic-a1, process" in output
    assert attempt(stage.run).state is AttemptState.RUNNING


def node_about_to_be_taken_away_costs_no_image(stage: Stage) -> None:
    run = stage.run
    # What Kubernetes does to a pod; `ray start --block` then tells Ray that its node will go.
    stage.cluster.kill("worker-1", signal.SIGTERM)
    position = wait_for_start(run, 2, num_ranks=1)
    # Made for the occasion: of those of the schedule, which this may fall on, no start says why it stopped.
    assert position == last_position_before(run, 2)
    assert starts(run)[0]["stopped"] == {
        "position": position,
        "after": "a preemption: a node was about to be taken away",
    }


def last_position_before(run: RunDirectory, start: int) -> int:
    """The newest checkpoint that the start before had made."""
    begun = starts(run)[start - 2]["position"], starts(run)[start - 1]["position"]
    return max(at for at in run.checkpoint_positions() if begun[0] <= at <= begun[1])


def new_node_is_used_and_costs_no_image(stage: Stage) -> None:
    run = stage.run
    stage.cluster.up()
    position = wait_for_start(run, 3, num_ranks=2)
    assert position in run.checkpoint_positions()
    assert starts(run)[1]["stopped"]["after"] == "a pause to go on with more workers"
    assert attempt(run).state is AttemptState.RUNNING


def killed_node_costs_what_came_after_the_newest_checkpoint(stage: Stage) -> None:
    run = stage.run
    stage.cluster.kill("worker-2")
    newest = newest_checkpoint(run)
    reached = max(newest, *(int(line["position"]) for line in read_metrics(run)))
    position = wait_for_start(run, 4, num_ranks=1)
    lost = reached - position
    print(f"a killed node cost {max(lost, 0)} images; a checkpoint is made every {CHECKPOINT_EVERY}")
    assert position >= newest
    assert lost <= CHECKPOINT_EVERY
    stage.cluster.up()
    wait_for_start(run, 5, num_ranks=2)


def stop_saves_leaves_and_is_told_by_ray_and_by_storage(stage: Stage) -> None:
    run = stage.run
    output = stage.stop()
    position = int(re.search(r"stopped at ([\d,]+) images", output).group(1).replace(",", ""))  # type: ignore[union-attr]
    assert newest_checkpoint(run) >= position
    assert attempt(run).exit_code == 128 + signal.SIGTERM
    listed = stage.done("list", stage.storage, "--address", stage.address)
    assert re.search(r"elastic-a1\s*│ stopped", listed)


def resumed_run_survives_the_head_and_begins_again_on_a_new_one(stage: Stage) -> None:
    run = stage.run
    stopped_at, begun = newest_checkpoint(run), len(starts(run))
    following = stage.cluster.vaegen("resume", "elastic", "--storage", stage.storage, "--follow", "--retries", "2")
    assert wait_for_start(run, begun + 1, num_ranks=2) == stopped_at
    # What was printed in the last seconds before a kill is lost.
    wait_until(lambda: "world_size=2" in driver_log(run), run, "the driver's log is not kept")
    stage.cluster.kill("head")
    reached = max(int(line["position"]) for line in read_metrics(run))
    stage.cluster.down()
    address = stage.address
    told = stage.done("status", "elastic", "--storage", stage.storage)
    assert "elastic-a2" in told, "storage answers while there is no cluster"
    assert "world_size=2" in stage.done("logs", "elastic", "--storage", stage.storage)
    assert "rank=0" in stage.done("logs", "elastic", "--storage", stage.storage, "--rank", "0")
    following.kill()  # Its cluster has another port now.
    following.communicate()
    stage.cluster.up()
    assert stage.address != address
    output = stage.done("resume", "elastic", "--storage", stage.storage, "--address", stage.address)
    assert "submitted elastic-a3" in output
    position = wait_for_start(run, begun + 2, num_ranks=2)
    print(f"a killed head cost {max(reached - position, 0)} images")
    assert reached - position <= 2 * CHECKPOINT_EVERY
    stage.stop()


def the_numbers_are_those_of_a_run_that_went_through_nothing(stage: Stage, tmp_path: Path) -> None:
    from vaegen_ray.training.local_session import local_session
    from vaegen_ray.training.run import run_training

    run = stage.run
    lines = [line for line in read_metrics(run) if "generator_loss" in line]
    positions = [int(line["position"]) for line in lines]
    assert positions == list(range(40, positions[-1] + 40, 40)), "a line is missing, or there twice"
    # One line more: the last one of a run holds its evaluation too, whose KL divergence is that of the held-out images.
    beyond = stage.job.training.model_copy(update={"total_images": positions[-1] + 40})
    alone = stage.job.model_copy(update={"storage": str(tmp_path), "training": beyond})
    with local_session() as session:
        run_training(alone, session)
    undisturbed = {int(line["position"]): line for line in read_metrics(RunDirectory.of(alone))}
    # A line is the mean since the line before, or since the start where that is later.
    begun = [int(start["position"]) for start in starts(run)]
    whole = [line for line in lines if not any(line["position"] - 40 < at < line["position"] for at in begun)]
    assert len(whole) >= len(lines) - len(begun)
    for name in ("generator_loss", "train_kl_nats", "nll_nats"):
        ours = np.array([line[name] for line in whole])
        theirs = np.array([undisturbed[int(line["position"])][name] for line in whole])
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, err_msg=name)


def secret_of_the_store_is_found_nowhere(stage: Stage) -> None:
    client = boto3.client("s3")
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="cluster", Prefix=f"{Path(stage.storage).name}/")
    keys = [stored["Key"] for page in pages for stored in page["Contents"]]
    assert any(key.endswith("driver.log") for key in keys)
    found = [key for key in keys if SECRET.encode() in client.get_object(Bucket="cluster", Key=key)["Body"].read()]
    assert not found
    token = Path(stage.cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text().strip()
    assert not [key for key in keys if token.encode() in client.get_object(Bucket="cluster", Key=key)["Body"].read()]
    assert stage.run.root.exists()
    records = stage.done("submit", "jobs/smoke/vae.yaml", "--set", f"storage={stage.storage}", "--dry-run")
    assert SECRET not in records
    assert token not in records
