"""Population-based training on Tune: who copies whom, and how a trial takes over another's state."""

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import TrialScheduler

from vaegen_ray.config.search import Population, SearchJob, Settings
from vaegen_ray.on_ray.reports import ENDING
from vaegen_ray.on_ray.trial_scheduler import LogScheduler
from vaegen_ray.randomness import derived_seed
from vaegen_ray.search.log import TrialLog
from vaegen_ray.search.stopping import donor_of, perturbed
from vaegen_ray.search.trials import Trial, TrialState, copied

Config = dict[str, Any]


class PopulationScheduler(LogScheduler):
    """At each evaluation the worst trials go on from the state of one of the best, with other settings.

    A trial waits there, in its report, until all have come: who copies whom depends on the scores, and not on who
    was quick. Then Tune starts those that copy again with another config, by which their processes find the state in
    the donor's run directory. The config is in the log, so that a search that was interrupted goes on.
    """

    def __init__(self, job: SearchJob, log: TrialLog, is_stopping: Callable[[], bool] = lambda: False) -> None:
        super().__init__(job, log)
        assert isinstance(job.scheduler, Population)
        self._settings = job.scheduler
        self._goal = job.objectives[0]
        self._waiting: dict[int, TuneTrial] = {}
        self._is_stopping = is_stopping
        self._to_start: deque[TuneTrial] = deque()

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Stop, or wait for the others."""
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision != TrialScheduler.CONTINUE or result.get(ENDING):
            self._go_on_together(tune_controller)
            return decision
        self._waiting[int(trial.config["number"])] = trial
        self._go_on_together(tune_controller)
        return TrialScheduler.NOOP

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """One that was lost comes again."""
        super().on_trial_error(tune_controller, trial)
        self._waiting.pop(int(trial.config["number"]), None)

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        """The trial that waits longest to go on as another."""
        self._go_on_together(tune_controller)  # The last one that the others waited for may have failed.
        while self._to_start:
            trial = self._to_start.popleft()
            if trial.status == TuneTrial.PAUSED:
                return trial
        return None

    def _go_on_together(self, tune_controller: Any) -> None:
        """Once all are here, let each go on, as itself or as another."""
        trials = self._log.trials
        alive = trials.in_state(TrialState.RUNNING, TrialState.WAITING)
        newest = max((trial.position for trial in alive), default=0)
        for number in sorted(self._waiting):
            # One that was lost reports an evaluation again that the others have left behind; and those that wait here
            # would not hear that the search was asked to stop.
            if self._is_stopping() or trials[number].position < newest:
                tune_controller._schedule_trial_train(self._waiting.pop(number))
        num_counted = len(trials) - len(trials.by_state[TrialState.INVALID])
        if not self._waiting or num_counted < self._job.trials or len(self._waiting) < len(alive):
            return
        here = {number: trials[number] for number in sorted(self._waiting)}
        costs = {number: self._cost(trial) for number, trial in here.items()}
        for number in here:
            trial = self._waiting.pop(number)
            draw = np.random.default_rng(derived_seed(self._job.seed, "population", number, here[number].position))
            donor = donor_of(costs, number, self._settings, draw)
            if donor is None:
                # What Tune does on CONTINUE.
                tune_controller._schedule_trial_train(trial)
                continue
            settings = perturbed(self._job, here[donor].settings, self._settings, draw)
            config = _config_of_copy(number, here[donor], settings)
            self._log.record(copied(number, donor, config["copied"]["position"], settings, config))
            trial.set_config(config)
            tune_controller.pause_trial(trial, should_checkpoint=False)
            self._to_start.append(trial)

    def _cost(self, trial: Trial) -> tuple[float, float]:
        """Of the newest evaluation: what it misses the constraints by, then the objective."""
        scores = trial.rungs[trial.position]
        excess = sum(max(0.0, bound.excess(scores)) for bound in self._job.constraints if bound.metric in scores)
        return excess, self._goal.cost(scores)


def _config_of_copy(number: int, donor: Trial, settings: Settings) -> Config:
    """The donor's job up to its newest rung, and ``settings`` from there."""
    lineage: Config = donor.config or {"settings": donor.settings, "changes": []}
    earlier = [change for change in lineage["changes"] if change["at_images"] < donor.position]
    return {
        "number": number,
        "settings": dict(lineage["settings"]),
        "changes": [*earlier, _change(donor.position, settings)],
        "copied": {"trial": donor.number, "position": donor.position},
    }


def _change(position: int, settings: Settings) -> Config:
    return {"at_images": position, "set": {name: float(value) for name, value in settings.items()}}
