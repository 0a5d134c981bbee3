"""A server of pages, read-only: it answers GET from storage, and writes nothing anywhere."""

import json
import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from vaegen_ray.errors import CheckpointError, JobError, VaegenError
from vaegen_ray.report.blocks import note, table
from vaegen_ray.report.page import html_page
from vaegen_ray.runs.status import list_runs, status_of
from vaegen_ray.storage import Location

logger = logging.getLogger(__name__)

FRESH_S = 2.0
"""So long an answer is given again: many watchers of one page cost the store as much as one."""

PageOf = Callable[[Location], dict[str, Any]]


class Server(ThreadingHTTPServer):
    """Serves the index of ``root`` at `/`, and what it holds at `/page/NAME`; `/data/...` is the same as JSON."""

    daemon_threads = True

    def __init__(self, root: Location, page_of: PageOf, host: str, port: int) -> None:
        super().__init__((host, port), _Handler)
        self.root, self.page_of = root, page_of
        self._known: dict[str, tuple[float, dict[str, Any]]] = {}
        self._lock = Lock()

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}/"

    def data(self, name: str) -> dict[str, Any] | None:
        """The page of ``name``, the index for an empty one; None where ``root`` has no such entry."""
        with self._lock:  # One look at a time: reading is cheap, and a store counts requests.
            known = self._known.get(name)
            if known is None or time.monotonic() - known[0] > FRESH_S:
                page = self._read(name)
                if page is None:
                    return None
                known = self._known[name] = (time.monotonic(), page)
        return known[1]

    def _read(self, name: str) -> dict[str, Any] | None:
        if not name:
            return self._index()
        place, *rest = name.split("/")
        # Only names that a listing shows: no path leads out of the storage.
        if place not in self.root.names():
            return None
        root = self.root / place
        for folder, entry in zip(rest[::2], rest[1::2], strict=True) if len(rest) % 2 == 0 else []:
            if folder not in ("trials", "runs") or entry not in (root / folder).names():
                return None
            root = root / folder / entry
        if len(rest) % 2:
            return None
        try:
            return self.page_of(root)
        except (JobError, CheckpointError) as error:
            return _page_without_results(root, error)

    def _index(self) -> dict[str, Any]:
        statuses = list_runs(self.root)
        rows: list[list[object]] = [
            [
                status.root.name,
                status.kind,
                status.state,
                status.position,
                status.total_images,
                round(status.images_per_s, 1) if status.images_per_s else None,
                status.heard,
            ]
            for status in statuses
        ]
        columns = ("name", "kind", "state", "images", "of", "images/s", "last word")
        opens = [f"/page/{quote(str(row[0]))}" for row in rows]
        return {
            "kind": "storage",
            "title": self.root.name or self.root.url,
            "subtitle": f"{self.root}: {len(rows)} runs, searches and comparisons",
            "blocks": [table("Runs, searches and comparisons", columns, rows, opens=opens)],
            "version": str(hash(str(rows))),
        }


def _page_without_results(root: Location, problem: VaegenError) -> dict[str, Any] | None:
    """What is known of a submission that has not begun, of a dataset's, or of what is damaged."""
    status = None
    try:
        status = status_of(root)
    except (JobError, CheckpointError) as error:
        sentences, state = [str(error)], "damaged"
    else:
        if status is None:
            return None
        state = str(status.state)
        sentences = [
            f"attempt {attempt.number}, submitted as {attempt.submission} to {attempt.cluster}: {attempt.state}"
            + (f"; {attempt.error}" if attempt.error else "")
            for attempt in status.attempts
        ]
    return {
        "kind": (status.kind if status else "") or "submission",
        "title": root.name,
        "subtitle": f"{root}: {state}",
        "blocks": [note("What is known", sentences or [str(problem)])],
        "version": str(hash((state, *sentences))),
    }


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path).strip("/")
        kind, _, name = path.partition("/")
        if path and kind not in ("page", "data"):
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"not found\n")
            return
        try:
            data = self.server.data(name)
        except VaegenError as error:
            self._answer(HTTPStatus.BAD_GATEWAY, "text/plain; charset=utf-8", f"{error}\n".encode())
            return
        if data is None:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"not found\n")
        elif kind != "data":
            page = html_page(data, live=f"/data/{quote(name)}")
            self._answer(HTTPStatus.OK, "text/html; charset=utf-8", page.encode())
        elif parse_qs(parts.query).get("version") == [data["version"]]:
            self._answer(HTTPStatus.NO_CONTENT, "application/json", b"")
        else:
            self._answer(HTTPStatus.OK, "application/json", json.dumps(data, allow_nan=False).encode())

    def _answer(self, status: HTTPStatus, content_type: str, content: bytes) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(content)
        except (BrokenPipeError, ConnectionResetError):
            logger.debug("the browser has gone")

    def log_message(self, format: str, *args: object) -> None:
        logger.debug(format, *args)
