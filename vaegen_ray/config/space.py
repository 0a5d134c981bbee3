"""The search space: which train job a draw makes, which axes are drawn, and what is wrong with a space."""

import difflib
import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.metrics import evaluated_metrics
from vaegen_ray.config.presets import PRESETS, Sizes
from vaegen_ray.config.search import (
    Axis,
    Choice,
    Integer,
    LogUniform,
    SearchJob,
    Settings,
    Uniform,
    Value,
)
from vaegen_ray.config.sentences import must_be, one_of, sentences, shown
from vaegen_ray.config.settings import flat, with_settings
from vaegen_ray.config.watchdog import CHANGEABLE
from vaegen_ray.errors import JobError

FIXED_IN_A_SEARCH = (
    "kind", "name", "storage", "tracking", "resources", "evaluation", "data.source", "data.cache", "data.cache_bytes",
    "data.placement", "model.image_size", "model.channels", "objective.preset",
    "training.total_images", "training.report_every_images", "training.checkpoint_every_images",
    "training.keep_checkpoints", "training.accumulation_steps", "changes",
)  # fmt: skip
"""Settings that change where a trial runs, how long, or by what it is judged."""


def train_job_of(tree: Mapping[str, Any]) -> TrainJob:
    """Validate the tree of a train job; JobError has one line a broken rule."""
    try:
        return TrainJob.model_validate(dict(tree))
    except ValidationError as error:
        raise JobError("\n".join(sentences(error, TrainJob, num_tags=0))) from error


def trial_job(search: SearchJob, settings: Mapping[str, Value], *, name: str, storage: str) -> TrainJob:
    """The complete train job of a trial: the base with ``settings``, in ``storage`` under ``name``."""
    tree = with_settings(_tree(search.base), settings)
    return train_job_of({**tree, "name": name, "storage": storage})


def is_active(axis: Axis, settings: Mapping[str, Value]) -> bool:
    """Whether ``axis`` is drawn where the axes before it have the values ``settings``."""
    return all(name in settings and settings[name] == value for name, value in axis.when.items())


def in_order(space: Mapping[str, Axis]) -> list[tuple[str, Axis]]:
    """The axes, each after those that it depends on; what depends on itself is left out."""
    ordered: dict[str, Axis] = {}
    while more := [
        (name, axis) for name, axis in space.items() if name not in ordered and axis.when.keys() <= ordered.keys()
    ]:
        ordered.update(more)
    return list(ordered.items())


def contains(axis: Axis, value: Any) -> bool:
    """Whether ``axis`` may draw ``value``."""
    if isinstance(axis, Choice):
        return any(_is_same(value, choice) for choice in axis.values)
    if isinstance(value, bool) or not isinstance(value, int if isinstance(axis, Integer) else int | float):
        return False
    return axis.low <= value <= axis.high


def unit_value(axis: Uniform | LogUniform | Integer, value: float) -> float:
    """Where a value lies between the bounds of its axis, which are 0 and 1, on the scale on which it is drawn."""
    low, high = float(axis.low), float(axis.high)
    if isinstance(axis, LogUniform) or (isinstance(axis, Integer) and axis.log):
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low) if high > low else 0.0


def _is_same(value: Any, choice: Value) -> bool:
    return bool(value == choice) and isinstance(value, bool) == isinstance(choice, bool)


def num_settings(space: Mapping[str, Axis]) -> int | None:
    """How many settings a space of choices and whole numbers holds; None where there are other axes."""
    axes = [(name, axis) for name, axis in in_order(space) if isinstance(axis, Choice | Integer)]
    if len(axes) < len(space):
        return None

    def count(settings: Settings, index: int) -> int:
        if index == len(axes):
            return 1
        name, axis = axes[index]
        if not is_active(axis, settings):
            return count(settings, index + 1)
        # The values that no condition names leave the same axes active, and there may be billions.
        named = {other.when[name] for _, other in axes if name in other.when}
        num_values = len(axis.values) if isinstance(axis, Choice) else axis.high - axis.low + 1
        with_named = sum(count({**settings, name: value}, index + 1) for value in named)
        return with_named + (num_values - len(named)) * count(settings, index + 1)

    return count({}, 0)


def point_settings(search: SearchJob) -> list[Settings]:
    """The settings of ``search.points``, in which every active axis has a value."""
    return [_settings_of_point(search, index) for index in range(len(search.points))]


def _settings_of_point(search: SearchJob, index: int) -> Settings:
    point = search.points[index]
    given: Mapping[str, Any] = point if isinstance(point, dict) else {}
    values = {**flat(_tree(search.base)), **(_preset_values(search, point, index) if isinstance(point, str) else {})}
    if unknown := [name for name in given if name not in search.space]:
        raise JobError(f"points[{index}].{unknown[0]}: {must_be(search.space, unknown[0])}")
    settings: Settings = {}
    for name, axis in in_order(search.space):
        if not is_active(axis, settings):
            if name in given:
                raise JobError(
                    f"points[{index}].{name}: is not drawn here, {_conditions(axis)} does not hold; remove it"
                )
            continue
        value = given.get(name, values.get(name))
        if value is None or not contains(axis, value):
            source = "" if name in given else f", which {_source(point)} gives"
            raise JobError(
                f"points[{index}].{name}: must be {_range(axis)}, got {shown(value)}{source}; "
                f"widen the axis, change the point, or leave it out (points: [])"
            )
        settings[name] = _as_drawn(axis, value)
    return settings


def _as_drawn(axis: Axis, value: Any) -> Any:
    """A choice of 1 draws 1 where the base job has 1.0, and the same settings must not come again."""
    return next(choice for choice in axis.values if _is_same(value, choice)) if isinstance(axis, Choice) else value


def _source(point: Any) -> str:
    return f"'{point}'" if isinstance(point, str) else "the base job"


def _preset_values(search: SearchJob, point: str, index: int) -> dict[str, Any]:
    if point == "base":
        return {}
    name = point.removeprefix("preset:")
    if point == name or name not in PRESETS:
        raise JobError(f"points[{index}]: {must_be(['base', *(f'preset:{preset}' for preset in PRESETS)], point)}")
    model = search.base.model
    sizes = Sizes(model.channels * model.image_size**2, search.base.training.images_per_step)
    return flat({"objective": PRESETS[name](sizes)})


def _tree(job: TrainJob) -> dict[str, Any]:
    return job.model_dump(mode="json")


# ---------------------------------------------------------------------------- rules


def broken_search_rules(search: SearchJob) -> Iterator[str]:
    """All rules between the sections of ``search``, each of which is valid, that it breaks."""
    yield from _metrics(search)
    yield from _constraints(search)
    yield from _schedulers(search)
    if search.base.resources.fewest_workers < search.base.resources.most_workers:
        yield "base.resources.workers: must be a number in a search, whose trials share a cluster, got a range"
    broken = list(_axes(search))
    yield from broken
    if not broken:
        yield from _trials(search)
        try:
            points = point_settings(search)
        except JobError as error:
            yield str(error)
        else:
            yield from _points(search, points)


def _metrics(search: SearchJob) -> Iterator[str]:
    known = evaluated_metrics(search.base)
    named = [(f"objectives[{index}].metric", goal.metric) for index, goal in enumerate(search.objectives)]
    for key, metric in named + [(f"constraints[{i}]", bound.metric) for i, bound in enumerate(search.constraints)]:
        if metric not in known:
            hint = ""
            if metric.endswith(("_fid", "_kid")) and search.base.evaluation.features is None:
                hint = "; FID and KID need evaluation.features in the base job"
            yield f"{key}: {must_be(known, metric)}{hint}"
    metrics = [goal.metric for goal in search.objectives]
    if repeated := [metric for metric in metrics if metrics.count(metric) > 1]:
        yield f"objectives: must name each metric once, got '{repeated[0]}' twice; remove one"


def _constraints(search: SearchJob) -> Iterator[str]:
    for low, high in itertools.product(search.constraints, repeat=2):
        if (low.metric, low.relation, high.relation) == (high.metric, ">=", "<=") and low.bound > high.bound:
            yield f"constraints: must be possible to keep together, got '{low}' and '{high}'; remove one"


def _trials(search: SearchJob) -> Iterator[str]:
    """No settings are tried twice."""
    held = num_settings(search.space)
    if held is not None and held < search.trials:
        yield (
            f"trials: must be at most {held}, all that the space holds, got {search.trials}; lower it, or widen an axis"
        )


def _schedulers(search: SearchJob) -> Iterator[str]:
    kind, every, training = search.scheduler.kind, search.base.evaluation.every_images, search.base.training
    if kind in ("asha", "median", "pbt") and len(search.objectives) > 1:
        yield (
            f"scheduler.kind: '{kind}' compares one metric, got {len(search.objectives)} objectives; "
            "use 'pareto', or one objective with constraints"
        )
    if kind != "none" and (every is None or every >= training.total_images):
        yield (
            f"base.evaluation.every_images: must be below training.total_images ({training.total_images}) with the "
            f"scheduler '{kind}', which judges trials at their evaluations, got {shown(every)}; give it in `set`, "
            "or use scheduler: {kind: none}"
        )
    grace_images = getattr(search.scheduler, "grace_images", None)
    if grace_images is not None and grace_images >= training.total_images:
        yield (
            f"scheduler.grace_images: must be below base.training.total_images ({training.total_images}), got "
            f"{grace_images}; no trial would be stopped"
        )
    if search.scheduler.kind == "pbt":
        if int(search.trials * search.scheduler.replaced_fraction) == 0:
            yield (
                f"trials: must be at least {math.ceil(1 / search.scheduler.replaced_fraction)} with "
                f"scheduler.replaced_fraction {search.scheduler.replaced_fraction:g}, or none is ever replaced, got "
                f"{search.trials}; raise one of them"
            )
        if search.base.resources.needs_ray:
            yield "base.resources.workers: must be 1 with the scheduler 'pbt'; use another scheduler"
        if every is not None and every % training.images_per_step:
            yield (
                f"base.evaluation.every_images: must be a multiple of training.images_per_step "
                f"({training.images_per_step}) with the scheduler 'pbt', got {every}"
            )
        for name, axis in search.space.items():
            if isinstance(axis, Choice | Integer) or not name.startswith(CHANGEABLE):
                yield (
                    f"space.{name}: must be uniform or log_uniform, under {one_of(CHANGEABLE)}, with 'pbt', "
                    "which changes it in the middle of a run; remove the axis, or use another scheduler"
                )


def _axes(search: SearchJob) -> Iterator[str]:
    ordered = dict(in_order(search.space))
    for name, axis in search.space.items():
        if any(name == fixed or name.startswith(f"{fixed}.") for fixed in FIXED_IN_A_SEARCH):
            yield f"space.{name}: cannot be searched, trials must agree in it; give it in `set` instead"
            continue
        conditions = list(_conditions_of(name, axis, search.space))
        yield from conditions
        if not conditions and name not in ordered:
            yield f"space.{name}.when: must not depend on itself, through {', '.join(axis.when)}"
        elif not conditions:
            contradictions = list(_contradictions(name, axis, ordered))
            yield from contradictions or _bounds(search, name, axis, ordered)


def _conditions_of(name: str, axis: Axis, space: Mapping[str, Axis]) -> Iterator[str]:
    for other, value in axis.when.items():
        if other not in space:
            yield f"space.{name}.when: {must_be(space, other)}"
        elif not isinstance(space[other], Choice | Integer):
            yield (
                f"space.{name}.when: must name an axis of kind 'choice' or 'integer', got '{other}' of kind "
                f"'{space[other].kind}'; remove it, or make that axis a choice"
            )
        elif not contains(space[other], value):
            yield f"space.{name}.when.{other}: must be {_range(space[other])}, got {shown(value)}"


def _contradictions(name: str, axis: Axis, ordered: Mapping[str, Axis]) -> Iterator[str]:
    """What ``axis`` depends on may have conditions of its own that its own exclude."""
    needed: Settings = {}
    for other, value in _requirements(axis, ordered):
        if not _is_same(needed.setdefault(other, value), value):
            yield (
                f"space.{name}.when: must be possible to hold, needs {other} = {shown(needed[other])} and "
                f"{other} = {shown(value)} at once; remove one, or the axis, which would never be drawn"
            )


def _bounds(search: SearchJob, name: str, axis: Axis, ordered: Mapping[str, Axis]) -> Iterator[str]:
    """Build the job that each bound gives."""
    tree = _tree(search.base)
    metrics = set(search.metrics) & set(evaluated_metrics(search.base))  # The others are refused already.
    for label, value in _probes(axis):
        settings = _example(search, {name: value, **dict(_requirements(axis, ordered))}, ordered)
        try:
            job = train_job_of(with_settings(tree, settings))
        except JobError as error:
            problem = str(error).splitlines()[0]
            if re.match(
                rf"({re.escape(name)}|.*\b{re.escape(name.split('.')[0])}): .*(no such key|a plain value)", problem
            ):
                close = difflib.get_close_matches(name, flat(tree), n=1)
                hint = f"did you mean '{close[0]}'?" if close else "see `vaegen plan` of the base job"
                yield f"space.{name}: must be a setting of the base job, which has no such key; {hint}"
                return
            yield f"space.{name}.{label}: {shown(value)} makes no valid job ({problem})"
            if not isinstance(axis, Choice):
                return
        else:
            if missing := sorted(metrics.difference(evaluated_metrics(job))):
                yield f"space.{name}.{label}: {shown(value)} makes a job that never reports '{missing[0]}'; remove it"
                return
            if name not in flat(_tree(job)):
                yield f"space.{name}: must be a plain setting of the base job, is a section; name a key in it"
                return


def _requirements(axis: Axis, ordered: Mapping[str, Axis]) -> Iterator[tuple[str, Value]]:
    """What the axes must have drawn that ``axis`` depends on, and those that they depend on."""
    for other, value in axis.when.items():
        yield from _requirements(ordered[other], ordered)
        yield other, value


def _example(search: SearchJob, settings: Settings, ordered: Mapping[str, Axis]) -> Settings:
    """Complete ``settings`` by values for the conditional axes that they make active."""
    base, settings = flat(_tree(search.base)), dict(settings)
    for name, axis in ordered.items():
        if name not in settings and axis.when and is_active(axis, settings):
            value = base.get(name)
            settings[name] = value if value is not None and contains(axis, value) else _probes(axis)[0][1]
    return settings


def _probes(axis: Axis) -> list[tuple[str, Value]]:
    """Values at which an axis must make a valid job."""
    if isinstance(axis, Choice):
        return [(f"values[{index}]", value) for index, value in enumerate(axis.values)]
    inner: list[tuple[str, Value]] = []
    if not isinstance(axis, Integer):
        # Not a whole number, so that a setting that counts refuses it.
        inner = [("low", axis.low + (axis.high - axis.low) / 2**0.5)]
    return [("low", axis.low), ("high", axis.high), *inner]


def _points(search: SearchJob, points: list[Settings]) -> Iterator[str]:
    if len(points) > search.trials:
        yield f"trials: must be at least the {len(points)} points, got {search.trials}"
    for index, settings in enumerate(points):
        try:
            trial_job(search, settings, name="point", storage=search.storage)
        except JobError as error:
            yield f"points[{index}]: makes no valid job ({str(error).splitlines()[0]})"


def _range(axis: Axis) -> str:
    if isinstance(axis, Choice):
        return f"one of {', '.join(map(shown, axis.values))}"
    kind = "a whole number " if isinstance(axis, Integer) else ""
    return f"{kind}from {axis.low:g} to {axis.high:g}"


def _conditions(axis: Axis) -> str:
    return " and ".join(f"{name} = {shown(value)}" for name, value in axis.when.items())
