"""The answer of a search, from its log alone: who is on the front, who is best, how the front grew."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vaegen_ray.config.search import SearchJob
from vaegen_ray.config.space import num_settings
from vaegen_ray.search.pareto import Costs, front, hypervolume, knee
from vaegen_ray.search.trials import BY_MERIT, Trial, Trials, TrialState


@dataclass(frozen=True)
class Leaderboard:
    """All trials in order of merit: the front, other fully trained ones, then what runs, stopped or failed."""

    job: SearchJob
    trials: tuple[Trial, ...]
    front: tuple[int, ...]
    """Numbers of the fully trained trials that keep the constraints and that no other such trial dominates."""
    best: int | None
    """The best trial for one objective; for several the front's knee."""

    def rows(self, most: int | None = None) -> list[dict[str, Any]]:
        """One row a trial, the first ``most``: place, number, state, metrics, settings, and why it ended as it did."""
        return [self._row(place, trial) for place, trial in enumerate(self.trials[:most], start=1)]

    @property
    def volume(self) -> float:
        """Of what the front dominates, as :func:`hypervolumes` has it after the last trial."""
        judged = [trial for trial in self.trials if _is_judged(self.job, trial)]
        if not judged:
            return 0.0
        scaled = _scaled(costs_of(self.job, judged))
        on_front = np.array([trial.number in self.front for trial in judged])
        return hypervolume(scaled[on_front], [REFERENCE] * scaled.shape[1])

    def _row(self, place: int, trial: Trial) -> dict[str, Any]:
        scores = trial.scores or newest_scores(trial)
        return {
            "place": place,
            "trial": trial.number,
            "state": trial.state.value,
            "on_front": trial.number in self.front,
            "is_best": trial.number == self.best,
            "keeps_constraints": self.job.is_feasible(scores) if set(self.job.metrics) <= scores.keys() else None,
            "position": trial.position,
            "attempts": trial.attempts,
            **{metric: scores.get(metric) for metric in self.job.metrics},
            **{name: trial.settings.get(name) for name in self.job.space},
            "reason": trial.reason,
        }

    def to_csv(self) -> str:
        """The rows as a table."""
        rows, text = self.rows(), io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["place"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def to_json(self, importances: Mapping[str, Mapping[str, float]]) -> str:
        """The rows, the front, the best trial, the hypervolume and the axes' importances as JSON."""
        content = {
            "search": self.job.name,
            "objectives": [goal.model_dump() for goal in self.job.objectives],
            "constraints": [str(constraint) for constraint in self.job.constraints],
            "best": self.best,
            "front": list(self.front),
            "hypervolume": hypervolumes(self.job, self.trials),
            "importances": {metric: dict(parts) for metric, parts in importances.items()},
            "trials": self.rows(),
        }
        return json.dumps(content, indent=2, allow_nan=False) + "\n"


def leaderboard(job: SearchJob, trials: Trials) -> Leaderboard:
    """Order ``trials`` by merit. The front holds fully trained trials only."""
    everyone = list(trials)
    judged = [trial for trial in everyone if _is_judged(job, trial)]
    costs = costs_of(job, judged)
    on_front = tuple(judged[index].number for index in front(costs))
    places = {number: place for place, number in enumerate(on_front)}
    middle = knee(costs)
    order = {state: place for place, state in enumerate(BY_MERIT)}

    def merit(trial: Trial) -> tuple[Any, ...]:
        place = places.get(trial.number, len(places))
        cost = job.costs(trial.scores) if trial.state is TrialState.COMPLETE else ()
        return (order[trial.state], not _is_judged(job, trial), place, cost, -trial.position, trial.number)

    best = judged[middle].number if middle is not None else None
    return Leaderboard(job, tuple(sorted(everyone, key=merit)), on_front, best)


def is_over(job: SearchJob, trials: Trials) -> bool:
    """Whether the search has all its trials, or all that its space holds, and all have ended."""
    held = num_settings(job.space)
    has_all = trials.num_counted >= job.trials or (held is not None and len(trials) >= held)
    return has_all and trials.num_over == trials.num_counted


def costs_of(job: SearchJob, trials: Sequence[Trial]) -> Costs:
    """The final objectives of fully trained trials, less is better: [trials, objectives]."""
    rows = [job.costs(trial.scores) for trial in trials]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(job.objectives))


def newest_scores(trial: Trial) -> dict[str, float]:
    """The scores of the newest rung; empty before the first."""
    return trial.rungs[trial.position] if trial.rungs else {}


def hypervolumes(job: SearchJob, trials: Sequence[Trial]) -> list[float]:
    """What the front covers after each fully trained trial, in the order of their ends.

    Objectives are scaled to the range of all fully trained trials; the reference lies a tenth of it beyond the
    worst value of each, so figures compare within one search only.
    """
    judged = [trial for trial in trials if _is_judged(job, trial)]
    judged.sort(key=lambda trial: (trial.ended_s or 0.0, trial.number))
    if not judged:
        return []
    scaled = _scaled(costs_of(job, judged))
    volumes: list[float] = []
    so_far = scaled[:0]
    for row in scaled:
        if (so_far <= row).all(1).any():
            volumes.append(volumes[-1])
            continue
        so_far = np.vstack([so_far, row])
        so_far = so_far[front(so_far)]
        volumes.append(hypervolume(so_far, [REFERENCE] * scaled.shape[1]))
    return volumes


REFERENCE = 1.1
"""Of each objective, where the range of all fully trained trials is from 0 to 1."""


def _is_judged(job: SearchJob, trial: Trial) -> bool:
    return trial.state is TrialState.COMPLETE and job.is_feasible(trial.scores)


def _scaled(costs: Costs) -> Costs:
    span = np.ptp(costs, axis=0)
    scaled: Costs = (costs - costs.min(0)) / np.where(span > 0, span, 1.0)
    return scaled
