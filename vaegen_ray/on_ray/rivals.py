"""Searches as users assemble them, ours and others', in virtual time on one event loop at an equal budget."""

import itertools
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import TPESampler
from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from vaegen_ray.config.search import Choice, Integer, LogUniform, Sampler, Scheduler, SearchJob
from vaegen_ray.on_ray.reports import POSITION, SCORE, scores_of
from vaegen_ray.on_ray.samplers import distributions
from vaegen_ray.on_ray.searcher import OptunaSearcher
from vaegen_ray.on_ray.simulation import Events, World, simulate
from vaegen_ray.on_ray.study import open_study
from vaegen_ray.on_ray.trial_scheduler import LogScheduler, Starts
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.leaderboard import leaderboard
from vaegen_ray.search.log import TrialLog
from vaegen_ray.search.quality import History, Rung


@dataclass(frozen=True)
class Assembled:
    """A searcher and a scheduler for Tune, and what they give as the answer in the end."""

    searcher: Searcher
    scheduler: TrialScheduler
    callbacks: tuple[Callback, ...] = ()
    answer: Callable[[], tuple[int, ...]] = tuple
    close: Callable[[], None] = lambda: None


Rival = Callable[[SearchJob, int], Assembled]
"""Assembles the search of a job for so many trials at once; the job's ``storage`` is an empty folder."""


def run(rival: Rival, job: SearchJob, world: World, *, max_concurrent: int, budget: float, in_images: bool) -> History:
    """Search until ``budget`` is spent: images of all trials together, or seconds."""
    recorder = _Recorder(job, budget, in_images=in_images)
    random.seed(job.seed)
    np.random.seed(job.seed)  # Others draw from it.
    # Tune's own thread may still write its records when the search is cut off.
    with tempfile.TemporaryDirectory(prefix="vaegen-rival-", ignore_cleanup_errors=True) as folder:
        assembled = rival(job.model_copy(update={"storage": folder}), max_concurrent)
        simulate(
            job, assembled.searcher, assembled.scheduler, world, Path(folder) / "records",
            max_concurrent=max_concurrent, callbacks=[*assembled.callbacks, recorder], is_over=recorder.look,
        )  # fmt: skip
        recorder.history.answer = assembled.answer()
        assembled.close()
    return recorder.history


class _Recorder(Callback):
    """Writes down each rung, and what was spent until then."""

    def __init__(self, job: SearchJob, budget: float, *, in_images: bool) -> None:
        self.history = History(job, budget)
        self._events, self._seen = Events(), set[tuple[int, int]]()
        self._images_per_rung = job.rung_images * in_images

    def look(self, events: Events) -> bool:
        """Whether the budget is spent."""
        self._events = events
        return self._spent() >= self.history.budget

    def _spent(self) -> float:
        return len(self._seen) * self._images_per_rung if self._images_per_rung else self._events.virtual_s

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[TuneTrial],  # noqa: ARG002
        trial: TuneTrial,
        result: dict[str, Any],
        **_: Any,
    ) -> None:
        number, position = trial.config["number"], result[POSITION]
        if (number, position) not in self._seen:
            self._seen.add((number, position))
            rung = Rung(self._spent(), number, trial.config["settings"], position, scores_of(result))
            self.history.rungs.append(rung)


# ---------------------------------------------------------------------------- ours


def ours(scheduler: Scheduler | None = None, sampler: Sampler | None = None) -> Rival:
    """This project's search: its defaults, where nothing else is given."""

    def assemble(job: SearchJob, max_concurrent: int) -> Assembled:
        changes = {"scheduler": scheduler, "sampler": sampler}
        job = job.model_copy(update={name: value for name, value in changes.items() if value is not None})
        directory = SearchDirectory.of(job)
        log, study = TrialLog(directory), open_study(job, directory)
        searcher = OptunaSearcher(
            job, log, study, max_concurrent=max_concurrent, points=[], problem=lambda _: None
        )  # fmt: skip

        def close() -> None:
            searcher.close()
            study.close()
            log.close()

        return Assembled(
            searcher, LogScheduler(job, log), (Starts(log),), lambda: leaderboard(job, log.trials).front, close
        )

    return assemble


# ---------------------------------------------------------------------------- Optuna's


def optunas_tpe() -> Rival:
    """Optuna's TPE with constant liar as it is, told of constraints; no trial is stopped."""

    def assemble(job: SearchJob, max_concurrent: int) -> Assembled:  # noqa: ARG001
        searcher = _Asked(job)
        return Assembled(searcher, FIFOScheduler(), answer=searcher.best_trials)

    return assemble


class _Asked(Searcher):
    """What Tune asks, asked of an Optuna study in memory."""

    def __init__(self, job: SearchJob) -> None:
        super().__init__()
        self._job, self._drawn = job, dict[str, optuna.Trial]()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._study = optuna.create_study(
            directions=[goal.goal for goal in job.objectives], sampler=TPESampler(seed=job.seed, constant_liar=True)
        )

    def suggest(self, trial_id: str) -> Any:
        drawn = self._drawn[trial_id] = self._study.ask(distributions(self._job))
        return {"number": drawn.number, "settings": dict(drawn.params)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002
        scores, drawn = scores_of(result or {}), self._drawn.pop(trial_id)
        for bound in self._job.constraints:
            drawn.set_constraint(str(bound), bound.excess(scores))
        self._study.tell(drawn, [scores[goal.metric] for goal in self._job.objectives])

    def best_trials(self) -> tuple[int, ...]:
        """Numbers of the trials on its front."""
        return tuple(best.number for best in self._study.best_trials)

    def save(self, checkpoint_path: str) -> None: ...
    def restore(self, checkpoint_path: str) -> None: ...


# ---------------------------------------------------------------------------- Ray's


def rays(metric: str | None = None) -> Rival:
    """Tune's OptunaSearch with its ASHAScheduler, both as they are, halving by the objective ``metric``."""

    def assemble(job: SearchJob, max_concurrent: int) -> Assembled:  # noqa: ARG001
        modes = {goal.metric: "min" if goal.goal == "minimize" else "max" for goal in job.objectives}
        judged = metric or next(iter(modes))
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        metrics = [SCORE + name for name in modes]
        several = len(metrics) > 1
        search = OptunaSearch(
            space=distributions(job),
            metric=metrics if several else metrics[0],
            mode=list(modes.values()) if several else modes[judged],
            seed=job.seed,
        )
        total = job.base.training.total_images
        scheduler = ASHAScheduler(
            time_attr=POSITION, metric=SCORE + judged, mode=modes[judged], max_t=total, grace_period=job.rung_images
        )
        searcher = _Numbered(search)
        return Assembled(searcher, scheduler, answer=lambda: _best_trials(searcher, search))

    return assemble


def _best_trials(searcher: "_Numbered", search: OptunaSearch) -> tuple[int, ...]:
    assert search._ot_study is not None
    trial_of = {drawn.number: trial_id for trial_id, drawn in search._ot_trials.items()}
    return tuple(searcher.numbers[trial_of[best.number]] for best in search._ot_study.best_trials)


class _Numbered(Searcher):
    """Gives the trials of another searcher the numbers that the simulation goes by."""

    def __init__(self, searcher: Searcher) -> None:
        super().__init__()
        self._searcher, self.numbers = searcher, dict[str, int]()

    def suggest(self, trial_id: str) -> Any:
        settings = self._searcher.suggest(trial_id)
        if not isinstance(settings, dict):
            return settings
        number = self.numbers.setdefault(trial_id, len(self.numbers))
        return {"number": number, "settings": settings}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._searcher.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:  # noqa: FBT001, FBT002
        self._searcher.on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None: ...
    def restore(self, checkpoint_path: str) -> None: ...


# ---------------------------------------------------------------------------- Syne Tune's


def syne_tunes(name: str) -> Rival:
    """One of Syne Tune's asynchronous searches by the name of its class, as it is: ASHA or BOHB."""

    def assemble(job: SearchJob, max_concurrent: int) -> Assembled:  # noqa: ARG001
        from syne_tune.backend.trial_status import Trial
        from syne_tune.optimizer import baselines

        goal = job.objectives[0]
        search = getattr(baselines, name)(
            _syne_tune_space(job),
            metric=goal.metric,
            do_minimize=goal.goal == "minimize",
            time_attr="rung",
            max_t=job.rung_at(job.base.training.total_images),
            random_seed=job.seed,
        )
        return Assembled(_SyneTuneSearcher(search, Trial), _SyneTuneScheduler(search, job))

    return assemble


def _syne_tune_space(job: SearchJob) -> dict[str, Any]:
    from syne_tune import config_space

    space: dict[str, Any] = {}
    for name, axis in job.space.items():
        if isinstance(axis, Choice):
            space[name] = config_space.choice(list(axis.values))
        elif isinstance(axis, Integer):
            space[name] = (config_space.lograndint if axis.log else config_space.randint)(axis.low, axis.high)
        else:
            is_log = isinstance(axis, LogUniform)
            space[name] = (config_space.loguniform if is_log else config_space.uniform)(axis.low, axis.high)
    return space


class _SyneTuneSearcher(Searcher):
    """What Tune asks, asked of a scheduler of Syne Tune, which chooses and stops in one."""

    def __init__(self, search: Any, trial_class: Any) -> None:
        super().__init__()
        self._search, self._trial_class = search, trial_class
        self._numbers = itertools.count()

    def suggest(self, trial_id: str) -> Any:  # noqa: ARG002
        config = self._search.suggest().config
        trial = self._trial_class(trial_id=next(self._numbers), config=config, creation_time=None)
        self._search.on_trial_add(trial)
        return {"number": trial.trial_id, "settings": config, "syne_tune": trial}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:  # noqa: FBT001, FBT002
        """The scheduler has told it."""

    def save(self, checkpoint_path: str) -> None: ...
    def restore(self, checkpoint_path: str) -> None: ...


class _SyneTuneScheduler(FIFOScheduler):
    def __init__(self, search: Any, job: SearchJob) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._search, self._job = search, job

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:  # noqa: ARG002
        told = {**scores_of(result), "rung": self._job.rung_at(result[POSITION])}
        if self._search.on_trial_result(trial.config["syne_tune"], told) == "STOP":
            self._search.on_trial_remove(trial.config["syne_tune"])
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE
