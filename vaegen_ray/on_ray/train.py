"""A train job on Ray Train: the same loop in every worker, which our supervisor begins again."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.loading import dump_job
from vaegen_ray.config.places import relative_places
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import ClusterError, StorageError, TrainingError, VaegenError
from vaegen_ray.on_ray.cluster import cluster
from vaegen_ray.on_ray.evaluator import evaluator, evaluator_needs
from vaegen_ray.on_ray.metrics import RayMetrics
from vaegen_ray.on_ray.on_node import enter, train_job_from
from vaegen_ray.on_ray.preflight import WorkerNeeds, check_placement, check_storage_is_shared, worker_needs
from vaegen_ray.on_ray.session import RaySession, keep_to_share
from vaegen_ray.on_ray.stop_requests import in_thread, stop_on_signal
from vaegen_ray.on_ray.supervision import Supervisor
from vaegen_ray.runs.attempts import LOGS, LogArchive, rank_log
from vaegen_ray.runs.lease import Fence, Lease
from vaegen_ray.storage import Location
from vaegen_ray.tracking.json_lines import read_metrics
from vaegen_ray.training.checkpoint import highest_fence
from vaegen_ray.training.local_session import PROCESS_GROUP_TIMEOUT, OnReport
from vaegen_ray.training.run import RunResult, run_training

PROGRESS_POLL_S = 1.0


def train_on_ray(
    job: TrainJob,
    on_report: OnReport | None = None,
    command: Sequence[str] = (),
    meanwhile: Callable[[], None] = lambda: None,
    *,
    evaluates_beside: bool = True,
) -> RunResult:
    """Run or resume ``job`` on the cluster of ``$RAY_ADDRESS``, or on a new local one; blocks until it ends.

    SIGTERM or Ctrl-C make the workers save a checkpoint and stop. Lost workers are replaced up to
    ``resources.max_failures`` times, and go on from the newest checkpoint. ``meanwhile`` is called about every
    second; what it raises ends the run. Evaluations in the middle of the run are made beside it, where the cluster
    has room for an evaluator besides the workers; a caller who has counted on the workers alone forbids that.
    """
    run = RunDirectory.of(job)
    with ExitStack() as stack:
        stack.enter_context(cluster())
        needs = worker_needs(job)
        check_placement(job, needs)
        lease = Lease(run.lease, above=highest_fence(run))
        stack.callback(lease.release)
        run.claim(job)
        check_storage_is_shared(run.root)
        run.stop_request.remove()
        stack.enter_context(stop_on_signal(run.stop_request))
        stack.enter_context(_progress(run, on_report))
        beside = evaluator_needs(job, needs) if evaluates_beside else None
        if beside is not None:
            stack.enter_context(evaluator(job, beside))
        supervisor = Supervisor(job, needs)

        def look() -> None:
            supervisor.look()
            meanwhile()

        def fit(num_workers: int) -> RunResult:
            trainer = _trainer(job, needs, num_workers, lease.fence, command, evaluates_beside=beside is not None)
            return _outcome(trainer.fit())

        result: RunResult = in_thread(lambda: supervisor.run(fit), look)
        return result


def _trainer(
    job: TrainJob, needs: WorkerNeeds, num_workers: int, fence: Fence, command: Sequence[str], *, evaluates_beside: bool
) -> TorchTrainer:
    return TorchTrainer(
        _train_worker,
        train_loop_config={
            "job": dump_job(job),
            "directory": os.getcwd(),
            "fence": fence,
            "logs": os.environ.get(LOGS),
            "command": list(command),
            "evaluates_beside": evaluates_beside,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers, use_gpu=needs.gpus > 0, resources_per_worker=needs.as_ray()
        ),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=RunDirectory.of(job).root.url,
            # Our supervisor begins again, because it chooses how many there are to be.
            # The stub of V1 is what the package exports to type checkers.
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=0),  # type: ignore[call-arg]
        ),
        torch_config=TorchConfig(
            backend="nccl" if needs.gpus >= 1 else "gloo", timeout_s=int(PROCESS_GROUP_TIMEOUT.total_seconds())
        ),
    )


def _train_worker(config: dict[str, Any]) -> Any:
    """What each worker runs. A failure that another attempt would meet again is returned by the only worker there is.

    Of several it is raised: Ray Train then ends the others, which would wait for one that has met it alone.
    """
    job = train_job_from(config["job"])
    if not enter(config["directory"]) and (relative := relative_places(job)):
        return ClusterError(
            f"{' and '.join(relative)}: must be absolute or s3:// here, because a node has no {config['directory']}, "
            "the directory in which the command was given"
        )
    session = RaySession(RunDirectory.of(job), config["fence"], evaluates_beside=config["evaluates_beside"])
    keep_to_share(session.device, job.resources.gpus_per_worker)
    try:
        with _archived_log(config["logs"], session.rank):
            return run_training(job, session, config["command"], own_tracker=RayMetrics(job, session.rank))
    except StorageError:
        raise  # Object stores recover; the supervisor begins again.
    except VaegenError as error:
        if session.num_ranks > 1:
            raise
        return error
    except Exception as error:
        if (reason := out_of_memory(error)) is None:
            raise
        if session.num_ranks > 1:
            raise TrainingError(reason) from error
        return TrainingError(reason)
    finally:
        session.close()


@contextmanager
def _archived_log(folder: str | None, rank: int) -> Iterator[None]:
    """Keep what this worker prints in the run directory of a submission: Ray's own files go with the cluster."""
    if folder is None:
        yield
        return
    worker = ray._private.worker.global_worker
    with LogArchive(Location.of(folder) / rank_log(rank), [worker.get_out_file_path(), worker.get_err_file_path()]):
        yield


MEMORY_SENTENCES = ("out of memory", "status_alloc_failed", "can't allocate memory", "cannot allocate memory")
"""What torch and its libraries say on a GPU, on a CPU, and what the system says: RuntimeErrors all."""


def out_of_memory(error: Exception) -> str | None:
    """A sentence where ``error`` is for want of memory, which another attempt would want as well; else None."""
    text = str(error).lower()
    if not isinstance(error, MemoryError) and not any(sentence in text for sentence in MEMORY_SENTENCES):
        return None
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return f"out of memory: {first}; lower training.images_per_step, or raise training.accumulation_steps"


def _outcome(result: Any) -> RunResult:
    value = result.return_value
    if isinstance(value, VaegenError):
        raise value
    if value is None:
        raise TrainingError("Ray Train ended without a result; see its logs under the run's directory `ray`")
    assert isinstance(value, RunResult)
    return value


@contextmanager
def _progress(run: RunDirectory, on_report: OnReport | None) -> Iterator[None]:
    """Show the metrics that rank 0 writes, from storage, as they come."""
    if on_report is None:
        yield
        return
    finished = threading.Event()

    def follow() -> None:
        shown: dict[str, Any] = {}
        over = False
        while not over:
            over = finished.wait(PROGRESS_POLL_S)  # Looks once more after the end.
            try:
                line = read_metrics(run)[-1] if run.metrics.exists() else {}
            except (VaegenError, IndexError):
                continue  # Read between two writes; the next look sees it whole.
            if line and line != shown:
                shown = line
                values = {name: value for name, value in line.items() if isinstance(value, float)}
                on_report(int(line["position"]), {name: v for name, v in values.items() if name != "time_s"})

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
