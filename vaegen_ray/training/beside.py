"""Evaluation beside training: the run publishes a model, another process measures it, the run takes the scores.

They meet in storage alone. When the next model is due, the run first takes the scores of the one before, and waits
for them where it must: so the scores are never more than one evaluation behind, every model is measured, and all
that is decided by them is decided at the same image in every repetition.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import DivergedError, StorageError, StoreUnavailableError, TrainingError, VaegenError
from vaegen_ray.evaluation.evaluate import evaluate
from vaegen_ray.evaluation.trained_model import DESCRIPTION, load_generator, save_trained_model
from vaegen_ray.models.generator import Generator
from vaegen_ray.storage import Location
from vaegen_ray.training.collectives import from_rank_0
from vaegen_ray.training.grids import save_grids

logger = logging.getLogger(__name__)

RESULT = "result.json"
STATE = "state"
"""`open` and the time, again and again, while somebody measures, `closed` once nobody will; in line where not open."""
OPEN, CLOSED = "open", "closed"
BEAT_S, SILENCE_S = 10.0, 120.0
"""How often the time is written, and after how long without nobody measures any more."""
POLL_S = {True: 0.2, False: 3.0}
"""Where the run's directory is local, and where it is in an object store, which counts requests."""

Result = dict[str, float] | TrainingError
"""Scores, or why there are none."""


class Published:
    """The models of a run that wait for their scores."""

    def __init__(self, job: TrainJob, run: RunDirectory, position: int) -> None:
        """Those up to ``position`` that an earlier start left; later ones belong to a future that was not taken."""
        self._job, self._run = job, run
        self._heard, self._heard_s = "", time.monotonic()
        self.pending: list[int] = from_rank_0(lambda: self._left_until(position))

    def _left_until(self, position: int) -> list[int]:
        left = positions(self._run)
        for at in left:
            if at > position:
                self._run.evaluation(at).remove()
        return [at for at in left if at <= position]

    def publish(self, generator: Generator, position: int) -> None:
        """Let the model at ``position`` be measured."""
        from_rank_0(lambda: save_trained_model(generator, self._job, self._run.evaluation(position), position))
        self.pending.append(position)

    def take(self) -> list[tuple[int, dict[str, float]]]:
        """Position and scores of all pending models, when they are there; the same on all ranks.

        A model is left out, with a warning, where the process that measures is gone for good. Raises
        DivergedError where a score is not finite.
        """
        taken = []
        for position in self.pending:
            result = from_rank_0(partial(self._wait, position))
            if isinstance(result, TrainingError):
                raise result
            if result is not None:
                taken.append((position, result))
        self.pending = []
        return taken

    def forget(self, position: int) -> None:
        """The model at ``position`` is needed no more. Rank 0 only."""
        self._run.evaluation(position).remove()

    def is_open(self) -> bool:
        """Whether somebody measures; the same on all ranks."""
        return from_rank_0(lambda: self._state() == OPEN)

    def _state(self) -> str:
        """`open`; nothing before somebody measures; `closed` also after a silence: a lost node says nothing."""
        file = self._run.evaluations / STATE
        written = file.read_text() if file.exists() else ""
        if written != self._heard:
            self._heard, self._heard_s = written, time.monotonic()
        is_silent = time.monotonic() - self._heard_s > SILENCE_S
        return CLOSED if is_silent else written.partition(" ")[0]

    def _wait(self, position: int) -> Result | None:
        folder = self._run.evaluation(position)
        while True:
            if (folder / RESULT).exists():
                content = json.loads((folder / RESULT).read_text())
                if "error" in content:
                    kind = DivergedError if content["has_diverged"] else TrainingError
                    return kind(content["error"])
                return dict(content["scores"])
            if self._state() == CLOSED:
                logger.warning(
                    "%s: is not evaluated, the evaluator was lost; those that follow are made in line", folder
                )
                return None
            time.sleep(POLL_S[folder.is_local])


def positions(run: RunDirectory) -> list[int]:
    """Of all published models that are whole, in ascending order."""
    names = [name for name in run.evaluations.names() if name.startswith("images-")]
    return sorted(
        int(name.removeprefix("images-")) for name in names if (run.evaluations / name / DESCRIPTION).exists()
    )


def next_to_measure(run: RunDirectory) -> int | None:
    """The newest published model without scores."""
    waiting = [at for at in positions(run) if not (run.evaluation(at) / RESULT).exists()]
    return max(waiting, default=None)


def measure_published(
    job: TrainJob,
    run: RunDirectory,
    held_out: NDArray[np.uint8],
    fingerprint: str,
    device: torch.device,
    is_over: Callable[[], bool],
) -> None:
    """Measure models as they are published, the newest first, until ``is_over``. One process."""
    with _heard(run.evaluations / STATE):
        while not is_over():
            try:
                if _measure_next(job, run, held_out, fingerprint, device):
                    continue
            except StoreUnavailableError as error:
                logger.warning("%s; trying again", error)
            time.sleep(POLL_S[run.root.is_local])


def _measure_next(
    job: TrainJob, run: RunDirectory, held_out: NDArray[np.uint8], fingerprint: str, device: torch.device
) -> bool:
    """Measure the model whose turn it is; False where there is none."""
    position = next_to_measure(run)
    if position is None:
        return False
    folder = run.evaluation(position)
    try:
        generator = load_generator(folder, device)
        scores = evaluate(generator, held_out, job, device=device, fingerprint=fingerprint)
        if (folder / DESCRIPTION).exists():  # Gone, where the run was rolled back meanwhile.
            save_grids(generator, held_out, job, run, position, device, is_last=False)
        result: dict[str, object] = {"scores": scores}
    except StoreUnavailableError:
        raise
    except VaegenError as error:
        # The run raises it.
        result = {"error": str(error), "has_diverged": isinstance(error, DivergedError)}
    if (folder / DESCRIPTION).exists():
        (folder / RESULT).write_text(json.dumps(result) + "\n")
    return True


@contextmanager
def _heard(state: Location) -> Iterator[None]:
    """Let the run hear, from a thread, that somebody measures."""
    is_over = threading.Event()

    def beat() -> None:
        while not is_over.wait(BEAT_S):
            with suppress(StorageError):  # Else the run hears nothing.
                state.write_text(f"{OPEN} {time.time()}")

    state.write_text(f"{OPEN} {time.time()}")
    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def copy_model(source: Location, destination: Location) -> None:
    """Copy a model from folder to folder, its description last, and an earlier one's removed before."""
    (destination / DESCRIPTION).remove()
    for name in sorted(source.names(), key=lambda name: name == DESCRIPTION):
        if name != RESULT:
            (destination / name).write_bytes((source / name).read_bytes())
