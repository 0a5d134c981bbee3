"""What `vaegen leaderboard` prints, on a terminal of the usual width and in a file."""

import io

from rich.console import Console

from tests.search.samples import search_job
from vaegen_ray.cli.leaderboard import front_table, summary
from vaegen_ray.search.leaderboard import leaderboard
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


def test_search_without_trials_says_so_in_one_line() -> None:
    assert printed(80).strip() == "0 of 4 trials over"
