"""`vaegen search`."""

import sys
from functools import partial
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from vaegen_ray.cli.console import wide_console
from vaegen_ray.cli.leaderboard import front_table, summary
from vaegen_ray.cli.train import Overrides
from vaegen_ray.config.loading import job_of, load_search_job
from vaegen_ray.config.search import SearchJob
from vaegen_ray.errors import JobError, TrainingError
from vaegen_ray.runs.lease import newest_holder
from vaegen_ray.search.directory import TIME_BUDGET, SearchDirectory
from vaegen_ray.search.log import read_trials
from vaegen_ray.search.open import load_search
from vaegen_ray.storage import Location

ACTIONS = ("resume", "extend", "stop")


def search(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="JOB | resume DIR | extend DIR | stop DIR",
            help="A search job (YAML); or what to do with the search in a directory.",
        ),
    ],
    overrides: Overrides = None,
    trials: Annotated[
        str | None, typer.Option(metavar="N | +N", help="How many trials in all, or how many more.")
    ] = None,
) -> None:
    """Search the settings of a train job, or go on with a search where it was: resume is the same command."""
    action, place = _action(words)
    if action == "stop":
        if trials is not None:
            raise JobError(f"--trials: must be left out with `stop`, got {trials!r}; `vaegen search extend` takes it")
        _stop(_directory(place, overrides))
        return
    job = load_search_job(place, overrides or []) if action == "run" else load_search(_directory(place, overrides))
    if trials is not None or action == "extend":
        job = _with_trials(job, trials, place)
    _run(job)


def _action(words: list[str]) -> tuple[str, str]:
    if len(words) == 1 and words[0] not in ACTIONS:
        return "run", words[0]
    if len(words) == 2 and words[0] in ACTIONS:
        return words[0], words[1]
    raise JobError(
        f"vaegen search: must be given a job file, or one of {', '.join(ACTIONS)} and a search's directory, got "
        f"'{' '.join(words)}'"
    )


def _directory(place: str, overrides: list[str] | None) -> SearchDirectory:
    if overrides:
        raise JobError(f"--set: a search goes on as it was begun, got {overrides[0]}; give `vaegen search` a job file")
    return SearchDirectory(Location.of(place))


def _with_trials(job: SearchJob, trials: str | None, place: str) -> SearchJob:
    if trials is None or not trials.removeprefix("+").isdecimal():
        raise JobError(f"--trials: must be a number, or +N for N more, got {trials!r}")
    total = int(trials) + (job.trials if trials.startswith("+") else 0)
    directory = SearchDirectory.of(job)
    already = read_trials(directory).num_counted
    if total < already:
        raise JobError(
            f"--trials: must be at least {already}, the trials that {directory.root} has already, got {trials!r}; for "
            "50 more give --trials +50"
        )
    tree = {**job.model_dump(mode="json"), "trials": total}
    extended = job_of(tree, place)
    assert isinstance(extended, SearchJob)
    return extended


def _stop(directory: SearchDirectory) -> None:
    from vaegen_ray.search.leaderboard import is_over

    if is_over(load_search(directory), read_trials(directory)):
        raise JobError(
            f"{directory.root}: is finished, and nothing runs; there is nothing to stop, and `vaegen search extend "
            f"{directory.root} --trials +50` goes on"
        )
    if newest_holder(directory.lease) is None:
        raise JobError(
            f"{directory.root}: is driven by nobody, and nothing runs; there is nothing to stop, and `vaegen search "
            f"resume {directory.root}` goes on"
        )
    directory.stop_request.write_text("stop")
    Console(markup=False, soft_wrap=True).print(
        f"asked {directory.root} to stop: its trials save a checkpoint and leave; "
        f"`vaegen search resume {directory.root}` goes on"
    )


def _run(job: SearchJob) -> None:
    # Imported only now: a mistake in the job should not cost the seconds that importing Ray and torch takes.
    from vaegen_ray.on_ray.search import Progress, run_search
    from vaegen_ray.search.leaderboard import is_over, leaderboard

    console, directory = wide_console(), SearchDirectory.of(job)
    say = partial(console.print, soft_wrap=True)
    say(f"searching {directory.root}; watch it with: vaegen leaderboard --watch {directory.root}")
    printed = [""]
    with Live(console=console, auto_refresh=False, transient=True) as live:

        def show(progress: Progress) -> None:
            board = leaderboard(job, progress.trials)
            line = summary(board, progress.trials, progress.max_concurrent, progress.elapsed_s)
            if progress.is_stopping:
                line += " | stopping: trials save and leave"
            if console.is_terminal:
                live.update(front_table(board, line, console.width), refresh=True)
            elif line.split(" | time ")[0] != printed[0]:
                printed[0] = line.split(" | time ")[0]
                say(line)

        trials = run_search(job, show)
    trials.interrupt()
    board = leaderboard(job, trials)
    console.print(front_table(board, summary(board, trials), console.width))
    asked = directory.stop_request.read_text() if directory.stop_request.exists() else ""
    if not is_over(job, trials):
        why = f", time_budget_s: {job.time_budget_s:g} is used up" if asked == TIME_BUDGET else ""
        say(f"not finished{why}; go on with: vaegen search resume {directory.root}")
    if board.best is not None:
        say(f"the best trial's run: {directory.run(board.best).root}")
        say(f"train it longer: vaegen train '{directory.root}#best' --set training.total_images=50e6")
    sys.stdout.flush()
    if asked.isdigit() and not is_over(job, trials):
        raise typer.Exit(128 + int(asked))
    if is_over(job, trials) and board.best is None:
        raise TrainingError(
            f"{directory.root}: no trial was fully trained and kept the constraints; `vaegen leaderboard "
            f"{directory.root}` says why"
        )
