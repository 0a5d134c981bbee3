"""The poller for a cloud's notice, against a metadata server on loopback; Ray's command is a stand-in."""

import importlib.util
import json
import re
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

NODE, HEAD = "ab" * 28, "10.0.0.1:6379"


class Metadata(ThreadingHTTPServer):
    """Instance metadata as EC2 (version 2 only) and Compute Engine serve them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.taken_away = False
        self.is_broken = False
        self.asked: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        ttl = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds")
        self._answer(200 if self.path == "/latest/api/token" and ttl else 400, "a-token")

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.server.is_broken:
            self._answer(503, "")
        elif self.path == "/latest/meta-data/spot/instance-action":
            if self.headers.get("X-aws-ec2-metadata-token") != "a-token":
                self._answer(401, "")
            elif self.server.taken_away:
                self._answer(200, json.dumps({"action": "terminate", "time": "2026-01-01T00:02:00Z"}))
            else:
                self._answer(404, "")
        elif self.path == "/computeMetadata/v1/instance/preempted":
            if self.headers.get("Metadata-Flavor") != "Google":
                self._answer(403, "")
            else:
                self._answer(200, "TRUE" if self.server.taken_away else "FALSE")
        else:
            self._answer(404, "")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    server = Metadata()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def poller(cloud: str, metadata: Metadata, tmp_path: Path, code: int = 0) -> subprocess.Popen[str]:
    """Start it, with a `ray` that writes down its arguments, and that fails the first time with ``code``."""
    ray = tmp_path / "commands" / "ray"
    ray.parent.mkdir()
    ray.write_text(
        f'#!/bin/bash\necho "$*" >>{tmp_path}/calls\n[[ $(wc -l <{tmp_path}/calls) -gt 1 ]] || exit {code}\n'
    )
    ray.chmod(0o755)
    url = f"http://127.0.0.1:{metadata.server_port}"
    command = [sys.executable, "cluster/spot_drain.py", cloud, "--metadata", url, "--every", "0.05"]
    command += ["--node-id", NODE, "--address", HEAD]
    environment = {"PATH": f"{ray.parent}:/usr/bin:/bin", "http_proxy": "http://127.0.0.1:9"}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(metadata: Metadata, requests: int) -> None:
    deadline_s = time.monotonic() + 20
    while len(metadata.asked) < requests:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@pytest.mark.parametrize(("cloud", "at_most_s"), [("aws", 110), ("gcp", 20)])
def test_notice_of_the_cloud_drains_this_node_in_time(
    cloud: str, at_most_s: int, metadata: Metadata, tmp_path: Path
) -> None:
    process = poller(cloud, metadata, tmp_path)
    wait_for(metadata, 3)
    assert process.poll() is None
    assert not (tmp_path / "calls").exists(), "nothing was announced"
    metadata.taken_away = True
    _, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "draining" in said
    (call,) = (tmp_path / "calls").read_text().splitlines()
    assert call.startswith(f"drain-node --address {HEAD} --node-id {NODE} --reason DRAIN_NODE_REASON_PREEMPTION ")
    assert at_most_s - 5 < int(call.split()[-1]) <= at_most_s


def test_faults_of_the_metadata_and_of_ray_are_tried_again(metadata: Metadata, tmp_path: Path) -> None:
    metadata.is_broken = True
    process = poller("aws", metadata, tmp_path, code=1)
    wait_for(metadata, 3)
    metadata.is_broken, metadata.taken_away = False, True
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "503" in errors
    assert len((tmp_path / "calls").read_text().splitlines()) == 2


def test_node_is_found_by_its_raylet(tmp_path: Path) -> None:
    def process(number: int, *command: str) -> None:
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "cmdline").write_text("\0".join([*command, ""]))

    this_node = runpy.run_path("cluster/spot_drain.py")["this_node"]
    process(1, "/sbin/init")
    process(2, "python", "raylet_watch.py", "--node_id=cd", "--gcs-address=10.0.0.2:1")
    with pytest.raises(LookupError, match="0 Ray nodes"):
        this_node(tmp_path)
    process(
        3, "/ray/core/src/ray/raylet/raylet", "--store", f"--node_id={NODE}", "--static=CPU,1", f"--gcs-address={HEAD}"
    )
    assert this_node(tmp_path) == (NODE, HEAD)
    process(4, "/ray/core/src/ray/raylet/raylet", "--node_id=ef", "--gcs-address=10.0.0.2:1")
    with pytest.raises(LookupError, match=r"2 Ray nodes.*--node-id"):
        this_node(tmp_path)


def test_ray_knows_the_command_and_its_options() -> None:
    """The command is hidden, and promised by nobody. Importing it takes seconds, so its source is read."""
    package = importlib.util.find_spec("ray")
    assert package is not None
    assert package.origin is not None
    source = Path(package.origin).with_name("scripts").joinpath("scripts.py").read_text()
    decorated = source[: source.index("\ndef drain_node(")].rpartition("@cli.command(hidden=True)")[2]
    options = set(re.findall(r'"(--[a-z-]+)"', decorated))
    assert options == {"--address", "--node-id", "--reason", "--reason-message", "--deadline-remaining-seconds"}
    reasons = importlib.import_module("ray.core.generated.autoscaler_pb2").DrainNodeReason
    assert "DRAIN_NODE_REASON_PREEMPTION" in reasons.keys()  # noqa: SIM118 (protobuf's own)
    assert "cli.add_command(drain_node)" in source
