"""Checkpoints: written whole, verified when read, and never unpickled.

A checkpoint is a folder with `networks.safetensors`, `optimizers.pt` (read with ``weights_only``) and
`manifest.json`, which is written last: a folder without it is unfinished and is passed over.
"""

import hashlib
import io
import json
import logging
import math

import safetensors.torch
import torch

from vaegen_ray import __version__
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import CheckpointError, StorageError
from vaegen_ray.storage import Location
from vaegen_ray.training.collectives import from_rank_0, num_ranks, together
from vaegen_ray.training.state import TrainState

logger = logging.getLogger(__name__)

SCHEMA = 1
NETWORKS, OPTIMIZERS, MANIFEST = "networks.safetensors", "optimizers.pt", "manifest.json"


def save_checkpoint(state: TrainState, run: RunDirectory, *, keep: int, fence: int = 0, spare_at: int = 0) -> None:
    """Write ``state`` under its position, then delete all but the newest ``keep`` checkpoints. Rank 0 only.

    The newest one up to ``spare_at`` stays besides: the run may be rolled back to it.

    ``fence`` is the number of the lease under which it is written: a checkpoint of a lower one than another's was
    written by a driver that had lost the run, and does not count.

    What lies beyond the position is an unfinished or damaged future that the run did not take; it is deleted too,
    lest it count as the newest.
    """
    folder = run.checkpoint(state.position)
    optimizers = io.BytesIO()
    torch.save(state.optimizers(), optimizers)
    networks = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors().items()}
    contents = {NETWORKS: safetensors.torch.save(networks), OPTIMIZERS: optimizers.getvalue()}
    manifest = {
        "schema": SCHEMA,
        "position": state.position,
        "num_ranks": num_ranks(),
        "fence": fence,
        "version": __version__,
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in contents.items()
        },
    }
    # A manifest of an earlier attempt at this position must not vouch for files that are being replaced.
    (folder / MANIFEST).remove()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    kept = 0
    has_spared = False
    for position in reversed(run.checkpoint_positions()):
        written_under = _fence(run.checkpoint(position) / MANIFEST)
        if written_under is not None and fence < written_under < math.inf:
            continue  # Of a driver that has taken over.
        is_of_the_run = position <= state.position and written_under is not None
        is_spared = not has_spared and 0 < position <= spare_at
        if is_of_the_run and (kept < keep or is_spared):
            kept += 1
            has_spared = has_spared or is_spared
        else:
            run.checkpoint(position).remove()


def restore_newest(state: TrainState, run: RunDirectory) -> None:
    """Continue from the newest checkpoint that is whole; nothing happens where there is none.

    A damaged one is reported and the one before is taken. Raises CheckpointError when there are finished
    checkpoints and all are damaged: starting again from nothing would hide a loss.
    """
    contents: dict[str, bytes] = {}

    def choose() -> int | None:
        position, files = _newest_whole(run)
        contents.update(files)  # Read once on rank 0.
        return position

    chosen = from_rank_0(choose)
    if chosen is None:
        return
    newest = run.checkpoint(chosen)
    contents = together(lambda: contents or read_checkpoint(newest))
    state.load_tensors(safetensors.torch.load(contents[NETWORKS]))
    # On the CPU first: load_state_dict then moves each moment beside its parameter.
    state.load_optimizers(torch.load(io.BytesIO(contents[OPTIMIZERS]), map_location="cpu", weights_only=True))
    state.position = chosen


def finished_positions(run: RunDirectory) -> list[int]:
    """Positions of the finished checkpoints, the one to go on from first.

    That is the last one of the newest lease. A damaged manifest, which does not tell its lease, counts as the newest,
    so that it is met and told.
    """
    fences = {position: _fence(run.checkpoint(position) / MANIFEST) for position in run.checkpoint_positions()}
    finished = [(fence, position) for position, fence in fences.items() if fence is not None]
    return [position for _, position in sorted(finished, reverse=True)]


def highest_fence(run: RunDirectory) -> int:
    """Of the finished checkpoints; 0 where there is none."""
    fences = (_fence(run.checkpoint(position) / MANIFEST) for position in run.checkpoint_positions())
    return int(max((fence for fence in fences if fence is not None and fence != math.inf), default=0))


def _fence(manifest: Location) -> float | None:
    """The number of the lease; infinity where the manifest is damaged, None where there is none."""
    try:
        return float(json.loads(manifest.read_text()).get("fence", 0))
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    except (ValueError, AttributeError, TypeError):
        return math.inf


def read_checkpoint(folder: Location) -> dict[str, bytes]:
    """The verified files of the checkpoint in ``folder``; CheckpointError names the file that is damaged."""
    contents = {}
    for name, (size, checksum) in _files(folder).items():
        try:
            content = (folder / name).read_bytes()
        except StorageError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                # The store is away, which says nothing of the checkpoint.
                raise
            raise CheckpointError(f"{folder}/{name}: is missing ({error})") from error
        if len(content) != size or hashlib.sha256(content).hexdigest() != checksum:
            raise CheckpointError(
                f"{folder}/{name}: is damaged: its sha256 must be {checksum[:12]}..., as its manifest says"
            )
        contents[name] = content
    return contents


def _files(folder: Location) -> dict[str, tuple[int, str]]:
    """Name to (bytes, sha256), from the manifest."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["schema"] != SCHEMA:
            raise CheckpointError(
                f"{folder}: schema must be {SCHEMA} for this version, got {manifest['schema']}; "
                f"it was written by vaegen_ray {manifest.get('version')}, use that version"
            )
        files = {str(name): (int(facts["bytes"]), str(facts["sha256"])) for name, facts in manifest["files"].items()}
        if not files.keys() >= {NETWORKS, OPTIMIZERS}:
            raise ValueError(f"it must list {NETWORKS} and {OPTIMIZERS}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}/{MANIFEST}: is damaged ({error!r})") from error
    return files


def _newest_whole(run: RunDirectory) -> tuple[int | None, dict[str, bytes]]:
    """Position and files of the newest whole checkpoint; CheckpointError where there should be one and is none."""
    damaged = []
    finished = finished_positions(run)
    for position in set(run.checkpoint_positions()) - set(finished):
        logger.warning("%s: passed over, it was not finished", run.checkpoint(position))
    for position in finished:
        folder = run.checkpoint(position)
        try:
            return position, read_checkpoint(folder)
        except CheckpointError as error:
            logger.warning("%s; falling back to the checkpoint before", error)
            damaged.append(str(error))
    if damaged:
        listed = "; ".join(damaged)
        raise CheckpointError(
            f"{run.root}: every checkpoint is damaged ({listed}); restore one, or remove the run's directory"
        )
    return None, {}
