"""Files on a local disk and in an object store: the same promises from both."""

import hashlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest
import s3fs
from moto.core import set_initial_no_auth_action_count

from tests.faults.proxy import Fault, FaultyProxy
from vaegen_ray import storage, store_failures
from vaegen_ray.errors import JobError, StorageError
from vaegen_ray.storage import Location


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """An empty folder of each kind."""
    if request.param == "local":
        return Location.of(tmp_path)
    return Location.of(request.getfixturevalue("s3_bucket"))


# ---------------------------------------------------------------------------- promises of both kinds


def test_written_file_is_read_back(folder: Location) -> None:
    file = folder / "a/b/file.txt"
    assert not file.exists()
    file.write_text("grün")
    assert file.exists()
    assert (file.read_text(), file.read_bytes()) == ("grün", "grün".encode())
    file.write_bytes(b"")
    assert file.read_bytes() == b""


def test_names_are_sorted_and_of_this_folder_only(folder: Location) -> None:
    assert (folder / "runs").names() == []
    for name in ("b", "a", "c/deep"):
        (folder / "runs" / name).write_text("x")
    assert (folder / "runs").names() == ["a", "b", "c"]
    assert (folder / "runs").exists()


def test_remove_deletes_files_and_whole_folders_and_needs_none(folder: Location) -> None:
    (folder / "run/a").write_text("x")
    (folder / "run/b/c").write_text("x")
    (folder / "runner").write_text("stays")
    (folder / "run/a").remove()
    assert (folder / "run").names() == ["b"]
    (folder / "run").remove()
    (folder / "run").remove()
    assert not (folder / "run").exists()
    assert (folder / "runner").read_text() == "stays"


def test_removed_file_of_another_process_is_not_remembered(folder: Location) -> None:
    assert (folder / "x").names() == []
    (folder / "x/y").write_text("new")
    assert (folder / "x").names() == ["y"]


def test_upload_download_and_open_carry_the_same_bytes(folder: Location, tmp_path: Path) -> None:
    source, copy = tmp_path / "source.bin", tmp_path / "elsewhere/copy.bin"
    source.write_bytes(bytes(range(256)) * 1000)
    (folder / "stored/file.bin").upload(source)
    (folder / "stored/file.bin").download(copy)
    assert copy.read_bytes() == source.read_bytes()
    with (folder / "stored/file.bin").open() as file:
        file.seek(250)
        assert file.read(10) == bytes([250, 251, 252, 253, 254, 255, 0, 1, 2, 3])


def test_missing_file_is_an_error_of_ours(folder: Location) -> None:
    with pytest.raises(StorageError, match=r"nothing: cannot read: there is no such file, folder or bucket"):
        (folder / "nothing").read_bytes()


def test_write_probe_leaves_nothing_behind(folder: Location) -> None:
    (folder / "runs").check_writable()
    assert (folder / "runs").names() == []


# ---------------------------------------------------------------------------- names


def test_local_paths_are_made_absolute_and_urls_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Location.of("runs/").url == f"{tmp_path}/runs"
    assert Location.of("~/runs").url == "/home/somebody/runs"
    assert Location.of("s3://bucket/prefix/").url == "s3://bucket/prefix"
    assert Location.of("s3://bucket//prefix//sub/").url == "s3://bucket/prefix//sub"
    assert Location.of(Location("s3://b")) == Location("s3://b")
    run = Location.of("s3://bucket") / "run" / "job.json"
    assert (str(run), run.name, str(run.parent), run.key) == (
        "s3://bucket/run/job.json",
        "job.json",
        "s3://bucket/run",
        "bucket/run/job.json",
    )


@pytest.mark.parametrize("text", ["s3:/bucket/runs", "s3://", "s3:", "s3:///runs", "gs:bucket", "file:relative"])
def test_mistyped_url_is_refused_and_no_local_folder(text: str) -> None:
    with pytest.raises(JobError, match="must be a local path, or SCHEME://BUCKET/PREFIX"):
        Location.of(text)


def test_local_path_by_its_parent_loses_the_dots_and_keeps_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk/runs/s/trials").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk/runs")
    monkeypatch.chdir(tmp_path / "disk/runs/s/trials")
    assert Location.of("..").url == f"{tmp_path}/disk/runs/s"
    assert Location.of("..").name == "s"
    assert Location.of("../../other/").url == f"{tmp_path}/disk/runs/other"
    assert Location.of(tmp_path / "link/s/../s").url == f"{tmp_path}/link/s"
    assert Location.of("s3://bucket/a/../b").url == "s3://bucket/a/../b"


def test_path_of_a_url_is_refused() -> None:
    with pytest.raises(StorageError, match=r"s3://b/x: must be a local path; copy it to this machine first"):
        _ = Location.of("s3://b/x").local_path


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(StorageError, match=r"gopher://x/y: no filesystem for 'gopher://'.*use a local path, s3://"):
        Location.of("gopher://x/y").exists()


# ---------------------------------------------------------------------------- local disks

ENDLESS_WRITER = """
import sys
from vaegen_ray.storage import Location
file = Location.of(sys.argv[1])
print("ready", flush=True)
while True:
    for letter in "ab":
        file.write_text(letter * 2_000_000)
"""


def test_killed_writer_leaves_the_old_content_or_the_new(tmp_path: Path) -> None:
    file = tmp_path / "state"
    writer = subprocess.Popen([sys.executable, "-c", ENDLESS_WRITER, str(file)], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        writer.stdout.readline()
        seen = set()
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            if file.exists():
                content = file.read_text()
                seen.add((content[0], len(content), len(set(content))))
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()  # type: ignore[union-attr]
    content = file.read_text()
    seen.add((content[0], len(content), len(set(content))))
    assert seen <= {("a", 2_000_000, 1), ("b", 2_000_000, 1)}
    assert seen


def test_failed_write_leaves_the_old_content_and_no_debris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Location.of(tmp_path / "file")
    file.write_text("old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StorageError, match=r"file: cannot write: OSError: \[Errno 28\] No space left on device"):
        file.write_text("new")
    assert file.read_text() == "old"
    assert Location.of(tmp_path).names() == ["file"]


def test_folder_below_a_file_is_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        StorageError, match=r"^storage: .*/file/runs must be writable, cannot write: NotADirectoryError"
    ):
        (Location.of(tmp_path) / "file/runs").check_writable()


# ---------------------------------------------------------------------------- object stores


@pytest.mark.s3
@pytest.mark.usefixtures("s3_bucket")
def test_missing_bucket_is_an_error_of_ours() -> None:
    with pytest.raises(StorageError, match=r"s3://nowhere/x: cannot read: there is no such file, folder or bucket"):
        Location.of("s3://nowhere/x").read_bytes()
    with pytest.raises(StorageError, match=r"storage: s3://nowhere/runs must be writable, cannot write: there is no"):
        Location.of("s3://nowhere/runs").check_writable()


@pytest.mark.s3
def test_wrong_credentials_are_named(s3_bucket: str) -> None:
    @set_initial_no_auth_action_count(0)  # From the first request on, the server asks who is there.
    def check() -> None:
        Location.of(f"{s3_bucket}/runs").check_writable()

    with pytest.raises(StorageError, match=r"cannot write: permission denied .*check the rights or AWS credentials"):
        check()


@pytest.mark.s3
def test_endpoint_that_refuses_is_an_error_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # Bound but not listening: connections are refused.
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        s3fs.S3FileSystem.clear_instance_cache()
        started = time.monotonic()
        with pytest.raises(StorageError, match=r"x: cannot read: no object store answers .*check AWS_ENDPOINT_URL"):
            Location.of("s3://b/x").read_bytes()
        assert time.monotonic() - started < 30
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.s3
def test_overwritten_object_is_complete_at_any_time(s3_bucket: str) -> None:
    file = Location.of(f"{s3_bucket}/state")
    for content in ("a" * 100_000, "b"):
        file.write_text(content)
        assert file.read_text() == content
    stored = boto3.client("s3").list_objects_v2(Bucket=s3_bucket.removeprefix("s3://"))["Contents"]
    assert [entry["Key"] for entry in stored] == ["state"]


@pytest.mark.parametrize(("scheme", "extra"), [("gs", "gcs"), ("az", "azure"), ("hf", "hf")])
def test_store_whose_package_is_missing_names_the_extra(
    scheme: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("gcsfs", "adlfs", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, package, None)
    sentence = rf"^{scheme}://b/x: '{scheme}://' needs a package .*; `pip install 'vaegen_ray\[{extra}\]'`$"
    with pytest.raises(StorageError, match=sentence):
        Location.of(f"{scheme}://b/x").exists()


def test_filesystem_that_is_no_s3_keeps_the_promises() -> None:
    folder = Location.of("memory://somewhere/folder")
    (folder / "a/b").write_text("x" * 100)
    assert folder.exists()
    assert not (folder / "c").exists()
    assert (folder.names(), (folder / "a").names()) == (["a"], ["b"])
    with (folder / "a/b").open() as file:
        assert file.read(3) == b"xxx"
    folder.remove()
    assert not folder.exists()


# ---------------------------------------------------------------------------- object stores that fail

CONTENT = bytes(range(256)) * 500

OPERATIONS: dict[str, tuple[str, Callable[[Location, Path], object], object]] = {
    "exists": ("HEAD .*file", lambda folder, _: (folder / "file").exists(), True),
    "list": ("GET .*list-type", lambda folder, _: folder.names(), ["file"]),
    "read": ("GET .*file", lambda folder, _: (folder / "file").read_bytes(), CONTENT),
    "open": ("GET .*file", lambda folder, _: read_middle(folder / "file"), CONTENT[1000:2000]),
    "download": ("GET .*file", lambda folder, path: downloaded(folder / "file", path), CONTENT),
    "write": ("PUT .*new", lambda folder, _: written(folder / "new"), CONTENT),
    "upload": ("PUT .*new", lambda folder, path: uploaded(folder / "new", path), CONTENT),
    "remove": ("POST .*delete", lambda folder, _: removed(folder / "file"), False),
}
"""Name to the request that is made to fail, the operation, and its result."""

FAULTS: list[Fault] = ["slow_down", "internal_error", "reset", "lost", "stall"]
BODY_FAULTS: list[Fault] = ["truncate", "stall_body"]


def read_middle(file: Location) -> bytes:
    with file.open() as opened:
        opened.seek(1000)
        return opened.read(1000)


def downloaded(file: Location, path: Path) -> bytes:
    file.download(path / "copy")
    return (path / "copy").read_bytes()


def written(file: Location) -> bytes:
    file.write_bytes(CONTENT)
    return file.read_bytes()


def uploaded(file: Location, path: Path) -> bytes:
    (path / "local").write_bytes(CONTENT)
    file.upload(path / "local")
    return file.read_bytes()


def removed(file: Location) -> bool:
    file.remove()
    return file.exists()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience of seconds, and each repetition our own."""
    monkeypatch.setattr(storage, "READ_TIMEOUT_S", 0.5)
    monkeypatch.setattr(storage, "ATTEMPTS_PER_REQUEST", 1)
    monkeypatch.setattr(storage, "FIRST_WAIT_S", 0.05)


@pytest.fixture
def stored(s3_bucket: str) -> Location:
    """A folder of a bucket, with one file."""
    (Location.of(f"{s3_bucket}/folder") / "file").write_bytes(CONTENT)
    return Location.of(f"{s3_bucket}/folder")


@pytest.mark.s3
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_faults_that_pass_change_nothing(
    stored: Location, s3_proxy: FaultyProxy, tmp_path: Path, operation: str
) -> None:
    request, operate, result = OPERATIONS[operation]
    for fault in FAULTS + BODY_FAULTS if request.startswith("GET") else FAULTS:
        (stored / "file").write_bytes(CONTENT)
        num_before = len(s3_proxy.requests(request))
        s3_proxy.schedule(request, [fault, fault])
        assert (fault, operate(stored, tmp_path)) == (fault, result)
        assert s3_proxy.requests(request)[num_before].fault == fault
        (stored / "new").remove()
        s3_proxy.heal()


@pytest.mark.s3
@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("slow_down", r"cannot read: the store asks to slow down \(503 SlowDown: made by the test\); run the same"),
        (
            "internal_error",
            r"cannot read: the store failed \(500 InternalError: .*\); run the same .* \(tried",
        ),
        ("reset", r"cannot read: the connection broke \(.*\); check the network, .* \(tried \d+ times in \d+ s\)"),
        ("truncate", r"cannot read: the answer was cut short \(.*\); check the network"),
        ("stall", r"cannot read: the answer took too long \(.*\); check the network"),
        ("stall_body", r"cannot read: the answer took too long \(.*\); check the network"),
        ("denied", r"cannot read: permission denied \(.*\); check the rights or AWS credentials$"),
    ],
)
@pytest.mark.usefixtures("quick")
def test_fault_that_stays_ends_in_a_sentence_when_patience_is_over(
    stored: Location, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, fault: Fault, sentence: str
) -> None:
    monkeypatch.setattr(store_failures, "PATIENCE_S", 3.0)
    assert (stored / "file").exists()  # A client takes a second to make where the machine is busy.
    s3_proxy.schedule("GET .*file", itertools.repeat(fault))
    started = time.monotonic()
    with pytest.raises(StorageError, match=rf"^s3://images/folder/file: {sentence}") as failure:
        (stored / "file").read_bytes()
    assert time.monotonic() - started < 30  # Not the minute and more for which one waits without being told.
    assert ("tried" in str(failure.value)) == (fault != "denied")
    assert len(s3_proxy.requests("GET .*file")) <= (1 if fault == "denied" else 20)


@pytest.mark.s3
@pytest.mark.usefixtures("quick")
def test_fault_at_the_end_of_a_long_operation_is_waited_out_like_an_early_one(
    stored: Location, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_failures, "PATIENCE_S", 0.4)
    assert storage.READ_TIMEOUT_S > 0.4
    s3_proxy.schedule("GET .*file", ["stall"])
    assert (stored / "file").read_bytes() == CONTENT


@pytest.mark.s3
def test_small_object_is_read_in_one_request(stored: Location, s3_proxy: FaultyProxy) -> None:
    assert (stored / "file").read_bytes() == CONTENT
    assert len(s3_proxy.requests("")) == 1


@pytest.mark.s3
def test_repetitions_of_the_client_and_ours_do_not_multiply(
    stored: Location, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(store_failures, "PATIENCE_S", 5.0)
    s3_proxy.schedule("HEAD", itertools.repeat("slow_down"))
    started = time.monotonic()
    with caplog.at_level(logging.WARNING), pytest.raises(StorageError, match=r"asks to slow down"):
        (stored / "file").exists()
    assert time.monotonic() - started < 5 + 25
    # Three in the first three seconds, then a wait of at least a quarter of a second for every three.
    assert len(s3_proxy.requests("HEAD")) <= 3 * storage.ATTEMPTS_PER_REQUEST * 5
    assert caplog.text.count("file: cannot read yet: the store asks to slow down") == 1
    assert caplog.text.endswith("; trying for 5 s\n")


@pytest.mark.s3
@pytest.mark.usefixtures("quick")
def test_store_that_was_given_up_is_not_waited_for_again_until_it_answers(
    stored: Location, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_failures, "PATIENCE_S", 1.0)
    s3_proxy.schedule("", itertools.repeat("slow_down"))
    num_requests = []
    for _ in range(2):
        num_before = len(s3_proxy.requests())
        with pytest.raises(StorageError, match="the store asks to slow down"):
            (stored / "file").write_bytes(CONTENT)
        num_requests.append(len(s3_proxy.requests()) - num_before)
    assert num_requests[0] > num_requests[1] == 1
    s3_proxy.heal()
    assert stored.names() == ["file"]
    s3_proxy.schedule("PUT", ["slow_down"])
    (stored / "file").write_bytes(CONTENT)


@pytest.mark.s3
@pytest.mark.usefixtures("quick")
def test_large_file_comes_in_parts_and_only_what_failed_comes_again(
    stored: Location, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(storage, "PART_BYTES", 10_000)
    monkeypatch.setattr(storage, "PARALLEL_PARTS", 4)
    s3_proxy.schedule("GET .*file", [None] * 9 + ["truncate"])
    digest = (stored / "file").download(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT
    assert digest == hashlib.sha256(CONTENT).hexdigest()
    assert len(s3_proxy.requests("GET .*file")) == 13 + 4
    assert list(tmp_path.iterdir()) == [tmp_path / "copy"]


@pytest.mark.s3
@pytest.mark.usefixtures("quick")
def test_download_that_fails_leaves_the_old_copy(
    stored: Location, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(store_failures, "PATIENCE_S", 0.2)
    (tmp_path / "copy").write_text("old")
    s3_proxy.schedule("GET .*file", itertools.repeat("truncate"))
    with pytest.raises(StorageError, match=r"^s3://images/folder/file: cannot read: the answer was cut short"):
        (stored / "file").download(tmp_path / "copy")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("copy", "old")]


@pytest.mark.s3
@pytest.mark.usefixtures("quick")
def test_corrupted_download_is_told_by_its_digest(stored: Location, s3_proxy: FaultyProxy, tmp_path: Path) -> None:
    s3_proxy.schedule("GET .*file", ["corrupt"])
    digests = [(stored / "file").download(tmp_path / name) for name in ("first", "second")]
    assert [digest == hashlib.sha256(CONTENT).hexdigest() for digest in digests] == [False, True]


@pytest.mark.s3
@pytest.mark.usefixtures("quick")
def test_bucket_that_cannot_be_asked_for_is_not_taken_for_absent(
    s3_bucket: str, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_failures, "PATIENCE_S", 0.2)
    s3_proxy.schedule("HEAD", itertools.repeat("slow_down"))
    with pytest.raises(StorageError, match=r"s3://images: cannot read: the store asks to slow down"):
        Location.of(s3_bucket).exists()


@pytest.mark.s3
def test_missing_credentials_are_asked_for(s3_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StorageError, match=r"x: cannot read: no credentials .*; set AWS_ACCESS_KEY_ID and"):
        Location.of(f"{s3_bucket}/x").read_bytes()


def test_file_url_is_a_local_path(tmp_path: Path) -> None:
    location = Location.of(f"file://{tmp_path}/a")
    assert location == Location.of(tmp_path / "a")
    assert location.is_local


@pytest.mark.s3
def test_remove_takes_no_name_for_a_pattern(s3_bucket: str) -> None:
    """To s3fs a star in a key was one, and others' files went with it; a bracket in its own was never found."""
    folder = Location(f"{s3_bucket}/exp")
    for name in ("run1/x", "run2/x", "run*/x", "run?/x", "run[1]/x"):
        (folder / name).write_text("x")
    for name in ("run*", "run?", "run[1]"):
        (folder / name).remove()
    assert folder.names() == ["run1", "run2"]
