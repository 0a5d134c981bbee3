"""The Ray cluster that a verb runs on."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from vaegen_ray.errors import ClusterError

WORKER_START_TIMEOUT_S = "600"
"""Ray's 60 s include the installation of packages on a fresh node."""


@contextmanager
def cluster() -> Iterator[None]:
    """The cluster of this process, or of ``$RAY_ADDRESS``, or a new local one, which ends with the context."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", WORKER_START_TIMEOUT_S)
    # Our workers watch for themselves whether their node will go.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    try:
        # The dashboard stays on: without it Ray Train cannot clean up after a killed controller.
        ray.init(logging_level=logging.WARNING)
    except Exception as error:  # Ray raises a plain Exception where a node does not start in time.
        address = os.environ.get("RAY_ADDRESS", "a new local cluster")
        raise ClusterError(f"cannot reach Ray at {address}: {error}; check RAY_ADDRESS, or use --local") from error
    try:
        yield
    finally:
        ray.shutdown()
