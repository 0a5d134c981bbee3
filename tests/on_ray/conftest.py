"""One Ray cluster of two processors for all tests."""

import os
from collections.abc import Iterator

import pytest

from tests.conftest import s3_variables

# isort: off
# First, because it sets what ray reads when it is imported: else, under `uv run`, uv starts each of Ray's processes.
import vaegen_ray.on_ray  # noqa: F401
import ray
# isort: on

SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, s3_endpoint: str) -> Iterator[None]:
    """The dashboard stays on, as for users: without it Ray Train does not clean up. Its nodes know the S3 server."""
    before = dict(os.environ)
    os.environ |= SETTINGS | s3_variables(s3_endpoint) | {"VAEGEN_CACHE": str(tmp_path_factory.mktemp("cache"))}
    ray.init(num_cpus=2, dashboard_host="127.0.0.1", log_to_driver=True, _node_ip_address="127.0.0.1")
    yield
    ray.shutdown()
    os.environ.clear()
    os.environ.update(before)
