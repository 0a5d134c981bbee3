"""`vaegen evaluate`: the scores of a finished run against held-out images."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import JobError
from vaegen_ray.storage import Location

if TYPE_CHECKING:
    import torch

Run = Annotated[str, typer.Argument(help="Directory of a finished run: a local path or s3://bucket/prefix/name.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; by default the GPU where there is one.")]


def evaluate(run: Run, device: Device = None) -> None:
    """Compare a trained model with held-out images, and write the scores into the run's final/scores.json."""
    from vaegen_ray.data.cache import NodeCache
    from vaegen_ray.data.plain_parquet import open_dataset
    from vaegen_ray.evaluation.evaluate import evaluate as evaluate_model
    from vaegen_ray.evaluation.scores import save_scores
    from vaegen_ray.evaluation.trained_model import load_trained_model

    directory = RunDirectory(Location.of(run))
    chosen = device_named(device)
    generator, job = load_trained_model(directory, chosen)
    held_out = open_dataset(job.data, job.model).decoded("held_out", NodeCache.of(job.data), job.evaluation.images)
    scores = evaluate_model(generator, held_out, job, device=chosen)
    save_scores(scores, job, len(held_out), directory)
    console = Console(markup=False)
    console.print(scores_table(scores, f"{job.name}: {min(len(held_out), job.evaluation.images)} held-out images"))
    console.print(f"scores: {directory.scores}", soft_wrap=True)


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
