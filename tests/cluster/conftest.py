"""A cluster of three nodes on this machine, in processes of their own, and a store that outlives it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import s3fs

from tests.faults.proxy import FaultyProxy
from vaegen_ray.storage import Location

ROOT = Path(__file__).parents[2]
SECRET = "planted-secret-4711"
"""Of the store; it must not be found anywhere."""


class LocalCluster:
    """`cluster/local`, and `vaegen` with the variables that it prints."""

    def __init__(self, state: Path, environment: dict[str, str]) -> None:
        self.state = state
        self.environment = {**environment, "VAEGEN_LOCAL_CLUSTER": str(state), "PYTHONPATH": str(ROOT)}

    def up(self, workers: int = 2) -> None:
        """Start what is missing."""
        output = self._local("up", str(workers))
        for line in output.splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            self.environment[name] = value

    def down(self) -> None:
        """End all of it."""
        self._local("down")

    def kill(self, node: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to the process of a node; with SIGKILL to all its children too, as a power cut would."""
        import psutil

        process = psutil.Process(int((self.state / f"{node}.pid").read_text()))
        if number != signal.SIGKILL:
            process.send_signal(number)
            return
        for each in [*process.children(recursive=True), process]:
            if each.is_running():
                each.kill()

    def vaegen(self, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        """A verb, on its way."""
        return subprocess.Popen(
            [sys.executable, "-m", "vaegen_ray", *arguments],
            env={**self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def done(self, *arguments: str, code: int = 0, **variables: str) -> str:
        """What a verb printed, which ended with ``code``."""
        process = self.vaegen(*arguments, **variables)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == code, output
        return output

    def _local(self, *arguments: str) -> str:
        done = subprocess.run(
            [ROOT / "cluster/local", *arguments], env=self.environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def put(folder: Path, url: str) -> str:
    """Copy what is in ``folder`` to ``url``, which is returned."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (Location.of(url) / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())
    return url


@pytest.fixture(scope="package")
def proxy(s3_endpoint: str) -> Iterator[FaultyProxy]:
    """The way to the store."""
    with FaultyProxy(s3_endpoint) as proxy:
        yield proxy


@pytest.fixture(scope="package")
def store(proxy: FaultyProxy) -> Iterator[dict[str, str]]:
    """A bucket `cluster` and the variables that lead to it."""
    variables = {
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = dict(os.environ)
    os.environ.update(variables)
    s3fs.S3FileSystem.clear_instance_cache()
    boto3.client("s3").create_bucket(Bucket="cluster")
    yield variables
    os.environ.clear()
    os.environ.update(before)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="package")
def cluster(store: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A head that trains nothing, and two workers of one processor."""
    folder = tmp_path_factory.mktemp("cluster")
    environment = {**os.environ, **store, "VAEGEN_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    cluster = LocalCluster(folder / "state", environment)
    cluster.up()
    yield cluster
    if cluster.state.exists():
        cluster.down()
