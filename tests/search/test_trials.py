"""What is known of a trial, event by event."""

from vaegen_ray.search.trials import Event, Trial, Trials, TrialState, asked, copied, ended, lost, scored, started

NIGHT_S = 50_000.0


def trial_of(*events: tuple[float, Event]) -> Trial:
    """Trial 1, after events each at its second."""
    return Trials.of({"time_s": time_s, **event} for time_s, event in events)[1]


def test_time_of_a_trial_that_waited_before_it_began_is_that_of_its_attempt() -> None:
    trial = trial_of((0.0, asked(1, {})), (100.0, started(1)), (103.0, scored(1, 32, {})), (107.0, complete()))
    assert trial.took_s == 7.0


def test_time_of_a_trial_killed_and_resumed_next_morning_leaves_the_night_out() -> None:
    trial = trial_of(
        (0.0, asked(1, {})),
        (1.0, started(1)),
        (5.0, scored(1, 32, {})),
        (NIGHT_S, started(1)),
        (NIGHT_S + 3.0, scored(1, 64, {})),
        (NIGHT_S + 6.0, complete()),
    )
    assert trial.took_s == 4.0 + 6.0


def test_time_of_a_trial_that_was_lost_is_the_sum_of_its_attempts() -> None:
    trial = trial_of(
        (0.0, asked(1, {})),
        (1.0, started(1)),
        (9.0, lost(1, "its node died")),
        (100.0, started(1)),
        (102.0, complete()),
    )
    assert trial.took_s == 8.0 + 2.0


def test_time_of_a_trial_that_copied_another_leaves_out_how_long_it_waited() -> None:
    trial = trial_of(
        (0.0, asked(0, {})),
        (0.0, asked(1, {})),
        (1.0, started(1)),
        (5.0, scored(1, 32, {})),
        (60.0, copied(1, 0, 32, {}, {})),
        (61.0, started(1)),
        (64.0, complete()),
    )
    assert trial.took_s == 4.0 + 3.0


def test_trial_that_never_began_took_no_time() -> None:
    invalid = ended(1, TrialState.INVALID, reason="makes no valid job")
    assert trial_of((0.0, asked(1, {})), (1.0, invalid)).took_s is None


def complete() -> Event:
    return ended(1, TrialState.COMPLETE, scores={})
