"""A surrogate of the trade-off between reconstructions and samples, fitted from real runs of small VAE-GANs.

`shipped/tradeoff.json` holds what the trials of jobs/search/tradeoff_surrogate.yaml scored at each of their rungs, and
the hyperparameters of the regression. To make it again, after that search:

    python -m vaegen_ray.bench.tradeoff runs/tradeoff_surrogate vaegen_ray/bench/shipped/tradeoff.json

Whole learning curves are predicted: the scores of all rungs, transformed so that their noise is even, are reduced to
their principal components, and each component is a Gaussian process of the settings (Rasmussen & Williams 2006,
chapter 2), each axis scaled to [0, 1] as it is drawn. The noise of one evaluation is drawn by hashing.
"""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vaegen_ray.bench.run_table import METRICS, box_of, draws_of, point_of, table_of
from vaegen_ray.config.loading import job_of
from vaegen_ray.config.search import SearchJob, Settings
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.open import load_search
from vaegen_ray.search.quality import Box
from vaegen_ray.storage import Location

SHIPPED = Path(__file__).parent / "shipped" / "tradeoff.json"

LOGARITHMIC = ("sample_fid", "kl_nats")
LEAST_NATS = 1e-3
COMPONENTS = 6
RANDOM_SETTINGS = 20_000
"""Whose true front other fronts are compared with."""

Array = NDArray[np.float64]


# ---------------------------------------------------------------------------- regression


@dataclass(frozen=True)
class Kernel:
    """A smooth function of all axes plus a linear one, and noise; amplitudes are variances."""

    lengths: tuple[float, ...]
    smooth: float
    linear: float
    noise: float

    def __call__(self, left: Array, right: Array) -> Array:
        """Covariance of the function at ``left`` and ``right`` [points, axes]."""
        scaled = (left[:, None, :] - right[None, :, :]) / np.array(self.lengths)
        result: Array = self.smooth * np.exp(-0.5 * (scaled**2).sum(-1))
        return result + self.linear * (1 + (left - 0.5) @ (right - 0.5).T)

    @classmethod
    def of(cls, logarithms: Array) -> "Kernel":
        """From the logarithms of its numbers."""
        numbers = [float(number) for number in np.exp(logarithms)]
        return cls(tuple(numbers[:-3]), *numbers[-3:])


def evidence(kernel: Kernel, points: Array, values: Array) -> float:
    """Logarithm of the marginal likelihood of ``values``, up to a constant."""
    covariance = kernel(points, points) + kernel.noise * np.eye(len(points))
    factor = np.linalg.cholesky(covariance)
    white = np.linalg.solve(factor, values)
    return float(-0.5 * white @ white - np.log(np.diag(factor)).sum())


def fitted_kernel(points: Array, values: Array) -> Kernel:
    """The kernel of greatest evidence under weak priors, by a random search that narrows down; deterministic."""
    num_axes = points.shape[1]
    centre = np.log([*[0.7] * num_axes, 0.7, 0.3, 0.2])
    width = np.array([*[0.8] * num_axes, 0.7, 1.0, 1.0])
    rng = np.random.default_rng(0)

    def merit(logarithms: Array) -> float:
        kernel = Kernel.of(np.clip(logarithms, math.log(1e-3), math.log(20)))
        return evidence(kernel, points, values) - float((((logarithms - centre) / width) ** 2).sum()) / 2

    best, best_merit = centre, merit(centre)
    for spread in np.geomspace(1.0, 0.03, 200):
        tried = best + spread * width * rng.standard_normal(len(centre))
        if (tried_merit := merit(tried)) > best_merit:
            best, best_merit = tried, tried_merit
    return Kernel.of(np.clip(best, math.log(1e-3), math.log(20)))


class Curves:
    """Gaussian processes for the principal components of learning curves."""

    def __init__(self, points: Array, curves: Array, kernels: list[Kernel] | None = None) -> None:
        """Of ``curves`` [points, values]; fits the kernels if there are none yet."""
        self._points = points
        self._mean, self._scale = curves.mean(0), curves.std(0)
        _, _, directions = np.linalg.svd((curves - self._mean) / self._scale, full_matrices=False)
        self._directions = directions[:COMPONENTS]
        components = (curves - self._mean) / self._scale @ self._directions.T
        self._spreads = components.std(0)
        values = components / self._spreads
        self.kernels = kernels or [fitted_kernel(points, column) for column in values.T]
        self._weights = [
            np.linalg.solve(kernel(points, points) + kernel.noise * np.eye(len(points)), column)
            for kernel, column in zip(self.kernels, values.T, strict=True)
        ]

    def __call__(self, points: Array) -> Array:
        """The curves at ``points``."""
        columns = [
            kernel(points, self._points) @ weights for kernel, weights in zip(self.kernels, self._weights, strict=True)
        ]
        result: Array = np.stack(columns, -1) * self._spreads @ self._directions * self._scale + self._mean
        return result


# ---------------------------------------------------------------------------- the surrogate


class TradeOff:
    """What a VAE-GAN of some settings would score, with the search that asks for it."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        """From the content of the data file."""
        job = job_of(table["search"], "tradeoff.json")
        assert isinstance(job, SearchJob)
        self.job, self._positions, self._noise = job, table["positions"], table["noise"]
        self.points, self.curves = _data(job, table)
        kernels = [Kernel(tuple(kernel.pop("lengths")), **kernel) for kernel in map(dict, table["kernels"])]
        self._model = Curves(self.points, self.curves, kernels)
        self._curve = lru_cache(maxsize=100_000)(self._predicted)

    @classmethod
    def shipped(cls) -> "TradeOff":
        """The one that comes with the project."""
        return cls(json.loads(SHIPPED.read_text()))

    def truth(self, settings: Settings, position: int) -> dict[str, float]:
        """Scores without noise."""
        curve = self._curve(point_of(self.job, settings))[:, self._positions.index(position)]
        return {name: _score(name, value) for name, value in zip(METRICS, curve, strict=True)}

    def observed(self, settings: Settings, position: int, seed: int) -> dict[str, float]:
        """Scores as one evaluation gives them: the noise is a function of the arguments."""
        rng = draws_of(settings, position, seed)
        curve = self._curve(point_of(self.job, settings))[:, self._positions.index(position)]
        noise = [rng.normal(0, self._noise[name]) for name in METRICS]
        return {name: _score(name, value) for name, value in zip(METRICS, curve + noise, strict=True)}

    def final(self, settings: Settings) -> dict[str, float]:
        """The true scores of the fully trained model."""
        return self.truth(settings, self._positions[-1])

    def box(self) -> Box:
        """The box from the best of many random settings to what half of them reach."""
        rng = np.random.default_rng(0)
        ends = self._model(rng.random((RANDOM_SETTINGS, len(self.job.space)))).reshape(-1, *self._shape)[:, :, -1]
        return box_of(self.job, [dict(zip(METRICS, map(_score, METRICS, end), strict=True)) for end in ends])

    @property
    def _shape(self) -> tuple[int, int]:
        return len(METRICS), len(self._positions)

    def _predicted(self, point: tuple[float, ...]) -> Array:
        return self._model(np.array([point])).reshape(self._shape)


def _data(job: SearchJob, table: Mapping[str, Any]) -> tuple[Array, Array]:
    points = np.array([point_of(job, trial["settings"]) for trial in table["trials"]])
    curves = [[_value(name, score) for name in METRICS for score in trial["scores"][name]] for trial in table["trials"]]
    return points, np.array(curves)


def _value(metric: str, score: float) -> float:
    return math.log(max(score, LEAST_NATS)) if metric in LOGARITHMIC else score


def _score(metric: str, value: float) -> float:
    return math.exp(float(value)) if metric in LOGARITHMIC else float(value)


# ---------------------------------------------------------------------------- made from a search


def fitted_table(directory: SearchDirectory) -> dict[str, Any]:
    """The data file, from the directory of a search whose trials were all trained to their end."""
    table = table_of(directory)
    points, curves = _data(load_search(directory), table)
    num_trials = len(table["trials"])
    table["noise"] = dict(zip(METRICS, _jitter(curves.reshape(num_trials, len(METRICS), -1)), strict=True))
    table["kernels"] = [asdict(kernel) for kernel in Curves(points, curves).kernels]
    return table


def _jitter(curves: Array) -> list[float]:
    """Standard deviation of each metric's evaluations [runs, metrics, rungs] around smooth curves, from the later half.

    From the second differences, whose variance is six times that of independent noise; by their median, since some
    curves do jump.
    """
    num_rungs = curves.shape[2]
    late = curves[:, :, min(num_rungs // 2, num_rungs - 3) :]
    bends = np.abs(late[:, :, 2:] - 2 * late[:, :, 1:-1] + late[:, :, :-2])
    return [float(np.median(bends[:, metric]) / 0.6745 / math.sqrt(6)) for metric in range(curves.shape[1])]


def left_out_correlations(points: Array, curves: Array) -> Array:
    """Rank correlation of each value [metrics * rungs] with its prediction from all other runs, kernels fitted anew."""
    predictions = np.empty_like(curves)
    for index in range(len(points)):
        others = np.arange(len(points)) != index
        predictions[index] = Curves(points[others], curves[others])(points[index : index + 1])[0]
    return np.array([rank_correlation(*pair) for pair in zip(curves.T, predictions.T, strict=True)])


def rank_correlation(left: Array, right: Array) -> float:
    """Spearman's, of values without ties."""
    return float(np.corrcoef(left.argsort().argsort(), right.argsort().argsort())[0, 1])


def main(search: str, file: str) -> None:
    """Make the data file, and say how well the surrogate predicts runs that it was not fitted to."""
    table = fitted_table(SearchDirectory(Location.of(search)))
    Path(file).write_text(json.dumps(table) + "\n")
    tradeoff = TradeOff(table)
    found = left_out_correlations(tradeoff.points, tradeoff.curves).reshape(len(METRICS), -1)
    print(f"{len(tradeoff.points)} runs; rank correlation with left-out runs, by rung:")  # noqa: T201
    for name, row in zip(METRICS, found, strict=True):
        print(f"{name:20s} noise {table['noise'][name]:.3f}  " + " ".join(f"{value:5.2f}" for value in row))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
