"""`vaegen export`: a finished run as another library stores its models."""

from enum import Enum
from typing import Annotated

import typer
from rich.console import Console

from vaegen_ray.cli.evaluate import Run
from vaegen_ray.config.model import KlAutoencoderModel
from vaegen_ray.config.run_directory import RunDirectory
from vaegen_ray.errors import JobError
from vaegen_ray.storage import Location


class Format(Enum):
    """What an export can be."""

    DIFFUSERS = "diffusers"


def export(
    run: Run,
    destination: Annotated[str, typer.Argument(help="Folder to write, local or s3://.")],
    to: Annotated[Format, typer.Option(help="`diffusers`: a folder that AutoencoderKL.from_pretrained loads.")],  # noqa: ARG001 (there is one so far)
) -> None:
    """Write the averaged weights of a KL autoencoder, and the statistics of its latents, for the library diffusers."""
    from vaegen_ray.evaluation.diffusers_config import kept_config
    from vaegen_ray.evaluation.diffusers_format import WEIGHTS, save_as_diffusers
    from vaegen_ray.evaluation.trained_model import load_latent_statistics, load_trained_model

    directory, folder = RunDirectory(Location.of(run)), Location.of(destination)
    generator, job = load_trained_model(directory, "cpu")
    if not isinstance(job.model, KlAutoencoderModel):
        raise JobError(
            f"RUN: must be the run of a model.kind 'kl_autoencoder' for --to diffusers, got '{job.model.kind}'; "
            f"{directory.final} holds its weights in safetensors"
        )
    names = [name for name in folder.names() if name.endswith((".json", ".safetensors"))]
    # The config is written last: without it the weights are what an export that was killed has left.
    if names and names != [WEIGHTS]:
        raise JobError(f"DESTINATION: must be a folder without a model, {folder} holds {names[0]}; give another")
    published = kept_config(job.model, directory)
    save_as_diffusers(generator, job.model, load_latent_statistics(directory), folder, published)
    Console(markup=False).print(f"AutoencoderKL: {folder}", soft_wrap=True)
