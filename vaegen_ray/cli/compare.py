"""`vaegen compare`: variants of a train job, side by side."""

import math
import os
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vaegen_ray.cli.console import wide_console
from vaegen_ray.cli.train import Overrides
from vaegen_ray.config.loading import load_compare_job

if TYPE_CHECKING:
    from vaegen_ray.compare.results import Comparison


def compare(
    job_file: Annotated[str, typer.Argument(metavar="JOB", help="Job file of kind `compare`.")],
    overrides: Overrides = None,
) -> None:
    """Train variants of a job with several seeds, side by side on Ray, and compare them; resume is the same command."""
    job = load_compare_job(job_file, overrides or [])
    # Imported only now: a mistake in the job should not cost the seconds that importing Ray and torch takes.
    from vaegen_ray.compare.directory import CompareDirectory
    from vaegen_ray.compare.results import read_comparison
    from vaegen_ray.on_ray.compare import Progress, run_comparison

    console, directory = wide_console(), CompareDirectory.of(job)
    console.print(f"comparing in {directory.root}; watch it with: vaegen watch {directory.root}", soft_wrap=True)
    shown: list[tuple[object, ...]] = [()]
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show(progress: Progress) -> None:
            if console.is_terminal:
                live.update(progress_table(read_comparison(directory)), refresh=True)
            elif (state := (progress.running, len(progress.ended), progress.is_stopping)) != shown[0]:
                shown[0] = state
                running = ", ".join(f"{variant}-{seed}" for variant, seed in progress.running)
                line = f"{len(progress.ended)} of {progress.num_runs} runs ended; begun: {running or 'none'}"
                console.print(line + (" | stopping" if progress.is_stopping else ""), soft_wrap=True)

        is_over = run_comparison(job, show)
    comparison = read_comparison(directory)
    print_comparison(comparison, console)
    for name, content in (("comparison.json", comparison.to_json()), ("comparison.md", comparison.to_markdown())):
        (directory.root / name).write_text(content)
    console.print(f"table: {directory.root / 'comparison.md'}", soft_wrap=True)
    if not is_over:
        console.print("not finished; give the same command again to go on", soft_wrap=True)
        asked = directory.stop_request.read_text() if directory.stop_request.exists() else ""
        raise typer.Exit(128 + int(asked) if asked.isdigit() else os.EX_TEMPFAIL)
    console.print(f"report: vaegen report {directory.root} --open", soft_wrap=True)


def progress_table(comparison: "Comparison") -> Table:
    """A line a run: how far it is, how fast, how it ended."""
    table = Table("run", "images", "images/s", "state", title=comparison.job.name)
    for variant, runs in comparison.runs.items():
        for run in runs:
            state = run.outcome.ending if run.outcome is not None else ("running" if run.position else "waiting")
            rate = "" if math.isnan(run.images_per_s) else f"{run.images_per_s:.0f}"
            table.add_row(f"{variant}-{run.seed}", f"{run.position:,}", rate, state)
    return table


def print_comparison(comparison: "Comparison", console: Console) -> None:
    """The table of all metrics, what they were measured on, and what ended badly."""
    from vaegen_ray.compare.results import SIGNIFICANT
    from vaegen_ray.evaluation.scores import UNITS

    names = list(comparison.runs)
    seeds = len(comparison.job.seeds)
    table = Table("", *names, "p", "unit", title=f"{comparison.job.name}: mean ± deviation over {seeds} seeds")
    for metric in comparison.metrics:
        winner, p = comparison.best(metric)
        cells = [
            Text(
                str(comparison.statistic(name, metric)),
                style="bold green" if name == winner and p < SIGNIFICANT else "",
            )
            for name in names
        ]
        table.add_row(metric, *cells, "" if math.isnan(p) else f"{p:.2g}", UNITS.get(metric, ("", ""))[0])
    table.add_section()
    for title, row in comparison.closing_rows():
        table.add_row(title, *row, "", "")
    console.print(table)
    console.print(
        f"p: that the best mean is no better than the others' (Welch's t-test, times the number of others); bold where "
        f"below {SIGNIFICANT}",
        soft_wrap=True,
    )
    for variant, runs in comparison.runs.items():
        for run in runs:
            if run.outcome is not None and run.outcome.ending != "complete":
                console.print(f"{variant}-{run.seed} {run.outcome.ending}: {run.outcome.reason}", soft_wrap=True)
            for incident in run.collapses:
                console.print(f"{variant}-{run.seed}: {incident.sentence}", soft_wrap=True)
    sentences = dict.fromkeys(comparison.conditions().values())
    for sentence in sentences:
        of = [name for name, other in comparison.conditions().items() if other == sentence]
        console.print(f"{', '.join(of)}: {sentence}", soft_wrap=True, style="dim")
