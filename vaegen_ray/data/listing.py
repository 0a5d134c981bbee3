"""The files of a source: found in a fixed order, one folder at a time, and divided into splits by their names."""

import hashlib
import os
from collections.abc import Iterator
from functools import cache

from PIL import Image

from vaegen_ray.data.conversion import READABLE_FORMATS
from vaegen_ray.data.format import Split
from vaegen_ray.errors import DataError
from vaegen_ray.storage import Entry, Location


def split_of(image_id: str, held_out_fraction: float) -> Split:
    """Return the split by a hash of the image's name, which no other image can change."""
    drawn = int.from_bytes(hashlib.sha256(image_id.encode()).digest()[:8], "big") / 2**64
    return "held_out" if drawn < held_out_fraction else "train"


@cache
def image_suffixes() -> frozenset[str]:
    """Of the files that are taken for images, in small letters with the dot."""
    Image.init()
    readable = {suffix for suffix, name in Image.registered_extensions().items() if name in READABLE_FORMATS}
    return frozenset(readable | {".npy"})


def walk(folder: Location, path: str = "", above: frozenset[str] = frozenset()) -> Iterator[tuple[str, list[Entry]]]:
    """Give every folder below with its files, both in the order of names; hidden ones are passed over.

    The paths are relative to ``folder``. One folder is listed at a time, whatever they hold together. Links to
    folders are followed, but for those that lead back to a folder ``above`` them.
    """
    if folder.is_local:
        if (real_path := os.path.realpath(folder.url)) in above:
            return
        above |= {real_path}
    files = []
    for entry in folder.entries():
        if entry.name.startswith("."):
            continue
        if not entry.is_folder:
            files.append(entry)
            continue
        if files:
            yield path, files
            files = []
        yield from walk(folder / entry.name, f"{path}{entry.name}/", above)
    if files:
        yield path, files


def files_of(root: Location, suffixes: tuple[str, ...]) -> list[tuple[str, str]]:
    """The path, relative to ``root``, and the version of each file with one of the suffixes; of ``root`` if it is one.

    A single file is named by its name.
    """
    if root.name.endswith(suffixes) and root.exists():
        found = [entry for entry in root.parent.entries() if entry.name == root.name and not _is_unreadable(entry)]
        if found:
            return [(root.name, version_of(found[0]))]
    files = [
        # A file that is named as its folder must not be taken for a single file.
        (f"{path}{entry.name}" if f"{path}{entry.name}" != root.name else f"./{entry.name}", version_of(entry))
        for path, entries in walk(root)
        for entry in entries
        if entry.name.endswith(suffixes) and not entry.is_special
    ]
    if not files:
        kinds = ", ".join(f"*{suffix}" for suffix in suffixes)
        found_there = "none" if root.exists() else "nothing there"
        raise DataError(f"source.path: {root} must be, or hold, {kinds} files, got {found_there}; check the path")
    return files


def location_of(root: Location, path: str) -> Location:
    """Where a file of :func:`files_of` is."""
    return root if root.name == path else root / path.removeprefix("./")


def _is_unreadable(entry: Entry) -> bool:
    return entry.is_folder or entry.is_special


def as_text(name: str) -> str:
    r"""The name for tables and people: bytes of it that are not UTF-8 become `\x..`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def version_of(entry: Entry) -> str:
    """Another when the file's content is another."""
    return f"{entry.size_bytes} {entry.version}"
