"""Ray Train runs the loop of one process in many, and replaces workers that die."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
from ray.train.v2.api.exceptions import WorkerGroupError

from tests.training.jobs import OBJECTIVES, run_job
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import ClusterError, TrainingError
from vaegen_ray.on_ray.preflight import WorkerNeeds
from vaegen_ray.on_ray.supervision import Supervisor
from vaegen_ray.on_ray.train import train_on_ray
from vaegen_ray.tracking.json_lines import read_metrics
from vaegen_ray.training.loop import Ending
from vaegen_ray.training.run import RunResult

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("cluster")]

TRAINING = {
    "total_images": 960,
    "report_every_images": 8,
    "checkpoint_every_images": 80,
    "keep_checkpoints": 20,
}


def two_worker_job(dataset: Path, storage: Path, **sections: Any) -> TrainJob:
    return run_job(
        dataset,
        storage,
        OBJECTIVES["vae_gan"],
        training=TRAINING,
        resources={"workers": 2, "cpus_per_worker": 0.5},
        **sections,
    )


@pytest.fixture(scope="module")
def undisturbed(cluster: None, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainJob:  # noqa: ARG001
    job = two_worker_job(dataset, tmp_path_factory.mktemp("undisturbed"))
    result = train_on_ray(job)
    assert (result.ending, result.position) == (Ending.COMPLETE, 960)
    return job


@contextmanager
def when_checkpointed(job: TrainJob, position: int, action: Callable[[], None]) -> Iterator[list[int]]:
    """Do ``action`` once the run has a checkpoint at ``position`` or later; gives the positions at that moment."""
    seen: list[int] = []

    def watch() -> None:
        manifests = RunDirectory.of(job).checkpoints.local_path
        while (
            not (found := sorted(int(p.parent.name[7:]) for p in manifests.glob("*/manifest.json")))
            or found[-1] < position
        ):
            time.sleep(0.02)
        seen.extend(found)
        action()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield seen
    watcher.join(timeout=5)


def workers() -> list[psutil.Process]:
    """The processes of Ray Train's workers, among the descendants of this one."""
    return [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]


def checkpoint_files(job: TrainJob, position: int) -> dict[str, bytes]:
    folder = RunDirectory.of(job).checkpoint(position)
    return {name: (folder / name).read_bytes() for name in ("networks.safetensors", "optimizers.pt")}


def test_two_workers_give_the_losses_of_one_process(undisturbed: TrainJob, dataset: Path, tmp_path: Path) -> None:
    from vaegen_ray.training.local_session import local_session
    from vaegen_ray.training.run import run_training

    alone = run_job(dataset, tmp_path, OBJECTIVES["vae_gan"], training=TRAINING)
    with local_session() as session:
        run_training(alone, session)
    ours, theirs = read_metrics(RunDirectory.of(undisturbed)), read_metrics(RunDirectory.of(alone))
    assert [line["position"] for line in ours] == list(range(8, 968, 8))
    for mine, other in zip(ours[:20], theirs[:20], strict=True):
        for name in ("generator_loss", "discriminator_loss", "train_kl_nats", "adversarial_weight"):
            if name in other:
                assert mine[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), (name, mine["position"])


def test_worker_killed_in_mid_run_is_replaced_and_the_final_state_has_the_same_bits(
    undisturbed: TrainJob, dataset: Path, tmp_path: Path
) -> None:
    job = two_worker_job(dataset, tmp_path)
    killed: list[int] = []

    def kill_one() -> None:
        victim = workers()[0]
        victim.send_signal(signal.SIGKILL)
        killed.append(victim.pid)

    with when_checkpointed(job, 240, kill_one) as seen:
        result = train_on_ray(job)
    assert killed
    assert seen[-1] < 960, "the run was over before the worker was killed"
    assert (result.ending, result.position) == (Ending.COMPLETE, 960)
    assert checkpoint_files(job, 960) == checkpoint_files(undisturbed, 960)
    starts = RunDirectory.of(job).provenance.read_text()
    assert starts.count('"position"') == 2
    positions = [line["position"] for line in read_metrics(RunDirectory.of(job))]
    assert positions == list(range(8, 968, 8))


def test_what_one_worker_met_alone_ends_the_run_in_its_own_words(dataset: Path, tmp_path: Path) -> None:
    job = two_worker_job(dataset, tmp_path)
    met = UserExceptionWithTraceback(TrainingError("out of memory: 3 GiB; lower training.images_per_step"), "of Ray")
    begun: list[int] = []

    def fit(count: int) -> RunResult:
        begun.append(count)
        raise WorkerGroupError("workers failed", {0: RuntimeError("Connection closed by peer"), 1: met})

    with pytest.raises(TrainingError, match=r"^out of memory: 3 GiB; lower training.images_per_step$"):
        Supervisor(job, WorkerNeeds(0.5, 0)).run(fit)
    assert begun == [2]


def test_workers_that_leave_to_make_room_do_not_take_a_request_to_stop_with_them(dataset: Path, tmp_path: Path) -> None:
    job = two_worker_job(dataset, tmp_path)
    run, begun = RunDirectory.of(job), list[int]()
    run.move_request.write_text("")  # Of a driver that was killed: the workers to come are not to leave for it.

    def fit(count: int) -> RunResult:
        begun.append(count)
        assert not run.move_request.exists()
        run.move_request.write_text("")
        if len(begun) == 2:
            run.stop_request.write_text("15")
        return RunResult(Ending.STOPPED, 80, {})

    result = Supervisor(job, WorkerNeeds(0.5, 0)).run(fit)
    assert (begun, result.ending, result.stop_signal) == ([2, 2], Ending.STOPPED, 15)
    assert run.stop_request.read_text() == "15"


def test_sigterm_to_the_driver_makes_the_workers_save_and_stop_where_the_driver_is(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = two_worker_job(dataset, Path("runs"))
    shown: list[int] = []
    with when_checkpointed(job, 80, lambda: os.kill(os.getpid(), signal.SIGTERM)):
        result = train_on_ray(job, on_report=lambda position, _: shown.append(position))
    assert result.ending is Ending.STOPPED
    assert result.stop_signal == signal.SIGTERM
    assert 80 <= result.position < 960
    assert result.position in RunDirectory.of(job).checkpoint_positions()
    assert (tmp_path / "runs/tiny/metrics.jsonl").exists()
    assert shown, "the driver showed no progress"
    assert shown == sorted(shown)


def test_more_workers_than_the_cluster_can_ever_hold_are_refused_with_numbers(dataset: Path, tmp_path: Path) -> None:
    job = run_job(dataset, tmp_path, OBJECTIVES["vae"], resources={"workers": 4})
    with pytest.raises(ClusterError, match=r"can never place 4 workers of 1 CPU each, only 2: .* use --workers 2"):
        train_on_ray(job)
    assert not (tmp_path / "tiny").exists()


def test_gpus_in_a_cluster_without_any_are_refused(dataset: Path, tmp_path: Path) -> None:
    job = run_job(dataset, tmp_path, OBJECTIVES["vae"], resources={"workers": 2, "gpus_per_worker": 1})
    with pytest.raises(ClusterError, match=r"2 workers of 1 CPU and 1 GPU each, only 0"):
        train_on_ray(job)


def test_fractions_of_a_gpu_are_packed_by_node() -> None:
    needs = WorkerNeeds(cpus=1, gpus=0.25)
    assert needs.fit_into({"CPU": 16, "GPU": 2}) == 8
    assert needs.fit_into({"CPU": 3, "GPU": 2}) == 3
    assert needs.fit_into({"CPU": 16}) == 0


def test_evaluations_of_two_workers_are_made_beside_them(dataset: Path, tmp_path: Path) -> None:
    job = two_worker_job(dataset, tmp_path, evaluation={"every_images": 240})
    result = train_on_ray(job)
    assert (result.ending, result.position) == (Ending.COMPLETE, 960)
    run = RunDirectory.of(job)
    lines = read_metrics(run)
    assert [line["position"] for line in lines if "sample_swd" in line] == [0, 240, 480, 720, 960]
    assert run.evaluations.names() == []
    assert {f"samples-{at:012d}.png" for at in (0, 240, 480, 720, 960)} <= set(run.samples.names())
    assert [line["position"] for line in lines] == sorted({line["position"] for line in lines})
