"""What Ray Tune asks at each report: whether the trial goes on. The rules are those of `search/stopping.py`."""

import math
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from vaegen_ray.config.search import SearchJob
from vaegen_ray.on_ray.reports import ENDING, POSITION
from vaegen_ray.on_ray.searcher import record_scores
from vaegen_ray.search.log import TrialLog
from vaegen_ray.search.stopping import make_rule
from vaegen_ray.search.trials import TrialState, ended, lost, started

MOST_STARTING = 64
"""Trials whose processes start at the same time."""


def starting_together(max_concurrent: int) -> dict[str, str]:
    """What tells Tune, in the environment, how many trials may wait for their processes."""
    return {"TUNE_MAX_PENDING_TRIALS_PG": str(min(max_concurrent, MOST_STARTING))}


class LogScheduler(FIFOScheduler):
    """Records each rung, and stops the trials that the job's rule stops; the rungs come back from the log."""

    def __init__(self, job: SearchJob, log: TrialLog) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._job, self._log = job, log
        self._rule = make_rule(job)
        if self._rule is not None:
            for trial in log.trials:
                for position in sorted(trial.rungs):
                    self._rule.reached(trial, position)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:  # noqa: ARG002
        """Continue, or stop."""
        number = trial.config["number"]
        scores = record_scores(self._log, number, result)
        if self._rule is None:
            return TrialScheduler.CONTINUE
        position = int(result[POSITION])
        if result.get(ENDING):
            if position in self._log.trials[number].rungs:
                self._rule.reached(self._log.trials[number], position)
            return TrialScheduler.CONTINUE
        if broken := [metric for metric in self._job.metrics if not math.isfinite(scores.get(metric, 0.0))]:
            reason = f"{broken[0]} is {scores[broken[0]]} at {position} images"
            self._log.record(ended(number, TrialState.FAILED, reason=reason))
            return TrialScheduler.STOP
        recorded = self._log.trials[number]
        verdict = self._rule.reached(recorded, position) if position in recorded.rungs else None
        if verdict is not None:
            self._log.record(ended(number, TrialState.STOPPED, reason=verdict))
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:  # noqa: ARG002
        """An attempt was lost; Tune begins another, or, after this, tells the searcher that there were too many."""
        self._log.record(lost(trial.config["number"], _reason(trial)))

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:  # noqa: ARG002
        """None: nothing is paused, and Tune itself starts what waits. Tune's own scans all trials at each event."""
        return None


class Starts(Callback):
    """Records when attempts begin, which Tune tells neither scheduler nor searcher."""

    def __init__(self, log: TrialLog) -> None:
        self._log = log

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002
        """Tune has started the trial's process, or given it one that is there."""
        self._log.record(started(trial.config["number"]))


def _reason(trial: TuneTrial) -> str:
    """Why the newest attempt was lost, in a line, from the file that Tune writes."""
    path = Path(trial.error_file) if trial.error_file else None
    if path is None or not path.exists():
        return "its process was lost"
    newest = path.read_text(errors="replace").split("Failure # ")[-1]
    lines = [line.strip() for line in newest.splitlines()[1:] if line.strip()]
    if not lines:
        return "its process was lost"
    return lines[-1] if "Traceback (most recent call last)" in newest else lines[0]
