"""`vaegen bench search --quality`: what searches find at an equal budget, ours and others'."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from vaegen_ray.search.quality import CHECKPOINTS, Estimate, History, regrets, volumes

if TYPE_CHECKING:
    from vaegen_ray.bench.run_table import RunTable
    from vaegen_ray.bench.tradeoff import TradeOff
    from vaegen_ray.on_ray.rivals import Rival

Compare = Callable[[Sequence[float], Sequence[float]], str]
"""What a search found on each seed, against the reference on the same seeds, in words."""

AT_ONCE = 8
FULL_TRAININGS = 48
"""The budget of a search for a front."""
FULL_TIMES = 4
"""The budget of a search on LCBench, in the time of the median full training, on each of the workers."""

REFERENCE = "Optuna's TPE, nothing stopped"
BOHB = "Syne Tune: BOHB"


def show_quality(console: Console, seeds: int, lcbench: Path | None) -> None:
    """Print the table of fronts, and that of LCBench where its files are."""
    from vaegen_ray.bench.lcbench import SOURCE, check_folder

    if lcbench is not None:
        check_folder(lcbench)
    from vaegen_ray.bench.run_table import RunTable
    from vaegen_ray.bench.tradeoff import TradeOff

    console.print(_fronts(console, seeds, "surrogate of small VAE-GANs, 6 axes", TradeOff.shipped()))
    console.print(_fronts(console, seeds, "144 runs of the quickstart, 3 axes", RunTable.shipped()))
    if lcbench is None:
        console.print(f"LCBench is left out: give the folder of its surrogate with --lcbench ({SOURCE})")
    else:
        console.print(_lcbench(console, seeds, lcbench))


def _fronts(console: Console, seeds: int, what: str, known: "TradeOff | RunTable") -> Table:
    from vaegen_ray.bench.run_table import rung_s, search_of
    from vaegen_ray.config.search import NoStopping, Sampler
    from vaegen_ray.on_ray.rivals import optunas_tpe, ours, rays, run
    from vaegen_ray.on_ray.simulation import World

    none = NoStopping(kind="none")
    rivals = {
        REFERENCE: optunas_tpe(),
        "vaegen_ray's default: TPE, Pareto stopping": ours(),
        "vaegen_ray's TPE, nothing stopped": ours(none, Sampler()),
        "Ray: OptunaSearch, ASHAScheduler on sample_fid": rays("sample_fid"),
        "Ray: OptunaSearch, ASHAScheduler on reconstruction_psnr": rays("reconstruction_psnr"),
        "random, nothing stopped": ours(none, Sampler(kind="random")),
    }
    box, budget = known.box(), float(FULL_TRAININGS * known.job.base.training.total_images)

    def search(rival: "Rival", seed: int) -> History:
        world = World(partial(known.observed, seed=seed), rung_s=partial(rung_s, seed=seed))
        return run(rival, search_of(known.job, seed), world, max_concurrent=AT_ONCE, budget=budget, in_images=True)

    table = Table(
        "search", *_headings("volume", FULL_TRAININGS), "trials, fully trained", "untrained on the front",
        title=f"{what}: part of the true front's volume after so many full trainings' worth, {AT_ONCE} at once; below "
        f"it the gain on '{REFERENCE}'; {seeds} seeds",
    )  # fmt: skip
    against: list[list[float]] = []
    for name, rival in rivals.items():
        console.print(f"{name} ...")
        histories = [search(rival, seed) for seed in range(seeds)]
        found = [volumes(history, box, known.final) for history in histories]
        against = against or found
        untrained = sum(history.num_untrained_in_answer for history in histories) / seeds
        answers = sum(len(history.answer) for history in histories) / seeds
        table.add_row(
            name,
            *_cells(found, against, _gain),
            _counts(histories),
            f"{untrained:.1f} of {answers:.1f}",
            end_section=True,
        )
    return table


def _lcbench(console: Console, seeds: int, folder: Path) -> Table:
    from vaegen_ray.bench.lcbench import TASKS, LcBench, lcbench_job
    from vaegen_ray.config.search import NoStopping, Sampler
    from vaegen_ray.on_ray.rivals import ours, rays, run, syne_tunes
    from vaegen_ray.on_ray.simulation import World

    tasks, seeds = [LcBench(folder, task) for task in TASKS], max(1, seeds // len(TASKS))
    rivals: Mapping[str, Rival] = {
        BOHB: syne_tunes("BOHB"),
        "Syne Tune: ASHA": syne_tunes("ASHA"),
        "vaegen_ray's default for one objective": ours(),
        "vaegen_ray's TPE, nothing stopped": ours(NoStopping(kind="none"), Sampler()),
        "Ray: OptunaSearch, ASHAScheduler": rays(),
        "random, nothing stopped": ours(NoStopping(kind="none"), Sampler(kind="random")),
    }

    def searches(rival: "Rival") -> Iterator[tuple[LcBench, History]]:
        for task in tasks:
            world = World(task.evaluate, rung_s=task.epoch_s)
            for seed in range(seeds):
                budget = FULL_TIMES * task.median_training_s
                yield task, run(rival, lcbench_job(seed), world, max_concurrent=AT_ONCE, budget=budget, in_images=False)

    table = Table(
        "search", *_headings("regret", FULL_TIMES), "trials, fully trained",
        title=f"LCBench: regret after so many full trainings on each of {AT_ONCE} workers; below it the difference to "
        f"'{BOHB}'; {len(tasks)} tasks, {seeds} seeds each",
    )  # fmt: skip
    against: list[list[float]] = []
    for name, rival in rivals.items():
        console.print(f"{name} ...")
        pairs = list(searches(rival))
        found = [regrets(history, task.best_cost, task.median_cost) for task, history in pairs]
        against = against or found
        table.add_row(name, *_cells(found, against, _difference), _counts([h for _, h in pairs]), end_section=True)
    return table


def _headings(what: str, budget: float) -> list[str]:
    return [f"{what} after {part * budget:g}" for part in CHECKPOINTS]


def _cells(found: list[list[float]], against: list[list[float]], compare: Compare) -> list[str]:
    if found is against:
        return [str(Estimate.of(own)) for own in zip(*found, strict=True)]
    columns = zip(zip(*found, strict=True), zip(*against, strict=True), strict=True)
    return [f"{Estimate.of(own)}\n{compare(own, others)}" for own, others in columns]


def _gain(own: Sequence[float], others: Sequence[float]) -> str:
    # Not the mean of ratios: a seed on which the reference found next to nothing would decide it.
    mean = sum(others) / len(others)
    gains = Estimate.of([(one - other) / mean for one, other in zip(own, others, strict=True)])
    return f"{gains.mean:+.1%} ± {gains.half_width:.1%}"


def _difference(own: Sequence[float], others: Sequence[float]) -> str:
    less = Estimate.of([one - other for one, other in zip(own, others, strict=True)])
    return f"{less.mean:+.3f} ± {less.half_width:.3f}"


def _counts(histories: list[History]) -> str:
    trials = sum(history.num_trials for history in histories) / len(histories)
    full = sum(len(history.fully_trained) for history in histories) / len(histories)
    return f"{trials:.0f}, {full:.0f}"
