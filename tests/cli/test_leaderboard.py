"""What `vaegen leaderboard` prints, on a terminal of the usual width and in a file."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from tests.search.samples import search_job
from vaegen_ray.cli import leaderboard as command
from vaegen_ray.cli.leaderboard import front_table, summary, time_left_s
from vaegen_ray.config.loading import dump_job
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.leaderboard import leaderboard
from vaegen_ray.search.log import TrialLog
from vaegen_ray.search.trials import Trials, TrialState, asked, ended, scored, started

TIME = {"time_s": 1.0}
SCORES = {"reconstruction_psnr": 16.9514, "sample_swd": 0.32853, "kl_nats": 17.66}
SETTINGS = {"objective.kl.weight": 0.63323, "objective.adversarial.balance.share": 0.82608}


def printed(width: int, *events: dict[str, object]) -> str:
    job = search_job("runs", constraints=["kl_nats >= 1"])
    trials = Trials.of({**TIME, **event} for event in events)
    board, console = leaderboard(job, trials), Console(width=width, file=io.StringIO(), record=True)
    console.print(front_table(board, summary(board, trials), width))
    return console.export_text()


EVENTS = (
    asked(0, SETTINGS),
    started(0),
    ended(0, TrialState.COMPLETE, scores=SCORES),
    asked(1, SETTINGS),
    started(1),
    ended(1, TrialState.COMPLETE, scores={**SCORES, "kl_nats": 0.5}),
    asked(2, SETTINGS),
    started(2),
    scored(2, 1_000_000, SCORES),
    ended(2, TrialState.FAILED, reason="its loss is not finite at 1,000,000 images"),
)


def test_table_on_a_terminal_of_eighty_columns_is_readable() -> None:
    text = printed(80, *EVENTS)
    assert "…" not in text
    for shown in (">*", "infeasible", "failed", "1,000,000", "16.95", "0.3285", "17.66"):
        assert shown in text
    assert "settings: widen the terminal, or use --csv" in text


def test_table_in_a_file_has_every_setting_and_reason() -> None:
    text = printed(200, *EVENTS)
    for shown in ("0.6332", "0.8261", "its loss is not finite at 1,000,000 images"):
        assert shown in text
    assert "more" not in text


@pytest.mark.parametrize("width", [80, 100, 130, 160, 200])
def test_table_with_long_reasons_cuts_nothing_but_them(width: int) -> None:
    reason = "at 1,000,000 images 2 of 7 trials dominate it in all objectives and 5 rank before it, " * 3
    stopped = ended(3, TrialState.STOPPED, reason=reason)
    lines = printed(width, *EVENTS, asked(3, SETTINGS), started(3), scored(3, 32, SCORES), stopped).splitlines()
    (line,) = (line for line in lines if "stopped " in line)
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells[:7] == ["", "3", "stopped", "32", "16.95", "0.3285", "17.66"]
    assert all("…" not in cell for cell in cells[:9])
    if width >= 130:
        assert cells[7:9] == ["0.6332", "0.8261"]
        assert cells[9].startswith("at 1,000,000 images")
        assert cells[9].endswith("…")
    assert all(len(line) <= width for line in lines)


def test_time_left_after_a_night_in_which_nobody_searched_is_that_of_the_trials() -> None:
    attempt = [{"time_s": 0.0, **asked(0, SETTINGS)}, {"time_s": 10.0, **started(0)}]
    again = [{"time_s": 50_000.0, **started(0)}]
    over = [{"time_s": 50_020.0, **ended(0, TrialState.COMPLETE, scores=SCORES)}]
    assert time_left_s(search_job("runs"), Trials.of([*attempt, *again, *over]), 2) == 20.0 * 3 / 2


def test_watch_of_a_search_that_was_extended_shows_its_new_number_of_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = search_job(tmp_path)
    directory, console = SearchDirectory.of(job), Console(width=100, file=io.StringIO(), record=True)
    directory.job_file.write_text(dump_job(job))
    TrialLog(directory).close()
    totals = iter((54,))

    def extend_once(_seconds: float) -> None:
        total = next(totals, None)
        if total is None:
            raise KeyboardInterrupt
        directory.job_file.write_text(dump_job(job.model_copy(update={"trials": total})))

    monkeypatch.setattr("vaegen_ray.cli.leaderboard.time.sleep", extend_once)
    with pytest.raises(KeyboardInterrupt):
        command._watch(directory, console)
    assert "0 of 54 trials over" in console.export_text()


def test_search_without_trials_says_so_in_one_line() -> None:
    assert printed(80).strip() == "0 of 4 trials over"
