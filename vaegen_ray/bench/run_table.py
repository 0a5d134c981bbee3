"""Real runs that cover the space of a search: what searches find on them, without training anything.

`shipped/quickstart.json` holds what the trials of jobs/search/quickstart_table.yaml scored at each of their rungs. To
make it again, after that search:

    python -m vaegen_ray.bench.run_table runs/quickstart_table vaegen_ray/bench/shipped/quickstart.json

Settings score what the nearest run scored, each axis scaled to [0, 1] as it is drawn.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaegen_ray.config.loading import job_of
from vaegen_ray.config.search import SearchJob, Settings
from vaegen_ray.randomness import derived_seed
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.forecast import features_of
from vaegen_ray.search.log import read_trials
from vaegen_ray.search.open import load_search
from vaegen_ray.search.pareto import front
from vaegen_ray.search.quality import Box
from vaegen_ray.search.trials import TrialState
from vaegen_ray.storage import Location

SHIPPED = Path(__file__).parent / "shipped" / "quickstart.json"

METRICS = ("reconstruction_psnr", "sample_fid", "kl_nats")

Array = NDArray[np.float64]


class RunTable:
    """What a VAE-GAN of some settings scored, with the job of the search that asks for it."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        """From the content of the data file."""
        job = job_of(table["search"], "quickstart.json")
        assert isinstance(job, SearchJob)
        self.job, self._positions = job, table["positions"]
        self._points = np.array([point_of(job, trial["settings"]) for trial in table["trials"]])
        self._scores: list[dict[str, list[float]]] = [trial["scores"] for trial in table["trials"]]
        self._nearest = lru_cache(maxsize=100_000)(self._nearest_to)

    @classmethod
    def shipped(cls) -> "RunTable":
        """The one that comes with the project."""
        return cls(json.loads(SHIPPED.read_text()))

    def observed(self, settings: Settings, position: int, seed: int) -> dict[str, float]:  # noqa: ARG002
        """Scores of the run at a position; there was one evaluation of it, whatever the seed."""
        run, index = self._nearest(point_of(self.job, settings)), self._positions.index(position)
        return {name: self._scores[run][name][index] for name in METRICS}

    def final(self, settings: Settings) -> dict[str, float]:
        """The scores of the fully trained model."""
        return self.observed(settings, self._positions[-1], 0)

    def box(self) -> Box:
        """The box from the best of all runs to what half of them reach."""
        return box_of(self.job, [{name: scores[name][-1] for name in METRICS} for scores in self._scores])

    def _nearest_to(self, point: tuple[float, ...]) -> int:
        return int(((self._points - point) ** 2).sum(1).argmin())


def search_of(job: SearchJob, seed: int) -> SearchJob:
    """The search of ``job`` without an end, and with the default sampler and scheduler."""
    tree = job.model_dump(mode="json", include={"base", "space", "objectives", "constraints"})
    more = {"kind": "search", "name": job.name, "trials": 100_000, "points": [], "seed": seed}
    return SearchJob.model_validate({**tree, **more})


def rung_s(settings: Settings, seed: int) -> float:
    """Virtual seconds from rung to rung, a minute more or less a fifth.

    Real trials do not keep step. Where all are as fast, those of a search that stops none end in rows, and none is
    under way when the budget is spent: that gave such searches a twelfth more trained trials than they would have.
    """
    return 60.0 * draws_of(settings, seed).uniform(0.8, 1.2)


def draws_of(*what: object) -> np.random.Generator:
    """Random numbers that are a function of the arguments: settings, positions, a seed."""
    told = [sorted(each.items()) if isinstance(each, dict) else each for each in what]
    return np.random.default_rng(derived_seed(0, *told))


def point_of(job: SearchJob, settings: Settings) -> tuple[float, ...]:
    """Settings as a point of the unit cube, each axis as it is drawn."""
    return tuple(features_of(job.space, settings))


def box_of(job: SearchJob, ends: Sequence[Mapping[str, float]]) -> Box:
    """The box from the best to the median costs of some final scores; what they fill has the volume 1."""
    feasible = np.array([job.costs(scores) for scores in ends if job.is_feasible(scores)])
    best = np.empty((0, len(job.objectives)))
    for costs in np.array_split(feasible, math.ceil(len(feasible) / 400)):
        both = np.vstack([best, costs])
        best = both[front(both)]
    worst = np.median(feasible, axis=0)
    return Box(tuple(best.min(0).tolist()), tuple(worst.tolist())).filled_by(best)


def table_of(directory: SearchDirectory) -> dict[str, Any]:
    """The data file, from the directory of a search whose trials were all trained to their end."""
    job = load_search(directory)
    trials = [trial for trial in read_trials(directory) if trial.state is TrialState.COMPLETE]
    positions = sorted(set.intersection(*(set(trial.rungs) for trial in trials)))
    tree = job.model_dump(mode="json")
    tree.update(storage="runs", trials=len(trials))
    return {
        "search": tree,
        "positions": positions,
        "trials": [
            {
                "settings": trial.settings,
                "scores": {name: [round(trial.rungs[at][name], 4) for at in positions] for name in METRICS},
            }
            for trial in trials
        ],
    }


def main(search: str, file: str) -> None:
    """Make the data file, and say how many of its runs are on the front."""
    table = table_of(SearchDirectory(Location.of(search)))
    Path(file).write_text(json.dumps(table) + "\n")
    runs = RunTable(table)
    ends = [runs.final(trial["settings"]) for trial in table["trials"]]
    costs = np.array([runs.job.costs(scores) for scores in ends if runs.job.is_feasible(scores)])
    print(f"{len(ends)} runs, {len(costs)} of them feasible, {len(front(costs))} on the front")  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
