"""Servers on loopback that answer as the dashboard of a cluster would."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import pytest


@contextmanager
def served(answer: Callable[[BaseHTTPRequestHandler], tuple[int, bytes]]) -> Iterator[str]:
    """The address of a server whose every answer is the status and the body that ``answer`` gives."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answer(self)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET
        do_PUT = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def version_of(ray_version: str | None = None) -> dict[str, str]:
    """What a dashboard says of itself; without a ``ray_version`` it runs this machine's."""
    return {
        "version": "4",
        "ray_version": ray_version or metadata.version("ray"),
        "ray_commit": "c",
        "session_name": "s",
    }


def forget_clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No address and no token is known; the token's file would be ``tmp_path / "auth_token"``."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "auth_token"))
