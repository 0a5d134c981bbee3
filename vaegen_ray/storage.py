"""Files on a local disk or in an object store, behind one class.

A location is a local path or a URL that fsspec knows (``s3://bucket/prefix``). Credentials and
endpoints come from the environment (the usual AWS variables and files), never from a job.

What an object store does now and then (5xx, slow-down, a connection that breaks or stalls, a body cut short) is
tried again, on two levels that do not multiply: botocore tries a request up to three times, and an operation
as a whole is repeated, after waits that grow and vary, until its patience is over.
"""

import glob
import hashlib
import io
import itertools
import logging
import os
import random
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import fsspec

from vaegen_ray.errors import JobError, StorageError, StoreUnavailableError
from vaegen_ray.store_failures import CutShortError, diagnosis, is_refused_precondition

T = TypeVar("T")

logger = logging.getLogger(__name__)

OBJECT_STORE_CHECKSUM_DEFAULTS = {
    "AWS_REQUEST_CHECKSUM_CALCULATION": "when_required",
    "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required",
}
"""Stores other than AWS refuse, or store wrongly, the chunked bodies with trailing checksums that
current clients send by default; used where ``AWS_ENDPOINT_URL`` names such a store."""

CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 20.0
ATTEMPTS_PER_REQUEST = 3

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 8.0

PART_BYTES = 8 * 2**20
PARALLEL_PARTS = 8
"""A file is copied in parts, so many at a time: one connection gives a fraction of a machine's bandwidth."""

EXTRAS = {"gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "hf": "hf"}
"""The optional dependencies of the package that bring the filesystem of a scheme."""

MISTYPED_URL = re.compile(rf"(s3a?|file|{'|'.join(EXTRAS)}):(/{{0,2}}$|///|/?[^/])")
"""What was meant as a URL, and would be taken for a local path."""

_stores_given_up: set[str] = set()
"""Those for which patience was over and which have not answered since. A run that ends because of that closes its
files without waiting as long for each."""


@dataclass(frozen=True)
class Entry:
    """A file or folder as a listing shows it."""

    name: str
    is_folder: bool
    size_bytes: int
    version: str
    """Another when the content is another: an object store's ETag, or the time of the last change."""
    is_special: bool = False
    """A pipe, a socket or a device, which nobody may read: some never end."""

    @classmethod
    def of(cls, info: dict[str, Any]) -> "Entry":
        """From fsspec's description, whose keys depend on the store."""
        if info.get("islink"):  # Only local files have the key; it describes the link in place of its target.
            info = {**info, "type": "link"}
            with suppress(OSError):  # A link to nothing stays one: who reads it learns that.
                target = os.stat(info["name"])
                kind = {stat.S_IFDIR: "directory", stat.S_IFREG: "file"}.get(stat.S_IFMT(target.st_mode), "other")
                info = {**info, "type": kind, "size": target.st_size, "mtime": target.st_mtime}
        name = str(info["name"]).rstrip("/").rsplit("/", 1)[-1]
        stamps = (info.get(key) for key in ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated"))
        version = next((str(stamp).strip('"') for stamp in stamps if stamp is not None), "")
        return cls(name, info["type"] == "directory", int(info.get("size") or 0), version, info["type"] == "other")


@dataclass(frozen=True)
class Location:
    """A file or folder: ``url`` as the user wrote it, made absolute and free of ``..`` when it is a local path."""

    url: str

    @classmethod
    def of(cls, path: "str | Path | Location") -> "Location":
        """Return ``path`` as a location; a relative local path begins in the working directory.

        ``..`` takes the name before it away, also where that is a symbolic link: links stay as they are written.
        """
        if isinstance(path, Location):
            return path
        text = str(path).removeprefix("file://")
        if MISTYPED_URL.match(text):
            raise JobError(f"{text}: must be a local path, or SCHEME://BUCKET/PREFIX; add what is missing")
        if "://" not in text:
            return cls(os.path.normpath(Path(text).expanduser().absolute()))
        scheme, _, rest = text.partition("://")
        bucket, _, key = rest.partition("/")
        # A key that begins with a slash, as of a bucket's URL and a slash too many, can be written, but not listed.
        return cls(f"{scheme}://{bucket}/{key.lstrip('/')}".rstrip("/"))

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "Location":
        return Location(f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def parent(self) -> "Location":
        """The folder that holds this location."""
        return Location(self.url.rsplit("/", 1)[0] or "/")

    @property
    def bucket(self) -> "Location":
        """Of an object store the bucket, of a local path the root."""
        scheme, separator, rest = self.url.rpartition("://")
        return Location(f"{scheme}{separator}{rest.partition('/')[0]}" if separator else "/")

    @property
    def is_local(self) -> bool:
        """Whether the location is a path on this machine."""
        return "://" not in self.url

    @property
    def local_path(self) -> Path:
        """The location as a path; an error of ours when it is not local."""
        if not self.is_local:
            raise StorageError(f"{self}: must be a local path; copy it to this machine first")
        return Path(self.url)

    @property
    def filesystem(self) -> Any:
        """The fsspec filesystem of the location (fsspec is untyped)."""
        if self.is_local:
            return fsspec.filesystem("file")
        if os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL_S3"):
            for name, value in OBJECT_STORE_CHECKSUM_DEFAULTS.items():
                os.environ.setdefault(name, value)
        scheme = self.url.split("://", 1)[0]
        options = {"config_kwargs": _botocore_settings()} if scheme in ("s3", "s3a") else {}
        try:
            # A listing cache would hide what other processes wrote to the same run.
            filesystem = fsspec.filesystem(scheme, use_listings_cache=False, **options)
        except ImportError as error:
            raise StorageError(
                f"{self}: '{scheme}://' needs a package that is not installed ({error}); "
                f"`pip install 'vaegen_ray[{EXTRAS.get(scheme, scheme)}]'`"
            ) from error
        except ValueError as error:
            raise StorageError(
                f"{self}: no filesystem for '{scheme}://' ({error}); use a local path, s3://, gs://, az:// or hf://"
            ) from error
        if options:
            # s3fs would repeat what botocore has repeated, five times and, for a body, five times five.
            filesystem.retries = 1
        return filesystem

    @property
    def key(self) -> str:
        """The path inside :attr:`filesystem`."""
        return self.url if self.is_local else self.url.split("://", 1)[1]

    def exists(self) -> bool:
        """Whether a file or a folder is there."""
        return self._patiently("read", self._is_there)

    def names(self) -> list[str]:
        """The names of the entries of this folder, sorted; empty when there is no such folder."""
        entries = self._patiently("list", self._entries)
        own = self.key.rstrip("/")
        return sorted({str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in entries if str(entry).rstrip("/") != own})

    def entries(self) -> list["Entry"]:
        """The files and folders in this folder, sorted by name; empty when there is no such folder."""
        own = self.key.rstrip("/")
        found = self._patiently("list", lambda: self._entries(detail=True))
        entries = [Entry.of(info) for info in found if str(info["name"]).rstrip("/") != own]
        return sorted(entries, key=lambda entry: entry.name)

    def read_bytes(self) -> bytes:
        """The whole file."""
        # s3fs would ask for the size first, to divide what is large.
        options = {"max_concurrency": 1} if self.url.startswith(("s3://", "s3a://")) else {}
        return self._patiently("read", lambda: cast(bytes, self.filesystem.cat_file(self.key, **options)))

    def read_text(self) -> str:
        """The whole file as UTF-8."""
        return self.read_bytes().decode()

    def write_bytes(self, content: bytes) -> None:
        """Replace the file in one step: a reader, or a kill, sees the old content or the new."""
        if not self.is_local:
            self._patiently("write", lambda: self.filesystem.pipe_file(self.key, content))
            return
        with self._replaced() as file:
            file.write(content)

    def write_text(self, content: str) -> None:
        """Replace the file by ``content`` in UTF-8, in one step."""
        self.write_bytes(content.encode())

    def create(self, content: bytes) -> bool:
        """Write the file if there is none, in one step; whether this call wrote it. Of several callers one succeeds.

        Where an answer was lost and the operation repeated, the file that is found is compared with ``content``, so
        contents of different callers have to differ.
        """
        if self.is_local:
            return self._create_locally(content)
        return self._patiently("write", lambda: self._create_in_store(content))

    def upload(self, source: Path) -> None:
        """Copy the local file ``source`` here, in one step for readers."""
        if not self.is_local:
            self._patiently("write", lambda: self.filesystem.put_file(str(source), self.key))
            return
        with self._replaced() as copy, source.open("rb") as file:
            shutil.copyfileobj(file, copy, PART_BYTES)

    def download(self, destination: Path) -> str:
        """Copy this file to the local path ``destination``, in one step for readers; returns its SHA-256.

        Holds some parts of it in memory. Its length is what the store says it is; whether the content is, only
        the digest tells.
        """
        digest = hashlib.sha256()
        with self.open() as file, Location.of(destination)._replaced() as copy:
            while parts := file.read(PART_BYTES * PARALLEL_PARTS):
                digest.update(parts)
                copy.write(parts)
        return digest.hexdigest()

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open for random reads, in blocks: for files too large to hold in memory."""
        if self.is_local:
            with self._errors("read"):
                file: BinaryIO = self.local_path.open("rb")
        else:
            file = io.BufferedReader(_StoredFile(self), PART_BYTES)
        with file:
            yield file

    def remove(self) -> None:
        """Delete the file, or the folder with all that it holds; nothing happens when it is not there."""
        self._patiently("delete", self._remove)

    def check_writable(self, key: str = "storage") -> None:
        """Write and delete a small file, so that a run learns now that it could not save anything."""
        probe = self / f".vaegen-write-probe-{uuid.uuid4().hex}"
        try:
            probe.write_bytes(b"")
            probe.remove()
        except StorageError as error:
            reason = str(error).removeprefix(f"{probe}: ")
            raise StorageError(f"{key}: {self} must be writable, {reason}") from error

    def _is_there(self) -> bool:
        if self.is_local:
            return os.path.exists(self.url)
        try:
            # Not `exists`, which takes any failure for an absence, of a bucket or in any but s3fs.
            self.filesystem.info(self.key)
        except FileNotFoundError:
            return False
        return True

    def _entries(self, *, detail: bool = False) -> list[Any]:
        try:
            return list(self.filesystem.ls(self.key, detail=detail))
        except FileNotFoundError:
            return []

    def _create_in_store(self, content: bytes) -> bool:
        try:
            self.filesystem.pipe_file(self.key, content, mode="create")
        except Exception as error:
            # s3fs makes an OSError of any kind of the answer 412, gcsfs and adlfs a FileExistsError.
            if not isinstance(error, FileExistsError) and not is_refused_precondition(error):
                raise
            return bool(self.filesystem.cat_file(self.key) == content)
        return True

    def _create_locally(self, content: bytes) -> bool:
        with self._errors("write"):
            path = self.local_path
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            whole.write_bytes(content)
            try:
                os.link(whole, path)  # Fails where the name is taken, on network disks too.
            except FileExistsError:
                return False
            finally:
                whole.unlink()
            return True

    def _remove(self) -> None:
        if not self._is_there():
            return
        if not self.is_local and glob.has_magic(self.key):
            # To `rm` it would be a pattern, which the keys of others may fit, and its own need not.
            for key in self.filesystem.find(self.key):
                self.filesystem.rm_file(key)
        else:
            self.filesystem.rm(self.key, recursive=True)
        # s3fs passes over the keys of a multiple deletion that the store reports as failed. Some stores show the
        # empty folder for a while.
        left = () if self.is_local else self.filesystem.find(self.key, detail=True).values()
        if any(entry["type"] == "file" for entry in left):
            raise ConnectionError("the store said that it is done, but did not delete all")

    def _size(self) -> int:
        return int(self.filesystem.info(self.key)["size"])

    def _range(self, first: int, last: int) -> bytes:
        """The bytes from ``first`` up to ``last`` of an object, fetched in parts side by side."""
        starts = list(range(first, last, PART_BYTES))
        ends = [*starts[1:], last]
        content = b"".join(self.filesystem.cat_ranges([self.key] * len(starts), starts, ends, on_error="raise"))
        if len(content) != last - first:
            raise CutShortError(f"{len(content)} bytes came of the {last - first} from {first} to {last}")
        return content

    @contextmanager
    def _replaced(self) -> Iterator[BinaryIO]:
        """A file that takes the place of this local one once it is whole and on the disk."""
        with self._errors("write"):
            path = self.local_path
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            try:
                with os.fdopen(handle, "wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                os.chmod(temporary, 0o644)
                os.replace(temporary, path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise

    def _patiently(self, verb: str, operation: Callable[[], T]) -> T:
        """Do ``operation``; do it again, while patience lasts, where an object store failed in a way that passes."""
        failing_since, store = None, "/".join(self.url.split("/")[:3])
        for attempt in itertools.count(1):
            try:
                result = operation()
            except StorageError:
                raise
            except Exception as error:
                # Object store clients raise their own unrelated classes (botocore, aiohttp, httpx).
                # Not since the beginning: what went well for an hour may break, too.
                failing_since = failing_since or time.monotonic()
                waited_s = time.monotonic() - failing_since
                # Chance keeps the processes of a cluster from coming back all at once.
                wait_s = random.SystemRandom().uniform(0.5, 1) * min(FIRST_WAIT_S * 2 ** (attempt - 1), LONGEST_WAIT_S)
                patience_s, reason = diagnosis(error)
                if self.is_local or store in _stores_given_up or waited_s + wait_s > patience_s:
                    if patience_s:
                        _stores_given_up.add(store)
                    tried = f" (tried {attempt} times in {waited_s:.0f} s)" if attempt > 1 else ""
                    failure = StoreUnavailableError if patience_s else StorageError
                    raise failure(f"{self}: cannot {verb}: {reason}{tried}") from error
                if attempt == 1:
                    problem = reason.split(";")[0]
                    logger.warning("%s: cannot %s yet: %s; trying for %.0f s", self, verb, problem, patience_s)
                time.sleep(wait_s)
            else:
                _stores_given_up.discard(store)
                return result
        raise AssertionError

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except Exception as error:
            raise StorageError(f"{self}: cannot {verb}: {diagnosis(error)[1]}") from error


class _StoredFile(io.RawIOBase):
    """A file of an object store for reading; not s3fs's, in which a read that times out ends in an IndexError."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._size = location._patiently("read", location._size)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        first, last = self._position, min(self._position + len(buffer), self._size)
        if first >= last:
            return 0
        buffer[: last - first] = self._location._patiently("read", lambda: self._location._range(first, last))
        self._position = last
        return last - first


def _botocore_settings() -> dict[str, Any]:
    return {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "read_timeout": READ_TIMEOUT_S,
        "retries": {"mode": "standard", "total_max_attempts": ATTEMPTS_PER_REQUEST},
    }
