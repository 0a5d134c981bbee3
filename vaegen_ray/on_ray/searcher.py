"""What Ray Tune asks for the next trial and tells of results: the log records them, the Optuna study learns."""

import logging
import math
import queue
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.search import Searcher

from vaegen_ray.config.search import SearchJob, Settings
from vaegen_ray.errors import JobError
from vaegen_ray.on_ray.draws import Draw, Draws, DrawsAhead
from vaegen_ray.on_ray.reports import ENDING, POSITION, REASON, scores_of
from vaegen_ray.on_ray.samplers import make_sampler
from vaegen_ray.on_ray.study import SearchStudy
from vaegen_ray.search.log import TrialLog
from vaegen_ray.search.trials import Event, Trial, TrialState, asked, ended, scored

logger = logging.getLogger(__name__)

DRAW_AHEAD_FROM = 64
"""At so many trials at once the sampler moves to a thread; fewer leave the event loop time enough, and a search
that draws exactly when it is asked can be repeated."""
AHEAD_PART = 0.05
WAIT_S = 0.05
"""How long the event loop waits for the thread before it looks after the running trials again."""

SECONDS_BETWEEN_LOOKS = 1.0
"""Whether trials that were held back may begin now; looking costs a glance at the storage each."""

MOST_INVALID = 200
"""Draws in a row that make no valid job, after which the space is refused."""


class OptunaSearcher(Searcher):
    """Hands out each trial once: unfinished ones of an interrupted search, then the points, then what is drawn."""

    def __init__(
        self,
        job: SearchJob,
        log: TrialLog,
        study: SearchStudy,
        *,
        max_concurrent: int,
        points: Sequence[Settings],
        problem: Callable[[Settings], str | None],
        may_begin: Callable[[int, Settings], bool] = lambda *_: True,
    ) -> None:
        """Go on from ``log``, with which ``study`` agrees.

        ``problem`` says why settings make no valid job; ``may_begin`` whether a trial may begin now, or later.
        """
        super().__init__()
        self._job, self._log, self._study = job, log, study
        self._problem, self._may_begin, self._max_concurrent = problem, may_begin, max_concurrent
        # Those that were running have a checkpoint, and come first.
        unfinished = log.trials.in_state(TrialState.RUNNING) + log.trials.in_state(TrialState.WAITING)
        self._ready = deque(trial.number for trial in unfinished)
        self._held: deque[int] = deque()
        self._next_look_s = 0.0
        self._live: dict[str, int] = {}
        self._is_stopping = False
        self._is_exhausted = False
        self._num_counted = len(log.trials) - len(log.trials.by_state[TrialState.INVALID])
        self._num_invalid_in_a_row = 0
        sampler_of = make_sampler(job, max_concurrent=max_concurrent, num_earlier=study.num_earlier)
        self._draws = Draws(study, sampler_of, seen=[trial.settings for trial in log.trials])
        self._points = deque(point for point in points if not self._draws.was_seen(point))
        self._ahead: DrawsAhead | None = None

    # ------------------------------------------------------------------------ asked by Tune

    def suggest(self, trial_id: str) -> Any:
        """The config of the next trial, None while there is none, or FINISHED."""
        if self._is_stopping:
            return Searcher.FINISHED
        if len(self._live) >= self._max_concurrent:
            return None
        self._release_held()
        while True:
            # Those that are held back count: drawing others beside them would be drawing without results.
            if not self._ready and len(self._live) + len(self._held) >= self._max_concurrent:
                return None
            try:
                number = self._ready.popleft() if self._ready else self._new()
            except queue.Empty:
                return None
            if number is None:
                return None if self._held else Searcher.FINISHED
            trial = self._log.trials[number]
            # One that was drawn and not begun before a kill may not have been looked at yet.
            if trial.state is TrialState.WAITING and (problem := self._problem(trial.settings)) is not None:
                self._log.record(ended(number, TrialState.INVALID, reason=problem))
                self._study.tell(trial)
                self._num_counted -= 1
                continue
            if self._may_begin(number, trial.settings):
                self._live[trial_id] = number
                return trial.config or {"number": number, "settings": dict(trial.settings)}
            self._held.append(number)

    def finish(self) -> None:
        """Begin no trial from now on; may be called from any thread."""
        self._is_stopping = True

    @property
    def is_stopping(self) -> bool:
        """Whether :meth:`finish` was called."""
        return self._is_stopping

    def close(self) -> None:
        """What was drawn ahead is kept for the next start."""
        for draw in self._ahead.close() if self._ahead else []:
            self._log.record(asked(draw.number, draw.settings))

    def _release_held(self) -> None:
        """Look now and then whether what held trials back is over."""
        if self._held and not self._ready and time.monotonic() >= self._next_look_s:
            self._next_look_s = time.monotonic() + SECONDS_BETWEEN_LOOKS
            self._ready, self._held = self._held, deque()

    def _new(self) -> int | None:
        """Choose another trial; None when there are enough. queue.Empty while the sampler is at it."""
        while not self._is_exhausted and self._num_counted < self._job.trials:
            draw = self._next_draw()
            if draw is None:
                self._is_exhausted = True
            elif self._is_usable(draw):
                return draw.number
        return None

    def _next_draw(self) -> Draw | None:
        while self._points:
            point = self._points.popleft()
            if not self._draws.was_seen(point):
                return self._draws.point(point)
        if self._max_concurrent < DRAW_AHEAD_FROM:
            return self._draws.next()
        if self._ahead is None:
            self._ahead = DrawsAhead(
                self._draws.next,
                num_wanted=self._job.trials - self._num_counted,
                num_ahead=int(AHEAD_PART * self._max_concurrent),
            )
        return self._ahead.next(WAIT_S)

    def _is_usable(self, draw: Draw) -> bool:
        self._log.record(asked(draw.number, draw.settings))
        problem = self._problem(draw.settings)
        if problem is None:
            self._num_counted += 1
            self._num_invalid_in_a_row = 0
            return True
        self._log.record(ended(draw.number, TrialState.INVALID, reason=problem))
        self._study.tell(self._log.trials[draw.number])
        if self._ahead:
            self._ahead.want_another()
        self._num_invalid_in_a_row += 1
        if self._num_invalid_in_a_row >= MOST_INVALID:
            raise JobError(
                f"space: must make valid jobs, {MOST_INVALID} draws in a row make none (the last: {problem}); "
                "narrow the axes that it names"
            )
        return False

    # ------------------------------------------------------------------------ told by Tune

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record the rung. Tune asks the scheduler before, which records it as well; the second changes nothing."""
        record_scores(self._log, self._live[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:  # noqa: FBT001, FBT002 (Tune's signature)
        """Record how the trial ended, if it is over, and tell the study."""
        number = self._live.pop(trial_id, None)
        if number is None:
            return
        trial = self._log.trials[number]
        if not trial.state.is_over:
            ending = _ending(self._job, trial, {} if result is None else result, is_lost=error)
            if ending is not None:
                self._log.record(ending)
        if trial.state.is_over:
            self._study.tell(trial)

    # ------------------------------------------------------------------------ no state of Tune's own

    def set_max_concurrency(self, max_concurrent: int) -> bool:  # noqa: ARG002
        """Tune's limiter leaves the limit to this class."""
        return True

    def set_search_properties(self, *_: Any, **__: Any) -> bool:
        """Metric and goal are the job's."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing: log and study are on the disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a searcher is made from log and study."""

    def __getstate__(self) -> dict[str, Any]:
        """An empty shell, for Tune's own file of the experiment, which is never read."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "OptunaSearcher":
        return self


def record_scores(log: TrialLog, number: int, result: Mapping[str, Any]) -> dict[str, float]:
    """Record a rung, once however often a retried trial repeats it; returns its scores, also those that are NaN."""
    scores, position = scores_of(result), int(result.get(POSITION, 0))
    finite = {name: value for name, value in scores.items() if math.isfinite(value)}
    trial = log.trials[number]
    if finite and position not in trial.rungs and not trial.state.is_over:
        log.record(scored(number, position, finite))
    return scores


def _ending(job: SearchJob, trial: Trial, result: Mapping[str, Any], *, is_lost: bool) -> Event | None:
    """How the trial ended; None when it goes on in the next start of the search."""
    if is_lost:
        return ended(trial.number, TrialState.FAILED, reason=trial.reason or "its process was lost", lost=True)
    match result.get(ENDING, ""):
        case "failed":
            return ended(trial.number, TrialState.FAILED, reason=str(result.get(REASON, "")))
        case "complete":
            scores = scores_of(result)
            if missing := [metric for metric in job.metrics if not math.isfinite(scores.get(metric, math.nan))]:
                reason = f"{missing[0]} is {scores.get(missing[0], 'missing')} at the end of training"
                return ended(trial.number, TrialState.FAILED, reason=reason)
            finite = {name: value for name, value in scores.items() if math.isfinite(value)}
            return ended(trial.number, TrialState.COMPLETE, scores=finite)
    return None
