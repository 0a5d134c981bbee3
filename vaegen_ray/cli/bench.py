"""`vaegen bench`: speed as ratios, measured side by side in one process."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from vaegen_ray.cli.train import JobFile, Overrides
from vaegen_ray.config.loading import load_train_job

if TYPE_CHECKING:
    from vaegen_ray.bench.input import InputTimes, LoaderTimes
    from vaegen_ray.bench.peer import Peer

LEAST_WIDTH = 120
"""Of a table with many columns, where the output is no terminal."""

app = typer.Typer(no_args_is_help=True, help="Measure speed, side by side, as ratios.")


@app.command()
def step(
    job_file: JobFile,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each formulation.")] = 20,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default the GPU where there is one.")] = None,
) -> None:
    """Time the training step of a vae_gan against latent diffusion's formulation of the same step."""
    job = load_train_job(job_file, overrides or [])
    from vaegen_ray.bench.step import measure_step
    from vaegen_ray.cli.evaluate import device_named
    from vaegen_ray.training.provenance import device_name

    chosen = device_named(device)
    times = measure_step(job, device=chosen, steps=steps)
    images = times.images
    console = Console(soft_wrap=True, highlight=False, markup=False)
    title = f"{job.name}: {images} images a step, {device_name(chosen)}, median of {steps} steps"
    table = Table("formulation", "images/s", "time of ours", title=title)
    for name, seconds in (
        ("one shared forward, weight from the gradients at the images", times.ours_s),
        ("second forward for the discriminator, weight by autograd", times.reference_s),
        ("the same as published: eager, in PyTorch's default arithmetic", times.published_s),
    ):
        if seconds is not None:
            table.add_row(name, f"{images / seconds:,.1f}", f"{seconds / times.ours_s:.2f}")
    console.print(table)
    parts = Table("part of a step", "ms", "share")
    for name, seconds in times.parts_s.items():
        parts.add_row(name, f"{1000 * seconds:.2f}", f"{seconds / times.ours_s:.0%}")
    console.print(parts)


@app.command("input")
def input_(
    job_file: JobFile,
    overrides: Overrides = None,
    source: Annotated[str | None, typer.Option(help="Short for --set data.source=...")] = None,
    peers: Annotated[bool, typer.Option("--peers", help="Other loaders too, on the same images.")] = False,  # noqa: FBT002
    python: Annotated[
        str, typer.Option(help="Interpreter of the environment with mosaicml-streaming, webdataset and litdata.")
    ] = sys.executable,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each kind, in turn.")] = 5,
    steps: Annotated[
        int, typer.Option(min=1, help="Training steps of each measurement; few would use only what is read ahead.")
    ] = 50,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default the GPU where there is one.")] = None,
) -> None:
    """Time the input of a job alone, training with it, and training on images that are in memory already.

    With --peers the images are converted to the format of each loader first, beside a dataset in an object
    store, from where they are removed in the end.
    """
    job = load_train_job(job_file, [*(overrides or []), *([f"data.source={source}"] if source else [])])
    from vaegen_ray.bench.input import measure_input
    from vaegen_ray.cli.evaluate import device_named
    from vaegen_ray.training.provenance import device_name

    chosen = device_named(device)
    console = Console(width=max(LEAST_WIDTH, Console().width), highlight=False, markup=False)
    with Console(stderr=True).status("") as status:
        times = measure_input(
            job, _peers(python) if peers else [], device=chosen, rounds=rounds, steps=steps, on_progress=status.update
        )
    size, channels = job.model.image_size, job.model.channels
    title = f"{job.data.source}: {times.num_images:,} images of {size} x {size} x {channels}, {device_name(chosen)}, "
    title += f"{os.cpu_count()} CPU cores, batches of {job.training.images_per_step}, median of {rounds} rounds"
    console.print(_training_table(times, title))
    console.print(_loader_table(times))
    if times.reads is not None:
        read = f"{times.reads.bytes / 1e6:,.1f} MB in {times.reads.requests} requests"
        console.print(f"read from the store in the first epoch: {read}")


@app.command()
def search(
    trials: Annotated[int, typer.Option(min=1, help="Trials of the search.")] = 10_000,
    concurrent: Annotated[int, typer.Option(min=1, help="Trials at once.")] = 1_000,
    quality: Annotated[bool, typer.Option("--quality", help="Compare what searches find instead.")] = False,  # noqa: FBT002
    seeds: Annotated[int, typer.Option(min=2, help="With --quality: searches of each kind.")] = 20,
    lcbench: Annotated[
        Path | None,
        typer.Option(help="With --quality: folder of LCBench's surrogate.", envvar="VAEGEN_LCBENCH"),
    ] = None,
) -> None:
    """Measure what a large search costs the process that drives it: Tune's event loop, in virtual time, no cluster.

    With --quality: what searches find at an equal budget, ours and others', on surrogates of real training runs.
    """
    import tempfile

    if quality:
        from vaegen_ray.cli.bench_quality import show_quality

        show_quality(Console(width=max(LEAST_WIDTH, Console().width), highlight=False, markup=False), seeds, lcbench)
        return

    from vaegen_ray.on_ray.scale import Part, measure_search

    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{trials:,} trials, {concurrent:,} at once; default sampler and scheduler, 6 axes, 2 objectives")

    def show(part: Part) -> None:
        console.print(
            f"{part.trials:>7,} trials  {part.events_per_cpu_s:>6,.0f} events a CPU-second  {part.cpu_s:>5.0f} CPU-s  "
            f"{part.memory_bytes / 2**20:,.0f} MiB"
        )

    with tempfile.TemporaryDirectory(prefix="vaegen-search-") as directory:
        scale = measure_search(trials, concurrent, Path(directory), show)
    table = Table("of the whole search", "")
    table.add_row("CPU-seconds", f"{scale.cpu_s:,.0f}")
    table.add_row("events", f"{scale.num_events:,}")
    table.add_row("events a CPU-second", f"{scale.num_events / scale.cpu_s:,.0f}")
    table.add_row("most trials at once", f"{scale.most_at_once:,}")
    table.add_row("trained to the end, stopped early", f"{scale.num_complete:,}, {scale.num_stopped:,}")
    table.add_row("CPU-seconds to go on after a kill", f"{scale.restore_cpu_s:.1f}")
    console.print(table)


def _peers(python: str) -> "list[Peer]":
    from vaegen_ray import on_ray
    from vaegen_ray.bench.peer import Peer, library_peers

    ray_data = Path(on_ray.__path__[0]) / "input_peer.py"
    return [*library_peers(python), Peer("Ray Data streaming, raw pixels", sys.executable, ray_data)]


def _training_table(times: "InputTimes", title: str) -> Table:
    table = Table("what runs", "images/s", "ratio", title=title)
    table.add_row("training on images in memory", f"{times.memory_images_per_s:,.1f}", "1.00")
    table.add_row("training with the input", f"{times.training_images_per_s:,.1f}", f"{times.ratio:.3f}")
    alone = times.ours.images_per_s
    table.add_row("the input alone", f"{alone:,.0f}", f"{alone / times.memory_images_per_s:,.0f}")
    return table


def _loader_table(times: "InputTimes") -> Table:
    table = Table("loader alone", title="cold: the first epoch, with an empty cache; warm: later ones")
    for heading in ("cold, images/s", "ours is", "warm, images/s", "ours is", "first batch, cold, s", "warm, s"):
        table.add_column(heading, justify="right")
    for name, loader in {"vaegen_ray": times.ours, **times.peers}.items():
        table.add_row(name, *([loader] if isinstance(loader, str) else _loader_row(times.ours, loader)))
    return table


def _loader_row(ours: "LoaderTimes", loader: "LoaderTimes") -> list[str]:
    return [
        f"{loader.cold_images_per_s:,.0f}",
        f"{ours.cold_images_per_s / loader.cold_images_per_s:.3g} x",
        f"{loader.images_per_s:,.0f}",
        f"{ours.images_per_s / loader.images_per_s:.3g} x",
        f"{loader.cold_first_batch_s:.3f}",
        f"{loader.first_batch_s:.3f}",
    ]
