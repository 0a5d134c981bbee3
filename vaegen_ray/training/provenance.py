"""Where a run comes from: revision, versions, hardware, command, dataset; one entry for each start."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

import vaegen_ray
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import JobError
from vaegen_ray.runs.records import read_starts, trained_on
from vaegen_ray.training.session import Session

PACKAGES = ("vaegen_ray", "torch", "torchvision", "numpy", "pyarrow", "ray", "optuna")


def record_start(
    job: TrainJob,
    run: RunDirectory,
    position: int,
    session: Session,
    dataset_fingerprint: str,
    command: Sequence[str],
) -> None:
    """Append this start to the run's `provenance.json`. Rank 0 only.

    Raises JobError when the dataset is not the one with which the run began.
    """
    starts = read_starts(run)
    began_with = trained_on(run)
    if position > 0 and began_with is not None and began_with != dataset_fingerprint:
        raise JobError(
            f"data.source: {job.data.source} holds other images than this run began with (fingerprint "
            f"{began_with[:12]} there, {dataset_fingerprint[:12]} here); restore them, or "
            "give this job another name"
        )
    starts.append(
        {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "position": position,
            "command": list(command),
            "num_ranks": session.num_ranks,
            "device": device_name(session.device),
            "cpu_cores": os.cpu_count(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "packages": {name: version for name in PACKAGES if (version := _version(name))},
            "revision": _revision(),
            "dataset": {"source": job.data.source, "fingerprint": dataset_fingerprint},
        }
    )
    run.provenance.write_text(json.dumps(starts, indent=2) + "\n")


def record_end(run: RunDirectory, position: int, reasons: Sequence[str]) -> None:
    """Add to the newest start that it ended with a checkpoint, and why. One without that was killed. Rank 0 only."""
    starts = read_starts(run)
    # A preemption is noticed by one rank, and tells more than a request that came to another meanwhile.
    reason = min(reasons, key=lambda reason: "preemption" not in reason, default="a pause")
    starts[-1]["stopped"] = {"position": position, "after": reason}
    run.provenance.write_text(json.dumps(starts, indent=2) + "\n")


def device_name(device: torch.device) -> str:
    """The accelerator's product name, or the processor's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({platform.machine()})"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    """The git revision of the source tree, with `+changes` where files differ from it; None outside of git."""
    folder = Path(vaegen_ray.__file__).parent
    try:
        revision = _git(folder, "rev-parse", "HEAD").strip()
        return revision + ("+changes" if _git(folder, "status", "--porcelain", "--", ".").strip() else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True, timeout=20
    ).stdout
