"""The page of a comparison."""

import json
import math
from typing import Any

import yaml

from vaegen_ray.compare.directory import CompareDirectory
from vaegen_ray.compare.results import SIGNIFICANT, Comparison, read_comparison
from vaegen_ray.config.loading import dump_job
from vaegen_ray.evaluation.scores import UNITS
from vaegen_ray.report.blocks import Block, chart, facts, note, pictures, source, table
from vaegen_ray.report.curves import curve
from vaegen_ray.report.run import newest_samples, start_rows
from vaegen_ray.runs.records import read_starts
from vaegen_ray.tracking.json_lines import evaluations, read_metrics

COLORS = ("#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#0891b2", "#65a30d", "#dc2626")


def comparison_page(directory: CompareDirectory) -> dict[str, Any]:
    """All that the directory of a comparison tells, finished or not."""
    comparison = read_comparison(directory)
    num_runs = sum(len(runs) for runs in comparison.runs.values())
    blocks = [
        _table(comparison),
        *_grids(comparison),
        *_curves(comparison),
        _stability(comparison),
        note(
            "Measured on", [f"{', '.join(names)}: {text}" for text, names in _conditions(comparison).items()] or ["-"]
        ),
        _origin(comparison),
        source("The job, resolved", yaml.safe_dump(json.loads(dump_job(comparison.job)), sort_keys=False)),
    ]
    positions = [run.position for runs in comparison.runs.values() for run in runs]
    return {
        "kind": "comparison",
        "title": comparison.job.name,
        "subtitle": f"{', '.join(comparison.runs)}: {comparison.num_ended} of {num_runs} runs ended",
        "blocks": blocks,
        "version": f"{comparison.num_ended}-{'-'.join(map(str, positions))}",
    }


def _table(comparison: Comparison) -> Block:
    names = list(comparison.runs)
    rows: list[list[object]] = []
    best: list[tuple[int, int]] = []
    for metric in comparison.metrics:
        winner, p = comparison.best(metric)
        unit, better = UNITS.get(metric, ("", ""))
        if winner is not None and p < SIGNIFICANT:
            best.append((len(rows), names.index(winner) + 1))
        cells = [str(comparison.statistic(name, metric)) for name in names]
        rows.append([metric, *cells, None if math.isnan(p) else float(f"{p:.2g}"), unit, better])
    rows += [[title, *cells, None, "", ""] for title, cells in comparison.closing_rows()]
    about = (
        f"Mean ± deviation over {len(comparison.job.seeds)} seeds. p: that the best mean is no better than the others' "
        f"(Welch's t-test, times the number of others); emphasised where below {SIGNIFICANT}."
    )
    return table("Comparison", ("", *names, "p", "unit", "better"), rows, best=best, note=about, filters=False)


def _grids(comparison: Comparison) -> list[Block]:
    blocks = []
    for index, seed in enumerate(comparison.job.seeds):
        items = [
            (name, uri)
            for name, runs in comparison.runs.items()
            if (uri := newest_samples(comparison.directory.run(name, runs[index].seed))) is not None
        ]
        if items:
            blocks.append(pictures(f"Samples, seed {seed}", items, note="The newest grid of each run, not selected."))
    return blocks


def _curves(comparison: Comparison) -> list[Block]:
    """Every score over images, a line a run, a colour a variant."""
    lines = {
        (name, run.seed): read_metrics(comparison.directory.run(name, run.seed))
        for name, runs in comparison.runs.items()
        for run in runs
        if run.position
    }
    blocks = []
    for metric in comparison.metrics or ["sample_swd"]:
        traces = []
        for index, name in enumerate(comparison.runs):
            for place, seed in enumerate(comparison.job.seeds):
                evaluated = [line for line in evaluations(lines.get((name, seed), [])) if metric in line]
                if evaluated:
                    color = COLORS[index % len(COLORS)]
                    drawn = curve(evaluated, metric, mode="lines+markers", line={"color": color}, legendgroup=name)
                    hover = f"{name}-{seed}: %{{y}}<extra></extra>"
                    traces.append({**drawn, "name": name, "showlegend": place == 0, "hovertemplate": hover})
        if any(len(trace["x"]) > 1 for trace in traces):
            blocks.append(chart(metric, traces, {"xaxis": {"title": {"text": "images"}}}, height=260))
    return blocks


def _stability(comparison: Comparison) -> Block:
    sentences = []
    for name, runs in comparison.runs.items():
        bad, ended = comparison.instability(name)
        sentences.append(f"{name}: {bad} of {ended} runs collapsed or diverged")
        for run in runs:
            if run.outcome is not None and run.outcome.ending != "complete":
                sentences.append(f"{name}-{run.seed} {run.outcome.ending}: {run.outcome.reason}")
            sentences += [f"{name}-{run.seed}: {incident.sentence}" for incident in run.collapses]
    return note("Stability", sentences)


def _conditions(comparison: Comparison) -> dict[str, list[str]]:
    sentences: dict[str, list[str]] = {}
    for name, sentence in comparison.conditions().items():
        sentences.setdefault(sentence, []).append(name)
    return sentences


def _origin(comparison: Comparison) -> Block:
    job = comparison.job
    starts = read_starts(comparison.directory.run(next(iter(comparison.runs)), job.seeds[0]))
    rows = start_rows(starts[-1]) if starts else []
    budget = job.budget
    text = f"{job.base.training.total_images:,} images a run, as the base job says"
    if budget is not None:
        text = f"{budget.images:,} images a run" if budget.images else f"{budget.seconds:g} seconds of training a run"
    return facts("What was run", [("directory", comparison.directory.root), ("budget", text), *rows])
