"""Finding a run by its name."""

import os
from pathlib import Path
from typing import Annotated

import typer

from vaegen_ray.storage import Location

STORAGE = "VAEGEN_STORAGE"
NAME_HELP = "A run or search: its name in the storage, or its directory (a path or s3://bucket/prefix/name)."

Storage = Annotated[
    str | None,
    typer.Option(
        metavar="PLACE", help="Where the runs are: a folder or s3://bucket/prefix; else $VAEGEN_STORAGE, else runs."
    ),
]


def storage_place(storage: str | None) -> Location:
    """Where the runs are."""
    return Location.of(storage or os.environ.get(STORAGE) or "runs")


def find_run(name: str, storage: str | None) -> Location:
    """The directory of the run ``name``."""
    if storage is None and ("://" in name or "/" in name or Path(name).is_dir()):
        return Location.of(name)
    return storage_place(storage) / name
