"""A run that begins from a state of another: of a trial that it forks from, or copies."""

import json

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.runs.records import read_incidents
from vaegen_ray.tracking.json_lines import JsonLines
from vaegen_ray.training.checkpoint import MANIFEST, finished_positions, read_checkpoint


def begin_from(source: RunDirectory, target: RunDirectory, job: TrainJob, position: int) -> None:
    """Make ``target`` a run of ``job`` that has the checkpoint of ``source`` at ``position``, and its metrics so far.

    The checkpoint is verified, and whole in ``target`` only when everything else is there. CheckpointError where
    it is missing or damaged.
    """
    folder = source.checkpoint(position)
    contents = read_checkpoint(folder)
    # Of no lease: the run that it goes to counts its own.
    manifest = {**json.loads((folder / MANIFEST).read_text()), "fence": 0}
    target.claim(job)
    if source.metrics.exists():
        target.metrics.write_bytes(source.metrics.read_bytes())
        JsonLines(target.metrics, position).close()  # Drops the lines beyond the position.
    if source.incidents.exists():  # What it was rolled back by holds for whoever goes on from it.
        kept = [entry for entry in read_incidents(source) if entry["to" if "to" in entry else "position"] <= position]
        target.incidents.write_text(json.dumps(kept, indent=2) + "\n")
    copy = target.checkpoint(position)
    (copy / MANIFEST).remove()
    for name, content in contents.items():
        (copy / name).write_bytes(content)
    (copy / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def newest_checkpoint(run: RunDirectory) -> int:
    """Position of the newest finished checkpoint; 0 where there is none."""
    return next(iter(finished_positions(run)), 0)


def has_checkpoint(run: RunDirectory, position: int) -> bool:
    """Whether ``run`` has a finished checkpoint at ``position``."""
    return (run.checkpoint(position) / MANIFEST).exists()
