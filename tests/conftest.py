"""What all tests share: an S3 server on loopback, a small prepared dataset, and nothing of the user's environment."""

import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import numpy as np
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from tests.faults.proxy import FaultyProxy

BUCKET = "images"

if "PYTEST_XDIST_WORKER" in os.environ:
    # Tests side by side: threads of one that waited for those of another made a smoke job take 58 s instead of 3 s.
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAEGEN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A server that speaks S3, in this process."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def s3_variables(endpoint: str) -> dict[str, str]:
    """What leads to the server at ``endpoint``."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture
def s3_bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an empty bucket that the usual AWS variables lead to."""
    for name, value in s3_variables(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket=BUCKET)
    yield f"s3://{BUCKET}"
    for stored in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=stored["Key"])
    client.delete_bucket(Bucket=BUCKET)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3_proxy(
    s3_endpoint: str,
    s3_bucket: str,  # noqa: ARG001 (made first, by the direct way)
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[FaultyProxy]:
    """The way to ``s3_bucket`` from here on: it fails by a schedule and counts what it serves."""
    with FaultyProxy(s3_endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3fs.S3FileSystem.clear_instance_cache()
        yield proxy
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 grey images of 16 pixels: a bright square somewhere on a gradient; some 32 are held out."""
    # Imported here, so that tests of the job's schema need not wait for pyarrow.
    from vaegen_ray.config.prepare import PrepareJob
    from vaegen_ray.data.prepare import prepare

    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for index in range(160):
        image = np.tile(np.linspace(0, 120, 16, dtype=np.uint8), (16, 1))
        row, column = random.integers(0, 10, 2)
        image[row : row + 6, column : column + 6] = 200 + random.integers(0, 55)
        np.save(folder / f"{index:03}.npy", image[:, :, None])
    destination = tmp_path_factory.mktemp("dataset") / "squares"
    prepare(
        PrepareJob.model_validate(
            {
                "kind": "prepare",
                "name": "squares",
                "source": {"kind": "folder", "path": str(folder)},
                "image": {"size": 16, "channels": 1, "encoding": "raw"},
                "held_out_fraction": 0.2,
                "destination": str(destination),
                "licence": "made for the tests",
            }
        )
    )
    return destination
