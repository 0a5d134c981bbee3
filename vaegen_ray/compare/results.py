"""What the runs of a comparison say together: means, deviations, significance, cost and stability."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from vaegen_ray.compare.directory import CompareDirectory, Outcome
from vaegen_ray.config.compare import CompareJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.config.watchdog import COLLAPSES
from vaegen_ray.evaluation.scores import UNITS, read_record
from vaegen_ray.runs.records import read_incidents
from vaegen_ray.tracking.json_lines import read_metrics
from vaegen_ray.training.watchdog import Incident, incidents_in

SIGNIFICANT = 0.05
ACTIVITIES = ("training_s", "input_s", "evaluation_s", "checkpoint_s")


@dataclass(frozen=True)
class VariantRun:
    """One run of a comparison, ended or not."""

    seed: int
    outcome: Outcome | None
    position: int
    scores: dict[str, float] = field(default_factory=dict)
    measured_on: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    """Of the process, from its first step to its last, all activities together."""
    training_seconds: float = 0.0
    images_per_s: float = math.nan
    memory_bytes: float = math.nan
    collapses: tuple[Incident, ...] = ()

    @property
    def is_unstable(self) -> bool:
        """Whether it diverged or collapsed."""
        return bool(self.collapses) or (self.outcome is not None and self.outcome.ending in ("diverged", "collapsed"))


@dataclass(frozen=True)
class Statistic:
    """A number over the seeds of a variant."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values)) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """Sample standard deviation; nan of fewer than two values."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else math.nan

    def __str__(self) -> str:
        if not self.values:
            return "-"
        return f"{self.mean:.4g}" + (f" ± {self.deviation:.2g}" if len(self.values) > 1 else "")


@dataclass(frozen=True)
class Comparison:
    """All that is known of a comparison."""

    job: CompareJob
    directory: CompareDirectory
    runs: dict[str, tuple[VariantRun, ...]]
    """By variant, in the order of seeds."""

    @property
    def num_ended(self) -> int:
        """Runs that will not go on."""
        return sum(run.outcome is not None for runs in self.runs.values() for run in runs)

    @property
    def metrics(self) -> list[str]:
        """Every score that a run has, in the order of :data:`UNITS`."""
        found = {name for runs in self.runs.values() for run in runs for name in run.scores}
        return [name for name in UNITS if name in found] + sorted(found - UNITS.keys())

    def statistic(self, variant: str, metric: str) -> Statistic:
        """A score over the seeds whose runs have it."""
        return Statistic(tuple(run.scores[metric] for run in self.runs[variant] if metric in run.scores))

    def p_value(self, one: str, other: str, metric: str) -> float:
        """That two variants do not differ in ``metric``: Welch's t-test, two-sided; nan without a spread."""
        first, second = (self.statistic(variant, metric).values for variant in (one, other))
        if min(len(first), len(second)) < 2:
            return math.nan
        if len(set(first)) == len(set(second)) == 1:  # Without a spread the test says nothing of a difference.
            return 1.0 if first[0] == second[0] else math.nan
        return float(stats.ttest_ind(first, second, equal_var=False).pvalue)

    def best(self, metric: str) -> tuple[str | None, float]:
        """The variant with the best mean, and the largest p-value against the others, corrected for their number.

        Bonferroni: the p-value times the number of others. None where no way is better, or one variant has the score.
        """
        way = UNITS.get(metric, ("", ""))[1]
        means = {name: self.statistic(name, metric).mean for name in self.runs}
        known = {name: mean for name, mean in means.items() if not math.isnan(mean)}
        if not way or len(known) < 2:
            return None, math.nan
        winner = (max if way == "higher" else min)(known, key=lambda name: known[name])
        others = [name for name in known if name != winner]
        values = [self.p_value(winner, other, metric) for other in others]
        return winner, min(max(values) * len(others), 1.0) if not any(map(math.isnan, values)) else math.nan

    def cost(self, variant: str) -> dict[str, Statistic]:
        """Seconds, images a second and bytes of the variant's ended runs."""
        ended = [run for run in self.runs[variant] if run.outcome is not None]
        columns = {
            "seconds": [run.seconds for run in ended if run.seconds > 0],  # None was measured before a first report.
            "images_per_s": [run.images_per_s for run in ended],
            "memory_bytes": [run.memory_bytes for run in ended],
        }
        return {
            name: Statistic(tuple(value for value in values if not math.isnan(value)))
            for name, values in columns.items()
        }

    def instability(self, variant: str) -> tuple[int, int]:
        """How many of the ended runs diverged or collapsed, and how many have ended."""
        ended = [run for run in self.runs[variant] if run.outcome is not None]
        return sum(run.is_unstable for run in ended), len(ended)

    def conditions(self) -> dict[str, str]:
        """Score to what it was measured on."""
        return {
            name: sentence for runs in self.runs.values() for run in runs for name, sentence in run.measured_on.items()
        }

    def to_markdown(self) -> str:
        """The table, with the best of each line in bold where it is significantly so."""
        names = list(self.runs)
        lines = ["| | " + " | ".join(f"`{name}`" for name in names) + " | p |", "|---" * (len(names) + 2) + "|"]
        for metric in self.metrics:
            winner, p = self.best(metric)
            cells = [str(self.statistic(name, metric)) for name in names]
            bold = winner is not None and p < SIGNIFICANT
            cells = [
                f"**{cell}**" if bold and name == winner else cell for name, cell in zip(names, cells, strict=True)
            ]
            unit = UNITS.get(metric, ("", ""))[0]
            title = f"{metric}, {unit}" if unit else metric
            lines.append(f"| {title} | " + " | ".join(cells) + f" | {'' if math.isnan(p) else f'{p:.2g}'} |")
        for title, cells in self.closing_rows():
            lines.append(f"| {title} | " + " | ".join(cells) + " | |")
        return "\n".join(lines) + "\n"

    def closing_rows(self) -> list[tuple[str, list[str]]]:
        """Cost and stability of each variant, as text."""
        names = list(self.runs)
        costs = {name: self.cost(name) for name in names}
        unstable = {name: self.instability(name) for name in names}
        return [
            ("seconds a run", [str(costs[name]["seconds"]) for name in names]),
            ("images a second", [str(costs[name]["images_per_s"]) for name in names]),
            ("peak memory, GiB", [str(_scaled(costs[name]["memory_bytes"], 2**30)) for name in names]),
            ("collapsed or diverged", [f"{bad} of {all_}" for bad, all_ in unstable.values()]),
        ]

    def to_json(self) -> str:
        """Every value, mean, deviation and p-value."""
        content = {
            "comparison": self.job.name,
            "seeds": list(self.job.seeds),
            "metrics": {
                metric: {
                    "measured_on": self.conditions().get(metric, ""),
                    "variants": {name: _plain(self.statistic(name, metric)) for name in self.runs},
                    "best": self.best(metric)[0],
                    "p_values": {
                        f"{one} / {other}": _finite(self.p_value(one, other, metric))
                        for index, one in enumerate(self.runs)
                        for other in list(self.runs)[index + 1 :]
                    },
                }
                for metric in self.metrics
            },
            "cost": {
                name: {key: _plain(statistic) for key, statistic in self.cost(name).items()} for name in self.runs
            },
            "stability": {
                name: {
                    "unstable": self.instability(name)[0],
                    "ended": self.instability(name)[1],
                    "runs": {str(run.seed): _story(run) for run in runs},
                }
                for name, runs in self.runs.items()
            },
        }
        return json.dumps(content, indent=2, allow_nan=False) + "\n"


def read_comparison(directory: CompareDirectory) -> Comparison:
    """The comparison in ``directory``, finished or not."""
    job = directory.load()
    runs = {variant: tuple(_read_run(directory, variant, seed) for seed in job.seeds) for variant in job.variants}
    return Comparison(job, directory, runs)


def _read_run(directory: CompareDirectory, variant: str, seed: int) -> VariantRun:
    run, outcome = directory.run(variant, seed), directory.outcome(variant, seed)
    if not run.job_file.exists():
        return VariantRun(seed, outcome, 0)
    lines = read_metrics(run)
    record = read_record(run) if run.is_complete() else {}
    return VariantRun(
        seed,
        outcome,
        int(lines[-1]["position"]) if lines else 0,
        record.get("scores", {}),
        record.get("measured_on", {}),
        **cost_of(lines),
        collapses=tuple(collapses(run, lines)),
    )


def cost_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds, images a second and bytes, from lines of metrics."""
    spent = {name: sum(line.get(name) or 0.0 for line in lines) for name in ACTIVITIES}
    rates = [line["images_per_s"] for line in lines if line.get("images_per_s")]
    memory = [line["peak_memory_bytes"] for line in lines if line.get("peak_memory_bytes")]
    return {
        "seconds": sum(spent.values()),
        "training_seconds": spent["training_s"] + spent["input_s"],
        "images_per_s": float(np.median(rates)) if rates else math.nan,
        "memory_bytes": max(memory, default=math.nan),
    }


def collapses(run: RunDirectory, lines: Sequence[Mapping[str, Any]]) -> list[Incident]:
    """The watchdog's incidents by which a run counts as collapsed, whatever its job had the watchdog do."""
    return [
        incident for incident in incidents_in(run.load_job(), lines, read_incidents(run)) if incident.rule in COLLAPSES
    ]


def _story(run: VariantRun) -> dict[str, Any]:
    outcome = run.outcome
    return {
        "ending": outcome.ending if outcome is not None else "unfinished",
        "reason": outcome.reason if outcome is not None else "",
        "position": run.position,
        "collapses": [incident.sentence for incident in run.collapses],
    }


def _scaled(statistic: Statistic, unit: float) -> Statistic:
    return Statistic(tuple(value / unit for value in statistic.values))


def _plain(statistic: Statistic) -> dict[str, Any]:
    return {
        "values": list(statistic.values),
        "mean": _finite(statistic.mean),
        "deviation": _finite(statistic.deviation),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
