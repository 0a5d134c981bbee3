"""`vaegen evaluate`: the scores of a finished run against real images."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.metrics import evaluated_metrics
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.config.sentences import must_be
from vaegen_ray.errors import JobError
from vaegen_ray.storage import Location

if TYPE_CHECKING:
    import torch

    from vaegen_ray.evaluation.scores import Compared

Run = Annotated[str, typer.Argument(help="Directory of a finished run: a local path or s3://bucket/prefix/name.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; by default the GPU where there is one.")]


def evaluate(
    run: Run,
    metrics: Annotated[
        str,
        typer.Option(help="`all`, `training` (those of the training), or names with commas between, such as fid,kid."),
    ] = "training",
    samples: Annotated[
        int | None, typer.Option(min=2, help="Images generated, and real ones compared, at most; by default the job's.")
    ] = None,
    against: Annotated[
        str, typer.Option(help="The real images: `held_out`, or `train` as many papers do.")
    ] = "held_out",
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the work, on Ray where several.")] = 1,
    device: Device = None,
) -> None:
    """Compare a trained model with real images, and write the scores into the run's final/scores.json.

    With other images than its training's, into a file beside it.
    """
    from vaegen_ray.evaluation.finished_run import Request, scores_file

    if against not in ("held_out", "train"):
        raise JobError(f"--against: must be held_out or train, got {against!r}")
    directory = RunDirectory(Location.of(run))
    request = Request(_groups(metrics, directory), samples, "train" if against == "train" else "held_out")
    if workers > 1:
        from vaegen_ray.on_ray.evaluate import evaluate_on_ray

        job, scores, compared = evaluate_on_ray(directory, request, workers)
    else:
        from vaegen_ray.evaluation.finished_run import evaluate_run

        job, scores, compared = evaluate_run(directory, request, device_named(device))
    console = Console(markup=False)
    console.print(scores_table(scores, job.name))
    for sentence, names in _conditions(scores, job, compared).items():
        console.print(f"{', '.join(names)}: {sentence}", soft_wrap=True, highlight=False)
    if "memorisation" in request.groups:
        console.print(
            f"nearest training images: {directory.samples / 'final-nearest-training-images.png'}", soft_wrap=True
        )
    if "traversals" in request.groups:
        console.print(f"traversals: {directory.samples / 'final-traversals.png'}", soft_wrap=True)
    console.print(f"scores: {scores_file(directory, compared)}", soft_wrap=True)


def _groups(metrics: str, run: RunDirectory) -> tuple[str, ...]:
    """Those that are asked for; JobError where one is named that the run cannot give."""
    from vaegen_ray.evaluation.finished_run import SEPARATE
    from vaegen_ray.evaluation.scores import GROUPS

    if metrics == "all":
        return tuple(GROUPS)
    if metrics == "training":
        return tuple(group for group in GROUPS if group not in SEPARATE)
    names = [name.strip() for name in metrics.split(",")]
    for name in names:
        if name not in GROUPS:
            raise JobError(f"--metrics: {must_be(['all', 'training', *GROUPS], name)}")
    job = run.load_job()
    for name in names:
        if lacks := _lacks(job, GROUPS[name]):
            raise JobError(f"--metrics: '{name}' needs {lacks}; ask for others")
    return tuple(names)


def _lacks(job: TrainJob, names: tuple[str, ...]) -> str:
    """Why a run of ``job`` has none of the scores ``names``; nothing where it has some."""
    given = (*evaluated_metrics(job), "memorised_fraction")
    if not names or set(names) & set(given):
        return ""
    if job.objective.kind == "gan" and not any(name.startswith("sample_") for name in names):
        return "an encoder, which the gan of this run has not"
    return "evaluation.features, which the job of this run does not name"


def _conditions(scores: dict[str, float], job: TrainJob, compared: "Compared") -> dict[str, list[str]]:
    """What was measured on what, scores of the same kind together."""
    sentences: dict[str, list[str]] = {}
    for name in scores:
        sentences.setdefault(compared.condition(name, job), []).append(name)
    return sentences


def scores_table(scores: dict[str, float], title: str) -> Table:
    """One line a score, with its unit and which way is better."""
    from vaegen_ray.evaluation.scores import UNITS

    table = Table("score", "value", "unit", "better", title=title)
    for name, value in scores.items():
        unit, better = UNITS.get(name, ("", ""))
        table.add_row(name, f"{value:.5g}", unit, better)
    return table


def device_named(name: str | None) -> "torch.device":
    """The device that the user asks for; JobError where this machine has none such."""
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise JobError(f"--device: must be cpu, cuda or cuda:N of this machine, got {name!r}: {error}") from error
    return device
