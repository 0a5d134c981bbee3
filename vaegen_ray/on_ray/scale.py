"""What a search of many trials costs the process that drives it, in virtual time."""

import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vaegen_ray.config.search import SearchJob, Settings
from vaegen_ray.on_ray.searcher import OptunaSearcher
from vaegen_ray.on_ray.simulation import Events, World, simulate
from vaegen_ray.on_ray.study import open_study, reconcile
from vaegen_ray.on_ray.trial_scheduler import LogScheduler, Starts
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.log import TrialLog

TOTAL_IMAGES, EVERY_IMAGES = 8_000, 1_000
KL, SHARE, RATE = "objective.kl.weight", "objective.adversarial.balance.share", "optimizer.generator.learning_rate"


@dataclass(frozen=True)
class Part:
    """A thousand trials of the search."""

    trials: int
    """Chosen so far."""
    events_per_cpu_s: float
    """Of this part: reports, starts and ends of trials for each second of processor time, all threads together."""
    cpu_s: float
    """So far."""
    memory_bytes: int
    """The most that the process held so far."""


@dataclass(frozen=True)
class Scale:
    """What a whole search took."""

    num_events: int
    most_at_once: int
    cpu_s: float
    restore_cpu_s: float
    """To read the log, open the study, compare both and rebuild the rungs, as after a kill."""
    num_complete: int
    num_stopped: int


FEWEST_EVENTS = 1000
"""Of which a rate is told."""


def measure_search(trials: int, concurrent: int, directory: Path, on_part: Callable[[Part], None]) -> Scale:
    """Search for a front of two objectives over six axes, with the default sampler and scheduler."""
    job = _job(trials, directory)
    log = TrialLog(SearchDirectory.of(job))
    study = open_study(job, SearchDirectory.of(job))
    searcher = OptunaSearcher(job, log, study, max_concurrent=concurrent, points=[], problem=lambda _: None)
    began = time.process_time()
    parts, since = 0, (0, began)

    def after_event(events: Events) -> None:
        nonlocal parts, since
        # The first trials begin all at once, before anything has happened.
        if len(log.trials) < 1000 * (parts + 1) or events.num_events - since[0] < FEWEST_EVENTS:
            return
        parts, now = len(log.trials) // 1000, time.process_time()
        memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        on_part(Part(len(log.trials), (events.num_events - since[0]) / (now - since[1]), now - began, memory_bytes))
        since = (events.num_events, now)

    events = simulate(
        job,
        searcher,
        LogScheduler(job, log),
        World(_evaluate, rung_s=lambda settings: 40.0 + float(settings["model.latent_dim"])),
        directory / "tune",
        max_concurrent=concurrent,
        callbacks=[Starts(log)],
        after_event=after_event,
    )
    cpu_s = time.process_time() - began
    searcher.close()
    study.close()
    log.close()
    restore_cpu_s = _restore_cpu_s(job)
    states = {state.value: len(numbers) for state, numbers in log.trials.by_state.items()}
    return Scale(events.num_events, events.most_at_once, cpu_s, restore_cpu_s, states["complete"], states["stopped"])


def _restore_cpu_s(job: SearchJob) -> float:
    began, directory = time.process_time(), SearchDirectory.of(job)
    log = TrialLog(directory)
    study = open_study(job, directory)
    reconcile(log, study)
    LogScheduler(job, log)
    study.close()
    log.close()
    return time.process_time() - began


def _evaluate(settings: Settings, position: int) -> dict[str, float]:
    """Better with time; the share trades reconstruction for sample quality."""
    kl, share, progress = math.log(float(settings[KL])), float(settings[SHARE]), position / TOTAL_IMAGES
    off = abs(math.log10(float(settings[RATE])) + 3.5)
    return {
        "reconstruction_psnr": 15 + 8 * progress - 4 * share - 0.3 * kl**2 - 2 * off,
        "sample_fid": 60 / (0.3 + progress) * (1.2 - share) + 3 * kl**2 + 10 * off,
        "kl_nats": 20 / (1 + math.exp(kl)),
        "active_units": 8.0,
    }


def _job(trials: int, storage: Path) -> SearchJob:
    base = {
        "kind": "train",
        "name": "simulated",
        "data": {"source": "shipped:fashion_mnist"},
        "model": {"kind": "convolutional", "image_size": 32, "channels": 1, "latent_dim": 32},
        "objective": {
            "kind": "vae_gan",
            "adversarial": {"balance": {"kind": "gradient_share", "share": 0.4}, "start_images": EVERY_IMAGES},
        },
        "training": {"total_images": TOTAL_IMAGES, "images_per_step": 8},
        "evaluation": {"every_images": EVERY_IMAGES, "features": {"network": "fashion_mnist_cnn"}},
    }
    space = {
        KL: {"kind": "log_uniform", "low": 0.05, "high": 10.0},
        SHARE: {"kind": "uniform", "low": 0.05, "high": 0.9},
        RATE: {"kind": "log_uniform", "low": 1e-5, "high": 1e-2},
        "objective.adversarial.ramp_images": {"kind": "integer", "low": 0, "high": 2_000},
        "model.latent_dim": {"kind": "integer", "low": 4, "high": 64, "log": True},
        "objective.adversarial.loss": {"kind": "choice", "values": ("hinge", "non_saturating", "relativistic")},
    }
    objectives = ({"metric": "reconstruction_psnr", "goal": "maximize"}, {"metric": "sample_fid", "goal": "minimize"})
    sections = {"space": space, "objectives": objectives, "constraints": ("kl_nats >= 1",), "points": ()}
    return SearchJob.model_validate(
        {"kind": "search", "name": "scale", "base": base, "storage": str(storage), "trials": trials, **sections}
    )
