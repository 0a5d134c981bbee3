"""Which evaluation of a run was the best so far, and whether to wait for a better one."""

import json
import math
from collections.abc import Mapping, Sequence

from vaegen_ray.config.job import Best
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import CheckpointError
from vaegen_ray.tracking.json_lines import evaluations, read_metrics
from vaegen_ray.training.collectives import from_rank_0

SCORES = "scores.json"


class BestEvaluation:
    """Remembers through restarts: the best is in the run's directory, and what came after it in its metrics."""

    def __init__(self, settings: Best, run: RunDirectory, position: int, pending: Sequence[int] = ()) -> None:
        """Of a run that goes on at ``position``; the evaluations ``pending`` are still to be counted in."""
        self._settings, self._run = settings, run
        self._lowest_cost, self._worse = math.inf, 0
        for cost in from_rank_0(lambda: self._read(position, pending)):
            self._count(cost)

    def is_better(self, scores: Mapping[str, float]) -> bool:
        """Count in an evaluation: whether it is the best so far."""
        return self._count(self._settings.cost(scores))

    def keep_scores(self, position: int, scores: Mapping[str, float]) -> None:
        """Of the best evaluation, once its model is kept, so that a kill loses no model. Rank 0 only."""
        content = {"position": position, "scores": dict(scores)}
        (self._run.best / SCORES).write_text(json.dumps(content, indent=2) + "\n")

    @property
    def is_over(self) -> bool:
        """Whether patience is over."""
        patience = self._settings.patience_evaluations
        return patience is not None and self._worse >= patience

    def _count(self, cost: float) -> bool:
        if cost < self._lowest_cost:
            self._lowest_cost, self._worse = cost, 0
            return True
        self._worse += 1
        return False

    def _read(self, position: int, pending: Sequence[int]) -> list[float]:
        """The costs from that of the best model on; none where none is kept, as after a rollback to before it."""
        kept_at = best_position(self._run)
        if kept_at is None:
            return []
        # A model beyond ``position`` is of a future that comes again, and will be the best of it again.
        first = kept_at if kept_at <= position else 1
        at = {line["position"]: line for line in read_metrics(self._run) if first <= line["position"] <= position}
        lines = [line for line_position, line in at.items() if line_position not in pending]
        return [self._settings.cost(line) for line in evaluations(lines) if self._settings.metric in line]


def best_position(run: RunDirectory) -> int | None:
    """Where the best model of ``run`` was evaluated; None where none is kept."""
    file = run.best / SCORES
    if not file.exists():
        return None
    try:
        return int(json.loads(file.read_text())["position"])
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{file}: is damaged ({error!r}); remove the folder {run.best}") from error


def forget_best_after(run: RunDirectory, position: int) -> None:
    """Take away a best model from beyond ``position``, to which the run is rolled back: it will not come again."""
    kept_at = best_position(run)
    if kept_at is not None and kept_at > position:
        run.best.remove()
