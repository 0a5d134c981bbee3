"""`encode` on Ray Data: actors that hold the model take the shards of a dataset one by one."""

import logging
import pickle
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import ray
import ray.data

from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import StorageError, VaegenError
from vaegen_ray.evaluation.latent_dataset import EncodeTask, OnImages, Progress, encode_dataset
from vaegen_ray.on_ray.cluster import cluster
from vaegen_ray.on_ray.preflight import check_storage_is_shared, node_resources
from vaegen_ray.storage import Location


def encode_on_ray(run: RunDirectory, source: str, destination: Location, on_progress: Progress | None = None) -> int:
    """Write the latents of ``source`` on the cluster of ``$RAY_ADDRESS``, or on a new local one; returns their number.

    The cluster is asked for only when there is work to do. Lost actors are replaced by Ray.
    """
    with ExitStack() as stack:

        def run_tasks(tasks: Sequence[EncodeTask], on_images: OnImages) -> None:
            stack.enter_context(cluster())
            check_storage_is_shared(run.root, key="RUN")
            check_storage_is_shared(destination, key="DESTINATION")
            _run(run, tasks, on_images)

        return encode_dataset(run, source, destination, run_tasks, on_progress)


class _Encoder:
    """An actor: loads the model once, then encodes shards."""

    def __init__(self, run_url: str) -> None:
        import torch

        from vaegen_ray.evaluation.trained_model import load_trained_model

        device = "cuda" if torch.cuda.is_available() else "cpu"
        self._generator, _ = load_trained_model(RunDirectory(Location(run_url)), device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Do a task. An error of ours is handed over as a value: Ray would wrap it, and show the stack of a worker."""
        task: EncodeTask = pickle.loads(row["task"])
        count, error = 0, b""
        try:
            count = task(self._generator)
        except VaegenError as failure:
            error = pickle.dumps(failure)
        except OSError as failure:
            error = pickle.dumps(StorageError(f"{task.shard.file}: {failure}"))
        return {"num_images": count, "error": error}


def _run(run: RunDirectory, tasks: Sequence[EncodeTask], on_images: OnImages) -> None:
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # Ray warns that there are no progress bars.
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    gpus = sum(int(node.get("GPU", 0)) for node in node_resources())
    cpus = sum(int(node.get("CPU", 0)) for node in node_resources())
    num_actors = max(1, min(len(tasks), gpus or cpus))
    items = [{"task": pickle.dumps(task)} for task in tasks]
    done = ray.data.from_items(items, override_num_blocks=len(items)).map(
        _Encoder,  # type: ignore[arg-type]  # Ray's annotation knows functions only.
        fn_constructor_args=(run.root.url,),
        num_cpus=1,
        num_gpus=1 if gpus else None,
        compute=ray.data.ActorPoolStrategy(size=num_actors),
    )
    for row in done.iter_rows():
        if row["error"]:
            raise pickle.loads(row["error"])
        on_images(row["num_images"])
