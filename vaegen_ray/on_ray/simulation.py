"""A search in virtual time: Tune's own event loop, our searcher, scheduler, log and study, and made-up trials.

Shows within minutes, on one machine and without a cluster, how a search of ten thousand trials behaves.
"""

import heapq
import itertools
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.air.execution._internal.tracked_actor import TrackedActor
from ray.train._internal import storage as ray_storage
from ray.tune import CheckpointConfig, PlacementGroupFactory, SyncConfig, Trainable
from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Experiment
from ray.tune.result import DONE, RESULT_DUPLICATE
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import ConcurrencyLimiter, Searcher
from ray.tune.search.search_generator import SearchGenerator

from vaegen_ray.config.search import SearchJob, Settings
from vaegen_ray.on_ray.reports import report_of
from vaegen_ray.on_ray.trial_scheduler import starting_together

STARTING_S = 5.0
"""Virtual seconds from choosing a trial to its first image."""


@dataclass(frozen=True)
class World:
    """What trials would do. ``evaluate`` and the others are functions of their arguments alone."""

    evaluate: Callable[[Settings, int], dict[str, float]]
    """Scores at a position."""
    rung_s: Callable[[Settings], float] = lambda _: 60.0
    """Virtual seconds from rung to rung."""
    fault: Callable[[int, int, int], Exception | None] = lambda _number, _attempt, _position: None
    """What strikes a trial in an attempt on its way to a position: the attempt is lost."""
    failure: Callable[[Settings, int], str] = lambda _settings, _position: ""
    """Why the trial ends itself at a position, such as a loss that is not finite."""


@dataclass
class Events:
    """What a simulation did so far."""

    num_events: int = 0
    virtual_s: float = 0.0
    most_at_once: int = 0
    rungs_trained: dict[int, list[int]] = field(default_factory=dict)
    """Positions that each trial trained to, in order, with repetitions."""


def simulate(
    job: SearchJob,
    searcher: Searcher,
    scheduler: TrialScheduler,
    world: World,
    directory: Path,
    *,
    max_concurrent: int,
    callbacks: list[Any] | None = None,
    after_event: Callable[[Events], None] = lambda _: None,
    is_over: Callable[[Events], bool] = lambda _: False,
) -> Events:
    """Run a search to its end, or until it ``is_over``, on the real TuneController.

    Tune's own records go to ``directory``.
    """
    events = Events()
    with _without_cluster(directory, max_concurrent):
        storage = ray_storage.StorageContext(str(directory), "records", SyncConfig())
        generator = SearchGenerator(ConcurrencyLimiter(searcher, max_concurrent))
        experiment = Experiment(
            "records", _Simulated, config={}, num_samples=10**9, storage_path=str(directory),
            resources_per_trial=PlacementGroupFactory([{"CPU": 1}]), max_failures=job.max_failures,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        )  # fmt: skip
        generator.add_configurations([experiment])
        controller = TuneController(
            search_alg=generator,
            scheduler=scheduler,
            storage=storage,
            callbacks=callbacks,
            trial_checkpoint_config=CheckpointConfig(),
            checkpoint_period=10**9,
            resource_manager_factory=lambda: None,  # type: ignore[arg-type, return-value]
        )
        controller._actor_manager = _VirtualActors(job, world, max_concurrent, events)  # type: ignore[assignment]
        while not controller.is_finished() and not is_over(events):
            controller.step()
            after_event(events)
        controller.cleanup()
    return events


class _Simulated(Trainable):
    """Never instantiated: Tune wants a class to speak of."""


@contextmanager
def _without_cluster(directory: Path, max_concurrent: int) -> Iterator[None]:
    """Tune keeps its files below the session of a cluster, and there is none."""
    function, settings = "_get_ray_train_session_dir", {"TUNE_PRINT_ALL_TRIAL_ERRORS": "0"}
    settings.update(starting_together(max_concurrent))
    before, environment = getattr(ray_storage, function), {name: os.environ.get(name) for name in settings}
    setattr(ray_storage, function, lambda: str(directory / "session"))
    os.environ.update(settings)
    try:
        yield
    finally:
        setattr(ray_storage, function, before)
        for name, value in environment.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


# ---------------------------------------------------------------------------- virtual time


@dataclass(eq=False)
class _Actor:
    """One attempt at a trial."""

    number: int
    settings: Settings
    attempt: int
    position: int
    iteration: int = 0
    is_over: bool = False


# ruff: noqa: ARG002, FBT001, FBT002 (signatures are those of RayActorManager)


class _VirtualActors:
    """What the controller sees of RayActorManager; its events come from a heap instead of a cluster."""

    def __init__(self, job: SearchJob, world: World, num_slots: int, events: Events) -> None:
        self._job, self._world, self._num_slots, self._events = job, world, num_slots, events
        self._total, self._every = job.base.training.total_images, job.rung_images
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._pending: deque[TrackedActor] = deque()
        self._actors: dict[TrackedActor, _Actor] = {}
        self._live_actors_to_ray_actors_resources: dict[TrackedActor, tuple[None, None]] = {}
        self._tasks: dict[TrackedActor, int] = {}
        self._attempts: dict[int, int] = {}
        self._reached: dict[int, int] = {}

    # What the controller calls.

    def add_actor(
        self, cls: Any, kwargs: Mapping[str, Any], resource_request: Any, *, on_start: Any, on_stop: Any, on_error: Any
    ) -> TrackedActor:
        number, settings = kwargs["config"]["number"], kwargs["config"]["settings"]
        tracked = TrackedActor(uuid.uuid4().int, on_start=on_start, on_stop=on_stop, on_error=on_error)
        attempt = self._attempts[number] = self._attempts.get(number, 0) + 1
        # The newest checkpoint is a rung behind what was reported last: a retry repeats a position.
        position = max(0, self._reached.get(number, 0) - self._every)
        self._actors[tracked] = _Actor(number, settings, attempt, position)
        self._pending.append(tracked)
        return tracked

    def schedule_actor_task(
        self,
        tracked_actor: TrackedActor,
        method_name: str,
        args: Any = None,
        kwargs: Any = None,
        on_result: Any = None,
        on_error: Any = None,
        _return_future: bool = False,
    ) -> object:
        if method_name != "train":
            return object()
        actor = self._actors[tracked_actor]
        task = self._tasks[tracked_actor] = next(self._order)

        def resolve() -> None:
            if self._tasks.get(tracked_actor) == task:
                outcome = self._train(actor)
                if isinstance(outcome, Exception):
                    on_error(tracked_actor, outcome)
                else:
                    on_result(tracked_actor, outcome)

        self._after(0.0 if actor.is_over else self._world.rung_s(actor.settings), resolve)
        return None

    def remove_actor(self, tracked_actor: TrackedActor, kill: bool = False, stop_future: object = None) -> bool:
        self._tasks.pop(tracked_actor, None)
        if tracked_actor not in self._live_actors_to_ray_actors_resources:
            if tracked_actor in self._pending:
                self._pending.remove(tracked_actor)
            self._actors.pop(tracked_actor, None)
            return False
        del self._live_actors_to_ray_actors_resources[tracked_actor]
        del self._actors[tracked_actor]
        if tracked_actor._on_stop:
            self._after(0.0, lambda: tracked_actor._on_stop and tracked_actor._on_stop(tracked_actor))
        return True

    def clear_actor_task_futures(self, tracked_actor: TrackedActor) -> None:
        self._tasks.pop(tracked_actor, None)

    def next(self, timeout: float | None = None) -> bool:
        while self._pending and len(self._live_actors_to_ray_actors_resources) < self._num_slots:
            tracked = self._pending.popleft()
            self._live_actors_to_ray_actors_resources[tracked] = (None, None)
            self._after(STARTING_S, lambda tracked=tracked: tracked._on_start(tracked))  # type: ignore[misc]
        self._events.most_at_once = max(self._events.most_at_once, len(self._live_actors_to_ray_actors_resources))
        if not self._heap:
            return False
        self._events.virtual_s, _, event = heapq.heappop(self._heap)
        self._events.num_events += 1
        event()
        return True

    def is_actor_started(self, tracked_actor: TrackedActor) -> bool:
        return tracked_actor in self._live_actors_to_ray_actors_resources

    def is_actor_failed(self, tracked_actor: TrackedActor) -> bool:
        return False

    @property
    def num_live_actors(self) -> int:
        return len(self._live_actors_to_ray_actors_resources)

    @property
    def num_pending_actors(self) -> int:
        return len(self._pending)

    @property
    def num_total_actors(self) -> int:
        return self.num_live_actors + self.num_pending_actors

    @property
    def num_actor_tasks(self) -> int:
        return len(self._tasks)

    def get_live_actors_resources(self) -> dict[str, float]:
        return {"CPU": float(self.num_live_actors)}

    def cleanup(self) -> None:
        self._heap.clear()

    # What happens in the trials.

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self._events.virtual_s + seconds, next(self._order), event))

    def _train(self, actor: _Actor) -> dict[str, Any] | Exception:
        actor.iteration += 1
        if actor.is_over:
            return {RESULT_DUPLICATE: True, DONE: True}
        position = min(actor.position + self._every, self._total)
        if fault := self._world.fault(actor.number, actor.attempt, position):
            return fault
        actor.position = self._reached[actor.number] = position
        self._events.rungs_trained.setdefault(actor.number, []).append(position)
        reason = self._world.failure(actor.settings, position)
        actor.is_over = bool(reason) or position == self._total
        scores = {} if reason else self._world.evaluate(actor.settings, position)
        ending = "failed" if reason else "complete" if actor.is_over else ""
        report = report_of(position, scores, ending=ending, reason=reason)  # type: ignore[arg-type]
        return report | {"training_iteration": actor.iteration, "time_this_iter_s": 60.0, "timestamp": int(time.time())}
