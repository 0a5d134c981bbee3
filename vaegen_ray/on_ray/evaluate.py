"""The evaluation of a finished run by several workers of Ray Train, each with a share of the images."""

import os
import tempfile
from typing import Any

import ray.train
import ray.train.torch
from ray.train.torch import TorchConfig, TorchTrainer

from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import TrainingError, VaegenError
from vaegen_ray.evaluation.finished_run import Request, evaluate_run
from vaegen_ray.on_ray.cluster import cluster
from vaegen_ray.on_ray.on_node import enter
from vaegen_ray.on_ray.preflight import check_placement, check_storage_is_shared, worker_needs
from vaegen_ray.on_ray.supervision import raised_by_workers
from vaegen_ray.storage import Location
from vaegen_ray.training.collectives import gather_rows, sum_over_ranks
from vaegen_ray.training.local_session import PROCESS_GROUP_TIMEOUT


def evaluate_on_ray(run: RunDirectory, request: Request, workers: int) -> Any:
    """As :func:`evaluate_run`, by ``workers`` workers on the cluster of ``$RAY_ADDRESS``, or on a new local one."""
    job = run.load_job()
    job = job.model_copy(update={"resources": job.resources.model_copy(update={"workers": workers})})
    with cluster(), tempfile.TemporaryDirectory(prefix="vaegen-evaluate-") as records:
        needs = worker_needs(job)
        check_placement(job, needs)
        check_storage_is_shared(run.root)
        trainer = TorchTrainer(
            _evaluate_worker,
            train_loop_config={"run": run.root.url, "request": request, "directory": os.getcwd()},
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers, use_gpu=needs.gpus > 0, resources_per_worker=needs.as_ray()
            ),
            # Nothing is reported or kept by Ray; a folder that goes is enough on one node, and unused on others.
            run_config=ray.train.RunConfig(name="evaluate", storage_path=records),
            torch_config=TorchConfig(
                backend="nccl" if needs.gpus >= 1 else "gloo", timeout_s=int(PROCESS_GROUP_TIMEOUT.total_seconds())
            ),
        )
        try:
            result: Any = trainer.fit()
        except ray.train.TrainingFailedError as error:
            # One worker alone may have met it; Ray Train has ended the others, which waited for it.
            raised = [each for each in raised_by_workers(error) if isinstance(each, VaegenError)]
            if not raised:
                raise
            raise raised[0] from error
    value = result.return_value
    if value is None:
        raise TrainingError("Ray Train ended without a result of the evaluation")
    return value


def _evaluate_worker(config: dict[str, Any]) -> Any:
    enter(config["directory"])
    context = ray.train.get_context()
    return evaluate_run(
        RunDirectory(Location.of(config["run"])),
        config["request"],
        ray.train.torch.get_device(),
        rank=context.get_world_rank(),
        num_ranks=context.get_world_size(),
        gather=gather_rows,
        total=sum_over_ranks,
    )
