"""Another loader of images, beside ours: `serve_peer.py` in a process of the environment that has it."""

import json
import os
import re
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

PROGRAM = Path(__file__).parent / "serve_peer.py"
PEERS = Path(__file__).parent / "peers"

CLOSING_S = 30.0


@dataclass(frozen=True)
class Peer:
    """How to run a loader."""

    name: str
    python: str
    """The interpreter of an environment in which it is installed."""
    module: Path
    encoding: str | None = None
    """Of the images, where it has a choice."""


@dataclass(frozen=True)
class PeerTimes:
    """One epoch."""

    images: int
    first_batch_s: float
    epoch_s: float


def library_peers(python: str) -> list[Peer]:
    """The loaders that other libraries have."""
    return [
        Peer("mosaicml-streaming, PNG", python, PEERS / "mosaicml_streaming.py", "png"),
        Peer("mosaicml-streaming, raw pixels", python, PEERS / "mosaicml_streaming.py", "raw"),
        Peer("webdataset, PNG", python, PEERS / "web_dataset.py"),
        Peer("litdata, raw pixels", python, PEERS / "lit_data.py"),
    ]


class RunningPeer:
    """A peer's process, which waits except while it reads an epoch."""

    def __init__(self, peer: Peer, pixels: Path, folder: Path) -> None:
        """Convert the images of the array file ``pixels`` into ``folder``."""
        self.name = peer.name
        self.problem: str | None = None
        """Why there are no times."""
        self.epochs: list[PeerTimes] = []
        self._peer = peer
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the process)
        encoding = [peer.encoding] if peer.encoding else []
        command = [peer.python, *map(str, (PROGRAM, peer.module, "convert", pixels, folder)), *encoding]
        if subprocess.run(command, stdout=self._errors, stderr=self._errors, check=False).returncode:
            self.problem = self._last_error()

    def start(self, source: str, cache: Path, images_per_batch: int) -> None:
        """Start the process that reads what was converted, at ``source``."""
        if self.problem is not None:
            return
        environment = dict(os.environ)
        if "AWS_ENDPOINT_URL" in environment:
            # The name by which mosaicml-streaming knows it.
            environment["S3_ENDPOINT_URL"] = environment["AWS_ENDPOINT_URL"]
        self._process = subprocess.Popen(
            [self._peer.python, *map(str, (PROGRAM, self._peer.module, "serve", source, cache, images_per_batch))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )
        self._answer()

    def read_epoch(self) -> None:
        """Let it read an epoch."""
        if self.problem is not None or self._process is None:
            return
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # It has ended: then there is no answer either.
            self._process.stdin.write("epoch\n")
            self._process.stdin.flush()
        if answer := self._answer():
            self.epochs.append(PeerTimes(**json.loads(answer)))

    def close(self) -> None:
        """End the process, which may have a cluster to stop."""
        if self._process is not None:
            try:
                self._process.communicate(timeout=CLOSING_S)  # Closes its input.
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.communicate()
        self._errors.close()

    def _answer(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer:
            self._process.wait()
            self.problem = self._last_error()
        return answer

    def _last_error(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        # Some libraries go on after the name of the error.
        named = [line for line in lines if re.match(r"[\w.]*Error: ", line)]
        last = [*lines, *named][-1] if lines else "it ended without a word"
        missing = last.startswith("ModuleNotFoundError")
        return f"not installed in {self._peer.python} ({last})" if missing else last
