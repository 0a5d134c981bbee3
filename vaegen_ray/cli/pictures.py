"""`vaegen sample`, `vaegen reconstruct` and `vaegen interpolate`: PNG grids of what a finished run makes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from vaegen_ray.cli.evaluate import Device, Run, device_named
from vaegen_ray.config.base import LARGEST_SEED
from vaegen_ray.config.job import TrainJob
from vaegen_ray.config.model import KlAutoencoderModel
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import JobError
from vaegen_ray.storage import Location

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from vaegen_ray.models.generator import Generator

HELD_OUT = "held_out"
NUM_HELD_OUT = 32

Output = Annotated[str | None, typer.Option(help="PNG file, local or s3://; by default in the run's samples/ folder.")]


def sample(
    run: Run,
    count: Annotated[int, typer.Option(min=1, help="Number of images.")] = 64,
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="Of the latents: the same seed, the same images.")
    ] = 0,
    output: Output = None,
    device: Device = None,
) -> None:
    """Draw images from the prior of a trained model."""
    from vaegen_ray.evaluation.pictures import sample_grid

    directory, generator, _ = _opened(run, device)
    grid = sample_grid(generator, count, seed, device_named(device))
    _save(grid, output, directory.samples / f"final-sample-{count}-seed-{seed}.png")


def reconstruct(
    run: Run,
    images: Annotated[list[str], typer.Argument(help="Image files of any size, or `held_out` for 32 held-out images.")],
    full_size: Annotated[  # noqa: FBT002
        bool, typer.Option("--full-size", help="Keep the size of each file, in tiles; of a KL autoencoder.")
    ] = False,
    output: Output = None,
    device: Device = None,
) -> None:
    """Show images above their reconstructions by a trained model; with --full-size, beside them."""
    from vaegen_ray.evaluation.pictures import full_size_reconstructions, reconstruction_grid

    directory, generator, job = _opened(run, device)
    if full_size:
        picture = full_size_reconstructions(generator, _images_of_own_size(images, job))
        _save(picture, output, directory.samples / "final-reconstruct-full-size.png")
        return
    _save(reconstruction_grid(generator, _images(images, job)), output, directory.samples / "final-reconstruct.png")


def interpolate(
    run: Run,
    a: Annotated[str, typer.Argument(help="An image file, or a number: the seed of a prior sample.")],
    b: Annotated[str, typer.Argument(help="As A.")],
    steps: Annotated[int, typer.Option(min=2, help="Number of images, both ends included.")] = 9,
    output: Output = None,
    device: Device = None,
) -> None:
    """Walk from one image or sample to another through the latent space of a trained model."""
    from vaegen_ray.evaluation.pictures import interpolation_grid

    directory, generator, job = _opened(run, device)
    ends = [_latent(end, generator, job) for end in (a, b)]
    name = "-to-".join(re.sub(r"[^\w.-]", "_", Path(end).stem) for end in (a, b))
    grid = interpolation_grid(generator, ends[0], ends[1], steps)
    _save(grid, output, directory.samples / f"final-interpolate-{name}.png")


def _opened(run: str, device: str | None) -> "tuple[RunDirectory, Generator, TrainJob]":
    from vaegen_ray.evaluation.trained_model import load_trained_model

    directory = RunDirectory(Location.of(run))
    generator, job = load_trained_model(directory, device_named(device))
    return directory, generator, job


def _images(names: list[str], job: TrainJob) -> "Tensor":
    import torch

    from vaegen_ray.data.cache import NodeCache
    from vaegen_ray.data.plain_parquet import open_dataset
    from vaegen_ray.evaluation.image_files import read_images
    from vaegen_ray.evaluation.inference import images_of_bytes

    if names == [HELD_OUT]:
        held_out = open_dataset(job.data, job.model).decoded("held_out", NodeCache.of(job.data), NUM_HELD_OUT)
        return images_of_bytes(held_out, torch.device("cpu"))
    if HELD_OUT in names:
        raise JobError(f"IMAGES: must be image files, or `{HELD_OUT}` alone, got both; write ./{HELD_OUT} for a file")
    return read_images(names, job.model)


def _images_of_own_size(names: list[str], job: TrainJob) -> "Iterator[Tensor]":
    from vaegen_ray.evaluation.image_files import read_image_of_own_size

    if not isinstance(job.model, KlAutoencoderModel):
        raise JobError(
            f"--full-size: must be for the run of a model.kind 'kl_autoencoder', got '{job.model.kind}', whose images "
            "have one size; leave it out"
        )
    if HELD_OUT in names:
        raise JobError(
            f"IMAGES: must be image files with --full-size, got `{HELD_OUT}`, which have one size; leave it out"
        )
    model = job.model
    return (read_image_of_own_size(name, model) for name in names)


def _latent(end: str, generator: "Generator", job: TrainJob) -> "Tensor":
    from vaegen_ray.evaluation.image_files import read_images
    from vaegen_ray.evaluation.inference import posterior_means, prior_latents

    if end.isascii() and end.isdigit():
        if int(end) > LARGEST_SEED:
            raise JobError(f"A, B: a seed must be at most {LARGEST_SEED}, got {end}; write ./{end} for a file")
        return prior_latents(1, generator.latent_shape, int(end))[0]
    return posterior_means(generator, read_images([end], job.model))[0]


def _save(picture: "Image", output: str | None, default: Location) -> None:
    from vaegen_ray.evaluation.pictures import save_picture

    destination = Location.of(output) if output is not None else default
    save_picture(picture, destination)
    Console(markup=False).print(f"picture: {destination}", soft_wrap=True)
