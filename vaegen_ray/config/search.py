"""The job of `vaegen search`: which settings of a train job are searched, for what, and with how many trials."""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from vaegen_ray.config.base import (
    Count,
    Goal,
    Images,
    Name,
    PositiveFloat,
    PositiveImages,
    ProperFraction,
    Section,
    Seed,
    Text,
)
from vaegen_ray.config.job import TrainJob


def _plain(value: Any) -> Any:
    """Refuse in one sentence what no member of the union below would take."""
    if not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError("must be true, false, a finite number or text")
    return value


Value = Annotated[bool | int | float | str, BeforeValidator(_plain)]
"""What an axis draws: a plain value of a job."""

Settings = dict[str, Value]
"""Dotted path in the train job to its value."""

# ---------------------------------------------------------------------------- axes

Conditions = dict[str, Value]
"""Axis to the value that it must have drawn."""


class _Numeric(Section):
    """Numbers between two bounds, both included."""

    when: Conditions = Field(default={})
    """Drawn only where these axes have these values."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        low, high = getattr(self, "low"), getattr(self, "high")  # noqa: B009 (declared by the kinds)
        if low >= high:
            raise ValueError(f"low: must be below high ({high}), got {low}")
        return self


Number = Annotated[float, Field(strict=True)]


class Uniform(_Numeric):
    """Every number of the range alike."""

    kind: Literal["uniform"]
    low: Number
    high: Number


class LogUniform(_Numeric):
    """Every ratio alike: for weights and rates."""

    kind: Literal["log_uniform"]
    low: PositiveFloat
    high: PositiveFloat


class Integer(_Numeric):
    """Whole numbers, alike, or with ``log`` every ratio alike."""

    kind: Literal["integer"]
    low: Annotated[int, Field(strict=True)]
    high: Annotated[int, Field(strict=True)]
    log: Annotated[bool, Field(strict=True)] = False

    @model_validator(mode="after")
    def _log_is_positive(self) -> Self:
        if self.log and self.low < 1:
            raise ValueError(f"low: must be at least 1 with log, got {self.low}")
        return self


class Choice(Section):
    """One of a few values, without an order."""

    kind: Literal["choice"]
    values: Annotated[tuple[Value, ...], Field(min_length=2)]
    when: Conditions = Field(default={})
    """Drawn only where these axes have these values."""

    @field_validator("values", mode="before")
    @classmethod
    def _no_lists(cls, values: Any) -> Any:
        if isinstance(values, list | tuple) and any(isinstance(value, list | tuple | dict) for value in values):
            raise ValueError("must be plain values, no lists or sections; remove the axis")
        return values

    @field_validator("values")
    @classmethod
    def _each_once(cls, values: tuple[Value, ...]) -> tuple[Value, ...]:
        # 1 and 1.0 make the same job, 1 and true do not.
        if len({(isinstance(value, bool), value) for value in values}) < len(values):
            raise ValueError("must name each value once; remove what is repeated")
        return values


Axis = Annotated[Uniform | LogUniform | Integer | Choice, Field(discriminator="kind")]

# ---------------------------------------------------------------------------- objectives


class Constraint(Section):
    """A bound that a trial must keep to count; written `kl_nats >= 5` in the job."""

    metric: Text
    relation: Literal[">=", "<="]
    bound: Number

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, text: Any) -> Any:
        if not isinstance(text, str):
            return text
        match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*(>=|<=)\s*(\S+)\s*", text)
        try:
            if match:
                return {"metric": match[1], "relation": match[2], "bound": float(match[3])}
        except ValueError:
            pass
        raise ValueError("must be METRIC >= NUMBER or METRIC <= NUMBER, such as 'kl_nats >= 5'")

    def __str__(self) -> str:
        return f"{self.metric} {self.relation} {self.bound:g}"

    def excess(self, scores: Mapping[str, float]) -> float:
        """How far the bound is missed; at most 0 where it is kept."""
        distance = scores[self.metric] - self.bound
        return distance if self.relation == "<=" else -distance


# ---------------------------------------------------------------------------- sampler and scheduler


class Sampler(Section):
    """How settings are chosen."""

    kind: Literal["tpe", "nsga2", "nsga3", "gp", "qmc", "random"] = "tpe"
    """`tpe` counts running trials as bad ones, so that parallel trials differ (constant liar)."""
    startup_trials: Count | None = None
    """Drawn at random before `tpe` or `gp` begins; by default 10, or twice `max_concurrent` where that is more."""
    random_fraction: ProperFraction | None = None
    """Part of the later trials that are drawn at random too. By default a third where trials of one objective are
    stopped early, as in BOHB (Falkner et al. 2018), and none elsewhere. Of `tpe` and `gp`."""

    @model_validator(mode="after")
    def _learners_draw_at_random_too(self) -> Self:
        if self.kind not in ("tpe", "gp"):
            for key in ("startup_trials", "random_fraction"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key}: has no effect with '{self.kind}'; remove it, or use 'tpe' or 'gp'")
        return self


class NoStopping(Section):
    """Every trial runs to its end."""

    kind: Literal["none"]


class ParetoStopping(Section):
    """Stop trials that others dominate: gently, by Pareto rank, never by one metric.

    Each evaluation is a rung. Distortion is compared only among trials of the same age since the adversarial
    start, sample quality only late in the run. Once eight trials have ended, where the others will is forecast, and
    those that may still come to the front go on.
    """

    kind: Literal["pareto"]
    reduction: Annotated[float, Field(gt=1, strict=True)] = 2.0
    """Of the trials that reached a rung, those in the best 1/reduction go on for sure."""
    grace_images: Images | None = None
    """Neither distortion nor sample quality is judged before; by default adversarial.start_images + 15 % of the run."""
    quality_from_fraction: ProperFraction = 0.5
    """Part of the run after which sample quality (`sample_*`) is judged."""
    smoothing_rungs: Count = 2
    """A value is the mean of so many newest rungs within 15 % of the run, never the best so far."""


class AshaStopping(Section):
    """Asynchronous successive halving on one metric (Li et al. 2020, stopping variant)."""

    kind: Literal["asha"]
    reduction: Annotated[float, Field(gt=1, strict=True)] = 3.0
    grace_images: PositiveImages | None = None
    """The first rung; the next are `reduction` times further each. By default the first evaluation."""


class MedianStopping(Section):
    """Stop a trial whose mean so far is worse than the median of the others' (Golovin et al. 2017)."""

    kind: Literal["median"]
    grace_images: Images | None = None
    """By default a fifth of the run."""
    minimum_trials: Count = 4
    """Others that must have come as far."""


class Population(Section):
    """Population-based training (Jaderberg et al. 2017): trials copy better ones, and perturb their settings.

    A trial may be replaced at each evaluation, and takes over the whole state. Its settings then are a schedule,
    which the trial's job records under `changes`.
    """

    kind: Literal["pbt"]
    replaced_fraction: Annotated[float, Field(gt=0, le=0.5, strict=True)] = 0.25
    """The worst so many copy one of the best so many."""
    redraw_fraction: ProperFraction = 0.25
    """How often a copied setting is drawn anew instead of multiplied by 0.8 or 1.25."""


Scheduler = Annotated[
    NoStopping | ParetoStopping | AshaStopping | MedianStopping | Population, Field(discriminator="kind")
]

# ---------------------------------------------------------------------------- the job


def _text_or_section(value: Any) -> Any:
    if not isinstance(value, str | dict):
        raise ValueError("must be 'base', 'preset:NAME' or 'axis: value' lines")
    return value


Point = Annotated[dict[str, Any] | str, BeforeValidator(_text_or_section)]
"""Its names and values are checked with the space."""


class SearchJob(Section):
    """Search the settings of a train job."""

    kind: Literal["search"]
    name: Name
    """Of the search: its directory in ``storage``."""
    base: TrainJob
    """The train job that every trial begins from: in the file a path, seen from the file's folder, or a job."""
    space: Annotated[dict[str, Axis], Field(min_length=1)]
    """Dotted path in the train job to what is drawn for it."""
    objectives: tuple[Goal, ...]
    """One, or several for a front."""
    constraints: tuple[Constraint, ...] = ()
    trials: Count
    time_budget_s: PositiveFloat | None = None
    """Of one start of the search: then no trial begins, and those that run are stopped with a checkpoint."""
    sampler: Sampler = Sampler()
    scheduler: Scheduler = ParetoStopping(kind="pareto")
    points: tuple[Point, ...] = ("base",)
    """Tried first: `base`, `preset:NAME`, or settings of axes (the others as in `base`)."""
    warm_start: tuple[Text, ...] = ()
    """Directories of earlier searches of the same space, whose finished trials the sampler learns from."""
    max_concurrent: Count | None = None
    """By default as many as the cluster has room for."""
    max_failures: Annotated[int, Field(ge=0, strict=True)] = 2
    """How often a trial that was lost begins again from its checkpoint."""
    study: Text | None = None
    """URL of a database for the Optuna study; by default a journal file in the search's directory."""
    seed: Seed = 0
    """Of the sampler."""
    storage: Text = "runs"
    """Folder or bucket of all runs and searches."""

    @field_validator("objectives")
    @classmethod
    def _at_least_one(cls, objectives: tuple[Goal, ...]) -> tuple[Goal, ...]:
        if not objectives:
            raise ValueError("must name at least one metric; add one")
        return objectives

    @field_validator("study")
    @classmethod
    def _leads_to_a_database(cls, study: str | None) -> str | None:
        if study is not None and "://" not in study:
            raise ValueError("must be the URL of a database, such as sqlite:////shared/study.db")
        return study

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that the search looks at, each once."""
        names = [goal.metric for goal in self.objectives] + [constraint.metric for constraint in self.constraints]
        return tuple(dict.fromkeys(names))

    @property
    def rung_images(self) -> int:
        """From one rung, which is an evaluation, to the next: the whole run where there is but one."""
        return self.base.evaluation.every_images or self.base.training.total_images

    def rung_at(self, images: int) -> int:
        """Number of the rung after so many images: where the batch is an axis, trials come to it not quite together."""
        return (2 * images + self.rung_images) // (2 * self.rung_images)  # Halves up: round() takes every other down.

    def costs(self, scores: Mapping[str, float]) -> tuple[float, ...]:
        """The objectives, each turned so that less is better."""
        return tuple(goal.cost(scores) for goal in self.objectives)

    def is_feasible(self, scores: Mapping[str, float]) -> bool:
        """Whether all constraints are kept."""
        return all(constraint.excess(scores) <= 0 for constraint in self.constraints)
