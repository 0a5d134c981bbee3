"""New trials: the axes that are active, no settings twice, enough of them ahead of a large search."""

import itertools
import json
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from optuna.samplers import BaseSampler, RandomSampler

from vaegen_ray.config.search import Choice, Integer, Settings, Value
from vaegen_ray.config.space import in_order, is_active
from vaegen_ray.on_ray.samplers import SamplerOfTrial, distribution_of, seed_of
from vaegen_ray.on_ray.study import SearchStudy

logger = logging.getLogger(__name__)

REDRAWS = 100


@dataclass(frozen=True)
class Draw:
    """A trial that the study holds as running, and nobody else knows yet."""

    number: int
    settings: Settings


class Draws:
    """Adds trials to the study. Used by one thread at a time."""

    def __init__(self, study: SearchStudy, sampler_of: SamplerOfTrial, seen: Iterable[Settings]) -> None:
        """Never draw what is in ``seen``."""
        job = study.job
        self._job, self._study, self._sampler_of = job, study, sampler_of
        self._axes = [(name, axis, distribution_of(axis)) for name, axis in in_order(job.space)]
        self._seen = {_key(settings) for settings in seen}
        self._left: dict[str, Settings] | None = None
        # Beyond four times the trials, so many are unseen that redrawing finds one.
        everything = list(itertools.islice(self._all(), 4 * job.trials + 1)) if self._is_finite else []
        if self._is_finite and len(everything) <= 4 * job.trials:
            self._left = {key: settings for settings in everything if (key := _key(settings)) not in self._seen}

    def next(self) -> Draw | None:
        """Draw a trial; None when every settings that the space holds was tried."""
        if self._left is not None and not self._left:
            logger.warning("the space holds no settings that were not tried: the search ends early")
            return None
        trial_id, number = self._study.begin()
        settings = self._drawn(trial_id, self._sampler_of(number))
        if not self._is_new(settings):
            settings = self._redrawn(trial_id, number)
        return self._keep(trial_id, number, settings)

    def point(self, settings: Settings) -> Draw:
        """Add a trial with these settings."""
        return self._keep(*self._study.begin(), settings)

    def was_seen(self, settings: Settings) -> bool:
        """Whether a trial had these settings."""
        return _key(settings) in self._seen

    def _keep(self, trial_id: int, number: int, settings: Settings) -> Draw:
        written = self._study.storage.get_trial(trial_id).params
        for name, _, distribution in self._axes:
            if name in settings and name not in written:
                internal = distribution.to_internal_repr(settings[name])
                self._study.storage.set_trial_param(trial_id, name, internal, distribution)
        self._study.flush()
        self._seen.add(_key(settings))
        if self._left is not None:
            self._left.pop(_key(settings), None)
        return Draw(number, dict(settings))

    def _drawn(self, trial_id: int, sampler: BaseSampler) -> Settings:
        study, trial = self._study.optuna, self._study.storage.get_trial(trial_id)
        study._thread_local.cached_all_trials = None  # Optuna's cache of one ask.
        sampler.before_trial(study, trial)
        together = sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial))
        settings: Settings = {}
        for name, axis, distribution in self._axes:
            if name in trial.params:
                settings[name] = trial.params[name]  # Of a draw that a kill cut short.
            elif is_active(axis, settings):
                known = name in together and distribution._contains(distribution.to_internal_repr(together[name]))
                settings[name] = (
                    together[name] if known else sampler.sample_independent(study, trial, name, distribution)
                )
        return settings

    def _is_new(self, settings: Settings) -> bool:
        return _key(settings) not in self._seen

    def _redrawn(self, trial_id: int, number: int) -> Settings:
        if self._left is not None:
            index = np.random.default_rng(seed_of(self._job.seed, number)).integers(len(self._left))
            return next(itertools.islice(self._left.values(), int(index), None))
        sampler = RandomSampler(seed_of(self._job.seed, number))
        for _ in range(REDRAWS):
            settings = self._drawn(trial_id, sampler)
            if self._is_new(settings):
                return settings
        # Nearly all were tried: where many make no valid job, the first that was not.
        return next(settings for settings in self._all() if self._is_new(settings))

    @property
    def _is_finite(self) -> bool:
        return all(isinstance(axis, Choice | Integer) for axis in self._job.space.values())

    def _all(self) -> Iterator[Settings]:
        """Every settings of a space of choices and whole numbers."""

        def extended(settings: Settings, index: int) -> Iterator[Settings]:
            if index == len(self._axes):
                yield settings
                return
            name, axis, _ = self._axes[index]
            if not is_active(axis, settings):
                yield from extended(settings, index + 1)
                return
            values: Iterable[Value] = axis.values if isinstance(axis, Choice) else range(axis.low, axis.high + 1)  # type: ignore[arg-type]
            for value in values:
                yield from extended({**settings, name: value}, index + 1)

        return extended({}, 0)


def _key(settings: Settings) -> str:
    return json.dumps(settings, sort_keys=True)


class DrawsAhead:
    """A thread that keeps a few draws ready, so that a large search's event loop never waits for a sampler."""

    def __init__(self, draw: Callable[[], Draw | None], *, num_wanted: int, num_ahead: int) -> None:
        """Draw ``num_wanted`` in all, at most ``num_ahead`` before they are taken."""
        self._draw = draw
        self._wanted = threading.Semaphore(num_wanted)
        self._ready: queue.Queue[Draw | Exception | None] = queue.Queue(num_ahead)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="draws-ahead", daemon=True)
        self._thread.start()

    def next(self, wait_s: float) -> Draw | None:
        """The next draw, or None when the space is exhausted; queue.Empty if there is none in time."""
        draw = self._ready.get(timeout=wait_s)
        if isinstance(draw, Exception):
            raise draw
        return draw

    def want_another(self) -> None:
        """Draw one more in all."""
        self._wanted.release()

    def close(self) -> list[Draw]:
        """End the thread; returns what it had drawn and nobody took."""
        self._closed = True
        self._wanted.release()
        left: list[Draw] = []
        while self._thread.is_alive() or not self._ready.empty():
            try:
                draw = self._ready.get(timeout=0.05)
            except queue.Empty:
                continue
            if isinstance(draw, Draw):
                left.append(draw)
        return left

    def _run(self) -> None:
        while self._wanted.acquire() and not self._closed:
            try:
                draw = self._draw()
            except Exception as error:  # noqa: BLE001 (raised where the search sees it: at the next draw)
                self._ready.put(error)
                return
            self._ready.put(draw)
            if draw is None:
                return
