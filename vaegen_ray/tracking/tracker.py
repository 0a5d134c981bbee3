"""What every place for metrics can do, and all places of a run as one."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Protocol

from PIL.Image import Image


class Tracker(Protocol):
    """Takes the numbers and pictures of one run, from one process (rank 0).

    Positions do not fall, but for scores that were measured beside training and come late.
    A tracker that is opened again at a position continues there: what was written
    beyond it, by a process that died, does not stand beside what comes now.
    """

    def scalars(self, record: Mapping[str, float], position: int) -> None:
        """Keep the metrics of ``record`` at ``position`` (images). Values that are not finite are kept as such."""

    def image(self, name: str, picture: Image, position: int) -> None:
        """Keep a picture, where pictures can be shown."""

    def flush(self) -> None:
        """Return when what was given so far would survive a kill of the process."""

    def close(self) -> None:
        """Flush and let go; nothing may follow."""


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = list(trackers)

    def scalars(self, record: Mapping[str, float], position: int) -> None:
        """Give ``record`` to every tracker."""
        for tracker in self._trackers:
            tracker.scalars(record, position)

    def image(self, name: str, picture: Image, position: int) -> None:
        """Give the picture to every tracker."""
        for tracker in self._trackers:
            tracker.image(name, picture, position)

    def flush(self) -> None:
        """Flush every tracker."""
        for tracker in self._trackers:
            tracker.flush()

    def close(self) -> None:
        """Close every tracker."""
        with ExitStack() as stack:  # One that fails does not leave the others open.
            for tracker in self._trackers:
                stack.callback(tracker.close)
