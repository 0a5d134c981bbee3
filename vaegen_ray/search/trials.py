"""What is known of each trial, as a fold over the events of the log."""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vaegen_ray.config.search import Settings

Event = dict[str, Any]


class TrialState(enum.Enum):
    """Where a trial stands."""

    WAITING = "waiting"
    """Chosen, and not yet begun."""
    RUNNING = "running"
    """Begun, and not ended."""
    INTERRUPTED = "interrupted"
    """Begun, and not ended, while nobody drives the search. The log does not say so; see :meth:`Trials.interrupt`."""
    COMPLETE = "complete"
    """Trained to its end."""
    STOPPED = "stopped"
    """Stopped early by the scheduler."""
    FAILED = "failed"
    """Diverged, ran out of memory, or was lost too often."""
    INVALID = "invalid"
    """The settings make no valid job; never begun."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of the trial."""
        return self not in (TrialState.WAITING, TrialState.RUNNING, TrialState.INTERRUPTED)


BY_MERIT = (
    TrialState.COMPLETE,
    TrialState.RUNNING,
    TrialState.INTERRUPTED,
    TrialState.WAITING,
    TrialState.STOPPED,
    TrialState.FAILED,
    TrialState.INVALID,
)
"""The order in which trials are shown."""


@dataclass
class Trial:
    """One run of a search."""

    number: int
    settings: Settings
    state: TrialState = TrialState.WAITING
    rungs: dict[int, dict[str, float]] = field(default_factory=dict)
    """Position to the scores there, in ascending order."""
    scores: dict[str, float] = field(default_factory=dict)
    """Of the fully trained model; empty unless COMPLETE."""
    reason: str = ""
    """Why it was stopped, failed or is invalid; also why its last attempt was lost."""
    was_lost: bool = False
    """Whether it failed through no fault of its settings, such as by the loss of nodes."""
    attempts: int = 0
    created_s: float = 0.0
    took_s: float | None = None
    """For how long it was under way: the sum over its attempts, of each up to the last that was heard of it; None
    before the first."""
    heard_s: float = 0.0
    """When it was heard of last."""
    ended_s: float | None = None
    parent: int | None = None
    """The trial whose state this one copied last (population-based training)."""
    config: dict[str, Any] | None = None
    """What its process is given, where that is more than its settings."""

    @property
    def position(self) -> int:
        """Images at the newest rung."""
        return max(self.rungs, default=0)


@dataclass
class Trials:
    """All trials of a search, by number, and the numbers by state."""

    by_number: dict[int, Trial] = field(default_factory=dict)
    by_state: dict[TrialState, set[int]] = field(default_factory=lambda: {state: set() for state in TrialState})

    @classmethod
    def of(cls, events: Iterable[Event]) -> "Trials":
        """Replay a log."""
        trials = cls()
        for event in events:
            trials.apply(event)
        return trials

    def __len__(self) -> int:
        return len(self.by_number)

    def __getitem__(self, number: int) -> Trial:
        return self.by_number[number]

    def __iter__(self) -> Any:
        # A copy made in one step: another thread may add a trial meanwhile.
        return iter(list(self.by_number.values()))

    def in_state(self, *states: TrialState) -> list[Trial]:
        """The trials in these states, by number."""
        return [self.by_number[number] for number in sorted(set().union(*(self.by_state[state] for state in states)))]

    @property
    def num_counted(self) -> int:
        """Trials, but for those whose settings make no valid job."""
        return len(self) - len(self.by_state[TrialState.INVALID])

    @property
    def num_over(self) -> int:
        """Of those, how many have ended."""
        return self.num_counted - sum(len(self.by_state[state]) for state in TrialState if not state.is_over)

    def interrupt(self) -> None:
        """Call what runs interrupted: its driver is gone."""
        for trial in self.in_state(TrialState.RUNNING):
            self._move(trial, TrialState.INTERRUPTED)

    def apply(self, event: Event) -> None:
        """Take one event of the log into account. Repeated events change nothing."""
        number, time_s = int(event["trial"]), float(event["time_s"])
        match event["event"]:
            case "asked":
                if number not in self.by_number:
                    self.by_number[number] = Trial(number, dict(event["settings"]), created_s=time_s)
                    self.by_state[TrialState.WAITING].add(number)
            case "started":
                trial = self.by_number[number]
                trial.attempts += 1
                trial.took_s, trial.heard_s = trial.took_s or 0.0, time_s
                self._move(trial, TrialState.RUNNING)
            case "scored":
                trial = self.by_number[number]
                trial.rungs[int(event["position"])] = dict(event["scores"])
                _hear(trial, time_s)
            case "lost":
                trial = self.by_number[number]
                trial.reason = event["reason"]
                _hear(trial, time_s)
            case "copied":
                trial, parent = self.by_number[number], self.by_number[int(event["parent"])]
                trial.parent, trial.settings, trial.config = parent.number, dict(event["settings"]), event["config"]
                trial.rungs = {at: scores for at, scores in parent.rungs.items() if at <= event["position"]}
                trial.attempts -= 1  # It will start again, and nothing was lost.
            case "ended":
                trial = self.by_number[number]
                trial.reason, trial.ended_s = event.get("reason", ""), time_s
                trial.scores = dict(event.get("scores", {}))
                trial.was_lost = bool(event.get("lost", False))
                _hear(trial, time_s)
                self._move(trial, TrialState(event["state"]))
            case other:
                raise ValueError(f"unknown event '{other}'")

    def _move(self, trial: Trial, state: TrialState) -> None:
        self.by_state[trial.state].discard(trial.number)
        trial.state = state
        self.by_state[state].add(trial.number)


def _hear(trial: Trial, time_s: float) -> None:
    """Count the time since ``trial`` was heard of last, in which it was under way if it was begun."""
    if trial.took_s is not None:
        trial.took_s += time_s - trial.heard_s
    trial.heard_s = time_s


def asked(number: int, settings: Mapping[str, Any]) -> Event:
    """A trial was chosen."""
    return {"event": "asked", "trial": number, "settings": dict(settings)}


def started(number: int) -> Event:
    """An attempt began."""
    return {"event": "started", "trial": number}


def scored(number: int, position: int, scores: Mapping[str, float]) -> Event:
    """The trial was evaluated at ``position`` images."""
    return {"event": "scored", "trial": number, "position": position, "scores": dict(scores)}


def lost(number: int, reason: str) -> Event:
    """An attempt was lost and another will follow."""
    return {"event": "lost", "trial": number, "reason": reason}


def copied(number: int, parent: int, position: int, settings: Mapping[str, Any], config: Mapping[str, Any]) -> Event:
    """The trial takes over the state of ``parent`` at ``position``, and goes on with ``settings``.

    ``config`` is what its process is given: the whole lineage.
    """
    event: Event = {"event": "copied", "trial": number, "parent": parent, "position": position}
    return event | {"settings": dict(settings), "config": dict(config)}


def ended(
    number: int, state: TrialState, *, scores: Mapping[str, float] | None = None, reason: str = "", lost: bool = False
) -> Event:
    """Nothing more will come of the trial; ``lost``: its settings are not to blame."""
    event: Event = {"event": "ended", "trial": number, "state": state.value}
    optional = {"scores": dict(scores or {}), "reason": reason, "lost": lost}
    return event | {name: value for name, value in optional.items() if value}
