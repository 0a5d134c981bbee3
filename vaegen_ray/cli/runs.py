"""`vaegen list`, `status`, `logs` and `stop`: answered from storage, also when the cluster is gone."""

import json
import os
import signal
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from vaegen_ray.cli.console import wide_console
from vaegen_ray.cli.places import NAME_HELP, Storage, find_run, storage_place
from vaegen_ray.cli.submit import Address
from vaegen_ray.errors import ClusterError, JobError, StorageError
from vaegen_ray.runs.attempts import (
    DRIVER_LOG,
    STOP,
    Attempt,
    AttemptState,
    attempt_folder,
    rank_log,
    read_attempts,
    write_attempt,
)
from vaegen_ray.runs.lease import Holder, newest_holder
from vaegen_ray.runs.status import DAMAGED, RunStatus, list_runs, status_of
from vaegen_ray.storage import Location

POLL_S = 2.0
TAIL_CHARACTERS = 8192
"""So many do not stand twice in a log."""
Name = Annotated[str, typer.Argument(help=NAME_HELP)]


# ---------------------------------------------------------------------------- list and status


def list_command(
    storage: Annotated[str | None, typer.Argument(help="Where the runs are; else $VAEGEN_STORAGE, else runs.")] = None,
    address: Address = None,
) -> None:
    """List runs and searches, and with --address what the cluster knows of them besides."""
    console, place = wide_console(), storage_place(storage)
    if place.is_local and place.local_path.is_file():
        raise JobError(f"{place}: must be a folder of runs, is a file; `vaegen status` wants the directory of one run")
    statuses = list_runs(place)
    if not statuses and not _has_bucket(place):
        raise JobError(
            f"{place}: must be in a bucket that is there, got {place.bucket}; correct it, or create the bucket"
        )
    table = Table("name", "kind", "state", "images", "images/s", "attempts", "last word", title=str(place))
    for status in statuses:
        table.add_row(*_cells(status))
    console.print(table if statuses else f"no runs in {place}")
    for status in statuses:
        if status.state == DAMAGED:
            console.out(f"{status.root.name} is damaged: {status.error}", highlight=False)
    if address is not None:
        from vaegen_ray.on_ray.connection import connect
        from vaegen_ray.on_ray.submit import RUN, submissions

        jobs = Table("submission", "state", "run", title=address)
        for info in submissions(connect(address)):
            jobs.add_row(str(info.submission_id), str(info.status).lower(), str(info.metadata[RUN]))
        console.print(jobs)


def _has_bucket(place: Location) -> bool:
    """Also where nobody may look: some have rights to a prefix only."""
    try:
        return place.bucket.exists()
    except StorageError:
        return True


def _cells(status: RunStatus) -> list[str]:
    images = "" if status.position is None else f"{status.position:,}/{status.total_images:,}"
    rate = f"{status.images_per_s:,.0f}" if status.images_per_s else ""
    attempts = str(len(status.attempts)) if status.attempts else ""
    return [status.root.name, status.kind, status.state, images, rate, attempts, _ago(status.heard)]


def _ago(stamp: str) -> str:
    if not stamp:
        return ""
    seconds = (datetime.now(UTC) - datetime.fromisoformat(stamp)).total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"


def status_command(
    name: Name,
    storage: Storage = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,  # noqa: FBT002
) -> None:
    """Show how a run or search stands: its state, its attempts, who writes it, and what went wrong."""
    root = find_run(name, storage)
    status = _status(root)
    if as_json:
        record: dict[str, Any] = {
            **vars(status),
            "root": root.url,
            "attempts": [vars(each) for each in status.attempts],
        }
        print(json.dumps(record, indent=2))  # noqa: T201
        return
    console = Console(markup=False, soft_wrap=True, highlight=False)
    console.print(f"{root}: {status.kind} {status.state}".replace("  ", " "))
    if status.position is not None and status.total_images:
        part = status.position / status.total_images
        rate = f", {status.images_per_s:,.0f} images/s" if status.images_per_s else ""
        console.print(f"{status.position:,} of {status.total_images:,} images ({part:.0%}){rate}")
    if status.attempts and not status.attempts[-1].driver:
        console.print("its driver has not begun")
    if status.heard:
        console.print(f"last word: {_ago(status.heard)}")
    if status.holder:
        console.print(f"written by {status.holder}")
    if status.error:
        console.print(f"error: {status.error}")
    if status.kind == "search":
        console.print(f"its trials: vaegen leaderboard {root}")
    if status.attempts:
        table = Table("attempt", "submission", "state", "exit code", "begun", "cluster", "error")
        for attempt in status.attempts:
            code = "" if attempt.exit_code is None else str(attempt.exit_code)
            cells = [f"{attempt.number}", attempt.submission, attempt.state, code, attempt.begun, attempt.cluster]
            table.add_row(*cells, attempt.error[:120])
        wide_console().print(table)


def _status(root: Location) -> RunStatus:
    status = status_of(root)
    if status is None:
        raise JobError(
            f"{root}: must be the directory of a run or a search, found none there; `vaegen list` names those of a "
            "storage, and with --address the submissions that have not begun to write, which "
            "`ray job stop --address URL SUBMISSION` ends"
        )
    return status


# ---------------------------------------------------------------------------- logs


def logs(
    name: Name,
    storage: Storage = None,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as it grows, until the attempt ends.")] = False,  # noqa: FBT002
    rank: Annotated[int | None, typer.Option(min=0, help="Of this worker; else of the driver, which has all.")] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Of this attempt; else of the newest.")] = None,
) -> None:
    """Print what a submitted run printed; from storage, where it lags by about ten seconds."""
    root = find_run(name, storage)
    attempts = read_attempts(root)
    if not attempts:
        raise JobError(
            f"{root}: has no logs of a submission; a run on this machine prints to its terminal, and one just "
            "submitted has not begun"
        )
    number = attempt or attempts[-1].number
    folder = attempt_folder(root, number)
    file = folder / (DRIVER_LOG if rank is None else rank_log(rank))
    shown, is_over = "", False
    while True:
        if follow:
            is_over = not any(
                each.number == number and each.state is AttemptState.RUNNING for each in read_attempts(root)
            )
        if file.exists():
            text = file.read_bytes().decode(errors="replace")
            if follow and not is_over:  # What is cut off within a line may be half a letter.
                text = text[: text.rfind("\n") + 1]
            print(beyond(shown, text), end="", flush=True)  # noqa: T201
            shown = text
        elif not follow or is_over:
            there = ", ".join(entry for entry in folder.names() if entry.endswith(".log")) or "none yet"
            raise JobError(f"{file}: there is no such log; there are: {there}")
        if not follow or is_over:
            return
        time.sleep(POLL_S)


def beyond(shown: str, text: str) -> str:
    """What ``text``, the end of a log, has beyond ``shown``, its end some time ago. Of long logs the beginning goes."""
    if text.startswith(shown):
        return text[len(shown) :]
    last = shown[-TAIL_CHARACTERS:]
    begin = text.rfind(last)
    return text if begin < 0 else text[begin + len(last) :]


# ---------------------------------------------------------------------------- stop


def stop(
    name: Name,
    storage: Storage = None,
    now: Annotated[bool, typer.Option("--now", help="Kill it: what came after its newest checkpoint is lost.")] = False,  # noqa: FBT002
) -> None:
    """Have a run or search save a checkpoint and leave, wherever it runs."""
    root = find_run(name, storage)
    console = Console(markup=False, soft_wrap=True, highlight=False)
    status = _status(root)
    running = [attempt for attempt in status.attempts if attempt.state is AttemptState.RUNNING]
    if running:
        attempt = running[-1]
        is_heard = _stop_submission(root, attempt, now=now)
        if is_heard or attempt.driver:
            _wait_for_end(root, attempt.number, console)
        else:
            console.print(
                f"attempt {attempt.number} of {root} has not begun, and its cluster, {attempt.cluster}, cannot be "
                "reached from here; should it begin, it will end at once"
            )
        return
    holder = newest_holder(root / "lease")
    if holder is None:
        raise JobError(f"{root}: nobody is at it ({status.state}); there is nothing to stop")
    if not holder.is_near():
        raise JobError(f"{root}: is written by {holder}; give the command on that machine, in the same container")
    _signal(root, holder, signal.SIGKILL if now else signal.SIGTERM)
    console.print(f"{'killed' if now else 'asked'} {holder}{'' if now else ' to save a checkpoint and leave'}")


def _signal(root: Location, holder: Holder, number: int) -> None:
    try:
        os.kill(holder.pid, number)
    except PermissionError as error:
        raise JobError(f"{root}: is written by {holder}, whom only {holder.user} may stop; ask them") from error
    except ProcessLookupError as error:
        raise JobError(f"{root}: {holder} has just ended; there is nothing to stop") from error


def _stop_submission(root: Location, attempt: Attempt, *, now: bool) -> bool:
    """Through Ray where it can be reached, so that its records say so; else by a file that the driver looks for.

    Returns whether Ray was reached.
    """
    request = attempt_folder(root, attempt.number) / STOP
    if now:
        request.write_text("now")
    try:
        from vaegen_ray.on_ray.connection import connect
        from vaegen_ray.on_ray.submit import stop as stop_on_ray

        stop_on_ray(connect(attempt.cluster), attempt.submission)
    except (ClusterError, ImportError):
        request.write_text("now" if now else "save")
        return False
    if not attempt.driver:  # It will not begin, so nobody else can tell of its end.
        write_attempt(root, replace(attempt, state=AttemptState.STOPPED))
    return True


def _wait_for_end(root: Location, number: int, console: Console) -> None:
    console.print(f"asked attempt {number} of {root} to end")
    while True:
        attempt = next(each for each in read_attempts(root) if each.number == number)
        if attempt.state is not AttemptState.RUNNING:
            break
        time.sleep(0.5)
    status = _status(root)
    at = f" at {status.position:,} images" if status.position is not None else ""
    again = f"vaegen resume {root}" if status.kind else "vaegen submit JOB, as it had not begun"
    console.print(f"{attempt.state}{at}; go on with: {again}")
