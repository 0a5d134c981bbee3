"""What the watchdog does about an incident, and how it is kept."""

import json
import logging
from dataclasses import asdict
from datetime import UTC, datetime

from pydantic import ValidationError

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.config.settings import flat
from vaegen_ray.errors import CollapsedError
from vaegen_ray.runs.records import Entry, read_incidents
from vaegen_ray.training.best import forget_best_after
from vaegen_ray.training.lineage import has_checkpoint
from vaegen_ray.training.watchdog import Incident, rollback_factors

logger = logging.getLogger(__name__)


class RollBack(Exception):  # noqa: N818 (no error: the run goes on)
    """Ends the loop, which goes on from an earlier checkpoint."""

    def __init__(self, incident: Incident) -> None:
        super().__init__(incident.sentence)
        self.incident = incident


def record_warning(run: RunDirectory, incident: Incident) -> None:
    """Say it, and keep it, once: after a kill it may come again. Rank 0 only."""
    logger.warning("%s", incident.sentence)
    told: set[tuple[str, int]] = set()
    for entry in read_incidents(run):
        if entry["action"] == "roll_back":  # Positions come again, under other settings.
            told.clear()
        else:
            told.add((entry["rule"], entry["position"]))
    if (incident.rule, incident.position) not in told:
        _append(run, incident, {"action": "warn"})


def record_stop(run: RunDirectory, incident: Incident, why: str = "") -> CollapsedError:
    """Keep it, and return what ends the run. Rank 0 only."""
    _append(run, incident, {"action": "stop"})
    rule = f"watchdog.{incident.rule}"
    remedy = "" if why else f"or set {rule}.action to roll_back, "
    return CollapsedError(f"{incident.sentence}{why}; change the job, {remedy}or set {rule} to null")


def roll_back(job: TrainJob, run: RunDirectory, incident: Incident) -> int:
    """Go back to the last checkpoint before the trouble, with changed settings, and return its position. Rank 0 only.

    0 where no checkpoint is so old: the run then begins again. Raises CollapsedError where the rule has rolled back
    as often as it may. A kill in the middle leaves a run that meets the trouble once more, and rolls back then.
    """
    rule = job.watchdog.rules()[incident.rule]
    earlier = _num_rollbacks(run, incident.rule)
    if earlier >= rule.at_most:
        raise record_stop(run, incident, f", and was rolled back {earlier} times before (at_most)")
    factors = rollback_factors(read_incidents(run))
    factors |= {path: factors.get(path, 1.0) * factor for path, factor in rule.multiply.items()}
    try:
        legs = {at: job.leg(at, factors)[0] for at in (0, *(change.at_images for change in job.changes))}
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        why = f", and cannot be rolled back, because {', '.join(rule.multiply)} would make no valid job ({problem})"
        raise record_stop(run, incident, why) from error
    good = [at for at in run.checkpoint_positions() if at <= incident.good_position and has_checkpoint(run, at)]
    position = max(good, default=0)
    for at in run.checkpoint_positions():
        if at > position:
            run.checkpoint(at).remove()
    forget_best_after(run, position)
    run.forget_pictures_after(position)
    values = flat(legs[max(at for at in legs if at <= position)].model_dump())
    changed = {path: values[path] for path in rule.multiply}
    _append(run, incident, {"action": "roll_back", "to": position, "multiply": rule.multiply, "set": changed})
    shown = ", ".join(f"{path}={value:g}" for path, value in changed.items())
    logger.warning("%s; rolled back to %s images, with %s", incident.sentence, f"{position:,}", shown)
    return position


def _num_rollbacks(run: RunDirectory, rule: str) -> int:
    return sum(entry["rule"] == rule and entry["action"] == "roll_back" for entry in read_incidents(run))


def _append(run: RunDirectory, incident: Incident, did: Entry) -> None:
    time = datetime.now(UTC).isoformat(timespec="seconds")
    entries = [*read_incidents(run), {"time": time, **asdict(incident), **did}]
    run.incidents.write_text(json.dumps(entries, indent=2) + "\n")
