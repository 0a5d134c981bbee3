"""`vaegen submit` and `vaegen resume`."""

import os
import time
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console

from vaegen_ray.cli.places import NAME_HELP, Storage, find_run
from vaegen_ray.cli.train import Overrides
from vaegen_ray.config.loading import AnyJob, job_of, load_job, load_tree
from vaegen_ray.errors import JobError
from vaegen_ray.runs.attempts import BESIDE_DATASET, PREPARE_JOB, read_attempts, root_of
from vaegen_ray.runs.status import JOB_FILES
from vaegen_ray.storage import Location

Address = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Of the cluster's dashboard, such as http://head:8265; else RAY_ADDRESS."),
]
Follow = Annotated[bool, typer.Option("--follow", help="Print what the run prints, until it ends.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for the end, and end with the run's exit code.")]
Retries = Annotated[
    int, typer.Option(min=0, help="Submit again so often where the cluster or the store failed. Waits for the end.")
]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Submit to a cluster without authentication that others can reach.")
]


def submit(
    job_file: Annotated[str, typer.Argument(metavar="JOB", help="A job file (YAML) of any kind.")],
    overrides: Overrides = None,
    address: Address = None,
    follow: Follow = False,  # noqa: FBT002
    wait: Wait = False,  # noqa: FBT002
    retries: Retries = 0,
    dry_run: Annotated[  # noqa: FBT002
        bool, typer.Option("--dry-run", help="Check the job and the cluster, show what would be submitted, stop.")
    ] = False,
    insecure: Insecure = False,  # noqa: FBT002
) -> None:
    """Run a job on a Ray cluster, or join it where it runs; after a failure it goes on from its checkpoint."""
    job = load_job(job_file, overrides or [])
    run(job, address, follow=follow, wait=wait, retries=retries, dry_run=dry_run, insecure=insecure)


def resume(
    name: Annotated[str, typer.Argument(help=NAME_HELP)],
    storage: Storage = None,
    address: Address = None,
    follow: Follow = False,  # noqa: FBT002
    wait: Wait = False,  # noqa: FBT002
    retries: Retries = 0,
    insecure: Insecure = False,  # noqa: FBT002
) -> None:
    """Submit a run or search again, to go on where it was; its job is the one in its directory."""
    from vaegen_ray.on_ray.connection import ADDRESS_VARIABLES

    root = find_run(name, storage)
    job = _job_in(root)
    attempts = read_attempts(root)
    if address is None and attempts and not any(os.environ.get(name) for name in ADDRESS_VARIABLES):
        address = attempts[-1].cluster
    run(job, address, follow=follow, wait=wait, retries=retries, dry_run=False, insecure=insecure)


def _job_in(root: Location) -> AnyJob:
    """The job whose directory this is; it may have been moved since."""
    file = next((root / file for file in JOB_FILES if (root / file).exists()), None)
    if file is None:
        raise JobError(
            f"{root}: must be the directory of a run or a search, found no job.json there; one that ended before it "
            "began is submitted again with its job file: vaegen submit JOB"
        )
    if file.name == PREPARE_JOB:
        place = {"destination": root.url.removesuffix(BESIDE_DATASET)}
    else:
        place = {"storage": root.parent.url}
    job = job_of({**load_tree(file.url), **place}, str(file))
    if root_of(job) != root:
        raise JobError(
            f"{root}: holds '{job.name}', and would go on in {root_of(job)}; give the directory that name again"
        )
    return job


def run(
    job: AnyJob, address: str | None, *, follow: bool, wait: bool, retries: int, dry_run: bool, insecure: bool
) -> None:
    """Check, submit or join, and wait where that is asked for."""
    # Imported only now: a mistake in the job should not cost the seconds that importing Ray takes.
    from vaegen_ray.on_ray import submit as cluster
    from vaegen_ray.on_ray.connection import connect

    console = Console(markup=False, soft_wrap=True, highlight=False)
    say = console.print
    job = cluster.absolute(job)
    connection = connect(address)
    if not insecure:
        cluster.check_exposure(connection)
    waits = follow or wait or retries > 0
    chances = cluster.Retries(retries)
    while True:
        with cluster.package_of(job) as (package, fingerprint):
            submission = None if dry_run else cluster.running_attempt(connection, job)
            if submission is None:
                findings = cluster.preflight(connection, job, package, say)
                if not insecure:
                    cluster.check_exposure(connection, findings)
                say(
                    f"the cluster at {connection.address} can run it: {findings.nodes} nodes with {findings.cpus:g} "
                    f"CPU and {findings.gpus:g} GPU in all; storage and data are within reach of every node"
                )
                if findings.is_complete:
                    say(f"the run in {root_of(job)} is complete already; nothing was submitted")
                    return
                if dry_run:
                    _show(cluster.request_of(job, findings.attempts + 1, connection.address), fingerprint, say)
                    return
                submission = cluster.submit(connection, job, package, findings.attempts)
        say(f"{'joined' if submission.joined else 'submitted'} {submission.id}, which writes to {submission.run}")
        if not submission.is_announced:
            say(
                f"this machine cannot write to {submission.run}: status, logs and stop answer where it can be read, "
                f"once the run has begun; until then ask the cluster: vaegen list --address {connection.address}"
            )
        if not waits:
            say(f"watch it with: vaegen logs -f {submission.run}; stop it with: vaegen stop {submission.run}")
            return
        outcome = cluster.follow(connection, submission, show_log=follow)
        if outcome.exit_code == 0:
            say(f"{submission.id} is complete: {submission.run}")
            return
        why_not = chances.may_follow(outcome, submission.run)
        if why_not is not None:
            say(f"{submission.id} ended with exit code {outcome.exit_code}: {outcome.message}")
            if retries and outcome.is_transient:
                say(f"not tried again: {why_not}")
            raise typer.Exit(outcome.exit_code)
        wait_s = chances.wait_s()
        say(f"{submission.id}: {outcome.message}\ntrying again in {wait_s:.0f} s, from the newest checkpoint")
        time.sleep(wait_s)
        connection = cluster.reconnected(connection.address, say)


def _show(request: dict[str, object], fingerprint: str, say: Callable[[str], None]) -> None:
    for key, value in request.items():
        say(f"{key}: {value}")
    say(f"code and job: sha256 {fingerprint}")
    say("nothing was submitted")
