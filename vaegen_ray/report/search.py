"""The page of a search."""

import json
import math
from collections.abc import Mapping
from typing import Any

import yaml

from vaegen_ray.config.loading import dump_job
from vaegen_ray.config.search import Axis, SearchJob
from vaegen_ray.report.blocks import Block, chart, facts, source, table
from vaegen_ray.report.run import newest_samples
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.leaderboard import Leaderboard, hypervolumes, leaderboard, newest_scores
from vaegen_ray.search.open import current_trials, load_search
from vaegen_ray.search.trials import Trial, TrialState

MOST_PICTURES = 16
"""Trials whose samples are in the page: those first on the leaderboard."""
MOST_DETAILS = 2000

Importances = Mapping[str, Mapping[str, float]]


def search_page(directory: SearchDirectory, importances: Importances) -> dict[str, Any]:
    """All that the directory of a search tells, from storage alone."""
    job, trials = load_search(directory), current_trials(directory)
    board = leaderboard(job, trials)
    blocks = [
        *_front(board),
        *_parallel(board),
        *_importances(importances),
        *_volume(board),
        _leaderboard(board),
        _origin(job, directory, board),
        source("The job, resolved", yaml.safe_dump(json.loads(dump_job(job)), sort_keys=False)),
    ]
    states = [f"{len(trials.by_state[state])} {state.value}" for state in TrialState if trials.by_state[state]]
    return {
        "kind": "search",
        "title": job.name,
        "subtitle": f"{trials.num_over} of {job.trials} trials over: {', '.join(states)}",
        "blocks": blocks,
        "details": {
            _name(trial): _detail(trial, directory, has_picture=place < MOST_PICTURES)
            for place, trial in enumerate(board.trials[:MOST_DETAILS])
        },
        "version": "-".join(states) + str(sum(len(trial.rungs) for trial in trials)),
    }


def _name(trial: Trial) -> str:
    return f"trial-{trial.number}"


def _front(board: Leaderboard) -> list[Block]:
    """The first two objectives against each other, or the only one in the order of trials."""
    job = board.job
    scored = [trial for trial in board.trials if trial.state is TrialState.COMPLETE]
    if not scored:
        return []
    first, second = job.objectives[0].metric, job.objectives[1].metric if len(job.objectives) > 1 else None

    def trace(trials: list[Trial], name: str, **marker: Any) -> dict[str, Any]:
        return {
            "type": "scatter", "mode": "markers", "name": name,
            "x": [trial.scores[first] if second else trial.number for trial in trials],
            "y": [trial.scores[second] if second else trial.scores[first] for trial in trials],
            "text": [_hover(trial) for trial in trials], "hovertemplate": "%{text}<extra></extra>",
            "customdata": [_name(trial) for trial in trials], "marker": marker,
        }  # fmt: skip

    on_front, infeasible, others = [], [], []
    numbers = set(board.front)
    for trial in scored:
        if trial.number in numbers:
            on_front.append(trial)
        elif job.is_feasible(trial.scores):
            others.append(trial)
        else:
            infeasible.append(trial)
    traces = [trace(others, "dominated" if second else "trained", size=9, opacity=0.6)] if others else []
    if infeasible:
        traces.append(trace(infeasible, "misses a constraint", size=9, symbol="x"))
    front = sorted(on_front, key=lambda trial: trial.scores[first])
    traces.append(
        {**trace(front, "front" if second else "best", size=13), **({"mode": "lines+markers"} if second else {})}
    )
    axes = (first, second) if second else ("trial", first)
    goals = {goal.metric: goal.goal for goal in job.objectives}
    layout = {
        f"{axis}axis": {"title": {"text": f"{name} ({goals[name]})" if name in goals else name}}
        for axis, name in zip("xy", axes, strict=True)
    }
    title = "The front" if second else "The trials"
    return [
        chart(
            title,
            traces,
            {**layout, "hovermode": "closest"},
            note="Hover to see a trial, click to open it.",
            height=420,
        )
    ]


def _hover(trial: Trial) -> str:
    scores = [f"{name} {value:.4g}" for name, value in trial.scores.items()][:8]
    settings = [f"{path.removeprefix('objective.')} = {_short(value)}" for path, value in trial.settings.items()]
    return f"<b>trial {trial.number}</b><br>" + "<br>".join(settings + scores)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _parallel(board: Leaderboard) -> list[Block]:
    """Axes and metrics of the fully trained trials; drag along an axis to keep a range."""
    job = board.job
    trained = [trial for trial in board.trials if trial.state is TrialState.COMPLETE]
    if len(trained) < 2:
        return []
    dimensions = []
    for path, axis in job.space.items():
        dimensions.append(
            _dimension(path.removeprefix("objective."), axis, [trial.settings.get(path) for trial in trained])
        )
    for metric in job.metrics:
        values = [trial.scores.get(metric) for trial in trained]
        dimensions.append({"label": metric, "values": [value if value is not None else math.nan for value in values]})
    color = dimensions[len(job.space)]["values"]
    line = {"color": color, "colorscale": "Viridis", "showscale": True, "colorbar": {"title": {"text": job.metrics[0]}}}
    for dimension in dimensions:  # JSON has no NaN; a trial that has no such axis lies at its lower end.
        known = [value for value in dimension["values"] if value == value]
        dimension["values"] = [value if value == value else min(known, default=0) for value in dimension["values"]]
    trace = {"type": "parcoords", "dimensions": dimensions, "line": line, "labelangle": -12}
    # The names of the axes stand above them, at an angle, and need room that plotly does not make.
    margin = {"l": 70, "r": 30, "t": 80, "b": 30}
    note = "Drag along an axis to keep a range."
    return [chart("Parallel coordinates", [trace], {"margin": margin}, note=note, height=460)]


def _dimension(label: str, axis: Axis, values: list[Any]) -> dict[str, Any]:
    if axis.kind == "choice":
        names = list(axis.values)
        places = [float(names.index(value)) if value is not None else math.nan for value in values]
        texts = [str(name) for name in names]
        return {"label": label, "values": places, "tickvals": list(range(len(names))), "ticktext": texts}
    numbers = [float(value) if value is not None else math.nan for value in values]
    if axis.kind == "log_uniform" or (axis.kind == "integer" and axis.log):
        logs = [math.log10(number) if number > 0 else math.nan for number in numbers]
        low, high = math.log10(axis.low), math.log10(axis.high)
        # A tick beyond the bounds would draw the axis out of the chart.
        ticks = [low, *(tick for tick in range(math.ceil(low), math.floor(high) + 1) if low < tick < high), high]
        return {
            "label": label, "values": logs, "tickvals": ticks, "ticktext": [f"{10.0**tick:.3g}" for tick in ticks],
            "range": [low, high],
        }  # fmt: skip
    return {"label": label, "values": numbers, "range": [axis.low, axis.high]}


def _importances(importances: Importances) -> list[Block]:
    traces = [
        {
            "type": "bar", "orientation": "h", "name": metric, "x": list(parts.values()),
            "y": [path.removeprefix("objective.") for path in parts],
        }
        for metric, parts in importances.items()
    ]  # fmt: skip
    layout = {
        "barmode": "group",
        "xaxis": {"tickformat": ".0%"},
        "yaxis": {"automargin": True, "autorange": "reversed"},
    }
    return [chart("Which axes mattered", traces, layout, note="PED-ANOVA, parts sum to 1.")] if traces else []


def _volume(board: Leaderboard) -> list[Block]:
    volumes = hypervolumes(board.job, board.trials)
    if len(volumes) < 2:
        return []
    trace = {
        "type": "scatter", "mode": "lines+markers", "line": {"shape": "hv"}, "x": list(range(1, len(volumes) + 1)),
        "y": volumes, "name": "hypervolume",
    }  # fmt: skip
    layout = {
        "xaxis": {"title": {"text": "fully trained trials"}},
        "yaxis": {"rangemode": "tozero"},
        "showlegend": False,
    }
    return [chart("Hypervolume of the front", [trace], layout, height=260)]


def _leaderboard(board: Leaderboard) -> Block:
    job = board.job
    columns = [
        "place",
        "trial",
        "state",
        "front",
        "images",
        *job.metrics,
        *(path.removeprefix("objective.") for path in job.space),
        "why",
    ]
    rows, opens = [], []
    for row, trial in zip(board.rows(), board.trials, strict=True):
        mark = ("best" if row["is_best"] else "front") if row["on_front"] else ""
        values = [_rounded(row[metric]) for metric in job.metrics] + [_rounded(row[path]) for path in job.space]
        rows.append([row["place"], trial.number, row["state"], mark, trial.position, *values, trial.reason])
        opens.append(_name(trial))
    return table("Leaderboard", columns, rows, opens=opens)


def _rounded(value: object) -> object:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _detail(trial: Trial, directory: SearchDirectory, *, has_picture: bool) -> dict[str, Any]:
    scores = trial.scores or newest_scores(trial)
    rows: list[tuple[str, object]] = [("state", trial.state.value), ("images", f"{trial.position:,}")]
    rows += [(path, _short(value)) for path, value in trial.settings.items()]
    rows += [(name, _short(value)) for name, value in scores.items()]
    if trial.reason:
        rows.append(("why", trial.reason))
    run = directory.run(trial.number).root
    rows += [
        ("directory", run),
        ("train it longer", f"vaegen train '{directory.root}#{trial.number}'"),
        ("its report", f"vaegen report {run}"),
    ]
    return {
        "title": f"Trial {trial.number}",
        "rows": [[name, str(value)] for name, value in rows],
        "picture": newest_samples(directory.run(trial.number)) if has_picture else None,
    }


def _origin(job: SearchJob, directory: SearchDirectory, board: Leaderboard) -> Block:
    best = board.best
    return facts(
        "What was run",
        [
            ("directory", directory.root),
            ("base job", f"{job.base.name}: {job.base.objective.kind} of {job.base.data.source}"),
            ("objectives", ", ".join(f"{goal.goal} {goal.metric}" for goal in job.objectives)),
            ("constraints", ", ".join(map(str, job.constraints)) or "none"),
            ("sampler, scheduler", f"{job.sampler.kind}, {job.scheduler.kind}"),
            ("images a trial", f"{job.base.training.total_images:,}"),
            (
                "knee of the front" if len(job.objectives) > 1 else "best trial",
                best if best is not None else "none yet",
            ),
        ],
    )
