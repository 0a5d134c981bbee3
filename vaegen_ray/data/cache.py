"""The node cache: files on a local disk that all processes of a machine share, and that later runs find again.

Each entry has a lock of the operating system, which goes with its holder however that dies: exclusive to make or to
remove the entry, shared to use it. An entry has its name only when it is whole. Where there is no room for a new
one, those go that nobody uses, the one first whose last use began the longest ago.
"""

import errno
import fcntl
import os
import shutil
import stat
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vaegen_ray.config.data import Data
from vaegen_ray.errors import CacheFullError, StorageError

CACHE_VARIABLE = "VAEGEN_CACHE"
DEFAULT_CACHE = "~/.cache/vaegen_ray"

LOCK = ".lock"
WORKSPACE = ".unfinished"
"""Suffix of the folder in which an entry is made."""
CONTENT = "content"

RESERVED_FRACTION, MOST_RESERVED_BYTES = 0.05, 10**10
"""Of the disk, stays free where the cache has no limit: others write there too, and the shards on their way."""


class CacheLease:
    """A shared lock on an entry: the entry stays as long as this object, or what was given to :meth:`cover`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Take over the open file that holds the lock."""
        self.path = path
        self._closer = weakref.finalize(self, os.close, descriptor)

    def cover(self, user: object) -> None:
        """Keep the entry while ``user`` lives."""
        # Bound methods of `self` keep it alive.
        weakref.finalize(user, self.close)

    def close(self) -> None:
        """Let the entry go."""
        self._closer()


@dataclass(frozen=True)
class NodeCache:
    """A folder on a local disk with one sub-folder a dataset."""

    folder: Path
    limit_bytes: int | None = None
    """Of all entries together; what the disk has free, less a reserve of 5 % and at most 10 GB, when absent."""

    @classmethod
    def at(cls, folder: str | None, limit_bytes: int | None = None) -> "NodeCache":
        """The cache in ``folder``, by default in ``$VAEGEN_CACHE`` or ``~/.cache/vaegen_ray``."""
        return cls(Path(folder or os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE).expanduser(), limit_bytes)

    @classmethod
    def of(cls, data: Data) -> "NodeCache":
        """The cache of a job."""
        return cls.at(data.cache, data.cache_bytes)

    def entry(
        self, name: str, *, num_bytes: int, is_whole: Callable[[Path], bool], make: Callable[[Path], None]
    ) -> CacheLease:
        """Return the entry ``name``, for example ``<fingerprint>/train.npy``, after making it where need be.

        ``make`` gets a file of ``num_bytes``, the room that is kept for it, in a folder of its own, and leaves the
        whole content under that name. One process makes an entry while the others wait.
        """
        path = self.folder / name
        with _as_storage_errors(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(f"{path}{LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with _as_storage_errors(self.folder):
                fcntl.flock(lock, fcntl.LOCK_SH)
                while not is_whole(path):
                    # Without waiting: who has made the entry meanwhile holds it shared for as long as they live.
                    if _become_exclusive(lock) and not is_whole(path):
                        self._make(path, num_bytes, make)
                        assert is_whole(path), path
                    # Not in one step: somebody may remove the entry in between.
                    fcntl.flock(lock, fcntl.LOCK_SH)
                os.utime(lock)
        except BaseException:
            os.close(lock)
            raise
        return CacheLease(path, lock)

    def _make(self, path: Path, num_bytes: int, make: Callable[[Path], None]) -> None:
        workspace = Path(f"{path}{WORKSPACE}")
        _remove(workspace)
        try:
            workspace.mkdir()
            _remove(path)  # Damaged, and else in the way of its own successor.
            self._keep_room(workspace / CONTENT, num_bytes)
            make(workspace / CONTENT)
            (workspace / CONTENT).replace(path)
        finally:
            _remove(workspace)

    def _keep_room(self, file: Path, num_bytes: int) -> None:
        """Make ``file`` of so many bytes, at the cost of what nobody uses; where that is too little, of nothing."""
        with _locked(self.folder / f"room{LOCK}"), ExitStack() as locks:
            entries = sorted(self._entries(), key=lambda entry: entry.used_at)
            disk = shutil.disk_usage(self.folder)
            if self.limit_bytes is None:
                reserved_bytes = min(RESERVED_FRACTION * disk.total, MOST_RESERVED_BYTES)
                room_bytes = disk.free - reserved_bytes
                rule = f"beside what is in use, and {reserved_bytes / 1e6:,.1f} MB that stay free; set"
            else:
                room_bytes = min(disk.free, self.limit_bytes - sum(entry.num_bytes for entry in entries))
                rule = f"of data.cache_bytes {self.limit_bytes} beside what is in use; raise"
            unused = []
            for entry in entries:
                if num_bytes <= room_bytes:
                    break
                if entry.lock(locks):
                    unused.append(entry)
                    room_bytes += entry.num_bytes
            if num_bytes > room_bytes:
                raise CacheFullError(
                    f"{self.folder}: must have room for {num_bytes / 1e6:,.1f} MB of images, got "
                    f"{max(0, room_bytes) / 1e6:,.1f} MB {rule} data.cache_bytes, or "
                    f"set data.cache or ${CACHE_VARIABLE} to a local folder with more space"
                )
            for entry in unused:
                entry.remove()
            _allocate(file, num_bytes)

    def _entries(self) -> Iterator["_Entry"]:
        for lock in self.folder.glob(f"*/*{LOCK}"):
            path = lock.with_name(lock.name.removesuffix(LOCK))
            if num_bytes := _bytes_of(path) + _bytes_of(Path(f"{path}{WORKSPACE}")):
                yield _Entry(path, lock.stat().st_mtime, num_bytes)


@dataclass(frozen=True)
class _Entry:
    """An entry as it stands in the folder, whole or in the making."""

    path: Path
    used_at: float
    num_bytes: int

    def lock(self, locks: ExitStack) -> bool:
        """Keep others from it until ``locks`` ends; whether nobody uses or makes it."""
        descriptor = os.open(f"{self.path}{LOCK}", os.O_RDWR | os.O_CLOEXEC)
        locks.callback(os.close, descriptor)
        return _become_exclusive(descriptor)

    def remove(self) -> None:
        """Remove it, and what a killed process was making of it."""
        _remove(self.path)
        _remove(Path(f"{self.path}{WORKSPACE}"))


def _become_exclusive(descriptor: int) -> bool:
    """Lock the file for this process alone; whether nobody else holds it. If not, this process holds it no more."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        return False
    return True


def _allocate(file: Path, num_bytes: int) -> None:
    """Make the file with its blocks, so that a disk that is full says so now."""
    with file.open("wb") as opened:
        if num_bytes and sys.platform != "darwin":
            os.posix_fallocate(opened.fileno(), 0, num_bytes)
        else:
            opened.truncate(num_bytes)


def _bytes_of(path: Path) -> int:
    """Of a file, or of all files in a folder, which other processes finish and remove meanwhile."""
    num_bytes = 0
    for file in [str(path), *(f"{folder}/{name}" for folder, _, names in os.walk(path) for name in names)]:
        with suppress(FileNotFoundError):
            status = os.stat(file)
            num_bytes += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return num_bytes


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _as_storage_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)  # Quotas show only when they are reached.
        raise (CacheFullError if is_full else StorageError)(
            f"{folder}: cannot keep images there: {error}; free space, or set data.cache or ${CACHE_VARIABLE} to a "
            "local folder that can be written"
        ) from error
