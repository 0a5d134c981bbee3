"""Numbers of many trials, one row each, to which rows are added."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class Rows:
    """A growing table of float64; a trial's row costs the same on average however many there are."""

    def __init__(self, width: int) -> None:
        # Column by column in memory: comparing a trial with all others reads whole columns.
        self._room = np.empty((16, width), order="F")
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def values(self) -> NDArray[np.float64]:
        """[rows, width], a view: it may be written to, until the next row is added."""
        return self._room[: self._count]

    def add(self, row: Sequence[float]) -> None:
        """Append a row."""
        if self._count == len(self._room):
            room = np.empty((2 * self._count, self._room.shape[1]), order="F")
            room[: self._count] = self._room
            self._room = room
        self._room[self._count] = row
        self._count += 1
