"""The page of a run."""

import json
import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import yaml

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.loading import dump_job
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.data.dataset import Dataset
from vaegen_ray.errors import CheckpointError, VaegenError
from vaegen_ray.evaluation.scores import UNITS, read_other_records, read_record
from vaegen_ray.report.blocks import Block, facts, note, picture_uri, pictures, slider, source, table
from vaegen_ray.report.curves import loss_charts, score_charts, throughput_charts
from vaegen_ray.runs.records import Entry, read_incidents, read_starts
from vaegen_ray.tracking.json_lines import Line, read_metrics

MOST_FRAMES = 24
"""Pictures of a slider; of more, every n-th is shown, the last among them."""
FINAL_PICTURES = {
    "final-nearest-training-images.png": "Samples above the training images that are nearest to them",
    "final-traversals.png": "Latent traversals: a dimension a row, from -3 to 3",
}


def run_page(run: RunDirectory) -> dict[str, Any]:
    """All that the directory of ``run`` tells, finished or not."""
    job, lines = run.load_job(), read_metrics(run)
    record = read_record(run) if run.is_complete() else {}
    position = int(lines[-1]["position"]) if lines else 0
    state = "complete" if record else "unfinished"
    blocks = [
        *_scores([record, *read_other_records(run)] if record else []),
        *_pictures(run),
        *score_charts(job, lines),
        *loss_charts(job, lines),
        *throughput_charts(lines),
        incidents(run, job),
        *_origin(run, job, lines),
        source("The job, resolved", yaml.safe_dump(json.loads(dump_job(job)), sort_keys=False)),
    ]
    return {
        "kind": "run",
        "title": job.name,
        "subtitle": f"{job.objective.kind} of {job.data.source}, {position:,} of {job.training.total_images:,} images, "
        f"{state}",
        "blocks": blocks,
        "version": f"{position}-{state}-{len(lines)}",
    }


def newest_samples(run: RunDirectory) -> str | None:
    """The newest grid of samples as a URI; None where there is none."""
    files = [name for name in run.samples.names() if re.fullmatch(r"samples-\d{12}\.png", name)]
    return picture_uri(run.samples / files[-1]) if files else None


LOST = {"after": "the loss of its processes, without a last checkpoint"}


def incidents(run: RunDirectory, job: TrainJob) -> Block:
    """Restarts, what the watchdog noticed and did, and damaged images."""
    starts, problems = _records(read_starts, run)
    entries, more_problems = _records(read_incidents, run)
    sentences = [*problems, *more_problems]
    for before, start in pairwise(starts):
        where = f"on {start.get('num_ranks', '?')} worker(s) of {start.get('device', '?')}"
        after = before.get("stopped", LOST)["after"]
        sentences.append(f"{start.get('time')}: started again at {start['position']:,} images, {where}, after {after}")
    for entry in entries:
        did = {"warn": "warned", "stop": "stopped the run"}.get(entry["action"])
        if did is None:
            changed = ", ".join(f"{path} = {value:g}" for path, value in entry.get("set", {}).items())
            did = f"rolled back to {entry.get('to', 0):,} images, with {changed}"
        sentences.append(f"{entry.get('time')}: {entry.get('sentence', entry['rule'])}; {did}")
    try:
        rejected = {kind: n for kind, n in Dataset.open(job.data.source).metadata.rejected.items() if n}
    except VaegenError:
        rejected = {}
    if rejected:
        listed = ", ".join(f"{count:,} {kind}" for kind, count in rejected.items())
        sentences.append(f"the dataset's preparation left out {listed} (its rejected.parquet lists them)")
    return note("Incidents", sentences or ["None: no restart, no warning, no damaged image."])


def _records(read: Callable[[RunDirectory], list[Entry]], run: RunDirectory) -> tuple[list[Entry], list[str]]:
    """The entries; where their file is damaged none, and a sentence that says so: the rest of the page is whole."""
    try:
        return read(run), []
    except CheckpointError as error:
        return [], [str(error)]


def _scores(records: list[dict[str, Any]]) -> list[Block]:
    if not records:
        return []
    rows = []
    for record in records:
        for name, value in record["scores"].items():
            unit, better = UNITS.get(name, ("", ""))
            rows.append((name, float(f"{value:.5g}"), unit, better, record.get("measured_on", {}).get(name, "")))
    return [table("Final scores", ("score", "value", "unit", "better", "measured on"), rows, filters=False)]


def _pictures(run: RunDirectory) -> list[Block]:
    blocks: list[Block] = []
    names = run.samples.names()
    for name, title in (("samples", "Samples"), ("reconstructions", "Reconstructions")):
        grids = [(int(m[1]), file) for file in names if (m := re.fullmatch(rf"{name}-(\d{{12}})\.png", file))]
        every = -(-len(grids) // MOST_FRAMES) if grids else 1
        frames = [(f"{at:,} images", picture_uri(run.samples / file)) for at, file in grids[::-1][::every][::-1]]
        if frames:
            about = "the same latents at every point" if name == "samples" else "originals above their reconstructions"
            blocks.append(slider(title, frames, note=about))
    last = [
        (title, picture_uri(run.samples / sorted(found)[-1]))
        for prefix, title in (
            ("interpolations", "Interpolations"),
            ("traversals", FINAL_PICTURES["final-traversals.png"]),
        )
        if (found := [file for file in names if file.startswith(f"{prefix}-")])
    ]
    last += [
        (title, picture_uri(run.samples / file))
        for file, title in FINAL_PICTURES.items()
        if file in names and title not in dict(last)
    ]
    return blocks + ([pictures("Through the latent space", last)] if last else [])


def start_rows(start: Entry) -> list[tuple[str, object]]:
    """What the pages of runs and of comparisons say of a start."""
    dataset = start["dataset"]
    return [
        ("command", " ".join(start.get("command", ()))),
        ("device", f"{start.get('device')}, {start.get('cpu_cores')} CPU cores"),
        ("revision", start.get("revision") or "not in a git checkout"),
        ("dataset", f"{dataset.get('source')}, fingerprint {dataset.get('fingerprint', '')[:16]}"),
    ]


def _origin(run: RunDirectory, job: TrainJob, lines: list[Line]) -> list[Block]:
    starts, _ = _records(read_starts, run)
    rows: list[tuple[str, object]] = [
        ("directory", run.root),
        ("objective", job.objective.kind),
        ("seed", job.seed),
    ]
    if starts:
        packages = starts[-1].get("packages", {})
        rows += [
            ("begun", starts[0].get("time")),
            ("workers", starts[-1].get("num_ranks")),
            ("platform", f"{starts[-1].get('platform')}, Python {starts[-1].get('python')}"),
            ("packages", ", ".join(f"{name} {version}" for name, version in packages.items())),
            *start_rows(starts[-1]),
        ]
    memory = max((line["peak_memory_bytes"] for line in lines if line.get("peak_memory_bytes")), default=None)
    if memory is not None:
        rows.append(("peak memory", f"{memory / 2**30:.2f} GiB"))
    return [facts("What was run", rows)]
