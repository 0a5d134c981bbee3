"""`vaegen watch`: a run, a search or a comparison in the terminal, from storage alone, until it is over."""

import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vaegen_ray.cli.console import duration, wide_console
from vaegen_ray.cli.leaderboard import front_table, summary
from vaegen_ray.cli.report import MARKS, kind_of
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import JobError
from vaegen_ray.runs.attempts import AttemptState
from vaegen_ray.runs.status import status_of
from vaegen_ray.storage import Location

ENDED = (AttemptState.COMPLETE, AttemptState.STOPPED, AttemptState.FAILED)
PERIOD_S = {True: 2.0, False: 10.0}
"""Where the directory is local, and where it is in an object store, which counts requests."""
BLOCKS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 28
CURVES = ("generator_loss", "discriminator_loss", "adversarial_share", "train_kl_nats", "reconstruction_psnr",
          "sample_fid", "sample_swd", "sample_diversity", "images_per_s")  # fmt: skip


def watch(
    place: Annotated[str, typer.Argument(metavar="RUN|SEARCH|COMPARISON", help="A directory, local or s3://.")],
    once: Annotated[bool, typer.Option("--once", help="Show it as it is now, and leave.")] = False,  # noqa: FBT002
) -> None:
    """Watch a run, a search or a comparison in the terminal until it is over. Ctrl-C leaves; nothing is stopped."""
    root = Location.of(place)
    if kind_of(root) is None:
        raise JobError(
            f"{root}: must be the directory of a run, a search or a comparison, found none of {', '.join(MARKS)} there"
        )
    console = wide_console()
    looks = _looks(root, console)
    if once or not console.is_terminal:
        console.print(next(looks)[0])
        return
    try:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            for shown, is_over in looks:
                live.update(shown, refresh=True)
                if is_over:
                    return
                time.sleep(PERIOD_S[root.is_local])
    except KeyboardInterrupt:
        return


def _looks(root: Location, console: Console) -> Iterator[tuple[RenderableType, bool]]:
    """What there is to see, again and again, and whether it is over."""
    look = {"run": _run, "search": _search, "comparison": _comparison}[str(kind_of(root))]
    while True:
        yield look(root, console)


def _run(root: Location, console: Console) -> tuple[RenderableType, bool]:
    from vaegen_ray.runs.records import read_incidents
    from vaegen_ray.tracking.json_lines import finite_points, read_metrics

    run = RunDirectory(root)
    job, lines, is_over = run.load_job(), read_metrics(run), run.is_complete()
    position = int(lines[-1]["position"]) if lines else 0
    total = job.training.total_images
    rate = next((line["images_per_s"] for line in reversed(lines) if line.get("images_per_s")), None)
    words = [f"{min(position, total):,} of {total:,} images"]
    if rate:
        words.append(f"{rate:,.0f} images/s")
        words += [] if is_over else [f"{duration((total - position) / rate)} left"]
    status = status_of(root)
    if status is not None and status.state in ENDED:
        is_over = True
        words.append(": ".join(filter(None, (status.state, status.error))))
    else:
        words.append(_heard(lines))
    curves = {name: [value for _, value in finite_points(lines, name)] for name in CURVES}
    panels = [_curve(name, values) for name, values in curves.items() if values]
    incidents = [
        Text(f"{entry['action']}: {entry.get('sentence', entry['rule'])}", style="yellow")
        for entry in read_incidents(run)[-4:]
    ]
    bar = ProgressBar(total=total, completed=min(position, total), width=min(console.width, 80))
    return Group(Text(f"{job.name}: {job.objective.kind}", style="bold"), bar, Text(" | ".join(words)),
                 Columns(panels), *incidents), is_over  # fmt: skip


def _search(root: Location, console: Console) -> tuple[RenderableType, bool]:
    from vaegen_ray.search.directory import SearchDirectory
    from vaegen_ray.search.leaderboard import is_over, leaderboard
    from vaegen_ray.search.open import current_trials, load_search

    directory = SearchDirectory(root)
    job, trials = load_search(directory), current_trials(directory)
    board = leaderboard(job, trials)
    return front_table(board, summary(board, trials), console.width), is_over(job, trials)


def _comparison(root: Location, _: Console) -> tuple[RenderableType, bool]:
    from vaegen_ray.cli.compare import progress_table
    from vaegen_ray.compare.directory import CompareDirectory
    from vaegen_ray.compare.results import read_comparison

    comparison = read_comparison(CompareDirectory(root))
    table = Table("", *comparison.runs)
    for metric in comparison.metrics:
        table.add_row(metric, *(str(comparison.statistic(name, metric)) for name in comparison.runs))
    num_runs = sum(len(runs) for runs in comparison.runs.values())
    return Group(progress_table(comparison), table), comparison.num_ended == num_runs


def _curve(name: str, values: Sequence[float]) -> Panel:
    """A metric's course in one line of blocks, between its lowest and highest value, and the newest value."""
    every = max(len(values) / CURVE_WIDTH, 1.0)
    shown = [values[int(index * every)] for index in range(min(len(values), CURVE_WIDTH))]
    low, span = min(values), max(values) - min(values)
    blocks = "".join(BLOCKS[round((value - low) / span * (len(BLOCKS) - 1)) if span else 0] for value in shown)
    return Panel(Text.assemble((blocks, "cyan"), f"\n{values[-1]:.4g}"), title=name, width=CURVE_WIDTH + 4)


def _heard(lines: Sequence[dict[str, Any]]) -> str:
    if not lines:
        return "no metrics yet"
    return f"last line {duration(max(time.time() - lines[-1]['time_s'], 0))} ago"
