"""What a trial's process tells Tune, and how the searcher and the scheduler read it."""

from collections.abc import Mapping
from typing import Any, Literal

POSITION, ENDING, REASON, SCORE = "position", "ending", "reason", "score/"

Ending = Literal["", "complete", "failed", "interrupted"]
"""Empty while the trial goes on. `interrupted`: it saved a checkpoint and left, and will go on in another search."""


def report_of(position: int, scores: Mapping[str, float], *, ending: Ending = "", reason: str = "") -> dict[str, Any]:
    """One report: scores at ``position`` images; Tune allows plain numbers and text."""
    report: dict[str, Any] = {f"{SCORE}{name}": float(value) for name, value in scores.items()}
    return report | {POSITION: position, ENDING: ending, REASON: reason}


def scores_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The scores in a report that came back from Tune."""
    return {name.removeprefix(SCORE): float(value) for name, value in result.items() if name.startswith(SCORE)}
