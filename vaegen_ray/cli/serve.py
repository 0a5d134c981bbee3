"""`vaegen serve`: all runs, searches and comparisons under a storage directory as pages that update by themselves."""

import signal
import threading
from typing import Annotated

import typer
from rich.console import Console

from vaegen_ray.cli.report import page_data
from vaegen_ray.errors import JobError
from vaegen_ray.storage import Location


def serve(
    storage: Annotated[
        str, typer.Argument(help="Folder or bucket of runs: a local path or s3://bucket/prefix.")
    ] = "runs",
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than loopback are open to who reaches them.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8380,
) -> None:
    """Serve pages of everything under STORAGE, read-only, until Ctrl-C. Pages update by themselves."""
    from vaegen_ray.report.server import Server

    console, root = Console(markup=False), Location.of(storage)
    if not root.names():
        raise JobError(f"{root}: must be a folder that holds runs, is empty or not there; give another STORAGE")
    try:
        server = Server(root, page_data, host, port)
    except OSError as error:
        raise JobError(
            f"--port: cannot listen on {host}:{port} ({error}); give another, or 0 for a free one"
        ) from error
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    console.print(f"serving {root} at {server.url} (Ctrl-C ends)", soft_wrap=True, highlight=False)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()
