"""`vaegen doctor`: what is in the way of a run, here and on a cluster."""

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from importlib import metadata, util

import typer
from rich.console import Console

from vaegen_ray import __version__
from vaegen_ray.cli.places import Storage, storage_place
from vaegen_ray.cli.submit import Address
from vaegen_ray.errors import VaegenError

PACKAGES = ("torch", "torchvision", "ray", "optuna", "pyarrow", "s3fs")
LITTLE_DISK_BYTES = 5 * 10**9

Check = Callable[[], str]
"""Returns what was found; raises VaegenError, which says what to do."""


def doctor_command(storage: Storage = None, address: Address = None) -> None:
    """Check this machine, the storage, and with --address a cluster; says of each problem what to do."""
    console = Console(markup=False, soft_wrap=True, highlight=False)
    problems = 0
    for name, check in _checks(storage, address):
        try:
            console.print(f"ok       {name}: {check()}")
        except VaegenError as error:
            problems += 1
            console.print(f"problem  {name}: {error}")
    if problems:
        raise typer.Exit(1)


def _checks(storage: str | None, address: str | None) -> Iterator[tuple[str, Check]]:
    yield "python", lambda: f"{platform.python_version()} on {platform.platform()}"
    yield "packages", _packages
    yield "accelerator", _accelerator
    yield "cache disk", _cache_disk
    yield "storage", lambda: _storage(storage)
    if "AWS_ENDPOINT_URL" in os.environ or "AWS_ACCESS_KEY_ID" in os.environ:
        yield "object store", _object_store
    if address is not None or any(os.environ.get(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")):
        yield "cluster", lambda: _cluster(address)


def _packages() -> str:
    missing = [name for name in PACKAGES if util.find_spec(name) is None]
    if missing:
        raise VaegenError(f"not installed: {', '.join(missing)}; `pip install vaegen_ray` brings them")
    return ", ".join([f"vaegen_ray {__version__}", *(f"{name} {metadata.version(name)}" for name in PACKAGES)])


def _accelerator() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"none; {os.cpu_count()} processor cores"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(names)


def _cache_disk() -> str:
    from vaegen_ray.data.cache import NodeCache

    folder = NodeCache.at(None).folder
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < LITTLE_DISK_BYTES:
        raise VaegenError(
            f"{folder} has {free / 1e9:.1f} GB left; free some, or set VAEGEN_CACHE or data.cache to another disk"
        )
    return f"{folder}, {free / 1e9:.0f} GB free"


def _storage(storage: str | None) -> str:
    place = storage_place(storage)
    place.check_writable()
    return f"{place} is writable"


def _object_store() -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL", "AWS")
    if "AWS_ACCESS_KEY_ID" in os.environ and "AWS_SECRET_ACCESS_KEY" not in os.environ:
        raise VaegenError("AWS_ACCESS_KEY_ID is set, AWS_SECRET_ACCESS_KEY is not; set both, or AWS_PROFILE")
    return f"{endpoint}, credentials from {'variables' if 'AWS_ACCESS_KEY_ID' in os.environ else 'the usual files'}"


def _cluster(address: str | None) -> str:
    from vaegen_ray.on_ray.connection import connect
    from vaegen_ray.on_ray.submit import check_exposure, submissions

    connection = connect(address)
    check_exposure(connection)
    running = [info for info in submissions(connection) if str(info.status) in ("RUNNING", "PENDING")]
    token = "asks for a token and takes ours" if connection.needs_token else "asks for no token"
    return f"{connection.address} runs Ray {metadata.version('ray')}, {token}, {len(running)} submission(s) running"
