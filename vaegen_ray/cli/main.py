"""The application `vaegen`: its verbs and its exit codes.

Exit codes: 0 done; 1 a run failed; 2 a job, dataset or argument was refused; 75 the store or the cluster failed, and
the same command may succeed later; 128 + N a run was stopped by signal N after it had saved a checkpoint.
"""

import logging
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from vaegen_ray import __version__
from vaegen_ray.cli import (
    bench,
    compare,
    data,
    doctor,
    encode,
    evaluate,
    export,
    leaderboard,
    pictures,
    plan,
    prepare,
    render,
    report,
    runs,
    search,
    serve,
    submit,
    train,
    validate,
    watch,
)
from vaegen_ray.errors import VaegenError, exit_code
from vaegen_ray.runs.attempts import keep_failure

app = typer.Typer(
    name="vaegen",
    help="Train VAE, GAN and VAE-GAN image generators, on one machine or on a Ray cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(train.train)
app.command()(validate.validate)
app.command()(plan.plan)
app.command("prepare")(prepare.prepare_command)
app.command()(search.search)
app.command()(compare.compare)
app.command()(submit.submit)
app.command()(submit.resume)
app.command("list")(runs.list_command)
app.command("status")(runs.status_command)
app.command()(runs.logs)
app.command()(runs.stop)
app.command("doctor")(doctor.doctor_command)
app.command("leaderboard")(leaderboard.leaderboard_command)
app.command()(evaluate.evaluate)
app.command()(encode.encode)
app.command()(export.export)
app.command()(report.report)
app.command()(watch.watch)
app.command()(serve.serve)
app.command()(pictures.sample)
app.command()(pictures.reconstruct)
app.command()(pictures.interpolate)
app.add_typer(data.app, name="data")
app.add_typer(render.app, name="render")
app.add_typer(bench.app, name="bench")


def _show_version(wanted: bool) -> None:  # noqa: FBT001 (typer's callback)
    if wanted:
        print(f"vaegen_ray {__version__}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,  # noqa: FBT002
) -> None:
    """Hold the options of all verbs."""


def main() -> None:
    """Run a verb; of a failure that we foresaw print the sentence alone."""
    # By rich, so that a warning stands above a live progress bar instead of under it.
    handler = RichHandler(console=Console(stderr=True), show_time=False, show_path=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    try:
        app()
    except VaegenError as error:
        # A Text, not markup: keys such as betas[1] hold brackets.
        Console(stderr=True).print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        keep_failure(error)
        sys.exit(exit_code(error))
