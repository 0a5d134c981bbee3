"""Where trials will end, from where they are: what keeps those that come late from being stopped for it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vaegen_ray.config.search import Axis, Choice, Settings
from vaegen_ray.config.space import unit_value
from vaegen_ray.search.rows import Rows

Array = NDArray[np.float64]

FEWEST_ENDS = 8
"""Trials that came to their end, before anything is forecast from them."""

RIDGE = 3.0
"""Trials' worth of doubt that a setting matters; features are standardised."""

DOUBT = 1.0
"""Errors of the forecast by which another trial must be ahead, in every objective."""

REFIT_PART = 0.05
"""A forecast serves until so many more trials have ended."""


def features_of(space: Mapping[str, Axis], settings: Settings) -> list[float]:
    """Settings as numbers in [0, 1]: a choice is one number for each of its values, an inactive axis is 0."""
    features: list[float] = []
    for name, axis in space.items():
        if isinstance(axis, Choice):
            features += [float(name in settings and settings[name] == value) for value in axis.values]
        else:
            features.append(unit_value(axis, float(settings[name])) if name in settings else 0.0)
    return features


@dataclass(frozen=True)
class Forecast:
    """How costs change from a rung to the end: ridge regression on the settings and the costs at the rung."""

    num_learnt: int
    centre: Array
    spread: Array
    change: Array
    """Mean over trials, of each cost."""
    slopes: Array
    """[features, costs]"""
    error: Array
    """Standard deviation of the forecast of a trial that it did not learn from, of each cost."""

    @classmethod
    def fitted(cls, features: Array, changes: Array) -> "Forecast":
        """From trials that ended: ``features`` [trials, features], ``changes`` [trials, costs]."""
        centre, spread, change = features.mean(0), features.std(0), changes.mean(0)
        spread = np.where(spread > 0, spread, 1.0)
        scaled = (features - centre) / spread
        gram = scaled.T @ scaled + RIDGE * np.eye(scaled.shape[1])
        slopes = np.linalg.solve(gram, scaled.T @ (changes - change))
        leverage = (scaled * np.linalg.solve(gram, scaled.T).T).sum(1) + 1 / len(scaled)
        left_out = (changes - change - scaled @ slopes) / (1 - np.minimum(leverage, 0.9))[:, None]
        return cls(len(features), centre, spread, change, slopes, left_out.std(0))

    def changes(self, features: Array) -> Array:
        """[trials, costs], of ``features`` [trials, features]."""
        result: Array = self.change + (features - self.centre) / self.spread @ self.slopes
        return result


class Ends:
    """The trials that came to one rung: their features and costs there, and their costs at the end, known or not."""

    def __init__(self, num_costs: int) -> None:
        self._num_costs = num_costs
        self._row_of: dict[int, int] = {}
        self._rows: Rows | None = None
        """Features, costs at the rung, costs at the end, which are NaN while unknown; none before the first trial."""
        self._forecast: Forecast | None = None

    def enter(self, number: int, features: Sequence[float], costs: Sequence[float]) -> None:
        """A trial came to the rung with these costs, and keeps the constraints."""
        row = [*features, *costs, *[math.nan] * self._num_costs]
        if self._rows is None:
            self._rows = Rows(len(row))
        self._row_of[number] = len(self._rows)
        self._rows.add(row)

    def ended(self, number: int, costs: Sequence[float]) -> None:
        """A trial came to its end with these costs, infinite ones where it broke the constraints; any trial may."""
        if self._rows is not None and number in self._row_of:
            self._rows.values[self._row_of[number], -self._num_costs :] = costs

    def is_behind(self, number: int) -> bool | None:
        """Whether a trial will end clearly ahead of this one in every objective, or has; None where nobody can say."""
        assert self._rows is not None, "asked about a trial that entered"
        features, ends = self._rows.values[:, : -self._num_costs], self._rows.values[:, -self._num_costs :]
        costs = features[:, -self._num_costs :]
        known = np.isfinite(ends).all(1)
        num_known = int(np.count_nonzero(known))
        if num_known < FEWEST_ENDS:
            return None
        if self._forecast is None or num_known >= (1 + REFIT_PART) * self._forecast.num_learnt:
            self._forecast = Forecast.fitted(features[known], ends[known] - costs[known])
        expected = np.where(np.isnan(ends), costs + self._forecast.changes(features), ends)
        own = expected[self._row_of[number]]
        # Two forecasts err independently of each other, what is known does not.
        doubt = DOUBT * self._forecast.error * np.where(known, 1.0, math.sqrt(2.0))[:, None]
        ahead = (expected < own - doubt).all(1)
        return bool(ahead.any())
