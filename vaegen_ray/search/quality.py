"""How good a search was, from what it trained: the volume of its front, the regret of its best, both over its cost."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import stats

from vaegen_ray.config.search import SearchJob, Settings
from vaegen_ray.search.pareto import Costs, front, hypervolume

CHECKPOINTS = (0.25, 0.5, 1.0)
"""Parts of the budget at which searches are compared."""


@dataclass(frozen=True)
class Rung:
    """One evaluation of one trial."""

    spent: float
    """Of the budget, when the trial came here."""
    trial: int
    settings: Settings
    position: int
    scores: dict[str, float]


@dataclass
class History:
    """What a search trained, in order, and which of its trials it calls the answer."""

    job: SearchJob
    budget: float
    rungs: list[Rung] = field(default_factory=list)
    answer: tuple[int, ...] = ()
    """Numbers of the trials on the front that the search reports."""

    @property
    def num_trials(self) -> int:
        """Trials that reached a rung."""
        return len({rung.trial for rung in self.rungs})

    @property
    def fully_trained(self) -> list[Rung]:
        """The last rungs of the trials that were trained to their end."""
        return [rung for rung in self.rungs if rung.position == self.job.base.training.total_images]

    @property
    def num_untrained_in_answer(self) -> int:
        """Trials of the reported front that were never trained to their end."""
        return len(set(self.answer) - {rung.trial for rung in self.fully_trained})


@dataclass(frozen=True)
class Box:
    """The part of the objectives' space in which volume counts."""

    ideal: tuple[float, ...]
    """The best cost of each objective."""
    worst: tuple[float, ...]
    """Costs from which on a trial counts nothing."""
    full: float = 1.0
    """The part of the box that the best front dominates; its volume is 1."""

    def filled_by(self, costs: Costs) -> "Box":
        """The same box, in whose unit ``costs`` have the volume 1."""
        return replace(self, full=self.full * self.volume(costs))

    def volume(self, costs: Costs) -> float:
        """What ``costs`` dominate, as a part of what the best front does."""
        scaled = (costs - self.ideal) / (np.array(self.worst) - self.ideal)
        return hypervolume(scaled[front(scaled)], [1.0] * len(self.ideal)) / self.full


def volumes(history: History, box: Box, truth: Callable[[Settings], dict[str, float]]) -> list[float]:
    """At each checkpoint, the volume of the true final scores of the trials that are fully trained by then."""
    job, found = history.job, []
    for part in CHECKPOINTS:
        ends = [truth(end.settings) for end in history.fully_trained if end.spent <= part * history.budget]
        costs = np.array([job.costs(scores) for scores in ends if job.is_feasible(scores)], dtype=np.float64)
        found.append(box.volume(costs.reshape(-1, len(job.objectives))))
    return found


def regrets(history: History, best: float, median: float) -> list[float]:
    """At each checkpoint, how far the least cost so far is from ``best``; that of ``median`` is 1."""
    reached = []
    for part in CHECKPOINTS:
        costs = [history.job.costs(rung.scores)[0] for rung in history.rungs if rung.spent <= part * history.budget]
        reached.append((min(costs, default=median) - best) / (median - best))
    return reached


@dataclass(frozen=True)
class Estimate:
    """A mean and half the width of its 95 % confidence interval."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """Of independent values, by Student's t."""
        if len(values) < 2:
            return cls(float(np.mean(values)), math.nan)
        spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
        return cls(float(np.mean(values)), float(stats.t.ppf(0.975, len(values) - 1)) * spread)

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half_width:.3f}"
