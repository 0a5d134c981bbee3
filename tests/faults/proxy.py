"""An HTTP proxy in front of an object store that fails by a schedule, and counts what it serves.

    with FaultyProxy(s3_endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.schedule("GET .*/train-", ["slow_down", None, "truncate"])  # The first and the third such request.
        ...
        assert proxy.bytes_read("train-") == size

A schedule is a regular expression, searched in ``METHOD /bucket/key?query``, and one fault (or None) for each
request that matches, in the order of their arrival; ``itertools.repeat`` and ``cycle`` make it endless.
"""

import http.client
import http.server
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Self
from urllib.parse import unquote, urlsplit

Fault = Literal[
    "slow_down",  # 503 SlowDown; the store does not see the request
    "internal_error",  # 500
    "denied",  # 403
    "reset",  # the connection breaks before an answer; the store does not see the request
    "lost",  # the store does what was asked, and the connection breaks before its answer
    "stall",  # nothing comes, for `stall_s`
    "stall_body",  # half the body comes, then nothing
    "truncate",  # the body is cut to half of its Content-Length
    "corrupt",  # a byte in the middle of the body is another
]

ERRORS: dict[str, tuple[int, str]] = {
    "slow_down": (503, "SlowDown"),
    "internal_error": (500, "InternalError"),
    "denied": (403, "AccessDenied"),
}
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect"}


@dataclass(frozen=True)
class Served:
    """One request and what became of it."""

    method: str
    path: str
    """``/bucket/key?query``, unquoted."""
    fault: Fault | None
    body_bytes: int
    """Bytes of the response's body that were sent."""


class FaultyProxy:
    """Serves on a loopback port of its own, in threads of this process, until it is closed."""

    def __init__(self, upstream: str, *, stall_s: float = 60.0) -> None:
        """Forward to the store at ``upstream``, for example ``http://127.0.0.1:9000``."""
        self.upstream = urlsplit(upstream).netloc
        self.stall_s = stall_s
        self.served: list[Served] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._schedules: list[tuple[re.Pattern[str], Iterator[Fault | None]]] = []
        self._server = _Server(self)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        """The endpoint to set AWS_ENDPOINT_URL to."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def schedule(self, pattern: str, faults: Iterable[Fault | None]) -> None:
        """From now on, give each request that matches the next of ``faults``; those beyond the last pass."""
        with self.lock:
            self._schedules.append((re.compile(pattern), iter(faults)))

    def heal(self) -> None:
        """Forget all schedules, and let go of those who were made to wait."""
        with self.lock:
            self._schedules.clear()
            self.closing.set()
            self.closing = threading.Event()

    def requests(self, pattern: str = "") -> list[Served]:
        """The requests so far that match ``pattern``, in the order in which they ended."""
        with self.lock:
            return [served for served in self.served if re.search(pattern, f"{served.method} {served.path}")]

    def bytes_read(self, pattern: str = "") -> int:
        """Bytes of objects (not of listings and errors) sent for the requests that match ``pattern``."""
        objects = [served for served in self.requests(pattern) if served.method == "GET" and "?" not in served.path]
        return sum(served.body_bytes for served in objects)

    def next_fault(self, request: str) -> Fault | None:
        """Return the fault for ``METHOD /path``."""
        with self.lock:
            for pattern, faults in self._schedules:
                if pattern.search(request) and (fault := next(faults, None)):
                    return fault
        return None

    def close(self) -> None:
        """Stop serving."""
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, proxy: FaultyProxy) -> None:
        self.proxy = proxy
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, *_: Any) -> None:
        """Say nothing: clients that break off are the order of the day here."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Else the body waits some 40 ms for the client's acknowledgement of the headers.
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        proxy, path = self.server.proxy, unquote(self.path)
        body = self._request_body()
        fault = proxy.next_fault(f"{self.command} {path}")
        sent_bytes = 0
        try:
            if fault in ERRORS:
                self._refuse(*ERRORS[fault])
            elif fault in ("reset", "stall"):
                self._fall_silent(fault)
            else:
                sent_bytes = self._forward(body, fault)
        finally:
            with proxy.lock:
                proxy.served.append(Served(self.command, path, fault, sent_bytes))

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def _request_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _forward(self, body: bytes, fault: Fault | None) -> int:
        """Answer as the store does, but for the fault; returns how many bytes of the body were sent."""
        upstream = http.client.HTTPConnection(self.server.proxy.upstream)
        try:
            # The host stays the client's: it is part of what was signed.
            headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
            upstream.request(self.command, self.path, body or None, headers)
            response = upstream.getresponse()
            content = response.read()
        finally:
            upstream.close()
        if fault == "lost":
            self._fall_silent("reset")
            return 0
        length = response.headers["Content-Length"] if self.command == "HEAD" else str(len(content))
        self.send_response_only(response.status)
        for name, value in response.headers.items():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        half = len(content) // 2
        if fault == "corrupt" and content:
            content = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
        if fault in ("truncate", "stall_body"):
            content = content[:half]
        self.wfile.write(content)
        if fault == "stall_body":
            self._fall_silent("stall")
        self.close_connection = fault in ("truncate", "stall_body")
        return len(content)

    def _refuse(self, status: int, code: str) -> None:
        content = f"<Error><Code>{code}</Code><Message>made by the test</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _fall_silent(self, fault: str) -> None:
        self.close_connection = True
        if fault == "stall":
            self._wait()
        # Without a word of farewell: closing then sends RST instead of FIN.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _wait(self) -> None:
        """Until the client gives up, or `stall_s` are over, or the proxy is healed."""
        closing, deadline = self.server.proxy.closing, time.monotonic() + self.server.proxy.stall_s
        while time.monotonic() < deadline and not closing.is_set():
            if select.select([self.connection], [], [], 0.05)[0]:
                return

    def log_message(self, *_: Any) -> None:
        """Nothing: the proxy keeps a record of its own."""
