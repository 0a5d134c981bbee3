"""Search jobs and made-up trials for tests of the search's brain; no cluster, no training."""

import math
from pathlib import Path
from typing import Any

from vaegen_ray.config.loading import load_train_job
from vaegen_ray.config.search import SearchJob, Settings
from vaegen_ray.on_ray.searcher import OptunaSearcher
from vaegen_ray.on_ray.simulation import Events, World, simulate
from vaegen_ray.on_ray.study import SearchStudy, open_study, reconcile
from vaegen_ray.on_ray.trial_scheduler import LogScheduler, Starts
from vaegen_ray.search.directory import SearchDirectory
from vaegen_ray.search.log import TrialLog

KL, SHARE, BALANCE, BATCH = (
    "objective.kl.weight",
    "objective.adversarial.balance.share",
    "objective.adversarial.balance.kind",
    "training.images_per_step",
)
TOTAL, EVERY = 8000, 1000

SPACE: dict[str, Any] = {
    KL: {"kind": "log_uniform", "low": 0.05, "high": 10.0},
    SHARE: {"kind": "uniform", "low": 0.05, "high": 0.9},
    BATCH: {"kind": "integer", "low": 8, "high": 64, "log": True},
}
FRONT = (
    {"metric": "reconstruction_psnr", "goal": "maximize"},
    {"metric": "sample_fid", "goal": "minimize"},
)
ONE = ({"metric": "sample_fid", "goal": "minimize"},)


def search_job(storage: Path | str, *sets: str, **sections: Any) -> SearchJob:
    base = load_train_job(
        Path("jobs/train/vae_gan_quickstart.yaml"),
        [f"training.total_images={TOTAL}", f"evaluation.every_images={EVERY}", *sets],
    )
    sections = {
        "kind": "search", "name": "search", "base": base.model_dump(), "storage": str(storage), "space": SPACE,
        "objectives": FRONT, "points": (), "trials": 10, **sections,
    }  # fmt: skip
    return SearchJob.model_validate(sections)


def evaluate(settings: Settings, position: int) -> dict[str, float]:
    """Better with time; the share trades reconstruction for sample quality."""
    kl, share, progress = math.log(float(settings.get(KL, 1.0))), float(settings.get(SHARE, 0.4)), position / TOTAL
    return {
        "reconstruction_psnr": 15 + 8 * progress - 4 * share - 0.3 * kl**2,
        "sample_fid": 60 / (0.3 + progress) * (1.2 - share) + 3 * kl**2,
        "kl_nats": 20 / (1 + math.exp(kl)),
        "active_units": 8.0,
    }


class Driver:
    """The parts that a search's process holds, on the directory of ``job``."""

    def __init__(self, job: SearchJob, *, max_concurrent: int = 4, **searcher: Any) -> None:
        self.job, self.max_concurrent = job, max_concurrent
        self.directory = SearchDirectory.of(job)
        self.log = TrialLog(self.directory)
        self.study = open_study(job, self.directory)
        reconcile(self.log, self.study)
        searcher = {"points": [], "problem": lambda _: None, **searcher}
        self.searcher = OptunaSearcher(job, self.log, self.study, max_concurrent=max_concurrent, **searcher)

    def simulate(self, world: World | None = None, **options: Any) -> Events:
        return simulate(
            self.job,
            self.searcher,
            LogScheduler(self.job, self.log),
            world or World(evaluate),
            Path(self.job.storage) / "tune",
            max_concurrent=self.max_concurrent,
            callbacks=[Starts(self.log)],
            **options,
        )

    def close(self) -> None:
        self.searcher.close()
        self.study.close()
        self.log.close()


def run(job: SearchJob, world: World | None = None, **options: Any) -> Driver:
    """A whole search."""
    driver = Driver(job, **options)
    driver.simulate(world)
    driver.close()
    return driver


def say(study: SearchStudy) -> list[tuple[Any, ...]]:
    """What a study says of each trial."""
    return [
        (
            trial.number - study.num_earlier,
            trial.state.name,
            trial.values,
            dict(trial.params),
            trial.user_attrs,
            trial.constraints,
            trial.intermediate_values,
        )
        for trial in study.trials()
    ]
