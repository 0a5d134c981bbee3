"""`vaegen leaderboard`: the answer of a search, finished or not, from storage alone."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vaegen_ray.cli.console import duration, wide_console
from vaegen_ray.config.search import SearchJob
from vaegen_ray.errors import JobError
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.open import current_trials, load_search
from vaegen_ray.search.trials import BY_MERIT, Trials, TrialState
from vaegen_ray.storage import Location

if TYPE_CHECKING:
    from vaegen_ray.search.leaderboard import Leaderboard

WATCH_PERIOD_S = 2.0
ROWS_WHILE_SEARCHING = 12
LEAST_WIDTH_OF_A_REASON = 20
SPACE_AROUND_A_CELL = 3
"""Two blanks and a border."""


def leaderboard_command(
    search: Annotated[str, typer.Argument(help="Directory of a search: a local path or s3://bucket/prefix/name.")],
    watch: Annotated[bool, typer.Option("--watch", help="Look again every few seconds, until Ctrl-C.")] = False,  # noqa: FBT002
    as_csv: Annotated[bool, typer.Option("--csv", help="All trials as CSV.")] = False,  # noqa: FBT002
    as_json: Annotated[bool, typer.Option("--json", help="All trials, the front and its volume as JSON.")] = False,  # noqa: FBT002
) -> None:
    """Show the trials of a search in order of merit. Needs no cluster."""
    if watch + as_csv + as_json > 1:
        raise JobError("vaegen leaderboard: must be given at most one of --watch, --csv, --json")
    directory = SearchDirectory(Location.of(search))
    job, trials = load_search(directory), current_trials(directory)
    from vaegen_ray.search.leaderboard import leaderboard

    board = leaderboard(job, trials)
    console = wide_console()
    if as_csv:
        print(board.to_csv(), end="")  # noqa: T201
    elif as_json:
        print(board.to_json(_importances(board, trials)), end="")  # noqa: T201
    elif watch:
        _watch(directory, console)
    else:
        console.print(_whole(board, trials, console.width))


def _watch(directory: SearchDirectory, console: Console) -> None:
    from vaegen_ray.search.leaderboard import leaderboard

    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            trials = current_trials(directory)
            # The job again, too: the search may have been extended.
            board = leaderboard(load_search(directory), trials)
            live.update(front_table(board, summary(board, trials), console.width), refresh=True)
            time.sleep(WATCH_PERIOD_S)


def _whole(board: "Leaderboard", trials: Trials, width: int) -> RenderableType:
    lines = [
        Text(f"{metric} depends on " + ", ".join(f"{name} ({part:.0%})" for name, part in parts.items()))
        for metric, parts in _importances(board, trials).items()
    ]
    return Group(*_tables(board, len(board.trials), width), *lines, Text(summary(board, trials)))


def _importances(board: "Leaderboard", trials: Trials) -> dict[str, dict[str, float]]:
    from vaegen_ray.on_ray.importance import importances

    return importances(board.job, trials)


def front_table(board: "Leaderboard", line: str, width: int) -> RenderableType:
    """The best trials, in ``width`` characters, above one line about the whole search."""
    return Group(*_tables(board, ROWS_WHILE_SEARCHING, width), Text(line))


@dataclass(frozen=True)
class _Column:
    heading: str
    cells: list[str]
    justify: Literal["left", "right"] = "right"
    style: str | None = None
    most: int | None = None
    """Characters after which its cells are cut; None for one that is never cut."""

    @property
    def width(self) -> int:
        """Of the whole cells, with the space around them."""
        return SPACE_AROUND_A_CELL + max(map(len, [*self.heading.split("\n"), *self.cells]))


def _tables(board: "Leaderboard", num_rows: int, width: int) -> list[Table | Text]:
    if not board.trials:
        return []
    job, rows, trials = board.job, board.rows(num_rows), board.trials[:num_rows]
    columns = [
        _Column("", [(">" if row["is_best"] else " ") + ("*" if row["on_front"] else " ") for row in rows], "left"),
        _Column("trial", [str(trial.number) for trial in trials]),
        _Column("state", [_state(row) for row in rows], "left"),
        _Column("images", [f"{trial.position:,}" for trial in trials]),
        *(_Column(metric.replace("_", "\n", 1), [_number(row[metric]) for row in rows]) for metric in job.metrics),
    ]
    # What follows is shown as far as there is room for it: a table that is squeezed cannot be read.
    left_out, room = 0, width - 1 - sum(column.width for column in columns)
    short = _short_names(list(job.space))
    for name in job.space:
        column = _Column(short[name], [_number(trial.settings.get(name)) for trial in trials], style="dim")
        room -= column.width
        left_out += room < 0
        if room >= 0:
            columns.append(column)
    room -= SPACE_AROUND_A_CELL
    if any(trial.reason for trial in trials) and room >= LEAST_WIDTH_OF_A_REASON:
        columns.append(_Column("why", [trial.reason for trial in trials], "left", "dim", most=room))
    table = Table(title=f"{job.name}: * on the front, > the {'knee' if len(job.objectives) > 1 else 'best'}")
    for column in columns:
        table.add_column(
            column.heading, justify=column.justify, style=column.style, no_wrap=True, max_width=column.most
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*cells)
    hidden = [f"{len(board.trials) - num_rows} more trials"] if len(board.trials) > num_rows else []
    hidden += [f"{left_out} settings: widen the terminal, or use --csv"] if left_out else []
    return [table] + ([Text(f"... and {', and '.join(hidden)}")] if hidden else [])


def _state(row: Mapping[str, object]) -> str:
    is_infeasible = row["state"] == TrialState.COMPLETE.value and row["keeps_constraints"] is False
    return "infeasible" if is_infeasible else str(row["state"])


def summary(
    board: "Leaderboard", trials: Trials, max_concurrent: int | None = None, elapsed_s: float | None = None
) -> str:
    """One line: how many trials are where, the best so far, the front, the time left."""
    job = board.job
    counts = [f"{len(trials.by_state[state])} {state.value}" for state in BY_MERIT if trials.by_state[state]]
    parts = [f"{trials.num_over} of {job.trials} trials over" + (f": {', '.join(counts)}" if counts else "")]
    if board.best is not None:
        best = trials[board.best].scores
        values = ", ".join(f"{goal.metric} {best[goal.metric]:.4g}" for goal in job.objectives)
        parts.append(f"{'knee' if len(job.objectives) > 1 else 'best'} trial {board.best}: {values}")
    if len(job.objectives) > 1 and board.front:
        parts.append(f"front of {len(board.front)}, hypervolume {board.volume:.3f}")
    if max_concurrent is not None:
        parts.append(f"{max_concurrent} at once")
    if elapsed_s is not None:
        left_s = time_left_s(job, trials, max_concurrent or 1)
        parts.append(f"time {duration(elapsed_s)}" + (f", about {duration(left_s)} left" if left_s is not None else ""))
    return " | ".join(parts)


def time_left_s(job: SearchJob, trials: Trials, max_concurrent: int) -> float | None:
    """What the trials that are not over will take, if they take as long as the others did; None before the first."""
    times_s = [trial.took_s for trial in trials if trial.state.is_over and trial.took_s is not None]
    if not times_s:
        return None
    mean_s = sum(times_s) / len(times_s)
    return mean_s * max(job.trials - trials.num_over, 0) / max_concurrent


def _short_names(names: list[str]) -> dict[str, str]:
    """The end of each dotted path that tells it apart from the others."""
    short: dict[str, str] = {}
    for name in names:
        parts = name.split(".")
        for length in range(1, len(parts) + 1):
            end = ".".join(parts[-length:])
            if sum(other == end or other.endswith(f".{end}") for other in names) == 1 and end != "value":
                short[name] = end
                break
        short.setdefault(name, name)
    return short


def _number(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
