"""Domination, fronts and their volume. Costs: less is better, one row a trial."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Costs = NDArray[np.float64]
"""[trials, objectives], finite."""


def front(costs: Costs) -> list[int]:
    """Indices of the trials that no other dominates, in order of the first cost."""
    members = np.flatnonzero(_is_on_front(costs))
    order = np.lexsort(costs[members].T[::-1])
    return [int(index) for index in members[order]]


def _is_on_front(costs: Costs) -> NDArray[np.bool_]:
    on_front = np.zeros(len(costs), dtype=bool)
    if not len(costs):
        return on_front
    rows, places = np.unique(costs, axis=0, return_inverse=True)
    best, is_best = _Front(rows.shape[1]), np.zeros(len(rows), dtype=bool)
    for index, row in enumerate(rows):
        if not best.dominates(row):
            best.add(row)
            is_best[index] = True
    result: NDArray[np.bool_] = is_best[places.reshape(-1)]
    return result


class _Front:
    """Rows of which none dominates another, to which others come in lexicographic order, each once."""

    def __init__(self, num_costs: int) -> None:
        self._rows = np.empty((16, num_costs))
        self._count = 0
        self._least = np.inf
        """Of the last costs."""

    def dominates(self, row: Costs) -> bool:
        """Whether a member is nowhere worse than ``row``, which is another and comes later."""
        if row.shape[0] <= 2:
            # The first cost is no better than any member's already.
            return bool(self._least <= row[-1]) if row.shape[0] == 2 else self._count > 0
        members = self._rows[: self._count, 1:]
        return bool((members <= row[1:]).all(1).any())

    def add(self, row: Costs) -> None:
        """Take in a row that no member dominates."""
        if self._count == len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[self._count] = row
        self._count += 1
        self._least = min(self._least, float(row[-1]))


def hypervolume(costs: Costs, reference: Sequence[float]) -> float:
    """Volume of what the trials dominate below ``reference``, exactly; trials beyond it count nothing."""
    limit = np.asarray(reference, dtype=np.float64)
    inside = costs[(costs < limit).all(1)] if len(costs) else costs
    return _volume(inside[_is_on_front(inside)], limit) if len(inside) else 0.0


def _volume(costs: Costs, limit: NDArray[np.float64]) -> float:
    """By slices along the last cost.

    A slice is as large as the one before it and what its own trial adds: the trial's box, less what others dominate
    of it.
    """
    if costs.shape[1] == 1:
        return float(limit[0] - costs.min())
    ordered = costs[np.argsort(costs[:, -1], kind="stable")]
    if costs.shape[1] == 2:
        return _area(ordered, limit)
    heights = np.append(ordered[1:, -1], limit[-1]) - ordered[:, -1]
    slab = np.empty((0, costs.shape[1] - 1))
    volume = area = 0.0
    for row, height in zip(ordered[:, :-1], heights, strict=True):
        others = np.maximum(slab, row)
        taken = _volume(others[_is_on_front(others)], limit[:-1]) if len(others) else 0.0
        area += float(np.prod(limit[:-1] - row)) - taken
        slab = np.concatenate([slab[~(slab >= row).all(1)], row[None]])
        volume += area * float(height)
    return volume


def _area(ordered: Costs, limit: NDArray[np.float64]) -> float:
    """Under the staircase of trials in order of their second cost."""
    widths = limit[0] - np.minimum.accumulate(ordered[:, 0])
    heights = np.append(ordered[1:, 1], limit[1]) - ordered[:, 1]
    return float((widths * heights).sum())


def knee(costs: Costs) -> int | None:
    """Index of the front's member with the least sum of costs, each scaled to the front's range; None without trials.

    With two objectives it is the one farthest below the line through the front's ends, the point of diminishing
    returns (Das 1999).
    """
    members = front(costs)
    if not members:
        return None
    rows = costs[members]
    span = np.ptp(rows, axis=0)
    scaled = (rows - rows.min(0)) / np.where(span > 0, span, 1.0)
    return members[int(np.argmin(scaled.sum(1)))]
